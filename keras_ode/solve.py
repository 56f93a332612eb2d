"""`solve` and `odeint`: check what is asked, pick the adjoint, return the `Solution`."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import tensorflow as tf
from numpy.typing import ArrayLike

from keras_ode import arguments, dynamics, mass_matrices, tree
from keras_ode.adjoints import Adjoint
from keras_ode.adjoints.problem import Problem
from keras_ode.complex_states import leaves_of_nest, packed_as
from keras_ode.controllers import Controller
from keras_ode.dense import DenseOutput
from keras_ode.diagnosis import raise_on_failure
from keras_ode.errors import Status
from keras_ode.events import Event, SteadyState, close_events, ends_the_solve
from keras_ode.execution import Segments, run_watched
from keras_ode.exports import standard_where_exported
from keras_ode.micro_batches import InMicroBatches, axes_of_rows, checked_rows
from keras_ode.names import explains_keywords, refuse_unknown
from keras_ode.norms import checked_norm
from keras_ode.on_step import StepInfo
from keras_ode.regularizers import StepSums, check_supported
from keras_ode.signature import refuse_symbolic
from keras_ode.solution import Solution
from keras_ode.solvers import Solver
from keras_ode.step_sizes import check_resolved, check_rows, checked_grid
from keras_ode.steps import at_steps
from keras_ode.typing import Dynamics, Number, Tensors, TensorsLike, Times, do_not_convert


@do_not_convert
@explains_keywords
def solve(
    dynamics: Dynamics,
    y0: TensorsLike,
    t: Times,
    *,
    args: Sequence[TensorsLike] = (),
    solver: str | Solver = "tsit5",
    rtol: Number = 1e-3,
    atol: Number = 1e-6,
    adjoint: str | Adjoint | None = None,
    controller: str | Controller | None = None,
    step_size: Number | Sequence[Number] | None = None,
    max_steps: int = 4096,
    max_step: float | None = None,
    min_step: float | None = None,
    norm: Literal["rms", "max"] | Callable[..., Tensors] = "rms",
    per_sample: bool = False,
    event: Event | SteadyState | Sequence[Event] | None = None,
    jump_times: Times | None = None,
    dense: bool = False,
    on_failure: Literal["auto", "raise", "nan"] = "auto",
    jit_compile: bool | Literal["auto"] = "auto",
    on_step: Callable[[StepInfo], object] | None = None,
    progress: bool = False,
    save: Literal["times", "steps"] = "times",
    jacobian: Callable[..., Tensors] | None = None,
    mass_matrix: ArrayLike | None = None,
    batch_size: int | None = None,
) -> Solution:
    """Solves `dy/dt = f(t, y)` from `y0` at `t[0]`, and returns the states at all times `t`.

    The solution is differentiable with respect to `y0`, `t`, `args`, and all variables and tensors that the dynamics reads;
    to a `tf.Variable` with `trainable=False` only if a tape already watches it.

    Args:
        dynamics: A Keras layer, a model or a function, `f(y)` or `f(t, y)`; the signature tells which. The `args` follow after the
            state. `t` is a scalar of the state's dtype, or `[B, 1, ..., 1]` with `per_sample=True`, which broadcasts against the
            (first tensor of the) state. It returns the derivative, in the nested structure of `y0`.
        y0: The state at `t[0]`: a real or complex tensor of single or double precision, or a nested structure of them. A list of
            numbers is one vector. Error control treats a complex number as its real and its imaginary part.
        t: The times, shape `[T]`, strictly increasing or decreasing. One number is the end of a solve that starts at zero; a list
            of one number is that start alone. If an event ends the solve, the last time may be infinite. Tensors, variables,
            and lists of them and numbers have gradients. Times may have a higher precision than the state: the start is subtracted
            before they are rounded. With `per_sample=True` also `[B, T]`: every row has its own times, in either direction. To pad
            a row with fewer times, repeat its last time.
        args: A tuple of further arguments of the dynamics: nested structures of tensors, and paths, which are continuous inputs
            made from data (see `keras_ode.paths`).
        solver: A name (see `keras_ode.solvers`) or a `Solver`. Defaults to `"tsit5"`. Use `"auto"` if the equation may be stiff: it
            switches to an implicit method where that is needed.
        rtol, atol: The relative and the absolute tolerance. The estimated error of a step is at most
            `atol + rtol * max(|y|, |y_new|)` in the `norm`. Numbers, or scalar tensors and variables, which have no gradient.
            Default to `1e-3` and `1e-6`.
        adjoint: A name (see `keras_ode.adjoints`) or an `Adjoint`, which selects how gradients are computed. `None` selects
            `"interpolating"`, or `"checkpointed"` with `dense`, `save="steps"` or `mass_matrix`.
        controller: `None`, `"pid"`, `"predictive"`, `"constant"` or a `Controller`, such as `keras_ode.controllers.StepTo(times)`,
            whose steps end at these times. `None` selects `"pid"` (`"predictive"` for `"radau"`) if the solver estimates its
            error, and otherwise `"constant"`.
        step_size: The first step of an adaptive solve (`None`: chosen from the dynamics), or every step of a constant
            one. It is positive, in the units of `t`, in either direction of time. With `per_sample=True` also `[B]`.
        max_steps: The maximum number of steps to try. Defaults to `4096`.
        max_step: The largest step that an adaptive solve may take, in the units of `t`, forward and backward. Set it if something
            short, such as a pulse, could lie between two evaluations and be missed.
        min_step: The smallest step. A solve that would need a smaller one fails with the status `STEP_TOO_SMALL`. Only a step
            that ends at the end of the interval, at a jump, or at an event may be shorter.
        norm: How the errors of all elements, each divided by its tolerance, are reduced to one number, which is at most one for an
            accepted step: `"rms"`, the root mean square; `"max"`, the largest magnitude; or a function `norm(errors)` of a nested
            structure like `y0` that returns a float scalar, or `[B]` with `per_sample=True`. It also measures the cotangent of
            the state. Defaults to `"rms"`.
        per_sample: Whether every sample, a row of the first axis of all tensors, has its own step size, error, status and
            statistics, so that its solution does not depend on the others. The dynamics must treat rows independently.
            If a row fails, its own gradients are NaN, and so are those of everything that the rows share, which are sums over
            rows. Defaults to `False`: all rows share their steps.
        event: A `keras_ode.Event`, or a list of them, of which the earliest ends the solve; or a `keras_ode.SteadyState`. The
            solution then has `event_time` and `event_state`, which are differentiable, and `event_index`. States after a terminal
            event are NaN.
        jump_times: Times at which the dynamics is discontinuous, shape `[J]`, in any order. A step ends right before each of them,
            and the next one begins right after it. With `per_sample=True` also `[B, J]`; to pad a row with fewer jumps, use
            infinity, since NaN is refused. Differentiable.
        dense: Whether the solution has `evaluate(t)` and `derivative(t)` for any time in the interval. Memory is reserved for
            `max_steps` interpolants, so set `max_steps` as low as the solve allows. Defaults to `False`.
        on_failure: What to do if the solve cannot continue: `"raise"` a `SolveError` (eager code only), or return `"nan"`
            for the states that it did not reach. `"auto"` raises in eager code and returns NaN in graphs.
        jit_compile: Whether to compile the solve with XLA if the surrounding program is not compiled: `True`, `False`, or
            `"auto"`, which starts without waiting for the compiler, and compiles once solves of this kind and size have taken
            10,000 steps. `"auto"` never compiles a dynamics with convolutions, which XLA slows down on CPUs, or with operations
            that XLA does not support, nor solves with `event`, `jump_times` or `on_step`. If XLA fails in eager code anyway, the
            plain graph is used from then on.
        on_step: A function `on_step(info)` that is called with a `keras_ode.StepInfo` of tensors at each step that the forward
            solve tries, accepted or not: for `tf.print`, summaries, or a `tf.Variable` that accumulates something. It is
            traced into the solve; use `tf.py_function` for Python code. The backward pass never calls it.
        progress: Whether to show a progress bar, in eager code. Defaults to `False`.
        save: `"times"` saves the states at all times `t`. `"steps"` saves those at every accepted step from the first of two times
            `t` to the last. The result has entries for `max_steps` of them; after the last step, the end is repeated.
        jacobian: For implicit solvers, a function `jacobian(t, y, *args)`, like the dynamics, that returns the Jacobian of the
            dynamics with respect to the state: `[D, D]` for a state `[D]`, and `[B, D, D]` for rows `[B, D]`, whose derivatives
            depend on their own row only. Defaults to `None`: automatic differentiation.
        mass_matrix: A constant matrix M, `[D, D]`, for an equation `M y' = f(t, y)` of a state `[..., D]`. If it is singular, some
            of the equations are algebraic: they must determine the algebraic unknowns (index 1) and hold at the start (see
            `keras_ode.consistent_state`). Only some implicit solvers solve this, such as `"rodas5p"`. The default `adjoint` is
            `"checkpointed"` then.
        batch_size: With `per_sample=True`, the number of rows to solve at a time. The gradient solves them once more, so it needs
            the memory for these rows only. `args` whose first axis is as long as the batch have one entry for each
            row, and paths if their values are `[B, T, C]`. Defaults to `None`: all rows at once.

    Returns:
        A `keras_ode.Solution`.

    Raises:
        ValueError, TypeError: For invalid arguments; the message quotes them.
        SolveError: In eager code, if the solve fails.

    Example:

    >>> solution = keras_ode.solve(lambda t, y: -y, tf.constant([1.0]), [0.0, 1.0], rtol=1e-6)
    >>> print(f"{float(solution.ys[-1, 0]):.5f}")
    0.36788

    Reference: Chen, Rubanova, Bettencourt, Duvenaud (2018), Neural Ordinary Differential Equations, NeurIPS.
    """
    options = locals()
    return solve_with(options.pop("dynamics"), options.pop("y0"), options.pop("t"), Options(**options))[0]


@do_not_convert
def odeint(func: Dynamics, y0: TensorsLike, t: Times, **options: Any) -> Tensors:
    """Returns the states of `solve(func, y0, t, **options)`, each tensor of shape `[T, *shape]`.

    Args:
        func: The dynamics `f(t, y)` or `f(y)`.
        y0: The state at `t[0]`, a tensor or a nested structure of tensors.
        t: The times, shape `[T]`.
        **options: The options of `keras_ode.solve`.

    Returns:
        The states, in the nested structure of `y0`.

    Raises:
        ValueError, TypeError, SolveError: As in `keras_ode.solve`.

    Example:

    >>> ys = keras_ode.odeint(lambda t, y: -y, tf.constant([1.0]), [0.0, 0.5, 1.0])
    >>> ys.shape
    TensorShape([3, 1])

    Reference: Chen, Rubanova, Bettencourt, Duvenaud (2018), Neural Ordinary Differential Equations, NeurIPS. The name and the
    order of the arguments are those of their package, torchdiffeq.
    """
    refuse_unknown("odeint", options, DEFAULTS)
    return solve_with(func, y0, t, Options(**{**DEFAULTS, **options}, reports=False))[0].ys


# What they take besides three arguments, with the values of what is not given.
DEFAULTS = {p.name: p.default for p in inspect.signature(solve).parameters.values() if p.kind == p.KEYWORD_ONLY}


class Options(NamedTuple):
    """What is asked of a solve: the arguments of `solve`, and what only a layer gives.

    Attributes:
        training: The mode in which to call a Keras layer.
        mask: The mask of the state.
        regularizers: Those whose values are added up, a tuple.
        noise: Random booleans for each element of the state, leaves, where a regularizer needs them.
        recorder: Who is told of the solve: see `Problem`.
        rows: Whether rows of a batch are known to be independent.
        reports: Whether more is wanted than the states and the status.
    """

    args: tuple
    solver: Any
    rtol: Any
    atol: Any
    adjoint: Any
    controller: Any
    step_size: Any
    max_steps: Any
    max_step: Any
    min_step: Any
    norm: Any
    per_sample: bool
    event: Any
    jump_times: Any
    dense: bool
    on_failure: str
    jit_compile: Any
    on_step: Any
    progress: bool
    save: str
    jacobian: Any
    mass_matrix: Any
    batch_size: Any
    training: bool | None = None
    mask: Any = None
    regularizers: tuple = ()
    noise: tuple = ()
    recorder: Any = None
    rows: bool = False
    reports: bool = True


def solve_with(function, y0, t, options):
    """The `Solution` of a solve with `Options`, and the values of regularizers, a tuple."""
    with standard_where_exported():
        return _solved(function, y0, t, options)


def _solved(function, y0, t, options):
    refuse_symbolic((y0, t, options.args), "Call a layer there: keras_ode.ODELayer(dynamics, t=...)(y0).")
    y0 = arguments.checked_state(y0, options.per_sample)
    rows = checked_rows(options.batch_size, y0, options)
    given = (function, y0, t, options)
    problem, adjoint, asked, lost = _problem(*given) if rows is None else _problem_in_parts(rows, *given)
    problem, segments = _segments(options, problem, y0, asked)
    raises = options.on_failure == "raise" or (options.on_failure == "auto" and tf.executing_eagerly())
    is_plain = rows is None and segments is None and not (problem.dense or problem.keeps_steps)
    problem = problem._replace(reports=options.reports or raises or not is_plain)
    outcome, events = run_watched(adjoint, problem, segments, options.jit_compile, y0, options.on_step, options.progress)
    if raises:
        if rows is None:
            raise_on_failure(problem, outcome, events)
        else:
            _raise_on_failure_of_part(adjoint, problem, outcome)
    totals = outcome.ys[len(outcome.ys) - len(options.regularizers) :]
    solution = _solution(asked.times, y0, problem, outcome, events, lost)
    if asked.single or asked.times.shape[-1] is None:  # the solve has two times at least
        number = 1 if asked.single else tf.shape(asked.times)[-1]
        solution = solution._replace(ts=asked.times[..., :number], ys=tf.nest.map_structure(lambda ys: ys[:number], solution.ys))
    return solution, _values(options.regularizers, totals, asked.elapsed)


def _problem(function, y0, t, options):
    """The `Problem`, its adjoint, the times that were asked for, and what was lost in rounding them."""
    leaves = leaves_of_nest(y0)
    dtype = max((leaf.dtype for leaf in leaves), key=lambda d: d.size)
    method = _method(y0, leaves, dtype, options)
    asked = arguments.checked_times(t, dtype, options.per_sample, ends_the_solve(options.event))
    check_resolved(options.max_step, asked.elapsed)
    asked = checked_grid(method.controller, asked)
    times, elapsed, lost, times_vary, _ = asked.of_rows(leaves) if options.per_sample else asked
    method = method._replace(tolerance=method.tolerance._replace(norm=checked_norm(options.norm, times, y0)))
    adjoint, keeps_steps = _adjoint(y0, asked, times_vary, method, options)
    arguments.check_on_failure(options.on_failure)
    method, penalties = _penalties(options.regularizers, options.noise, leaves, times, method, adjoint)
    field = _close(function, times[0], y0, leaves, method, penalties, options)
    method = arguments.resolved(method, options.rtol, options.atol, field, leaves)
    problem = Problem(
        field,
        times,
        leaves if penalties is None else (*leaves, *penalties.leaves),
        field.parameters,
        method,
        times_vary,
        bool(options.dense),
        num_penalties=len(options.regularizers),
        recorder=options.recorder,
        elapsed=elapsed,
        keeps_steps=keeps_steps,
    )
    return problem, adjoint, asked, lost


def _problem_in_parts(rows, function, y0, t, options):
    """As `_problem`, with a field for the rows of a part and the tensors of all rows."""
    axes = axes_of_rows(options.args, rows)
    flat = zip(tf.nest.flatten(options.args), axes, strict=True)
    first = [x if axis is None else tf.convert_to_tensor(x)[: rows.size] for x, axis in flat]
    args = tf.nest.pack_sequence_as(options.args, first)
    times = tree.as_tensor(t)
    first_times = times[: rows.size] if times.shape.rank == 2 else t
    part, adjoint, asked, lost = _problem(
        function, tf.nest.map_structure(lambda x: x[: rows.size], y0), first_times, options._replace(args=args)
    )
    leaves, dtype = leaves_of_nest(y0), part.times.dtype
    if times.shape.rank == 2:
        asked = checked_grid(part.method.controller, arguments.checked_times(t, dtype, True))
    whole, elapsed, lost, *_ = asked.of_rows(leaves)
    further = dynamics.as_arguments(options.args, dtype)
    problem = part._replace(times=whole, y=leaves, parameters=(*further, *part.parameters[len(further) :]), elapsed=elapsed)
    shared = [None] * (len(problem.tensors()) - 2 - len(leaves) - len(axes))
    return problem, InMicroBatches(adjoint, rows, (1, *[0] * len(leaves), *axes, *shared, 1)), asked, lost


def _raise_on_failure_of_part(adjoint, problem, outcome):
    """Raises `SolveError` for the first failed row, found in the part of the batch to which it belongs."""
    statuses = outcome.status.numpy()
    failed = (statuses != int(Status.SUCCESS)).nonzero()[0]
    if failed.size:
        part = int(failed[0]) // adjoint.rows.size
        raise_on_failure(adjoint.part(problem, part), adjoint.part_of(outcome, part), offset=part * adjoint.rows.size)


def _method(y0, leaves, dtype, options):
    """How to integrate, but for the norm."""
    method = arguments.checked_method(
        options.solver,
        options.rtol,
        options.atol,
        options.controller,
        options.step_size,
        options.max_steps,
        dtype,
        options.max_step,
        options.min_step,
    )
    check_rows(method.step_size, options.per_sample, leaves)
    return method._replace(
        solver=method.solver.bind(y0),
        mass=mass_matrices.checked_matrix(options.mass_matrix),
        per_sample=bool(options.per_sample),
        rows=options.rows or bool(options.per_sample),
    )


def _adjoint(y0, asked, times_vary, method, options):
    """The adjoint, and whether the states at all steps are kept."""
    event, jump_times = options.event, options.jump_times
    if isinstance(event, SteadyState):
        arguments.check_steady_state(event, asked.times, jump_times, options.adjoint)
    keeps_steps = arguments.check_save(options.save, asked.times, options.dense, event, jump_times)
    adjoint = arguments.checked_adjoint(options.adjoint, options.dense, method, keeps_steps)
    if method.mass is not None:
        mass_matrices.check_all(
            method.mass, y0, method.solver, adjoint, event, jump_times, options.regularizers, keeps_steps, times_vary
        )
    return adjoint, keeps_steps


def _solution(ts, y0, problem, outcome, events, lost):
    """What the user gets."""
    ys = outcome.ys
    if problem.keeps_steps:
        ts, ys = at_steps(problem, outcome)
    return Solution(
        ts=ts,
        ys=packed_as(y0, problem.controlled(ys)),
        stats=_statistics(outcome) if problem.reports else {},
        status=outcome.status,
        event_time=None if events is None else events.times,
        event_state=None if events is None else packed_as(y0, events.states),
        dense=DenseOutput(*outcome.output, outcome.dense, lost, problem.clock().direction) if problem.dense else None,
        event_index=None if events is None else events.indices,
        step_size=outcome.step_size,
    )


def _statistics(outcome):
    return {
        "num_steps": outcome.num_steps,
        "num_accepted": outcome.num_accepted,
        "num_rejected": outcome.num_steps - outcome.num_accepted,
        "num_evaluations": outcome.num_evaluations,
        "stiffness": outcome.stiffness,
    }


def _penalties(regularizers, noise, leaves, times, method, adjoint):
    """The method which adds up what regularizers ask for, and their `Penalties`, or `None`."""
    if not regularizers:
        return method, None
    check_supported(regularizers, method.solver, adjoint)
    like = times[0]
    totals = tuple(r.start(leaves, like) for r in regularizers)
    if any(r.sums_steps for r in regularizers):
        # A sum over steps that rows share depends on all of them, so that they are one system of equations to an implicit solver.
        method = method._replace(sums=StepSums(tuple(regularizers)), rows=method.per_sample)
    return method, dynamics.Penalties(regularizers, totals, noise)


def _values(regularizers, totals, elapsed):
    """The penalties. Integrals are those over the length of time: back in time, a solve computes their negatives."""
    is_back = elapsed[..., -1] < 0
    ends = [total[-1] for total in totals]
    return tuple(x if r.sums_steps else tf.where(is_back, -x, x) for r, x in zip(regularizers, ends, strict=True))


def _close(function, t, y0, leaves, method, penalties, options):
    """The `VectorField` of a dynamics."""
    args, jacobian = options.args, options.jacobian
    arguments.check_takes_jacobian(jacobian, method.solver)
    arguments.check_state_of_jacobian(jacobian, y0, method.rows)
    if not isinstance(args, (tuple, list)):
        raise TypeError(f"args must be a tuple of the dynamics' further arguments. Received: {args!r}")
    try:
        field = dynamics.close(function, t, y0, tuple(args), options.training, penalties, options.mask, jacobian)
    except NotImplementedError as error:
        if "numpy array" not in str(error):
            raise
        raise TypeError(
            "The dynamics passes a tensor to NumPy, which cannot be traced: use the functions of TensorFlow or keras.ops, "
            f"tf.sin(y) for np.sin(y). Received: dynamics={function!r}"
        ) from error
    method.solver.check(field)
    if method.mass is not None:
        mass_matrices.check_is_whole(field)
    return field


def _segments(options, problem, y0, asked):
    """The problem, and what divides its solve or `None`."""
    event, jump_times = options.event, options.jump_times
    if event is None and jump_times is None:
        return problem, None
    if problem.dense:
        raise ValueError("dense=True cannot be combined with event or jump_times: solve the segments one by one.")
    jumps = lost = tf.zeros([0], problem.times.dtype)
    if jump_times is not None:
        jumps, lost = arguments.checked_jumps(jump_times, problem.times.dtype, problem.y, problem.method.per_sample)
    rounded = arguments.times_of_segments(asked, jumps, lost)
    rounded = arguments.of_rows(rounded, problem.y) if problem.method.per_sample else rounded
    problem = problem._replace(times=rounded, elapsed=())
    closed = None
    if event is not None:
        closed = event if isinstance(event, SteadyState) else close_events(event, problem.times[0], y0)
    return problem, Segments(closed, (closed.tensors() if closed else (), () if jump_times is None else (jumps,)))
