"""Stages of implicit methods: equations that are solved by Newton's method with one matrix for all stages of a step."""

import numpy as np
import tensorflow as tf

from keras_ode import tree
from keras_ode.solvers.linear import identity_less, inverse, product

_MOST_ITERATIONS = 10
# The error that the iteration may leave, in units of the step's tolerance.
_KAPPA = 0.01
# Changes of so many rounding errors of the state are as small as they get.
_ROUNDING_ERRORS = 10


class Newton:
    """Solves the stages of one step: `z = gamma * size * f(t, base + z)` for the increment `z`.

    Every iteration uses the Jacobian at the start of the step. The iteration is not differentiated: where the field asks for
    derivatives of the step, corrections with the Jacobian at the stage's solution follow, and each makes one more derivative of
    `z` that of the implicit function.

    Args:
        field: A `Field`.
        interval: The `Interval` of the step.
        y: The leaves at its start.
        gamma: A number.

    Attributes:
        evaluations: How many evaluations of the field this took, an int32 tensor, or `[B]`.
        converged: Whether all stages so far were solved, a boolean, or `[B]`.

    Reference: Hairer, Wanner (1996), Solving Ordinary Differential Equations II, section IV.8.
    """

    def __init__(self, field, interval, y, gamma):
        self._field, self._constant, self._rows = field, field.constant(), field.rows
        self._factor = tf.constant(gamma, interval.size.dtype) * interval.size
        self._y = tuple(map(tf.stop_gradient, y))
        near = self._constant.linearize(interval.start, self._y)
        self._inverse = self._inverted(near)
        self.evaluations = tf.zeros_like(interval.size, dtype=tf.int32) + near.evaluations
        self.converged = tf.ones_like(interval.size, dtype=tf.bool)
        epsilons = [_ROUNDING_ERRORS * np.finfo(leaf.dtype.as_numpy_dtype).eps for leaf in y]
        self._least = self._size([e * leaf for e, leaf in zip(epsilons, self._y, strict=True)])
        # The last rate of convergence r, as r / (1 - r).
        self._eta = tf.ones_like(interval.size)

    def solve(self, t, base, guess):
        """The increment of a stage at `t`, leaves; starts from `guess`."""
        fixed, guess = (tuple(map(tf.stop_gradient, leaves)) for leaves in (base, guess))
        z = self._iterate(tf.stop_gradient(t), fixed, guess)
        if not self._field.derivatives:
            return z
        z = tuple(map(tf.stop_gradient, z))
        near = self._constant.linearize(tf.stop_gradient(t), tree.add(fixed, z))
        exact = self._inverted(near)
        for _ in range(self._field.derivatives):
            z = tree.add(z, self._correction(self._field, self._factor, exact, t, base, z))
        self.evaluations += self._field.derivatives + near.evaluations
        return z

    def _inverted(self, near):
        return tf.stop_gradient(inverse(identity_less(tf.stop_gradient(self._factor), near.matrix)))

    def _correction(self, field, factor, inverted, t, base, z):
        slope = field(t, tree.add(base, z), with_integrand=False).derivative
        residual = tree.subtract(tree.scale(factor, slope), z)
        return tree.unpacked(product(inverted, tree.packed(residual, self._rows)), residual, self._rows)

    def _size(self, change):
        """How large a change is, in units of the tolerance: a scalar, or `[B]`."""
        size = self._factor
        return tf.stop_gradient(self._field.scaled(tuple(change), self._y, size.shape.rank == 1, size.dtype))

    def _iterate(self, t, base, z):
        """Rows that are done change no more."""
        factor = tf.stop_gradient(self._factor)

        def iterate(k, count, z, before, eta, is_running, converged):
            change = self._correction(self._constant, factor, self._inverse, t, base, z)
            size = self._size(change)
            rate = size / before
            eta = tf.where(is_running & (k > 0), rate / (1 - rate), eta)
            is_solved = (size <= self._least) | (eta * size <= _KAPPA) & (eta >= 0)
            left = tf.cast(_MOST_ITERATIONS - 1 - k, rate.dtype)
            is_hopeless = (k > 0) & ~((rate < 1) & (rate**left * eta * size <= _KAPPA)) | ~tf.math.is_finite(size)
            z = tree.where(is_running, tree.add(z, change), z)
            converged |= is_running & is_solved
            count += tf.cast(is_running, tf.int32)
            return k + 1, count, z, size, eta, is_running & ~is_solved & ~is_hopeless, converged

        # What went before makes a guess of the rate.
        epsilon = tf.constant(np.finfo(factor.dtype.as_numpy_dtype).eps, factor.dtype)
        eta = tf.maximum(self._eta, epsilon) ** 0.8
        _, self.evaluations, z, _, eta, _, self.converged = tree.while_loop(
            lambda k, count, z, before, eta, is_running, converged: (k < _MOST_ITERATIONS) & tf.reduce_any(is_running),
            iterate,
            (tf.constant(0), self.evaluations, z, tf.ones_like(eta), eta, self.converged, tf.zeros_like(self.converged)),
        )
        self._eta = tf.where(self.converged, eta, 1)
        return z
