"""Penalties on a solve, `ODELayer(regularizer=...)`, which lead to models that need fewer evaluations of the dynamics.

A penalty is accumulated in an additional leaf after the leaves of the state. The vector field does not depend on this leaf, and
error control ignores it, so a penalty does not change the steps.
"""

import copy
import numbers
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_ode import configurable, tree
from keras_ode.observers import squared_spectral_radius

__all__ = [
    "ErrorEstimate",
    "JacobianFrobenius",
    "Kinetic",
    "REGULARIZERS",
    "RandomEndTime",
    "Regularizer",
    "Stiffness",
    "get",
]


class Regularizer(configurable.Configurable):
    """A penalty on a solve: a layer adds `weight` times its mean over the batch to the model's losses.

    The penalty is either the integral of `integrand`, or the sum of `of_step` over the accepted steps. To define your own
    penalty, override one of these two methods. The integrand may be negative. Its integral is that over the length of time, so
    a positive integrand has a positive integral also where the solve goes back in time.

    Args:
        weight: The number by which the penalty is multiplied, zero or positive. Defaults to `0.01`.

    Attributes:
        sums_steps: Whether the penalty is a sum over steps. Its gradient is obtained by differentiating these steps, so it
            needs `adjoint="checkpointed"`, `"reversible"` or `"direct"`. Without `per_sample=True`, all rows share the sum, and
            an implicit solver takes them for one system of equations.
        needs_noise: Whether the integrand uses random signs, which are drawn anew for each solve.
        needs_error: Whether the solver must estimate its error.
        num_leaves: The integral depends on this many leaves of the state, counted from the first. `None` means all.

    Raises:
        ValueError: If the weight is negative or not a number.

    Example:

    >>> class Size(keras_ode.regularizers.Regularizer):
    ...     # the integral of the squared state
    ...     def integrand(self, y, derivative, noise, like):
    ...         return tf.reduce_sum(y[0] ** 2, axis=1)
    >>> layer = keras_ode.ODELayer(keras.layers.Dense(2), regularizer=Size(0.1))
    >>> y = layer(tf.ones([4, 2]), training=True)
    >>> len(layer.losses)
    1
    """

    sums_steps = False
    needs_noise = False
    needs_error = False
    num_leaves = None

    def __init__(self, weight: float = 0.01) -> None:
        if not isinstance(weight, numbers.Real) or not 0 <= weight < np.inf:
            raise ValueError(f"weight must be a number that is not negative. Received: weight={weight!r}")
        self.weight = weight

    def of_leaves(self, num_leaves):
        """Returns a copy whose integrand uses only the first `num_leaves` leaves of the state. Sums over steps do not change."""
        other = copy.copy(self)
        other.num_leaves = num_leaves
        return other

    def start(self, y, like):
        """Returns the initial leaf: zeros of shape `[B]`, or zeros in the shape of `like` for a sum over steps."""
        return tf.zeros_like(like) if self.sums_steps else tf.zeros(tf.shape(y[0])[:1], like.dtype)

    def integrand(self, y, derivative, noise, like):
        """Returns the integrand at a point.

        Args:
            y: The leaves of the state, a tuple of tensors `[B, ...]`.
            derivative: The leaves of the derivative of the state, in the shapes of `y`.
            noise: Random booleans in the shapes of `y`, for classes that set `needs_noise`.
            like: The integral so far, shape `[B]`.

        Returns:
            A tensor with the shape and the dtype of `like`: one number for each row.
        """
        raise NotImplementedError

    def of_step(self, step, size):
        """Returns what an accepted step adds to the sum.

        Args:
            step: The step, with its leaves before and after it (`step.start`, `step.y`) and its error estimate (`step.error`).
            size: The positive step size: a scalar, or `[B]` if every row has its own.

        Returns:
            A tensor with the shape and the dtype of `size`.
        """
        raise NotImplementedError

    def derivative(self, total, y, derivative, noise):
        """Returns the derivative of the leaf that accumulates the penalty."""
        if self.sums_steps:
            return tf.zeros_like(total)
        y, derivative, noise = (leaves[: self.num_leaves] for leaves in (y, derivative, noise))
        return tf.ensure_shape(self.integrand(y, derivative, noise, total), total.shape)


# All of these penalties lower the number of function evaluations.
NFERegularizer = Regularizer


class Kinetic(Regularizer):
    """The kinetic energy of the trajectory, `integral of |f(t, y)|^2 dt`, which favors straight and slow trajectories.

    Args:
        weight: The number by which the penalty is multiplied. Defaults to `0.01`.

    Example:

    >>> layer = keras_ode.ODELayer(keras.layers.Dense(2), regularizer=keras_ode.regularizers.Kinetic(0.1))
    >>> y = layer(tf.ones([8, 2]))
    >>> len(layer.losses)
    1

    Reference: Finlay, Jacobsen, Nurbekyan, Oberman (2020), How to train your neural ODE: the world of Jacobian and
    kinetic regularization, ICML.
    """

    def integrand(self, y, derivative, noise, like):
        return tree.dot(derivative, derivative, like)


class JacobianFrobenius(Regularizer):
    """The squared Frobenius norm of the Jacobian along the trajectory, `integral of |e^T df/dy|^2 dt`.

    This is Hutchinson's estimate with a vector `e` of random signs, which is drawn once for each solve. It costs one
    vector-Jacobian product per evaluation of the dynamics. Use it together with `Kinetic`, as the paper does:
    `regularizer=["kinetic", "jacobian_frobenius"]`.

    Args:
        weight: The number by which the penalty is multiplied. Defaults to `0.01`.

    Example:

    >>> layer = keras_ode.ODELayer(keras.layers.Dense(2), regularizer="jacobian_frobenius")
    >>> y = layer(tf.ones([4, 2]), training=True)
    >>> len(layer.losses)
    1

    References:
        Hutchinson (1989), A stochastic estimator of the trace of the influence matrix, Commun. Stat. 18(3).
        Finlay, Jacobsen, Nurbekyan, Oberman (2020), How to train your neural ODE, ICML.
    """

    needs_noise = True

    def integrand(self, y, derivative, noise, like):
        signs = [tf.where(bits, tf.ones_like(d), -tf.ones_like(d)) for bits, d in zip(noise, derivative, strict=True)]
        products = tf.gradients(derivative, y, signs, unconnected_gradients="zero")
        return tree.dot(products, products, like)


class ErrorEstimate(Regularizer):
    """The sum of `|error| h` over the accepted steps, where `error` is the error that the solver estimates.

    `|error|` is the root mean square of the estimated error of a step, and `h` is the step size. Errors are about as large as
    the tolerance or smaller, so the weight must be large. This penalty needs a solver that estimates its error, and an adjoint
    that differentiates the steps, such as `"checkpointed"`. `ODELayer` raises a `ValueError` for others.

    Args:
        weight: The number by which the penalty is multiplied. Defaults to `100`.

    Example:

    >>> regularizer = keras_ode.regularizers.ErrorEstimate(10.0)
    >>> layer = keras_ode.ODELayer(keras.layers.Dense(2), adjoint="checkpointed", regularizer=regularizer)
    >>> y = layer(tf.ones([4, 2]), training=True)
    >>> len(layer.losses)
    1

    Reference: Pal, Ma, Shah, Rackauckas (2021), Opening the blackbox: accelerating neural differential equations by
    regularizing internal solver heuristics, ICML.
    """

    sums_steps = True
    needs_error = True

    def __init__(self, weight: float = 100.0) -> None:
        super().__init__(weight)

    def of_step(self, step, size):
        return size * _root(tree.mean_square(step.error, size))


class Stiffness(Regularizer):
    """The sum of the estimated spectral radius of the Jacobian, a measure of stiffness, over the accepted steps.

    The spectral radius is estimated from the last two stages of each step, as in `Solution.stats["stiffness"]`.
    This penalty needs an adjoint that differentiates the steps, such as `"checkpointed"`. `ODELayer` raises a `ValueError` for
    others.

    Args:
        weight: The number by which the penalty is multiplied. Defaults to `0.01`.

    Example:

    >>> layer = keras_ode.ODELayer(keras.layers.Dense(2), adjoint="checkpointed", regularizer="stiffness")
    >>> y = layer(tf.ones([4, 2]), training=True)
    >>> len(layer.losses)
    1

    Reference: Pal, Ma, Shah, Rackauckas (2021), Opening the blackbox: accelerating neural differential equations by
    regularizing internal solver heuristics, ICML.
    """

    sums_steps = True

    def of_step(self, step, size):
        return _root(squared_spectral_radius(step, size))


class StepSums(NamedTuple):
    """Adds to the leaves of penalties that are sums over steps. `regularizers` has one entry for each of the last leaves."""

    regularizers: tuple

    def __call__(self, step, interval):
        """Returns the step with the updated sums."""
        count = len(step.y) - len(self.regularizers)
        of_state = step.select(lambda leaves: leaves[:count])
        # The choice of the step sizes is not differentiated.
        size = tf.abs(tf.stop_gradient(interval.size))
        # The field does not change such a total, but a solver may mix states.
        totals = [
            before + r.of_step(of_state, size) if r.sums_steps else total
            for r, before, total in zip(self.regularizers, step.start[count:], step.y[count:], strict=True)
        ]
        return step._replace(y=(*step.y[:count], *totals))


def check_supported(regularizers, solver, adjoint):
    """Raises an error for penalties that the solver cannot estimate or the adjoint cannot differentiate."""
    for regularizer in regularizers:
        if regularizer.sums_steps and not adjoint.differentiates_steps:
            raise ValueError(
                f"{type(regularizer).__name__} is a sum over the solver's steps, so its gradient is that of these steps: "
                f"use adjoint='checkpointed' or 'direct'. Received: adjoint={adjoint!r}"
            )
        if regularizer.needs_error and not solver.error_order:
            raise ValueError(
                f"{type(regularizer).__name__} needs a solver that estimates its error, such as 'tsit5'. Received: "
                f"solver={solver!r}"
            )


class RandomEndTime(configurable.Configurable):
    """Times whose last one is random in training: uniform in `[t[-1] - width, t[-1] + width]`, drawn once per call.

    This keeps the dynamics from becoming stiff shortly before the end of the interval. In inference, the times are `t`.

    Args:
        t: Two or more strictly increasing or decreasing times. Defaults to `(0.0, 1.0)`.
        width: Half the width of the interval from which the last time is drawn, in the units of `t`. It must be positive and
            less than the distance of the last two times. Defaults to `0.5`.

    Raises:
        ValueError: If the width is outside these limits.

    Example:

    >>> t = keras_ode.regularizers.random_end_time((0.0, 1.0), width=0.25)
    >>> layer = keras_ode.ODELayer(keras.layers.Dense(2), t=t)

    Reference: Ghosh, Behl, Dupont, Torr, Namboodiri (2020), STEER: simple temporal regularization for neural ODEs,
    NeurIPS.
    """

    def __init__(self, t: Sequence[float] = (0.0, 1.0), width: float = 0.5) -> None:
        self.t = tuple(float(x) for x in t)
        last = abs(self.t[-1] - self.t[-2]) if len(self.t) > 1 else 0.0
        if not isinstance(width, numbers.Real) or not 0 < width < last:
            raise ValueError(
                f"width must be positive and less than the distance of the last two times. Received: t={t!r}, width={width!r}"
            )
        self.width = float(width)

    def drawn(self, shift):
        """Returns the times, the last one plus `shift * width`, where `shift` is a number in `[-1, 1]`."""
        if not np.array_equal(np.asarray(self.t, shift.dtype.as_numpy_dtype), self.t):
            shift = tf.cast(shift, tf.float64)  # times far from zero are rounded after they are subtracted
        return tf.concat([tf.constant(self.t[:-1], shift.dtype), [self.t[-1] + self.width * shift]], axis=0)


# As in Keras, a function-like name for each class.
kinetic = Kinetic
jacobian_frobenius = JacobianFrobenius
error_estimate = ErrorEstimate
stiffness = Stiffness
random_end_time = RandomEndTime

REGULARIZERS = {
    "kinetic": Kinetic,
    "jacobian_frobenius": JacobianFrobenius,
    "error_estimate": ErrorEstimate,
    "stiffness": Stiffness,
}
TIMES = {"random_end_time": RandomEndTime}


def get(identifier: str | dict[str, Any] | Regularizer) -> Regularizer:
    """Returns a regularizer from its name, its configuration or a `Regularizer` object.

    Args:
        identifier: A name such as `"kinetic"`, a dictionary with the entries `"name"` and `"config"`, or a `Regularizer`,
            which is returned as it is.

    Returns:
        A `Regularizer`.

    Raises:
        ValueError: If there is no regularizer of that name.

    Example:

    >>> keras_ode.regularizers.get("kinetic").weight
    0.01
    """
    return configurable.get(identifier, "regularizer", Regularizer, REGULARIZERS)


def get_all(identifiers):
    """Returns the regularizers for `None`, one identifier or a list of them, as a tuple."""
    if identifiers is None:
        return ()
    if not isinstance(identifiers, (list, tuple)):
        identifiers = [identifiers]
    return tuple(get(identifier) for identifier in identifiers)


def _root(square):
    """Returns the square root, whose derivative at zero is defined as zero."""
    positive = square > 0
    return tf.where(positive, tf.sqrt(tf.where(positive, square, 1)), square)
