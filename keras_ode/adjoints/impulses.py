"""Cotangents that arrive at saved times, in a backward solve whose steps pass many of them at once."""

import functools
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_ode import tree
from keras_ode.solvers.base import Interval, WrappedField, WrappedSolver

# How much of its error estimates counts for a step that passes saved times: of that of the cotangent, and of that of the integrals.
# Chosen by trial: with all of them, gradients of many saved states take more than twice as many evaluations, and with a tenth of
# the second, those of parameters are wrong by sixty tolerances where many saved times are close together.
_COUNTS, _OF_INTEGRALS_COUNTS = 0.1, 0.3


class Carry(NamedTuple):
    """The inner solver's carry, and whether the next step must evaluate its first stage again: a scalar or `[B]`."""

    inner: Any
    stale: tf.Tensor


class Impulses(WrappedSolver):
    """Steps of another solver, backward through an adjoint equation that jumps at saved times.

    Within a step the cotangent is `a = b + G`, where `G` is the sum of the cotangents of the saved states that were
    passed since the step began: a staircase. Then `b` does not jump, and solves `b' = -(b + G)^T df/dy`. There `G` is
    replaced by its projection on polynomials, which has the same integrals with all polynomials of its degree; at the
    end of the step `a` is exactly `b + G` again. So a step may be as long as the solution allows, however dense the saved
    times, and takes one evaluation more than without them: its first stage is not the last of the step before.

    With a method of order five, what a cotangent `g` at one saved time contributes is wrong by `|g|` times the fourth
    power of the step size. The error estimate of the step sees the third power, since the embedded method is of lower
    order, and would make steps shorter than they need to be: so only a part of it counts.

    Args:
        solver: The solver of the steps.
        equation: An `AdjointEquation`.
        stops: The saved times, as times since the backward start: `[K]`, or `[K, B]`; behind them, times of other
            states that are known.
        ys: The states there, leaves `[K, ...]` or more, as `equation.reset` takes them.
        cotangents: Those of the saved states, leaves `[K, ...]`.
    """

    def __init__(self, solver, equation, stops, ys, cotangents):
        super().__init__(solver)
        self.equation, self.stops, self.ys, self.cotangents = equation, stops, ys, cotangents
        self._rows = _staircase_weights(solver.order // 2)

    def start(self, field, t, z):
        inner, evaluations = self.solver.start(field, t, z)
        return Carry(inner, tf.zeros_like(t, dtype=tf.bool)), evaluations

    def first_derivative(self, carry):
        return self.solver.first_derivative(carry.inner)

    def step(self, field, interval, z, carry, with_dense=False):
        equation, stops = self.equation, self.stops
        here = (stops == interval.since) & (interval.since > 0)
        inside = ((stops > interval.since) & (stops < interval.until))[: tf.shape(self.cotangents[0])[0]]
        meets = tf.reduce_any(inside, axis=0)
        none = tree.zeros_like(equation.cotangent(z))

        def restart():
            jump, total, *staircase = self._sums(interval, here, inside)
            start = equation.reset(z, here, self.ys)
            start = equation.with_cotangent(start, tree.add(equation.cotangent(start), jump))
            moving = _Moving(field, equation, interval, tuple(staircase))
            inner, evaluations = self.solver.start(moving, moving.interval.start, start)
            return start, inner, total, tuple(staircase), evaluations

        start, inner, total, staircase, evaluations = tf.cond(
            tf.reduce_any(carry.stale | meets) | tf.reduce_any(here),
            restart,
            lambda: (tuple(z), carry.inner, none, (none,) * (len(self._rows) - 1), 0),
        )
        moving = _Moving(field, equation, interval, staircase)
        step = self.solver.step(moving, moving.interval, start, inner, with_dense)
        counts, of_integrals = (tf.where(meets, tf.constant(x, interval.size.dtype), 1) for x in (_COUNTS, _OF_INTEGRALS_COUNTS))
        return step._replace(
            error=None if step.error is None else tree.scale(counts, step.error),
            integral_error=tree.scale(of_integrals, step.integral_error),
            y=equation.with_cotangent(step.y, tree.add(equation.cotangent(step.y), total)),
            carry=Carry(step.carry, meets),
            evaluations=step.evaluations + evaluations,
            staircase=moving.staircase_at,
        )

    def _sums(self, interval, here, inside):
        """Sums of cotangents: of those where the step starts, of those within it, and for each power of the fraction of
        the step the coefficient of the polynomial in place of their staircase."""
        since, until = interval.since, interval.until
        count = tf.shape(self.cotangents[0])[0]
        theta = tf.where(inside, self.stops[:count] - since, 0) / tf.where(until > since, until - since, 1)
        powers = [tf.ones_like(theta)]
        for _ in self._rows[1:]:
            powers.append(powers[-1] * theta)
        weights = tf.constant(self._rows.reshape(*self._rows.shape, *[1] * theta.shape.rank), theta.dtype)
        # Not as a product of matrices, which TensorFlow's Jacobians would make one of other shapes.
        rows = tf.reduce_sum(weights * tf.stack(powers), axis=1)
        rows = tf.concat([tf.cast(here[:count], theta.dtype)[None], rows * tf.cast(inside, theta.dtype)], axis=0)
        sums = (self._sums_of(rows, g) for g in self.cotangents)
        return list(zip(*sums, strict=True))

    def _sums_of(self, rows, cotangents):
        rows, count = tf.cast(rows, cotangents.dtype), len(self._rows) + 1
        if rows.shape.rank == 2:
            return tf.unstack(tree.tensordot(rows, cotangents), num=count)
        rows = tf.unstack(rows, num=count)
        return [tf.reduce_sum(tree.expand(row, cotangents) * cotangents, axis=0) for row in rows]


class _Moving(WrappedField):
    """A field of `b`, where the cotangent is `b + G`, in a time of its own: that since the step began.

    Far from zero, differences of times would not tell where in the step a stage is.
    """

    def __init__(self, field, equation, interval, staircase):
        super().__init__(field)
        self._equation, self._outer, self._staircase = equation, interval, staircase
        size = interval.size
        self.interval = Interval(tf.zeros_like(size), size, size, interval.since, interval.until)
        self._low, self._high = tf.minimum(interval.start, interval.end), tf.maximum(interval.start, interval.end)
        self._length = tf.where(tf.equal(size, 0), tf.ones_like(size), size)

    def __call__(self, time, z, with_integrand=True):
        return super().__call__(*self._point(time, z), with_integrand)

    def at_each(self, times):
        places = [self._place(time) for time in times]
        fields = self._field.at_each([t for t, _ in places])
        return [functools.partial(self._at, field, *place) for field, place in zip(fields, places, strict=True)]

    def _at(self, field, t, theta, _, z, with_integrand=True):
        return field(t, self._moved(z, theta), with_integrand=with_integrand)

    def linearize(self, time, z, exact=False):
        near = super().linearize(*self._point(time, z), exact)
        return near._replace(point=(time, *z)) if near.point else near

    def products(self, time, z, leaves, transposed=False):
        return super().products(*self._point(time, z), leaves, transposed)

    def _point(self, time, z):
        t, theta = self._place(time)
        return t, self._moved(z, theta)

    def _place(self, time):
        """The field's own time, and the fraction of the step."""
        theta = time / self._length
        outer = self._outer
        return tf.where(theta >= 1, outer.end, tf.clip_by_value(outer.start + time, self._low, self._high)), theta

    def _moved(self, z, theta):
        equation = self._equation
        return equation.with_cotangent(z, tree.add(equation.cotangent(z), self.staircase_at(theta)))

    def staircase_at(self, theta):
        """The polynomial in place of `G` at a fraction of the step."""
        value = self._staircase[-1]
        for coefficient in self._staircase[-2::-1]:
            value = tree.add_scaled(coefficient, theta, value)
        return value


@functools.cache
def _staircase_weights(degree):
    """The polynomial that stands for a step from zero to one at `x`, in [0, 1]: the projection by Legendre's polynomials.

    Returns:
        A matrix of polynomials of `x`, by rising powers. In its first row is one, the height of the step; in row `1 + m` the
        coefficient of `theta^m`.

    Reference: Szego (1975), Orthogonal Polynomials, section 4.7.
    """
    legendre = [np.polynomial.Legendre.basis(n, domain=[0, 1]).convert(kind=np.polynomial.Polynomial) for n in range(degree + 2)]
    matrix = np.zeros([degree + 2, degree + 2])
    matrix[0, 0] = 1
    for n in range(degree + 1):
        # (2 n + 1) times the integral of the n-th from x to 1
        coefficient = (legendre[n - 1] - legendre[n + 1]) / 2 if n else (1 - legendre[1]) / 2
        of_x, of_theta = coefficient.convert(domain=[-1, 1]).coef, legendre[n].convert(domain=[-1, 1]).coef
        matrix[1 : 1 + len(of_theta), : len(of_x)] += np.outer(of_theta, of_x)
    return matrix
