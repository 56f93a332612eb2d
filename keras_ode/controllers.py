"""Step-size controllers, and the first step of an adaptive solve."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from keras_ode import configurable, tree

__all__ = [
    "CONTROLLERS",
    "Constant",
    "Controller",
    "PID",
    "Predictive",
    "StepTo",
    "get",
]

# A number of rounding errors below which differences mean nothing.
_ROUNDING_ERRORS = 100
# Times that differ by so many of their rounding errors are the same.
_ROUNDING_OF_TIMES = 8
# A step of no error at all (a constant solution) grows by max_factor; so does one of an error too small to divide by.
_LEAST_ERROR = 1e-10
# Of the predictive controller: the smallest error that it compares others with, and the change of size of steps without one.
_LEAST_OF_TREND = 0.01
# The least absolute tolerance: an element that is zero and has no error is accurate, and zero by zero would be NaN.
LEAST_ATOL = float(np.finfo("float32").tiny)
_AFTER_FAILURE = 0.5


class Tolerance(NamedTuple):
    """How accurate a step has to be: `atol + rtol * max(|y|, |y_new|)` for every element, of which `norm` makes one number."""

    rtol: tf.Tensor
    atol: tf.Tensor
    norm: Callable = tree.rms

    def scale(self, y, y_new):
        """The size of an acceptable error for every element."""
        return tuple(
            tf.cast(self.atol, a.dtype) + tf.cast(self.rtol, a.dtype) * tf.maximum(tf.abs(a), tf.abs(b))
            for a, b in zip(y, y_new, strict=True)
        )

    def scaled(self, error, y, y_new, like):
        """The norm of an error on that scale, a number like `like`: at most one is accurate enough."""
        return self.norm([e / scale for e, scale in zip(error, self.scale(y, y_new), strict=True)], like)

    def scaled_integral(self, error, total, increment, weights):
        """The largest error among the leaves of an integral, on the scale of the tolerance: a scalar.

        Each leaf is measured as a whole, by its root mean square, and compared with its integral up to the end of the step.

        Args:
            error: The estimated error of `increment`.
            total: The integral up to here.
            increment: What the step adds to it.
            weights: For each leaf a scalar, times which its size compares with `atol`.
        """

        def sizes(leaves):
            # The weights first: squares of small numbers are zero.
            return tf.stack([tree.rms(tree.scale(w, (leaf,)), w) for w, leaf in zip(weights, leaves, strict=True)])

        size = sizes(tree.add(total, increment))
        # What is smaller than the rounding errors of the largest leaf is noise, which no step size makes smaller.
        noise = _ROUNDING_ERRORS * np.finfo(size.dtype.as_numpy_dtype).eps * tf.reduce_max(size)
        ratios = sizes(error) / (self.atol + self.rtol * size + noise)
        # A leaf that is not finite shows that itself, and must not stop the solve of the others.
        return tf.reduce_max(tree.select(tf.math.is_finite(ratios), ratios, 0))

    def changed(self, rtol=None, atol=None):
        """The same with other numbers, where there are any."""
        return self._replace(
            rtol=self.rtol if rtol is None else tf.constant(rtol, self.rtol.dtype),
            atol=self.atol if atol is None else tf.constant(max(atol, LEAST_ATOL), self.atol.dtype),
        )

    def tensors(self):
        """What of it are tensors, a nest that `with_tensors` takes."""
        return self.rtol, self.atol, getattr(self.norm, "parameters", ())

    def with_tensors(self, tensors):
        rtol, atol, of_norm = tensors
        return Tolerance(rtol, atol, self.norm._replace(parameters=of_norm) if hasattr(self.norm, "parameters") else self.norm)

    def key(self):
        """A hashable value, equal for tolerances that do the same with their tensors."""
        return self.norm.key() if hasattr(self.norm, "key") else self.norm


class Verdict(NamedTuple):
    """What a controller makes of a tried step: scalars, or `[B]` with a step size for every sample."""

    accept: tf.Tensor
    step_size: tf.Tensor
    state: tuple


class Controller(configurable.Configurable):
    """Judges tried steps and proposes the next size. It has no state of its own: its memory is the `state` that the loop carries.

    Attributes:
        adaptive: Whether it chooses the sizes by the errors.
        has_times: Whether it is given the times at which steps end, see `limit`.

    Example:

    >>> controller = keras_ode.controllers.get("pid")
    >>> isinstance(controller, keras_ode.controllers.Controller), controller.adaptive
    (True, True)
    """

    adaptive: bool
    has_times = False

    def start(self, step_size):
        """Returns the state of the controller before the first step."""
        raise NotImplementedError

    def judge(self, error, error_order, step_size, state):
        """Returns the `Verdict` on a step of the positive size `step_size` with the scaled `error`, which may not be finite."""
        raise NotImplementedError


class Constant(Controller):
    """Takes every step as it is given, except one that is not finite.

    Example:

    >>> solution = keras_ode.solve(lambda t, y: -y, tf.constant([1.0]), [0.0, 1.0], controller="constant", step_size=0.25)
    >>> print(f"{float(solution.ys[-1, 0]):.4f}")
    0.3679
    """

    adaptive = False

    def start(self, step_size):
        return (step_size,)

    def judge(self, error, error_order, step_size, state):
        return Verdict(tf.math.is_finite(error), state[0], state)


class StepTo(Controller):
    """Takes steps that end at given times, whatever their errors are.

    Steps end at each of the times that lies within the interval, and at the end of the interval. Solves backward in time, and
    backward solves for gradients, take them in reverse order. With `per_sample=True` all rows take the same steps.

    Args:
        times: Two or more numbers, strictly increasing or decreasing. They must cover the whole interval of the solve.

    Raises:
        TypeError: If `times` is not a sequence of numbers.
        ValueError: If there are fewer than two, or they are not finite, or not strictly increasing or decreasing.

    Example:

    >>> controller = keras_ode.controllers.StepTo([0.0, 0.5, 1.0])
    >>> solution = keras_ode.solve(lambda t, y: -y, tf.constant([1.0]), [0.0, 1.0], solver="euler", controller=controller)
    >>> print(float(solution.ys[-1, 0]))
    0.25
    """

    adaptive = False
    has_times = True

    def __init__(self, times: ArrayLike) -> None:
        try:
            known = np.asarray(times, dtype="float64")
        except (TypeError, ValueError, NotImplementedError) as error:
            raise TypeError(f"times must be two or more numbers. Received: times={times!r}") from error
        steps = np.diff(known) if known.ndim == 1 else np.array([])
        if not (steps.size and np.all(np.isfinite(known)) and (np.all(steps > 0) or np.all(steps < 0))):
            raise ValueError(
                f"times must be two or more finite numbers, strictly increasing or decreasing. Received: times={times!r}"
            )
        self.times = tuple(known.tolist())

    def start(self, step_size):
        return (step_size,)

    def judge(self, error, error_order, step_size, state):
        accept = tf.math.is_finite(error)
        return Verdict(accept, tree.select(accept, state[0], step_size), state)

    def limit(self, clock, stops=None):
        """Returns a function that maps a time since the start of the solve to the end of the step from there.

        Args:
            clock: The `Clock` of the solve.
            stops: Other times since the start. Where one of them is a time of this controller up to rounding, it replaces that.
        """
        start, duration = clock.start, clock.duration
        times = tf.reshape(tf.constant(self.times, start.dtype), [-1] + [1] * start.shape.rank)
        since = clock.direction * (times - start)
        rounding = _ROUNDING_OF_TIMES * np.finfo(start.dtype.as_numpy_dtype).eps * (duration + tf.abs(start))
        known = duration[None] if stops is None else tf.concat([stops, duration[None]], axis=0)
        distance = tf.abs(since[:, None] - known[None])
        nearest = tree.take_each(known, tf.argmin(distance, axis=1, output_type=tf.int32))
        ends = tree.select(tf.reduce_min(distance, axis=1) <= rounding, nearest, tree.select(since > rounding, since, 0))
        return lambda since: tf.minimum(tf.reduce_min(tree.select(ends > since, ends, duration), axis=0), duration)


class PID(Controller):
    """Keeps the scaled error of each step below one by proportional, integral and derivative control.

    The factor from one step size to the next is
    `safety * e_n^(-(p + i + d) / k) * e_(n-1)^((p + 2 d) / k) * e_(n-2)^(-d / k)`, with `k` the order of the error
    estimate and `e` the scaled errors of the last accepted steps. The step after a rejected one does not grow.

    Args:
        p: Proportional coefficient. Defaults to `0`.
        i: Integral coefficient. Defaults to `1`, the classical controller.
        d: Derivative coefficient. Defaults to `0`.
        safety: The factor that multiplies the predicted size. Defaults to `0.9`.
        min_factor: The smallest factor from one step size to the next. Defaults to `0.2`.
        max_factor: The largest factor. Defaults to `10`.

    Raises:
        ValueError: If `safety` is not in (0, 1], or if `0 < min_factor < 1 < max_factor` does not hold.

    Example:

    >>> controller = keras_ode.controllers.PID(p=0.4, i=0.3)
    >>> solution = keras_ode.solve(lambda t, y: -y, tf.constant([1.0]), [0.0, 1.0], controller=controller)
    >>> print(f"{float(solution.ys[-1, 0]):.4f}")
    0.3679

    References:
        Soderlind (2003), Digital filters in adaptive time-stepping, ACM TOMS 29(1).
        Hairer, Norsett, Wanner (1993), Solving Ordinary Differential Equations I, section II.4.
    """

    adaptive = True

    def __init__(
        self,
        p: float = 0.0,
        i: float = 1.0,
        d: float = 0.0,
        safety: float = 0.9,
        min_factor: float = 0.2,
        max_factor: float = 10.0,
    ) -> None:
        _check_factors(safety, min_factor, max_factor)
        self.p, self.i, self.d = p, i, d
        self.safety, self.min_factor, self.max_factor = safety, min_factor, max_factor

    def start(self, step_size):
        one = tf.ones_like(step_size)
        return (one, one, tf.ones_like(step_size, dtype=tf.bool))

    def judge(self, error, error_order, step_size, state):
        last, before_last, may_grow = state
        finite = tf.math.is_finite(error)
        accept = finite & (error <= 1)
        error = tf.maximum(error, tf.constant(_LEAST_ERROR, error.dtype))
        k = error_order
        accepted_factor = self.safety * error ** (-(self.p + self.i + self.d) / k)
        if self.p or self.d:
            accepted_factor *= last ** ((self.p + 2 * self.d) / k)
        if self.d:
            accepted_factor *= before_last ** (-self.d / k)
        rejected_factor = tf.minimum(self.safety * error ** (-1 / k), self.safety)
        factor = tf.clip_by_value(tree.select(accept, accepted_factor, rejected_factor), self.min_factor, self.max_factor)
        factor = tree.select(may_grow, factor, tf.minimum(factor, 1))
        factor = tree.select(finite, factor, tf.constant(self.min_factor, factor.dtype))
        state = (tree.select(accept, error, last), tree.select(accept, last, before_last), accept)
        return Verdict(accept, factor * step_size, state)


class Predictive(Controller):
    """Takes the smaller of the classical step size and one that assumes that the error continues to change at the same rate.

    The factor from one step size to the next is `safety * e_n^(-1/k) * min(1, h_n / h_(n-1) * (e_(n-1) / e_n)^(1/k))`, with
    `k` the order of the error estimate, `h` the sizes and `e` the scaled errors of the last accepted steps. So steps become
    shorter before a stiff solution changes suddenly, where the classical controller has many steps rejected. If the stages
    of a step did not converge, it is tried again with half of its size. The step after a rejected one does not grow.

    Args:
        safety: The factor that multiplies the predicted size. Defaults to `0.9`.
        min_factor: The smallest factor from one step size to the next. Defaults to `0.2`.
        max_factor: The largest factor. Defaults to `10`.

    Raises:
        ValueError: If `safety` is not in (0, 1], or if `0 < min_factor < 1 < max_factor` does not hold.

    Example:

    >>> solution = keras_ode.solve(lambda t, y: -y, tf.constant([1.0]), [0.0, 1.0], controller="predictive")
    >>> print(f"{float(solution.ys[-1, 0]):.3f}")
    0.368

    References:
        Gustafsson (1994), Control-theoretic techniques for stepsize selection in implicit Runge-Kutta methods, ACM TOMS 20(4).
        Hairer, Wanner (1996), Solving Ordinary Differential Equations II, section IV.8.
    """

    adaptive = True

    def __init__(self, safety: float = 0.9, min_factor: float = 0.2, max_factor: float = 10.0) -> None:
        _check_factors(safety, min_factor, max_factor)
        self.safety, self.min_factor, self.max_factor = safety, min_factor, max_factor

    def start(self, step_size):
        return (tf.ones_like(step_size), tf.zeros_like(step_size), tf.ones_like(step_size, dtype=tf.bool))

    def judge(self, error, error_order, step_size, state):
        last, last_size, may_grow = state
        finite = tf.math.is_finite(error)
        accept = finite & (error <= 1)
        error = tf.maximum(error, tf.constant(_LEAST_ERROR, error.dtype))
        factor = self.safety * error ** (-1 / error_order)
        ratio = step_size / tree.select(last_size > 0, last_size, step_size)
        trend = ratio * (last / error) ** (1 / error_order)
        factor = tree.select(accept & (last_size > 0), factor * tf.minimum(trend, 1), factor)
        largest = tree.select(accept, tf.constant(self.max_factor, factor.dtype), self.safety)
        factor = tf.clip_by_value(tf.minimum(factor, largest), self.min_factor, self.max_factor)
        factor = tree.select(may_grow, factor, tf.minimum(factor, 1))
        factor = tree.select(finite, factor, tf.constant(_AFTER_FAILURE, factor.dtype))
        # A much smaller error tells no trend.
        kept = tf.maximum(error, tf.constant(_LEAST_OF_TREND, error.dtype))
        state = (tree.select(accept, kept, last), tree.select(accept, step_size, last_size), accept)
        return Verdict(accept, factor * step_size, state)


def _check_factors(safety, min_factor, max_factor):
    if not 0 < safety <= 1:
        raise ValueError(f"safety must lie in (0, 1]. Received: safety={safety}")
    if not 0 < min_factor < 1 < max_factor:
        raise ValueError(
            "min_factor and max_factor must fulfill 0 < min_factor < 1 < max_factor. "
            f"Received: min_factor={min_factor}, max_factor={max_factor}"
        )


CONTROLLERS = {"constant": Constant, "pid": PID, "predictive": Predictive, "step_to": StepTo}


def get(identifier: str | dict[str, Any] | Controller) -> Controller:
    """Returns a controller from its name, its configuration or a `Controller` object.

    Args:
        identifier: A name such as `"pid"`, a dictionary with the entries `"name"` and `"config"`, or a `Controller`, which is
            returned as it is.

    Returns:
        A `Controller`.

    Raises:
        ValueError: If there is no controller of that name, or if its class needs arguments.

    Example:

    >>> type(keras_ode.controllers.get("pid")).__name__
    'PID'
    """
    return configurable.get(identifier, "controller", Controller, CONTROLLERS)


def first_step(field, clock, y, derivative, order, tolerance):
    """A first step size from the scales of the state, its derivative and its second derivative; one evaluation.

    `clock` has the `duration`, the `direction` and the `time` since the start of the solve.

    Reference: Hairer, Norsett, Wanner (1993), Solving Ordinary Differential Equations I, section II.4.
    """
    duration, dtype = clock.duration, clock.duration.dtype
    duration = tree.select(tf.math.is_inf(duration), tf.ones_like(duration), duration)  # an open end tells nothing
    seen = field.controlled(y)
    scale = tolerance.scale(seen, seen)

    def measured(leaves):
        return tolerance.norm([leaf / s for leaf, s in zip(field.controlled(leaves), scale, strict=True)], duration)

    size, slope = measured(y), measured(derivative)
    # The published numbers are for durations and time scales around one; longer ones are measured by themselves.
    least = tf.maximum(tf.constant(1e-6, dtype), 1e-6 * duration)
    flat = slope * tf.maximum(tf.ones_like(duration), duration) < 1e-5
    trial = tree.select((size < 1e-5) | flat, least, 0.01 * size / slope)
    trial = tree.select(tf.math.is_finite(trial), tf.minimum(trial, duration), 1e-6 * duration)
    ahead = tree.add_scaled(y, clock.direction * trial, derivative)
    probe = field(clock.time(trial), ahead, with_integrand=False)
    change = tuple(b - a for a, b in zip(derivative, probe.derivative, strict=True))
    curvature = tf.math.divide_no_nan(measured(change), trial)
    unit = tf.maximum(tf.ones_like(trial), 0.1 * trial)
    largest = tf.maximum(slope * unit, curvature * unit * unit)
    step = tree.select(
        largest <= 1e-15,
        tf.maximum(tf.constant(1e-6, dtype), trial * 1e-3),
        unit * (0.01 / largest) ** (1 / order),
    )
    step = tf.minimum(100 * trial, step)
    return tree.select(tf.math.is_finite(step) & (step > 0), tf.minimum(step, duration), trial)
