"""What users ask of a solve, checked and made into what the loop takes. Errors quote what was received."""

import numbers
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_ode import adjoints, controllers, solvers, tree
from keras_ode.closure import is_watched, no_autocast
from keras_ode.complex_states import refuse_complex
from keras_ode.errors import warn
from keras_ode.integrate import Method
from keras_ode.precision import resolution
from keras_ode.signature import about_dataclasses
from keras_ode.step_sizes import checked_limits, checked_step_size
from keras_ode.tolerances import checked_tolerances, finest

# The largest change by rounding, as a fraction of the duration, of times that are subtracted afterwards.
_MOST_MOVED = 1e-3
# Finer tolerances need more than TensorFloat-32: at 1e-6, a gradient on an H200 took 15 times as long in it as in float32.
_FINEST_IN_TENSOR_FLOAT_32 = 1e-5
_ON_FAILURE = ("auto", "raise", "nan")
_SAVE = ("times", "steps")


def checked_method(solver, rtol, atol, controller, step_size, max_steps, dtype, max_step=None, min_step=None):
    """The `Method` that these options describe, in tensors of `dtype`."""
    solver = solvers.get(solver)
    if controller is None:
        controller = solver.controller if solver.error_order else "constant"
    controller = controllers.get(controller)
    name = type(solver).__name__
    if controller.adaptive and not solver.error_order:
        raise ValueError(
            f"{name} does not estimate its error, so its step size cannot be controlled. Use controller='constant' "
            f"with a step_size, or a solver such as 'tsit5'. Received: solver={solver!r}, controller={controller!r}"
        )
    given = checked_tolerances(rtol, atol)
    if controller.adaptive and given.is_known_too_fine(dtype):
        warn(
            f"rtol={given.known_rtol:g} is finer than {dtype.name} resolves ({resolution(dtype):.1e}): it is raised to "
            f"{finest(dtype):.1e}, twice that. Use a larger rtol, or solve in float64."
        )
    if step_size is None and not (controller.adaptive or controller.has_times):
        raise ValueError(f"Constant steps of {name} need a step_size, in the units of t. Received: step_size=None")
    if step_size is not None and controller.has_times:
        raise ValueError(
            f"{type(controller).__name__} already says where steps end: leave step_size out. Received: step_size={step_size!r}"
        )
    if not isinstance(max_steps, numbers.Integral) or isinstance(max_steps, bool) or max_steps < 1:
        raise ValueError(f"max_steps must be a positive whole number. Received: max_steps={max_steps!r}")
    largest, smallest = checked_limits(max_step, min_step, controller, dtype)
    return Method(
        solver=solver,
        controller=controller,
        tolerance=given.tensors(dtype, dtype if controller.adaptive else None),
        step_size=checked_step_size(step_size, dtype),
        max_steps=int(max_steps),
        max_step=largest,
        min_step=smallest,
    )


def check_times(t, per_sample=False, may_be_open=False):
    """Refuses times that are not two or more, finite and strictly monotone; `t` is a NumPy array.

    The last may be infinite where an event ends the solve, `may_be_open`.
    """
    if t.ndim not in ((1, 2) if per_sample else (1,)) or t.shape[-1] < 2:
        rows = ", or [B, T]" if per_sample else ""
        raise ValueError(f"t must be two or more times, shape [T]{rows} with T >= 2. Received: {t!r} of shape {t.shape}")
    is_open = np.isinf(t) & (t == t[..., -1:]) & np.isfinite(t[..., :1])
    if not np.all(np.isfinite(t) | (is_open & may_be_open)):
        hint = ""
        if np.all(np.isfinite(t) | is_open):
            hint = (
                " An open end, an infinite last time, needs an event that ends the solve: solve(..., event=keras_ode.Event(fn)) "
                "with terminal=True or a reset, or keras_ode.SteadyState()."
            )
        raise ValueError(f"t must be finite.{hint} Received: {t!r}")
    if not np.all(_are_monotone(t, np)):
        rows = " (rows may repeat their last time)" if t.ndim == 2 else ""
        raise ValueError(f"t must be strictly increasing or strictly decreasing{rows}. Received: {t!r}")


def checked_jumps(jump_times, dtype, leaves, per_sample):
    """Jump times, `[J]`, or `[J, B]` where every row has its own, as a tensor, and what rounding took from them."""
    jumps = _exact_times(jump_times, "jump_times", dtype)
    known = tf.get_static_value(jumps)
    if known is not None and np.isnan(known).any():
        raise ValueError(f"jump_times must not be NaN: to pad rows, use infinity. Received: jump_times={jump_times!r}")
    known = None if tree.holds_tensors(jump_times) else known
    by_row = per_sample and jumps.shape.rank == 2
    if not (by_row or jumps.shape.rank == 1) or jumps.shape[-1] is None:
        raise ValueError(
            "jump_times must have a known shape [J], or [B, J] with per_sample=True. Received: "
            f"jump_times={jump_times!r} of shape {jumps.shape}, per_sample={per_sample!r}"
        )
    if by_row and not jumps.shape[:1].is_compatible_with(leaves[0].shape[:1]):
        raise ValueError(
            f"jump_times [B, J] must have as many rows as the state, {leaves[0].shape[0]}. Received: jump_times of shape "
            f"{jumps.shape}"
        )
    jumps, lost = tree.rounded(jumps if known is None else known, dtype)
    return (tf.transpose(jumps) if by_row else jumps), tf.reshape(lost, [-1])


def check_steady_state(event, times, jump_times, adjoint):
    """Refuses what cannot be asked for together with a `SteadyState`."""
    known = tf.get_static_value(times)
    if times.shape[-1] != 2 or (known is not None and not np.all(np.isinf(known[..., -1]))):
        raise ValueError(
            "SteadyState ends a solve without another end: use t=[t0, float('inf')], or float('inf') alone. Received: "
            f"t={times if known is None else known!r}"
        )
    if jump_times is not None:
        raise ValueError(
            "SteadyState cannot be combined with jump_times: solve up to the last jump first, and continue from there. "
            f"Received: jump_times={jump_times!r}"
        )
    if adjoint is not None:
        raise ValueError(
            "With SteadyState the gradient is that of the implicit function theorem, which needs no adjoint: leave adjoint out. "
            f"Received: adjoint={adjoint!r}"
        )


def times_of_segments(asked, jumps, lost_of_jumps):
    """The times for a solve that subtracts them after they are rounded, as those with an event or jumps do.

    Where that would move them by more than a thousandth of the duration they are refused; NaN, where only the graph knows. They are
    also NaN where a jump is.
    """
    closed = tf.math.is_finite(asked.elapsed)  # the end may be open
    duration = tf.reduce_max(tree.select(closed, tf.abs(asked.elapsed), 0), axis=-1)
    change = tf.abs(asked.times - asked.times[..., :1] - asked.elapsed)
    change = tf.reduce_max(tree.select(closed, change, 0), axis=-1)
    of_jumps = tf.reduce_max(tf.abs(tf.concat([tf.zeros([1], lost_of_jumps.dtype), lost_of_jumps], axis=0)))
    change = tf.maximum(change, tree.select(duration > 0, of_jumps, 0))
    rounded, elapsed = (x[..., 1:] == x[..., :-1] for x in (asked.times, asked.elapsed))
    moved = tf.reduce_any(rounded & ~elapsed) | tf.reduce_any(change > _MOST_MOVED * duration)
    if not tf.executing_eagerly():
        wrong = moved | tf.reduce_any(tf.math.is_nan(jumps))
        return tf.where(wrong, tf.constant(np.nan, asked.times.dtype), asked.times)
    if moved:
        raise ValueError(
            f"With event or jump_times, times are rounded to {asked.times.dtype.name} before they are subtracted, which "
            "would change these by too much: count them from a time nearby, or solve in float64. "
            f"Received: t={asked.times.numpy()!r}, since the first {asked.elapsed.numpy()!r}"
        )
    return asked.times


def _are_monotone(t, xp):
    """Whether times, or rows of times, are strictly monotone; rows may be padded with their last time."""
    earlier, later = t[..., :-1], t[..., 1:]
    if len(t.shape) == 1:
        every = xp.all if xp is np else tf.reduce_all
        monotone = every(later > earlier) | every(later < earlier)
        return monotone | every(later == earlier) if t.shape[0] == 2 else monotone  # two equal times are no time
    padding = (later == t[..., -1:]) & (later == earlier)
    every = (lambda x: x.all(axis=-1)) if xp is np else (lambda x: tf.reduce_all(x, axis=-1))
    return every((later > earlier) | padding) | every((later < earlier) | padding)


def resolved(method, rtol, atol, field, leaves):
    """The method with a relative tolerance that the precision in which the dynamics computes can meet."""
    inside, result = field.precisions(len(leaves))
    dtype = max((leaf.dtype for leaf in leaves), key=resolution)
    if not method.controller.adaptive:
        return method
    given = checked_tolerances(rtol, atol)
    known = "" if given.known_rtol is None else f"rtol={given.known_rtol:g} "
    if resolution(result) > resolution(dtype):
        raised = given.tensors(method.tolerance.rtol.dtype, result)
        method = method._replace(tolerance=raised._replace(norm=method.tolerance.norm))
    if given.is_known_too_fine(result) and resolution(result) > resolution(dtype):
        warn(
            f"The dynamics returns derivatives in {result.name}, which resolves about {resolution(result):.1g} of their "
            f"size, so {known}would waste steps: it is raised to {finest(result):.2g}, twice that. Use a larger rtol, or "
            f"compute the dynamics in {dtype.name}."
        )
    elif given.is_known_too_fine(inside) and resolution(inside) > resolution(dtype):
        warn(
            f"The dynamics computes in {inside.name} internally, which resolves about {resolution(inside):.1g} of a "
            f"number's size, so {known}may waste steps. Try rtol={finest(inside):.2g}, or compute the dynamics in "
            f"{dtype.name}."
        )
    elif given.largest() is not None and given.largest() < _FINEST_IN_TENSOR_FLOAT_32 and field.is_tensor_float_32:
        warn(
            "TensorFlow computes products of float32 matrices in TensorFloat-32 on this machine's GPU, which resolves about "
            f"0.001 of a number's size, so {known}may waste many steps. Call "
            "tf.config.experimental.enable_tensor_float_32_execution(False) once, or use rtol="
            f"{_FINEST_IN_TENSOR_FLOAT_32:g}."
        )
    return method


class Times(NamedTuple):
    """The times of a solve in the precision of its state, in which they are rounded after they are subtracted.

    Attributes:
        times: `[T]` or `[B, T]`.
        elapsed: The same since the first, negative where the solve goes back in time.
        lost: What rounding took from the first: a scalar, or `[B]`.
        vary: Whether they may need a gradient.
        single: Whether there was one time only, which is here twice.
    """

    times: tf.Tensor
    elapsed: tf.Tensor
    lost: tf.Tensor
    vary: bool
    single: bool

    def of_rows(self, leaves):
        """Those of each row of a state with its own steps: `[T, B]`, and `[B]`."""
        times, elapsed = of_rows(self.times, leaves), of_rows(self.elapsed, leaves)
        return self._replace(times=times, elapsed=elapsed, lost=self.lost + tf.zeros_like(times[0]))


def of_rows(times, leaves):
    """Times `[T, B]`: every row its own, or all the same."""
    batch = tf.shape(leaves[0])[0]
    if times.shape.rank == 2:
        return tf.transpose(times)
    return tf.ensure_shape(tf.tile(times[:, None], [1, batch]), [times.shape[0], leaves[0].shape[0]])


def checked_state(y0, per_sample):
    def convert(leaf):
        try:
            leaf = tf.convert_to_tensor(leaf)
        except (TypeError, ValueError) as error:
            raise TypeError(
                "y0 must be a float or complex tensor, or a tuple, list or dict of such tensors (dense ones: "
                f"tf.sparse.to_dense(y)).{about_dataclasses(leaf)} Received: {type(leaf).__name__} {leaf!r}"
            ) from error
        if leaf.dtype not in (tf.float32, tf.float64, tf.complex64, tf.complex128):
            raise TypeError(
                f"y0 must be float32 or float64, or complex64 or complex128. Received: {leaf.dtype.name} of shape {leaf.shape}"
            )
        if leaf.shape.rank is None:
            raise ValueError("y0 must have a known rank. Received a tensor of unknown shape: use tf.ensure_shape.")
        if per_sample and leaf.shape.rank == 0:
            raise ValueError(f"With per_sample=True, y0 must have rows, shape [B, ...]. Received: {leaf!r}")
        return leaf

    y0 = tf.nest.map_structure(convert, _with_vectors(y0))
    if not tf.nest.flatten(y0):
        raise ValueError(f"y0 must contain at least one tensor. Received: {y0!r}")
    return y0


def _with_vectors(y0):
    """The state with lists of numbers as what they are: vectors and matrices. Other nests may hold such lists."""
    if type(y0) is dict:
        return {name: _with_vectors(x) for name, x in y0.items()}
    if type(y0) is tuple or isinstance(y0, list) and not all(isinstance(x, numbers.Complex) for x in tf.nest.flatten(y0)):
        return type(y0)(map(_with_vectors, y0))
    if not isinstance(y0, list) or not y0:
        return y0
    has_complex = any(isinstance(x, complex) for x in tf.nest.flatten(y0))
    try:
        # TensorFlow refuses real numbers beside complex ones.
        return tf.convert_to_tensor(np.asarray(y0) if has_complex else y0)
    except (TypeError, ValueError) as error:
        raise ValueError(f"A list of numbers as y0 must be a vector, or have rows of one length. Received: {y0!r}") from error


def checked_times(t, dtype, per_sample, may_be_open=False):
    """The `Times`. Those known in advance are checked here; others are NaN where they are wrong."""
    times = _exact_times(t, "t", dtype)
    if times.shape.rank == 0:  # the end alone
        times = tf.stack([tf.zeros_like(times), times])
    single = times.shape.rank is not None and times.shape[-1] == 1
    times = tf.concat([times, times], axis=-1) if single else times
    # Tapes that are not there yet may watch what is a tensor already.
    vary = tf.executing_eagerly() and is_watched(times) or not tf.executing_eagerly() and tree.holds_tensors(t)
    known = times.numpy() if tf.executing_eagerly() else tf.get_static_value(times)
    if known is not None:
        check_times(known, per_sample, may_be_open)
        if not vary:
            times = known
    elif times.shape.rank not in ((1, 2) if per_sample else (1,)):
        raise ValueError(f"t must be two or more times, shape [T] with T >= 2. Received a tensor of shape {times.shape}")
    else:
        monotone = _are_monotone(times, tf)
        monotone = monotone[..., None] if times.shape.rank == 2 else monotone
        times = tf.where(monotone, times, tf.constant(np.nan, times.dtype))
    high, lost = tree.rounded(times, dtype)
    elapsed, _ = tree.rounded(times - times[..., :1], dtype)
    return Times(high, elapsed, lost[..., 0], vary, single)


def times_in_one(t):
    """Times, as one tensor where they are a list with tensors in it."""
    if not isinstance(t, (list, tuple)) or not tree.holds_tensors(t):
        return t
    with no_autocast():
        return tree.as_tensor(t)


def _exact_times(t, name, dtype):
    """Times as a tensor of at least the precision of `dtype`, or of their own where that is higher."""
    try:
        with no_autocast():
            times = tree.as_tensor(t)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be real numbers. Received: {t!r}") from error
    if not _is_real(times.dtype):
        raise TypeError(f"{name} must be real numbers. Received: {t!r}")
    if times.dtype.is_integer:
        times = tf.cast(times, tf.float64)
    return times if times.dtype.size > dtype.size else tf.cast(times, dtype)


def _is_real(dtype):
    dtype = tf.as_dtype(dtype)
    return dtype.is_floating or dtype.is_integer


def check_save(save, times, dense, event, jump_times):
    """Whether the states at all accepted steps are asked for."""
    if not isinstance(save, str) or save not in _SAVE:
        raise ValueError(f"save must be one of {_SAVE}. Received: save={save!r}")
    if save == "times":
        return False
    if times.shape[-1] != 2:
        raise ValueError(
            "save='steps' returns the states at the solver's own times: let t be the interval, [start, end]. Received: "
            f"{times.shape[-1]} times"
        )
    if dense or event is not None or jump_times is not None:
        other = "dense=True" if dense else "event" if event is not None else "jump_times"
        advice = "use one of them" if dense else "solve the segments one by one"
        raise ValueError(f"save='steps' cannot be combined with {other}: {advice}. Received: save='steps'")
    return True


def checked_adjoint(adjoint, dense, method, keeps_steps=False):
    if adjoint is None:
        adjoint = "checkpointed" if dense or keeps_steps or method.mass is not None else "interpolating"
    adjoint = adjoints.get(adjoint)
    if (dense or keeps_steps) and not adjoint.differentiates_steps:
        option = "dense=True" if dense else "save='steps'"
        raise ValueError(
            f"{option} keeps the solver's own steps, so its gradient is that of these steps: use "
            f"adjoint='checkpointed' or 'direct'. Received: adjoint={adjoint!r}"
        )
    if adjoint.takes_steps_back and not method.solver.is_reversible:
        raise ValueError(
            f"adjoint={adjoint!r} reverses the solver's steps, so it needs a reversible solver: 'reversible_heun', "
            "'asynchronous_leapfrog', or keras_ode.solvers.Reversible(solver), which makes an explicit Runge-Kutta method "
            f"reversible. Or use adjoint='checkpointed'. Received: solver={method.solver!r}"
        )
    asked = adjoint.solver
    if asked is not None and asked.backward != asked:
        raise ValueError(
            f"{type(asked).__name__} cannot integrate adjoint equations: pass no solver to the adjoint, or "
            f"{type(asked.backward).__name__}. Received: adjoint={adjoint!r}"
        )
    backward = asked or method.solver.backward
    if adjoint.solves_back and (method.solver.is_implicit or backward.is_implicit):
        raise ValueError(
            f"adjoint={adjoint!r} solves the equation backward in time, where a stiff equation is unstable: use 'interpolating' "
            f"or 'checkpointed'. Received: solver={method.solver!r}"
        )
    if method.controller.adaptive and not backward.error_order:
        raise ValueError(
            f"The backward solver {type(backward).__name__} does not estimate its error, so its step size cannot be controlled. "
            f"Pass a solver that does to the adjoint, such as solver='tsit5'. Received: adjoint={adjoint!r}"
        )
    return adjoint


def check_takes_jacobian(jacobian, solver):
    """Refuses a Jacobian that no step would use."""
    if jacobian is not None and not solver.is_implicit:
        raise ValueError(
            f"{type(solver).__name__} is explicit and uses no Jacobian: leave jacobian out, or use an implicit solver such as "
            f"'rodas5p'. Received: jacobian={jacobian!r}, solver={solver!r}"
        )


def check_state_of_jacobian(jacobian, y0, rows):
    """Refuses states for which it is not said what the user's Jacobian looks like: `y0` is a nest of tensors."""
    if jacobian is None:
        return
    leaves = tf.nest.flatten(y0)
    refuse_complex(leaves[0], "jacobian")
    if len(leaves) > 1 or leaves[0].shape.rank != 2 and (rows or leaves[0].shape.rank != 1):
        wanted = "rows [B, D]" if rows else "a vector [D] or rows [B, D]"
        raise ValueError(
            f"jacobian needs a state that is one tensor, {wanted}. Received: a state with leaves of shapes "
            f"{[tuple(leaf.shape) for leaf in leaves]}, jacobian={jacobian!r}"
        )


def check_on_failure(on_failure):
    if on_failure not in _ON_FAILURE:
        raise ValueError(f"on_failure must be one of {_ON_FAILURE}. Received: on_failure={on_failure!r}")
    if on_failure == "raise" and not tf.executing_eagerly():
        raise ValueError("on_failure='raise' works in eager code only: in a graph, use 'nan' and read solution.status.")


def checked_jit_compile(jit_compile):
    """`True`, `False` or `"auto"`; NumPy's booleans too, which configurations may hold."""
    if isinstance(jit_compile, (bool, np.bool_)):
        return bool(jit_compile)
    if isinstance(jit_compile, str) and jit_compile == "auto":
        return jit_compile
    raise ValueError(f"jit_compile must be True, False or 'auto'. Received: jit_compile={jit_compile!r}")
