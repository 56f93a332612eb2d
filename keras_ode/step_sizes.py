"""What users ask of the sizes of steps, checked. Errors quote what was received."""

import numbers

import numpy as np
import tensorflow as tf

from keras_ode import tree
from keras_ode.integrate import SMALLEST_STEP_ULPS

# How far rounding may move times of steps, in parts of a step.
_MOST_MOVED = 1e-3


def checked_limits(max_step, min_step, controller, dtype):
    """The largest and the smallest step as tensors of `dtype`, or `None` where there is no limit."""
    for name, value, longest in (("max_step", max_step, np.inf), ("min_step", min_step, np.finfo("float64").max)):
        if value is not None and (not _is_number(value) or not 0 < value <= longest):
            raise ValueError(f"{name} must be a positive number, in the units of t, or None. Received: {name}={value!r}")
    if max_step == np.inf:
        max_step = None
    if None not in (max_step, min_step) and min_step > max_step:
        raise ValueError(f"min_step must not be above max_step. Received: min_step={min_step!r}, max_step={max_step!r}")
    for name, value in (("max_step", max_step), ("min_step", min_step)):
        if value is not None and not controller.adaptive:
            raise ValueError(
                f"{name} limits the steps of a controller that chooses them, such as 'pid'. With controller={controller!r} you "
                f"choose them yourself: leave {name} out. Received: {name}={value!r}"
            )
    return tuple(None if value is None else tf.constant(float(value), dtype) for value in (max_step, min_step))


def check_resolved(max_step, elapsed):
    """Refuses a largest step that rounding takes for none, as far as the times since the first are known."""
    known = None if max_step is None or max_step == np.inf else tf.get_static_value(elapsed)
    if known is None:
        return
    duration, dtype = np.max(np.abs(known)), known.dtype
    smallest = SMALLEST_STEP_ULPS * np.finfo(dtype).eps * duration
    if np.isfinite(duration) and max_step < smallest:
        raise ValueError(
            f"max_step is smaller than what {dtype.name} resolves over a duration of {duration:.6g}, which is steps of about "
            f"{smallest:.1g}: use a larger max_step, a shorter interval, or solve in float64. Received: max_step={max_step!r}"
        )


def checked_step_size(step_size, dtype):
    """A step size, or one a row, as a tensor of `dtype`, or `None`; NaN where only the graph knows that it is not positive."""
    if step_size is None:
        return None
    try:
        size = tree.as_tensor(step_size) if tree.holds_tensors(step_size) else np.asarray(step_size)
    except (TypeError, ValueError) as error:
        raise TypeError(_needs_step_size(step_size)) from error
    kind = tf.as_dtype(size.dtype) if tf.is_tensor(size) or size.dtype.kind in "fiu" else tf.string
    if not (kind.is_floating or kind.is_integer) or len(size.shape) > 1:
        raise TypeError(_needs_step_size(step_size))
    size = tf.stop_gradient(tf.cast(size, dtype)) if tf.is_tensor(size) else tf.constant(size, dtype)
    known = tf.get_static_value(size)
    if known is None:
        return tf.where((size > 0) & (size < np.inf), size, tf.constant(np.nan, dtype))
    if not np.all((known > 0) & (known < np.inf)):
        raise ValueError(_needs_step_size(step_size))
    return size


def check_rows(step_size, per_sample, leaves):
    """Refuses step sizes of rows where there are no rows, or others."""
    if step_size is None or step_size.shape.rank == 0:
        return
    if not per_sample or not step_size.shape.is_compatible_with(leaves[0].shape[:1]):
        rows = f"y0 has {leaves[0].shape[0]} rows" if per_sample else "per_sample=False"
        raise ValueError(
            "step_size must be one number, or, with per_sample=True, one for each row of y0. Received: step_size of shape "
            f"{step_size.shape}, where {rows}"
        )


def checked_grid(controller, asked):
    """The `Times` of a solve, refused where the times of the controller's steps do not reach over all of them, if it has any; in a
    graph that alone knows them they are NaN then."""
    if not controller.has_times:
        return asked
    times = asked.times
    dtype = times.dtype.as_numpy_dtype
    exact = np.sort(controller.times)
    grid = exact.astype(dtype)
    name = type(controller).__name__
    if np.any(np.abs(np.diff(grid.astype("float64")) - np.diff(exact)) > _MOST_MOVED * np.diff(exact)):
        raise ValueError(
            f"Rounding to {times.dtype.name} would change the steps of {name} by too much: count the times from one nearby, or "
            f"solve in float64. Received: times from {exact[0]!r} to {exact[-1]!r}"
        )
    known = tf.get_static_value(times)
    if known is None:
        covered = (tf.reduce_min(times) >= grid[0]) & (tf.reduce_max(times) <= grid[-1])
        times, elapsed = (tf.where(covered, x, tf.constant(np.nan, x.dtype)) for x in (times, asked.elapsed))
        return asked._replace(times=times, elapsed=elapsed)
    if np.min(known) < grid[0] or np.max(known) > grid[-1]:
        raise ValueError(
            f"The times of {name} must cover the whole interval, from {np.min(known):g} to {np.max(known):g}: a step ends "
            f"at each of them that lies within it. Received: times from {exact[0]:g} to {exact[-1]:g}"
        )
    return asked


def check_is_number(step_size):
    """Refuses step sizes of rows, which a layer does not know."""
    if step_size is not None and not _is_number(step_size):
        raise TypeError(
            "The step_size of a layer must be a positive number, or None; layer.solve takes one for each row too. "
            f"Received: step_size={step_size!r}"
        )


def _needs_step_size(step_size):
    return (
        "step_size must be a positive number, in the units of t, or one for each row with per_sample=True, or None. "
        f"Received: step_size={step_size!r}"
    )


def _is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
