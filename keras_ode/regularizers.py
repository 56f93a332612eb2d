"""Penalties on a solve that make a trained model cheaper to solve: `ODELayer(regularizer=...)`.

A penalty is an additional leaf after those of the state. It is only accumulated: the field does not depend on it, and it
takes no part in error control, so it does not change the steps.
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

    The penalty is either the integral of `integrand`, or the sum of `of_step` over the accepted steps.

    Args:
        weight: The factor of the penalty, not negative. Defaults to `0.01`.

    Attributes:
        sums_steps: Whether the penalty is a sum over steps. Its gradient is that of the steps that were taken, so it needs
            an adjoint that differentiates steps: `"checkpointed"`, `"reversible"` or `"direct"`.
        needs_noise: Whether the integrand takes random signs, which are drawn again for each solve.
        needs_error: Whether the solver must estimate its error.
        num_leaves: The number of leaves of the state, from the first, on which the integral depends. `None` means all.

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
        """Returns the same penalty with an integral over the state's first leaves only. A sum over steps does not change."""
        other = copy.copy(self)
        other.num_leaves = num_leaves
        return other

    def start(self, y, like):
        """Returns the initial leaf: a zero for each row, or one like `like` for a sum over steps."""
        return tf.zeros_like(like) if self.sums_steps else tf.zeros(tf.shape(y[0])[:1], like.dtype)

    def integrand(self, y, derivative, noise, like):
        """Returns the integrand at a point, a number for each row, like `like`. The other arguments are leaves; those of `noise`
        are booleans."""
        raise NotImplementedError

    def of_step(self, step, size):
        """Returns what a step of `size` (positive, a scalar or `[B]`) adds to the sum: a number like `size`."""
        raise NotImplementedError

    def derivative(self, total, y, derivative, noise):
        """Returns the derivative of the leaf `total`."""
        if self.sums_steps:
            return tf.zeros_like(total)
        y, derivative, noise = (leaves[: self.num_leaves] for leaves in (y, derivative, noise))
        return tf.ensure_shape(self.integrand(y, derivative, noise, total), total.shape)


# All of these penalties lower the number of function evaluations.
NFERegularizer = Regularizer


class Kinetic(Regularizer):
    """The kinetic energy of the trajectory, `integral of |f(t, y)|^2 dt`: trajectories become straight and slow.

    Args:
        weight: The factor of the penalty. Defaults to `0.01`.

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

    This is Hutchinson's estimate with random signs `e`, one vector for each solve. It costs one vector-Jacobian product
    per evaluation. Use it together with `Kinetic`, as the paper does: `regularizer=["kinetic", "jacobian_frobenius"]`.

    Args:
        weight: The factor of the penalty. Defaults to `0.01`.

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
    """The solver's own error estimates: the sum of `|error| h` over the accepted steps.

    `|error|` is the root mean square of the estimated error of a step, and `h` is the step size. The error is about the
    tolerance or less, so the weight must be large.

    Args:
        weight: The factor of the penalty. Defaults to `100`.

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
    """The stiffness that the solver estimates: the sum of the Jacobian's spectral radius over the accepted steps.

    The spectral radius is estimated from the last two stages of each step, as in `Solution.stats["stiffness"]`.

    Args:
        weight: The factor of the penalty. Defaults to `0.01`.

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
    """Adds penalties that are sums over steps to their leaves. `regularizers` holds one for each of the last leaves."""

    regularizers: tuple

    def __call__(self, step, interval):
        """Returns the step, including what it adds to the sums."""
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
    """Times with a random last time in training: uniform in `[t[-1] - width, t[-1] + width]`, drawn once per call.

    This prevents the dynamics from becoming stiff shortly before its end. In inference the times are `t`.

    Args:
        t: Two or more strictly monotone times. Defaults to `(0.0, 1.0)`.
        width: Less than the difference between the last two times. Defaults to `0.5`.

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
        """Returns the times, with the last one moved by `shift`, a number in [-1, 1], times the width."""
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
    """Returns the regularizer for a name (`"kinetic"`), a configuration or a `Regularizer` object.

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
    """The square root, with derivative zero at zero."""
    positive = square > 0
    return tf.where(positive, tf.sqrt(tf.where(positive, square, 1)), square)
