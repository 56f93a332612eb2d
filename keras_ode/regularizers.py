"""Penalties on a solve, so that what is trained is solved in fewer evaluations: `ODELayer(regularizer=...)`.

A penalty is one more leaf behind those of the state. It only adds up: the field does not depend on it, and error control
does not see it, so that the steps stay what they were.
"""

import copy
import numbers
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_ode import configurable, tree
from keras_ode.observers import squared_spectral_radius


class Regularizer(configurable.Configurable):
    """A penalty on a solve: a layer adds `weight` times its mean over the batch to the model's losses.

    It is an integral, of its `integrand`, or a sum, of what `of_step` gives for each accepted step.

    Args:
        weight: The factor of the penalty, not negative. Defaults to `0.01`.

    Attributes:
        sums_steps: Whether it is a sum over steps. Its gradient is that of the steps that were taken, so it needs
            `adjoint="checkpointed"` or `"direct"`.
        needs_noise: Whether the integrand takes random signs, drawn anew for each solve.
        needs_error: Whether the solver must estimate its error.
        num_leaves: Of how many leaves of the state, the first ones, an integral is; `None` is all.
    """

    sums_steps = False
    needs_noise = False
    needs_error = False
    num_leaves = None

    def __init__(self, weight=0.01):
        if not isinstance(weight, numbers.Real) or not 0 <= weight < np.inf:
            raise ValueError(f"weight must be a number that is not negative. Received: weight={weight!r}")
        self.weight = weight

    def of_leaves(self, num_leaves):
        """The same penalty whose integral is one of the state's first leaves alone; a sum over steps is what it was."""
        other = copy.copy(self)
        other.num_leaves = num_leaves
        return other

    def start(self, y, per_sample, dtype):
        """The leaf at the start: zero for each row, or one for all where the steps that are summed are shared."""
        shared = self.sums_steps and not per_sample
        return tf.zeros([] if shared else tf.shape(y[0])[:1], dtype)

    def integrand(self, y, derivative, noise, dtype):
        """The integrand at a point, `[B]`; all but `dtype` are leaves, `noise` of booleans."""
        raise NotImplementedError

    def of_step(self, step, size, per_sample, dtype):
        """What a step of `size` (positive) adds to the sum: a scalar, or `[B]`."""
        raise NotImplementedError

    def derivative(self, total, y, derivative, noise):
        """The derivative of the leaf `total`."""
        if self.sums_steps:
            return tf.zeros_like(total)
        y, derivative, noise = (leaves[: self.num_leaves] for leaves in (y, derivative, noise))
        return tf.ensure_shape(self.integrand(y, derivative, noise, total.dtype), total.shape)


# What all of these are for: to lower the number of function evaluations.
NFERegularizer = Regularizer


class Kinetic(Regularizer):
    """The kinetic energy of the path, `integral of |f(t, y)|^2 dt`: paths become straight and slow.

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

    def integrand(self, y, derivative, noise, dtype):
        return tree.dot(derivative, derivative, True, dtype)


class JacobianFrobenius(Regularizer):
    """The squared Frobenius norm of the Jacobian along the path, `integral of |e^T df/dy|^2 dt`.

    It is Hutchinson's estimate with random signs `e`, one vector a solve, drawn anew for each. It costs a
    vector-Jacobian product an evaluation. Use it together with `Kinetic`, as the paper does:
    `regularizer=["kinetic", "jacobian_frobenius"]`.

    Args:
        weight: The factor of the penalty. Defaults to `0.01`.

    References:
        Hutchinson (1989), A stochastic estimator of the trace of the influence matrix, Commun. Stat. 18(3).
        Finlay, Jacobsen, Nurbekyan, Oberman (2020), How to train your neural ODE, ICML.
    """

    needs_noise = True

    def integrand(self, y, derivative, noise, dtype):
        signs = [tf.where(bits, tf.ones_like(d), -tf.ones_like(d)) for bits, d in zip(noise, derivative, strict=True)]
        products = tf.gradients(derivative, y, signs, unconnected_gradients="zero")
        return tree.dot(products, products, True, dtype)


class ErrorEstimate(Regularizer):
    """The solver's own estimates of its error: the sum of `|error| h` over the accepted steps.

    `|error|` is the root mean square of a step's estimated error, `h` its size. That is about the tolerance or less, so
    the weight is a large one.

    Args:
        weight: The factor of the penalty. Defaults to `100`.

    Reference: Pal, Ma, Shah, Rackauckas (2021), Opening the blackbox: accelerating neural differential equations by
    regularizing internal solver heuristics, ICML.
    """

    sums_steps = True
    needs_error = True

    def __init__(self, weight=100.0):
        super().__init__(weight)

    def of_step(self, step, size, per_sample, dtype):
        return size * _root(tree.mean_square(step.error, per_sample, dtype))


class Stiffness(Regularizer):
    """The stiffness that the solver sees: the sum of the Jacobian's spectral radius over the accepted steps.

    The radius is estimated from the last two stages of each step, as in `Solution.stats["stiffness"]`.

    Args:
        weight: The factor of the penalty. Defaults to `0.01`.

    Reference: Pal, Ma, Shah, Rackauckas (2021), Opening the blackbox: accelerating neural differential equations by
    regularizing internal solver heuristics, ICML.
    """

    sums_steps = True

    def of_step(self, step, size, per_sample, dtype):
        return _root(squared_spectral_radius(step, per_sample, dtype))


class StepSums(NamedTuple):
    """Adds to the leaves of penalties that are sums over steps: `regularizers` has the one of each of the last leaves."""

    regularizers: tuple

    def __call__(self, step, interval):
        """The step with what it adds to the totals."""
        count = len(step.y) - len(self.regularizers)
        of_state = step.select(lambda leaves: leaves[:count])
        # The choice of the step sizes is not differentiated.
        size = tf.abs(tf.stop_gradient(interval.size))
        totals = [
            total + r.of_step(of_state, size, size.shape.rank == 1, total.dtype) if r.sums_steps else total
            for r, total in zip(self.regularizers, step.y[count:], strict=True)
        ]
        return step._replace(y=(*step.y[:count], *totals))


def check_supported(regularizers, solver, adjoint):
    """Refuses penalties that the solver cannot estimate or the adjoint cannot differentiate."""
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
    """Times whose last one is random in training: uniform in `[t[-1] - width, t[-1] + width]`, drawn once a call.

    So the dynamics cannot become stiff in the short time before its end. In inference the times are `t`.

    Args:
        t: Two or more strictly monotone times. Defaults to `(0.0, 1.0)`.
        width: Less than the distance of the last two. Defaults to `0.5`.

    Example:

    >>> t = keras_ode.regularizers.random_end_time((0.0, 1.0), width=0.25)
    >>> layer = keras_ode.ODELayer(keras.layers.Dense(2), t=t)

    Reference: Ghosh, Behl, Dupont, Torr, Namboodiri (2020), STEER: simple temporal regularization for neural ODEs,
    NeurIPS.
    """

    def __init__(self, t=(0.0, 1.0), width=0.5):
        self.t = tuple(float(x) for x in t)
        last = abs(self.t[-1] - self.t[-2]) if len(self.t) > 1 else 0.0
        if not isinstance(width, numbers.Real) or not 0 < width < last:
            raise ValueError(
                f"width must be positive and less than the distance of the last two times. Received: t={t!r}, width={width!r}"
            )
        self.width = float(width)

    def drawn(self, shift):
        """The times, whose last is moved by `shift`, a number in [-1, 1], times the width."""
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


def get(identifier):
    """The regularizer of a name (`"kinetic"`), a configuration or a `Regularizer` object."""
    return configurable.get(identifier, "regularizer", Regularizer, REGULARIZERS)


def get_all(identifiers):
    """The regularizers of `None`, of one identifier or of a list of them, as a tuple."""
    if identifiers is None:
        return ()
    if not isinstance(identifiers, (list, tuple)):
        identifiers = [identifiers]
    return tuple(get(identifier) for identifier in identifiers)


def _root(square):
    """The square root, with the derivative zero at zero."""
    positive = square > 0
    return tf.where(positive, tf.sqrt(tf.where(positive, square, 1)), square)
