"""Cotangents that arrive at saved times, in a backward solve whose steps pass many of them at once."""

from typing import Any, NamedTuple

import tensorflow as tf

from keras_ode import tree
from keras_ode.solvers.base import Solver


class Carry(NamedTuple):
    """The inner solver's carry, and the cotangent of the derivative at this point that is still to be applied."""

    inner: Any
    pending: tuple


class Impulses(Solver):
    """Steps of another solver, backward through an adjoint equation that jumps at saved times.

    The cotangent `g` of a saved state that lies within a step from `t1` back to `t0` is moved to the step's ends by
    the transpose of cubic Hermite interpolation: with `y(t) = h00 y0 + h01 y1 + (t1 - t0) (h10 f0 + h11 f1)` it adds
    `h00 g` and `h01 g` to the cotangents of the ends, and `(t1 - t0) h10 g`, `(t1 - t0) h11 g` to those of the
    derivatives there, which the field's Jacobians carry on. So a step may be as long as the solution allows, however
    dense the saved times; where interpolating the saved states themselves shows too large an error, it is rejected.

    Args:
        solver: The solver of the steps.
        stops: The saved times but the first and the last, as times since the backward start, increasing: `[T - 2]`.
        ys: The saved states there in the same order, leaves `[T - 2, ...]`.
        cotangents: Their cotangents, leaves `[T - 2, ...]`.
    """

    def __init__(self, solver, stops, ys, cotangents):
        self.solver, self.stops, self.ys, self.cotangents = solver, stops, ys, cotangents
        self.order, self.error_order = solver.order, solver.error_order

    def start(self, field, t, z):
        inner, evaluations = self.solver.start(field, t, z)
        return Carry(inner, tree.zeros_like(self._cotangent(z))), evaluations

    def first_derivative(self, carry):
        return self.solver.first_derivative(carry.inner)

    def step(self, field, interval, z, carry, dense=False):
        stops, cotangents = self.stops, self.cotangents
        here = stops == interval.since
        inside = (stops > interval.since) & (stops < interval.until)
        weights = _hermite((interval.until - stops) / (interval.until - interval.since), inside)
        impulse = _Impulse(here, inside, weights, cotangents)

        z, inner, integral, evaluations = tf.cond(
            tf.reduce_any(here | inside),
            lambda: self._jump(field, interval, z, carry, impulse),
            lambda: self._stay(field, z, carry),
        )
        step = self.solver.step(field, interval, z, inner, dense)
        cotangent = tree.add(self._cotangent(step.y), impulse.sum(weights.end_value))
        pending = tree.scale(-interval.size, impulse.sum(weights.end_slope))
        return step._replace(
            y=(*self._state(step.y), *cotangent),
            error=self._with_mismatch(step, interval, z, inner, impulse),
            integral=tree.add(step.integral, integral),
            carry=Carry(step.carry, pending),
            evaluations=step.evaluations + evaluations,
        )

    def finish(self, field, t, z, carry):
        """Applies what is pending at the end: the cotangent's leaves there, and what is to be added to the integral."""
        change, integral = self._through_derivative(field, t, z, carry.pending)
        return tree.add(self._cotangent(z), change), integral

    def _jump(self, field, interval, z, carry, impulse):
        """Applies the impulses at the start of the step, and those within it that belong to its start."""
        z = (*self._reset(self._state(z), impulse.here), *self._cotangent(z))
        slope = tree.add(carry.pending, tree.scale(-interval.size, impulse.sum(impulse.weights.start_slope)))
        change, integral = self._through_derivative(field, interval.start, z, slope)
        value = impulse.sum(impulse.weights.start_value + tf.cast(impulse.here, interval.start.dtype))
        z = (*self._state(z), *tree.add(self._cotangent(z), tree.add(value, change)))
        inner, evaluations = self.solver.start(field, interval.start, z)
        return z, inner, integral, tf.constant(1 + evaluations)

    def _stay(self, field, z, carry):
        inner = carry.inner
        return z, inner, tree.zeros_like(inner.integrand), tf.constant(0)

    def _through_derivative(self, field, t, z, cotangent):
        """What a cotangent of the derivative at a point means for the state there and for the integral."""
        stage = field(t, (*self._state(z), *cotangent))
        return tree.scale(-1, self._cotangent(stage.derivative)), tree.scale(-1, stage.integrand)

    def _reset(self, y, here):
        """The stored state where the step starts on a saved time."""
        index = tf.argmax(here)
        return tree.where(tf.reduce_any(here), tuple(saved[index] for saved in self.ys), y)

    def _with_mismatch(self, step, interval, z, inner, impulse):
        """The step's error, raised where Hermite interpolation misses the saved states by more."""
        if not self.ys:
            return step.error
        landing = self.stops == interval.until
        start, end = self._state(z), self._reset(self._state(step.y), landing)
        start_slope = self._state(self.solver.first_derivative(inner))
        end_slope = self._state(self.solver.first_derivative(step.carry))
        weights, errors = impulse.weights, []
        for leaf, y0, f0, y1, f1, saved in zip(step.error, end, end_slope, start, start_slope, self.ys, strict=False):
            predicted = _outer(weights.end_value, y0) + _outer(weights.start_value, y1)
            predicted -= interval.size * (_outer(weights.end_slope, f0) + _outer(weights.start_slope, f1))
            missed = predicted - _rows(tf.cast(impulse.inside, saved.dtype), saved) * saved
            errors.append(tf.maximum(tf.abs(leaf), tf.reduce_max(tf.abs(missed), axis=0)))
        return (*errors, *step.error[len(self.ys) :])

    def _state(self, z):
        return z[: len(self.ys)]

    def _cotangent(self, z):
        return z[len(self.ys) :]


class _Weights(NamedTuple):
    """Hermite's weights for each saved time, zero for those outside the step."""

    end_value: tf.Tensor
    start_value: tf.Tensor
    end_slope: tf.Tensor
    start_slope: tf.Tensor


class _Impulse(NamedTuple):
    """Which saved times a step meets, and with which weights: each `[T - 2]`."""

    here: tf.Tensor
    inside: tf.Tensor
    weights: _Weights
    cotangents: tuple

    def sum(self, weights):
        """The weighted sum of the cotangents, leaves."""
        return tuple(tf.tensordot(tf.cast(weights, g.dtype), g, axes=1) for g in self.cotangents)


def _hermite(x, inside):
    """Cubic Hermite weights at `x`, 0 at the step's end and 1 at its start."""
    x = tf.where(inside, x, tf.zeros_like(x))
    mask = tf.cast(inside, x.dtype)
    start_value = x * x * (3 - 2 * x)
    return _Weights(mask * (1 - start_value), start_value, x * (1 - x) ** 2, x * x * (x - 1))


def _rows(weights, saved):
    return tf.reshape(weights, tf.concat([tf.shape(weights), [1] * (saved.shape.rank - 1)], axis=0))


def _outer(weights, leaf):
    return _rows(tf.cast(weights, leaf.dtype), leaf[None]) * leaf[None]
