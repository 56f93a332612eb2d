"""Stages of implicit methods: equations that are solved by Newton's method with one matrix for all stages of a step."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_ode import tree
from keras_ode.custom_gradient import differentiable
from keras_ode.solvers.systems import System

HIGHER = (
    "Steps of implicit methods that are found by iteration have as many derivatives as corrections follow: three with "
    "adjoint='direct'. Use an explicit solver or 'rodas5p' for higher ones."
)
_MOST_ITERATIONS = 10
# Where a step cannot be tried again with a smaller size, there are more iterations, and from this rate on a new Jacobian.
_MOST_OF_FIXED_STEPS = 40
_SLOW = 0.2
# The residual that GMRES may leave in a correction, which the next one takes away.
_OF_ITERATION = 1e-2
# Changes of so many rounding errors of the state are as small as they get.
_ROUNDING_ERRORS = 10


class Newton:
    """Solves the stages of one step: `z = gamma * size * f(t, base + z)` for the increment `z`, or `M z` with a mass matrix.

    Every iteration uses the Jacobian at the start of the step; steps of constant size, which cannot be tried again, take new
    ones where that is slow. The iteration is not differentiated: where the field asks for derivatives of the step, corrections
    with the Jacobian at the stage's solution follow, and each makes one more derivative of `z` that of the implicit function.

    Args:
        field: A `Field`.
        interval: The `Interval` of the step.
        y: The leaves at its start.
        gamma: A number, or a tensor, `[]` or `[B]`.

    Attributes:
        evaluations: How many evaluations of the field this took, an int32 tensor, or `[B]`.
        converged: Whether all stages so far were solved, a boolean, or `[B]`.

    Reference: Hairer, Wanner (1996), Solving Ordinary Differential Equations II, section IV.8.
    """

    # How many evaluations an iteration takes.
    evaluations_each = 1
    # The error that the iteration may leave, in units of the step's tolerance.
    kappa = 0.03

    def __init__(self, field, interval, y, gamma):
        self._field, self._constant = field, field.constant()
        self._factor = tf.convert_to_tensor(gamma, interval.size.dtype) * interval.size
        self._y = tuple(map(tf.stop_gradient, y))
        near, factor = self._constant.linearize(interval.start, self._y), tf.stop_gradient(self._factor)
        self._system, self._exact = self._systems(factor)
        self._prepared = self._system.at(near)
        self.evaluations = tf.zeros_like(interval.size, dtype=tf.int32) + near.evaluations
        self.converged = tf.ones_like(interval.size, dtype=tf.bool)
        epsilons = [_ROUNDING_ERRORS * np.finfo(leaf.dtype.as_numpy_dtype).eps for leaf in y]
        self._least = self._size([e * leaf for e, leaf in zip(epsilons, self._y, strict=True)], tree.zeros_like(self._y))
        # The last rate of convergence r, as r / (1 - r).
        self._eta = tf.ones_like(interval.size)

    def solve(self, t, base, guess):
        """The increment of a stage at `t`, leaves; starts from `guess`."""
        fixed, guess = (tuple(map(tf.stop_gradient, leaves)) for leaves in (base, guess))
        z = self._iterate(tf.stop_gradient(t), fixed, guess)
        if not self._field.derivatives:
            return z
        z = tuple(map(tf.stop_gradient, z))
        near = self._constant.linearize(tf.stop_gradient(t), tree.add(fixed, z), exact=True)
        prepared = tuple(map(tf.stop_gradient, self._exact.at(near)))
        for _ in range(self._field.derivatives):
            z = tree.add(z, self._exact.apply(prepared, self._residual(self._field, self._factor, t, base, z)))
        self.evaluations += self._field.derivatives + near.evaluations
        return differentiable(z, self._field.derivatives, HIGHER)

    def _systems(self, factor):
        """What solves the linear equations of an iteration, and those of a correction."""
        return System(self._constant, factor, _OF_ITERATION), System(self._constant, factor)

    def _residual(self, field, factor, t, base, z):
        slope = field(t, tree.add(base, z), with_integrand=False).derivative
        return tree.subtract(tree.scale(factor, slope), z if field.mass is None else field.mass.times(z))

    def _size(self, change, z):
        """How large a change is that gives the increment `z`, in units of the tolerance: a scalar, or `[B]`."""
        end = None if self._field.adaptive else tree.add(self._y, z)
        return tf.stop_gradient(self._field.scaled(tuple(change), self._y, self._factor, end))

    def _iterate(self, t, base, z):
        """Rows that are done change no more."""
        # What went before makes a guess of the rate; no error estimate would see where that is wrong in a step of constant size.
        epsilon = tf.constant(np.finfo(self._eta.dtype.as_numpy_dtype).eps, self._eta.dtype)
        eta = tf.maximum(self._eta, epsilon) ** 0.8 if self._field.adaptive else tf.ones_like(self._eta)
        none = tf.zeros_like(self.converged)
        loop = _Loop(tf.constant(0), self.evaluations, z, self._prepared, tf.ones_like(eta), eta, self.converged, none, none)
        most = _MOST_ITERATIONS if self._field.adaptive else _MOST_OF_FIXED_STEPS
        loop = tree.while_loop(
            lambda *loop: (loop[0] < most) & tf.reduce_any(_Loop(*loop).is_running),
            lambda *loop: tuple(self._advance(t, base, _Loop(*loop), most)),
            tuple(loop),
        )
        loop = _Loop(*loop)
        self.evaluations, self._prepared, self.converged = loop.evaluations, loop.prepared, loop.converged
        self._eta = tree.select(loop.converged, loop.eta, 1)
        return loop.z

    def _advance(self, t, base, loop, most):
        """One iteration."""
        loop = loop if self._field.adaptive else self._refreshed(t, base, loop)
        residual = self._residual(self._constant, tf.stop_gradient(self._factor), t, base, loop.z)
        change = self._system.solve(loop.prepared, residual)
        z = tree.add(loop.z, change)
        size = self._size(change, z)
        rate = size / loop.before
        eta = tree.select(loop.is_running & (loop.k > 0), rate / (1 - rate), loop.eta)
        is_solved = (size <= self._least) | (eta * size <= self.kappa) & (eta >= 0)
        is_hopeless = ~tf.math.is_finite(size)
        if self._field.adaptive:
            left = tf.cast(most - 1 - loop.k, rate.dtype)
            is_hopeless |= (loop.k > 0) & ~((rate < 1) & (rate**left * eta * size <= self.kappa))
        return _Loop(
            k=loop.k + 1,
            evaluations=loop.evaluations + self.evaluations_each * tf.cast(loop.is_running, tf.int32),
            z=tree.where(loop.is_running, z, loop.z),
            prepared=loop.prepared,
            before=size,
            eta=eta,
            is_running=loop.is_running & ~is_solved & ~is_hopeless,
            is_slow=~(rate < _SLOW) & (loop.k > 0),
            converged=loop.converged | loop.is_running & is_solved,
        )

    def _linearized(self, t, base, z):
        return self._constant.linearize(t, tree.add(base, z))

    def _refreshed(self, t, base, loop):
        """With another Jacobian where the iteration is slow."""
        wanted = loop.is_running & loop.is_slow

        def refresh():
            near = self._linearized(t, base, loop.z)
            return tree.where(wanted, self._system.at(near), loop.prepared), tree.select(wanted, near.evaluations, 0)

        prepared, count = tf.cond(tf.reduce_any(wanted), refresh, lambda: (loop.prepared, tf.zeros_like(loop.evaluations)))
        return loop._replace(prepared=prepared, evaluations=loop.evaluations + count)


class _Loop(NamedTuple):
    """What goes round the iteration: scalars or `[B]`, leaves, and matrices."""

    k: tf.Tensor
    evaluations: tf.Tensor
    z: tuple
    prepared: tuple
    before: tf.Tensor
    eta: tf.Tensor
    is_running: tf.Tensor
    is_slow: tf.Tensor
    converged: tf.Tensor
