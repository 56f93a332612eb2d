"""What users ask of the sizes of steps, checked. Errors quote what was received."""

import numbers

import numpy as np
import tensorflow as tf

from keras_ode.integrate import SMALLEST_STEP_ULPS


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
    if max_step < smallest:
        raise ValueError(
            f"max_step is smaller than what {dtype.name} resolves over a duration of {duration:.6g}, which is steps of about "
            f"{smallest:.1g}: use a larger max_step, a shorter interval, or solve in float64. Received: max_step={max_step!r}"
        )


def _is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
