"""Checks of the arguments of layers."""

import numpy as np
import tensorflow as tf

from keras_ode import tree
from keras_ode.arguments import check_times
from keras_ode.signature import check_signature


def checked_dynamics(dynamics):
    if not callable(dynamics):
        raise TypeError(f"dynamics must be a Keras layer, a model or a function f(y) or f(t, y). Received: {dynamics!r}")
    check_signature(dynamics)
    return dynamics


def checked_times(t):
    if tree.holds_tensors(t):
        raise TypeError(
            "The layer's t must be numbers, since a layer stores no tensors: pass times that are tensors or variables in "
            f"the call, layer(y, t=...), which also gives them gradients. Received: t={t!r}"
        )
    try:
        times = np.asarray(t, dtype="float64")
    except (TypeError, ValueError) as error:
        raise TypeError(f"t must be two or more numbers. Received: t={t!r}") from error
    times = np.stack([0.0 * times, times]) if times.ndim == 0 else times
    check_times(times)
    if times[0] == times[-1]:
        raise ValueError(
            "t must be strictly increasing or decreasing: a layer over an interval of length zero does nothing. "
            f"Received: t={t!r}"
        )
    return times


def times_in_order(t, increasing=False):
    """The times of observations, a tensor `[T]` or `[B, T]`, which may repeat; NaN, where only the graph knows that they turn back.

    Args:
        t: The times.
        increasing: Whether they must not decrease.
    """
    known = tf.get_static_value(t)
    if known is None:
        return tree.select(_are_in_order(t, tf.reduce_all, increasing)[..., None], t, tf.constant(np.nan, t.dtype))
    if not np.all(_are_in_order(known, np.all, increasing)):
        raise ValueError(
            f"t must be {'' if increasing else 'decreasing or '}increasing. If a row has fewer times than others, pad it by "
            f"repeating its last time. Received: t={known!r}"
        )
    return t


def _are_in_order(t, every, increasing):
    earlier, later = t[..., :-1], t[..., 1:]
    is_increasing = every(later >= earlier, axis=-1)
    return is_increasing if increasing else is_increasing | every(later <= earlier, axis=-1)


def checked_jumps(jump_times):
    try:
        jumps = np.asarray(jump_times, dtype="float64")
    except (TypeError, ValueError):
        jumps = np.array(np.nan)
    if jumps.ndim != 1 or not np.all(np.isfinite(jumps)):
        raise ValueError(f"jump_times must be a list of numbers. Received: jump_times={jump_times!r}")
    return tuple(float(x) for x in jumps)
