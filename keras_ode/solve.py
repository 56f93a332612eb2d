"""`solve` and `odeint`: check what is asked, pick the adjoint, return the `Solution`."""

import contextlib
import inspect
from typing import NamedTuple

import tensorflow as tf

from keras_ode import arguments, dynamics, internals, mass_matrices, tree
from keras_ode.adjoints.base import Problem
from keras_ode.complex_states import leaves_of_nest, packed_as
from keras_ode.custom_gradient import refuse_forward_mode
from keras_ode.dense import DenseOutput
from keras_ode.diagnosis import raise_on_failure
from keras_ode.events import ClosedEvent, SteadyState, close_events, ends_the_solve
from keras_ode.names import explains_keywords, refuse_unknown
from keras_ode.norms import checked_norm
from keras_ode.on_step import OnStep
from keras_ode.programs import programs_of
from keras_ode.progress import progress_bar
from keras_ode.recent import Recent
from keras_ode.regularizers import StepSums, check_supported
from keras_ode.segments import is_looped, solve_segments
from keras_ode.signature import refuse_symbolic
from keras_ode.solution import Solution
from keras_ode.steady_state import solve_steady_state
from keras_ode.step_sizes import check_resolved, check_rows, checked_grid
from keras_ode.steps import at_steps
from keras_ode.xla import is_compile_error

_compiled = Recent(256)  # functions of solves in eager code, by what they compute


@tf.autograph.experimental.do_not_convert
@explains_keywords
def solve(
    dynamics,
    y0,
    t,
    *,
    args=(),
    solver="tsit5",
    rtol=1e-3,
    atol=1e-6,
    adjoint=None,
    controller=None,
    step_size=None,
    max_steps=4096,
    max_step=None,
    min_step=None,
    norm="rms",
    per_sample=False,
    event=None,
    jump_times=None,
    dense=False,
    on_failure="auto",
    jit_compile="auto",
    on_step=None,
    progress=False,
    save="times",
    jacobian=None,
    mass_matrix=None,
):
    """Solves `dy/dt = f(t, y)` from `y0` at `t[0]`, and gives the states at all times `t`.

    Differentiable by `y0`, `t`, `args`, and all variables and tensors that the dynamics reads.

    Args:
        dynamics: A Keras layer, a model or a function: `f(y)` or `f(t, y)`, told apart by the signature, with `args`
            behind. `t` is a scalar of the state's dtype; with `per_sample`, `[B, 1, ..., 1]`, which broadcasts against
            the (first leaf of the) state. Returns a nest like `y0`.
        y0: The state at `t[0]`: a real or complex tensor of single or double precision, or a nest of them. A list of numbers
            is one vector. Error control treats a complex number as its real and its imaginary part.
        t: The times, shape `[T]`, strictly increasing or decreasing. One number is the end of a solve from zero; a list of
            one is that start alone. Where an event ends the solve, the last time may be infinite: an open end.
            Tensors, variables, and lists of them and numbers get gradients. Times may have a
            higher precision than the state: they are subtracted before they are rounded. With `per_sample` also `[B, T]`:
            every row has its own times, in either direction; a row that has fewer is padded by repeating its last.
        args: A tuple of further arguments of the dynamics: nests of tensors, and paths, which are continuous inputs made from
            data (see `keras_ode.paths`).
        solver: A name (see `keras_ode.solvers`) or a `Solver`. Defaults to `"tsit5"`. Use `"auto"` where the equation may be
            stiff: it changes to an implicit method there.
        rtol, atol: Relative and absolute tolerance: the estimated error of a step is at most
            `atol + rtol * max(|y|, |y_new|)` in the `norm`. Default to `1e-3` and `1e-6`.
        adjoint: A name (see `keras_ode.adjoints`) or an `Adjoint`: how gradients are computed. `None` is
            `"interpolating"`, or `"checkpointed"` with `dense`, `save="steps"` and `mass_matrix`.
        controller: `None`, `"pid"`, `"predictive"`, `"constant"` or a `Controller`, such as `keras_ode.controllers.StepTo(times)`,
            whose steps end at these times. `None` is `"pid"`, or `"predictive"` for `"radau"`, where the solver estimates its
            error, else `"constant"`.
        step_size: The first step of an adaptive solve (`None`: chosen from the dynamics), or every step of a constant
            one. Positive, in the units of `t`, in either direction of time. With `per_sample` also `[B]`.
        max_steps: The most steps to try. Defaults to `4096`.
        max_step: The largest step that an adaptive solve may take, in the units of `t`, forward and backward. Give it where
            something short, as a pulse, lies between long steps that do not see it.
        min_step: The smallest step: a solve that would need a smaller one fails with the status `STEP_TOO_SMALL`. Only a step
            that ends at the end of the interval, at a jump, or at an event may be shorter.
        norm: How the errors of all elements, each divided by its tolerance, make one number, which is at most one: `"rms"`, the
            root mean square; `"max"`, the largest magnitude; or a function `norm(errors)` of a nest like `y0` that gives a
            float scalar, or `[B]` with `per_sample`. It measures the cotangent of the state too. Defaults to `"rms"`.
        per_sample: Whether every sample, a row of the leaves' first axis, has its own step size, error, status and
            statistics, so that its solution does not depend on the others. The dynamics must treat rows alone.
            Defaults to `False`: all share their steps. A row that fails makes its own gradients NaN, and those of what
            the rows share, which are sums over rows.
        event: A `keras_ode.Event`, or a list of them, of which the earliest wins; or a `keras_ode.SteadyState`. The solution
            then has `event_time` and `event_state`, which are differentiable, and `event_index`; states after a terminal event
            are NaN.
        jump_times: Times at which the dynamics is not continuous, shape `[J]`, in any order: a step ends right before each
            and the next begins right after it. With `per_sample` also `[B, J]`. Differentiable.
        dense: Whether the solution shall have `evaluate(t)` and `derivative(t)` anywhere in the interval. Room for
            `max_steps` interpolants is kept, so set that as low as the solve allows. Defaults to `False`.
        on_failure: What to do when the solve cannot go on: `"raise"` a `SolveError` (eager code only), or give `"nan"`
            for the states that it did not reach. `"auto"` raises in eager code and gives NaN in graphs.
        jit_compile: Whether to compile the solve with XLA where the surrounding program is not: `True`, `False`, or
            `"auto"`, which starts without the wait for the compiler and compiles once solves of this kind and size have taken
            10,000 steps. It never compiles where the dynamics holds convolutions, which XLA slows on CPUs, or operations that
            XLA does not have, nor with `event`, `jump_times` or `on_step`. Where XLA fails in eager code all the same, the
            plain graph is used from then on.
        on_step: A function `on_step(info)` called with a `keras_ode.StepInfo` of tensors at each step that the forward
            solve tries, accepted or not: for `tf.print`, summaries, or a `tf.Variable` that adds something up. It is
            traced into the solve; use `tf.py_function` for Python code. Never called by a backward pass.
        progress: Whether to show a progress bar, in eager code. Defaults to `False`.
        save: `"times"`: the states at all times `t`; or `"steps"`: those at every accepted step from the first of two times `t`
            to the last. There is room for `max_steps` of them, and behind the last the end is repeated: see `Solution`.
        jacobian: For implicit solvers, a function like the dynamics, `jacobian(t, y, *args)`, which returns the Jacobian of the
            dynamics by the state: `[D, D]` for a state `[D]`, and `[B, D, D]` for rows `[B, D]`, in which row `b` of the derivative
            depends on row `b` of the state only. Defaults to `None`: automatic differentiation.

        mass_matrix: A constant matrix M, `[D, D]`, for an equation `M y' = f(t, y)` of a state `[..., D]`. If it is singular, some
            of the equations are algebraic: they must determine the algebraic unknowns (index 1) and hold at the start (see
            `keras_ode.consistent_state`). Only some implicit solvers solve this, such as `"rodas5p"`. The default `adjoint` is
            `"checkpointed"` then.

    Returns:
        A `keras_ode.Solution`.

    Raises:
        ValueError, TypeError: For arguments that make no sense; the message quotes them.
        SolveError: In eager code, where the solve fails.

    Example:

    >>> solution = keras_ode.solve(lambda t, y: -y, tf.constant([1.0]), [0.0, 1.0], rtol=1e-6)
    >>> print(f"{float(solution.ys[-1, 0]):.5f}")
    0.36788

    Reference: Chen, Rubanova, Bettencourt, Duvenaud (2018), Neural Ordinary Differential Equations, NeurIPS.
    """
    options = locals()
    return solve_in_mode(**options, training=None)[0]


@tf.autograph.experimental.do_not_convert
def odeint(func, y0, t, **options):
    """The states of `solve(func, y0, t, **options)`, each leaf of shape `[T, *leaf.shape]`.

    Args:
        func: The dynamics `f(t, y)` or `f(y)`.
        y0: The state at `t[0]`, a nest of float tensors.
        t: The times, shape `[T]`.
        **options: Those of `keras_ode.solve`.

    Returns:
        The nest of `y0`.

    Example:

    >>> ys = keras_ode.odeint(lambda t, y: -y, tf.constant([1.0]), [0.0, 0.5, 1.0])
    >>> ys.shape
    TensorShape([3, 1])
    """
    refuse_unknown("odeint", options, OPTIONS)
    return solve(func, y0, t, **options).ys


# What they take besides three arguments.
OPTIONS = [p.name for p in inspect.signature(solve).parameters.values() if p.kind == p.KEYWORD_ONLY]


def solve_in_mode(
    dynamics,
    y0,
    t,
    *,
    args,
    solver,
    rtol,
    atol,
    adjoint,
    controller,
    step_size,
    max_steps,
    max_step,
    min_step,
    norm,
    per_sample,
    event,
    jump_times,
    dense,
    on_failure,
    jit_compile,
    training,
    mask=None,
    on_step=None,
    progress=False,
    regularizers=(),
    noise=(),
    recorder=None,
    save="times",
    rows=False,
    jacobian=None,
    mass_matrix=None,
):
    """`solve`, with the mode in which to call a Keras layer and the mask of its state, the values of regularizers, a tuple,
    with who is told of it (see `Problem`), and whether rows of a batch are known to be independent."""
    refuse_symbolic((y0, t, args), "Call a layer there: keras_ode.ODELayer(dynamics, t=...)(y0).")
    y0 = arguments.checked_state(y0, per_sample)
    leaves = leaves_of_nest(y0)
    dtype = max((leaf.dtype for leaf in leaves), key=lambda d: d.size)
    method = arguments.checked_method(solver, rtol, atol, controller, step_size, max_steps, dtype, max_step, min_step)
    mass = mass_matrices.checked_matrix(mass_matrix)
    method = method._replace(solver=method.solver.bind(y0), mass=mass)
    check_rows(method.step_size, per_sample, leaves)
    asked = arguments.checked_times(t, dtype, per_sample, ends_the_solve(event))
    check_resolved(max_step, asked.elapsed)
    asked = checked_grid(method.controller, asked)
    times, elapsed, lost, times_vary, _ = asked.of_rows(leaves) if per_sample else asked
    method = method._replace(per_sample=bool(per_sample), norm=checked_norm(norm, times, y0), rows=rows or bool(per_sample))
    if isinstance(event, SteadyState):
        arguments.check_steady_state(event, asked.times, jump_times, adjoint)
    keeps_steps = arguments.check_save(save, asked.times, dense, event, jump_times)
    adjoint = arguments.checked_adjoint(adjoint, dense, method, keeps_steps)
    if mass is not None:
        mass_matrices.check_all(
            mass, y0, method.solver, adjoint, event, jump_times, regularizers, keeps_steps, times_vary
        )
    arguments.check_on_failure(on_failure)
    method, penalties = _penalties(regularizers, noise, leaves, method, adjoint)
    arguments.check_takes_jacobian(jacobian, method.solver)
    arguments.check_state_of_jacobian(jacobian, leaves, method.rows)
    field = _close(dynamics, times[0], y0, args, training, penalties, mask, jacobian)
    method.solver.check(field)
    if mass is not None:
        mass_matrices.check_is_whole(field)
    method = arguments.resolved(method, rtol, atol, field, leaves)
    if penalties is not None:
        leaves = (*leaves, *penalties.leaves)
    problem = Problem(
        field,
        times,
        leaves,
        field.parameters,
        method,
        times_vary,
        bool(dense),
        num_penalties=len(regularizers),
        recorder=recorder,
        elapsed=elapsed,
        keeps_steps=keeps_steps,
    )
    problem, segments = _segments(event, jump_times, problem, y0, asked)
    outcome, events = _run_watched(adjoint, problem, segments, jit_compile, y0, on_step, progress)
    if on_failure == "raise" or (on_failure == "auto" and tf.executing_eagerly()):
        raise_on_failure(problem, outcome, events)
    totals = outcome.ys[len(outcome.ys) - len(regularizers) :]
    solution = _solution(asked.times, y0, problem, outcome, events, lost)
    if asked.single:
        solution = solution._replace(ts=asked.times[..., :1], ys=tf.nest.map_structure(lambda ys: ys[:1], solution.ys))
    return solution, tuple(total[-1] for total in totals)


def _solution(ts, y0, problem, outcome, events, lost):
    """What the user gets."""
    ys = outcome.ys
    if problem.keeps_steps:
        ts, ys = at_steps(problem, outcome)
    return Solution(
        ts=ts,
        ys=packed_as(y0, problem.controlled(ys)),
        stats={
            "num_steps": outcome.num_steps,
            "num_accepted": outcome.num_accepted,
            "num_rejected": outcome.num_steps - outcome.num_accepted,
            "num_evaluations": outcome.num_evaluations,
            "stiffness": outcome.stiffness,
        },
        status=outcome.status,
        event_time=None if events is None else events.times,
        event_state=None if events is None else packed_as(y0, events.states),
        dense=DenseOutput(*outcome.output, outcome.dense, lost, problem.clock().direction) if problem.dense else None,
        event_index=None if events is None else events.indices,
        step_size=outcome.step_size,
    )


def _penalties(regularizers, noise, leaves, method, adjoint):
    """The method which adds up what regularizers ask for, and their `Penalties`, or `None`."""
    if not regularizers:
        return method, None
    check_supported(regularizers, method.solver, adjoint)
    dtype = method.tolerance.rtol.dtype
    totals = tuple(r.start(leaves, method.per_sample, dtype) for r in regularizers)
    if any(r.sums_steps for r in regularizers):
        method = method._replace(sums=StepSums(tuple(regularizers)))
    return method, dynamics.Penalties(regularizers, totals, noise)


def _close(function, t, y0, args, training, penalties, mask, jacobian):
    if not isinstance(args, (tuple, list)):
        raise TypeError(f"args must be a tuple of the dynamics' further arguments. Received: {args!r}")
    try:
        return dynamics.close(function, t, y0, tuple(args), training, penalties, mask, jacobian)
    except NotImplementedError as error:
        if "numpy array" not in str(error):
            raise
        raise TypeError(
            "The dynamics gives a tensor to NumPy, which cannot be traced: use the functions of TensorFlow or keras.ops, "
            f"tf.sin(y) for np.sin(y). Received: dynamics={function!r}"
        ) from error


class _SegmentsOf(NamedTuple):
    """The event and the jumps of a solve; `tensors` are what they read."""

    event: ClosedEvent | SteadyState | None
    tensors: tuple

    def key(self):
        return None if self.event is None else self.event.key()


def _segments(event, jump_times, problem, y0, asked):
    """The problem, and what divides its solve or `None`."""
    if event is None and jump_times is None:
        return problem, None
    if problem.dense:
        raise ValueError("dense=True cannot be combined with event or jump_times: solve the segments one by one.")
    jumps, lost = (), tf.zeros([0], problem.times.dtype)
    if jump_times is not None:
        jump_times, lost = arguments.checked_jumps(jump_times, problem.times.dtype, problem.y, problem.method.per_sample)
        jumps = (jump_times,)
    rounded = arguments.times_of_segments(asked, lost)
    rounded = arguments.of_rows(rounded, problem.y) if problem.method.per_sample else rounded
    problem = problem._replace(times=rounded, elapsed=())
    closed = None
    if event is not None:
        closed = event if isinstance(event, SteadyState) else close_events(event, problem.times[0], y0)
    return problem, _SegmentsOf(closed, (closed.tensors() if closed else (), jumps))


def _run_watched(adjoint, problem, segments, jit_compile, y0, on_step, progress):
    """Runs the solve, with who looks on: a function of the user, a progress bar."""
    times = problem.times
    with progress_bar(times, jit_compile) if progress else contextlib.nullcontext() as bar:
        functions = [f for f in (on_step, bar and bar.on_step) if f is not None]
        problem = problem._replace(watchers=tuple(OnStep(f, times[0], y0) for f in functions))
        outcome, events = _run(adjoint, problem, segments, jit_compile)
        if bar:
            bar.show(outcome.time.numpy(), outcome.step_size.numpy())
    return outcome, events


def _run(adjoint, problem, segments, jit_compile):
    """Runs the solve: in eager code as a compiled function, in a graph as a part of it."""
    arguments.check_jit_compile(jit_compile)
    for watcher in problem.watchers:
        watcher.check_compiles(jit_compile is True)
    is_compiled, field = jit_compile is True, problem.field
    if is_compiled:
        _check_compiles(adjoint, problem, segments)
    in_parts = not (is_compiled or segments is not None or problem.watchers)
    may_compile = in_parts and jit_compile == "auto" and not (field.is_convolutional or field.why_not_compiled)
    if may_compile:
        problem = adjoint.with_compiled_parts(problem)
    tensors = (problem.tensors(), () if segments is None else segments.tensors)
    may_be_recorded = not (may_compile or problem.method.has_dense_stages) or internals.may_be_recorded()
    key = _key(adjoint, problem, segments, (in_parts, is_compiled, may_compile), tensors)
    if in_parts and adjoint.pays_to_compile and not tree.is_compiled():
        programs = programs_of(key if problem.recorder is None else None)
        problem = problem._replace(programs=programs, may_compile=may_compile, may_be_recorded=may_be_recorded)
    if not adjoint.has_forward_mode:
        refuse_forward_mode(tf.nest.flatten(tensors))
    if not tf.executing_eagerly():
        if not is_compiled:
            return _solve(adjoint, problem, segments, tensors)
        return _function(adjoint, problem, segments, tensors, True)(tensors)
    key = (key, may_be_recorded)
    function = _compiled.get(key, lambda: _function(adjoint, problem, segments, tensors, is_compiled))
    try:
        return function(tensors)
    except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError, tf.errors.InternalError) as error:
        if not (is_compile_error(error) and (is_compiled or may_compile)):
            raise
        if is_compiled:
            _refuse_to_compile(f"this: {str(error).strip().splitlines()[0]}", error)
        function = _function(adjoint, problem._replace(may_compile=False), segments, tensors, False)
        _compiled.replace(key, function)  # from now on
        return function(tensors)


def _key(adjoint, problem, segments, how, tensors):
    """A hashable value, equal for two solves of which one compiled function does both."""
    return (
        problem.field.fingerprint,
        segments and segments.key(),
        adjoint,
        problem.method.key(),
        (problem.times_vary, problem.dense, problem.keeps_steps, problem.num_penalties, problem.recorder),
        tuple(watcher.fingerprint for watcher in problem.watchers),
        how,
        tuple((tensor.dtype, tuple(tensor.shape)) for tensor in tf.nest.flatten(tensors)),
    )


def _check_compiles(adjoint, problem, segments):
    """Refuses what XLA cannot compile."""
    looped = segments is not None and is_looped(segments.event)
    if looped or not adjoint.compiles_alone:
        what = "events that are not terminal" if looped else f"adjoint={adjoint!r}"
        raise ValueError(
            f"XLA cannot compile a solve with {what} alone, only together with its gradient: put both in a "
            "tf.function(jit_compile=True) and leave jit_compile='auto' here. Received: jit_compile=True"
        )
    _refuse_to_compile(problem.field.why_not_compiled)


def _refuse_to_compile(reason, cause=None):
    if reason:
        raise ValueError(
            f"XLA cannot compile this solve because of {reason}. Use jit_compile='auto' or False, or write the dynamics with "
            "operations that XLA has. Received: jit_compile=True"
        ) from cause


def _solve(adjoint, problem, segments, tensors, alone=False):
    """The `Outcome`, and the `EventOutcome` or `None`; `alone`: whether XLA compiles this without its gradient."""
    problem = problem.with_tensors(tensors[0])
    if segments is None:
        return adjoint.solve(problem), None
    if isinstance(segments.event, SteadyState):
        return solve_steady_state(problem, segments.event)
    event_parameters, jumps = tensors[1]
    return solve_segments(adjoint, problem, segments.event, event_parameters, jumps[0] if jumps else None, alone)


def _function(adjoint, problem, segments, tensors, jit_compile):
    # Only the shapes stay with the function, not the tensors of its first call.
    problem = problem.with_tensors([tf.TensorSpec(x.shape, x.dtype) for x in tensors[0]])
    return tf.function(
        lambda tensors: _solve(adjoint, problem, segments, tensors, jit_compile), autograph=False, jit_compile=jit_compile
    )
