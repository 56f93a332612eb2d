"""Tolerances as users give them: numbers, or scalar tensors and variables, whose values a graph knows only when it runs."""

import numbers
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_ode.closure import no_autocast
from keras_ode.controllers import LEAST_ATOL, Tolerance
from keras_ode.precision import resolution

# Below about this many units in the last place, the rounding of the derivatives is what makes steps fail.
_RESOLUTIONS = 2


class GivenTolerances(NamedTuple):
    """The tolerances of a solve, checked.

    Attributes:
        rtol, atol: Numbers where the values are known, else scalar tensors.
        known_rtol, known_atol: The numbers, for messages: of a variable of a layer in a graph, those at the time of tracing.
            `None` where nothing is known.
    """

    rtol: float | tf.Tensor
    atol: float | tf.Tensor
    known_rtol: float | None
    known_atol: float | None

    def is_known_too_fine(self, dtype):
        """Whether the steps cannot meet them where the derivatives are of this type, as far as one knows."""
        largest = self.largest()
        return largest is not None and largest < finest(dtype)

    def largest(self):
        """The larger of both, or `None` where it is not known."""
        known = self.known_rtol, self.known_atol
        return None if None in known else max(known)

    def tensors(self, dtype, resolved=None):
        """The `Tolerance` in this type, with a relative one that is not finer than the type `resolved` can meet."""
        if not any(tf.is_tensor(x) for x in self[:2]):
            rtol = finest(resolved) if resolved is not None and self.is_known_too_fine(resolved) else self.rtol
            return Tolerance(tf.constant(float(rtol), dtype), tf.constant(max(float(self.atol), LEAST_ATOL), dtype))
        # A later change of the tolerances does not change the steps, and the choice of steps is not differentiated.
        rtol, atol = (tf.stop_gradient(tf.cast(x, dtype)) for x in self[:2])
        least = tf.constant(0.0 if resolved is None else finest(resolved), dtype)
        raised = tf.where(tf.maximum(rtol, atol) < least, least, rtol)
        # A graph cannot raise errors: with tolerances that make no sense, its first step fails and the states are NaN.
        right = (rtol >= 0) & (atol >= 0) & (rtol + atol > 0) & tf.math.is_finite(rtol + atol)
        atol = tf.maximum(atol, tf.constant(LEAST_ATOL, dtype))
        return Tolerance(*(tf.where(right, x, tf.constant(np.nan, dtype)) for x in (raised, atol)))


def finest(dtype):
    """The smallest relative tolerance that steps can meet where the derivatives are of this type."""
    return _RESOLUTIONS * resolution(dtype)


def checked_tolerances(rtol, atol):
    """The `GivenTolerances`; refuses what is known not to be a tolerance."""
    (rtol, known_rtol), (atol, known_atol) = (_checked(label, x) for label, x in (("rtol", rtol), ("atol", atol)))
    if known_rtol == 0 and known_atol == 0:
        raise ValueError(f"rtol and atol must not both be zero. Received: rtol={known_rtol!r}, atol={known_atol!r}")
    return GivenTolerances(rtol, atol, known_rtol, known_atol)


def check_tolerance(label, value):
    """Refuses numbers that are no tolerance."""
    if not isinstance(value, numbers.Real) or not 0 <= value < np.inf:
        raise ValueError(f"{label} must be a number that is not negative. Received: {label}={value!r}")


def _checked(label, given):
    """A number or a scalar tensor, and the number or `None`."""
    if not (tf.is_tensor(given) or isinstance(given, tf.Variable) or hasattr(given, "assign")):
        check_tolerance(label, given)
        return given, given
    with no_autocast():
        value = tf.convert_to_tensor(given)
    if value.shape.rank != 0 or not (value.dtype.is_floating or value.dtype.is_integer):
        raise ValueError(f"{label} must be one number, a tensor of shape []. Received: {label}={given!r}")
    static = value if tf.executing_eagerly() else tf.get_static_value(value)
    if static is None:
        return value, getattr(given, "latest", None)
    number = float(given if hasattr(given, "latest") else static)  # the decimal number of a layer's variable
    check_tolerance(label, number)
    return number, number
