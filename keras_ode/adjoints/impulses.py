"""Cotangents that arrive at saved times, in a backward solve whose steps pass many of them at once."""

from typing import Any, NamedTuple

import tensorflow as tf

from keras_ode import tree
from keras_ode.solvers.base import Solver


class Carry(NamedTuple):
    """The inner solver's carry, and what the next step has to apply first.

    Attributes:
        inner: The carry of the solver of the steps.
        slope: A cotangent of the derivative at this point, leaves.
        owed: Whether there is any: a scalar or `[B]`.
    """

    inner: Any
    slope: tuple
    owed: tf.Tensor


class Jump(NamedTuple):
    """What a step applied where it started: the cotangent `slope` of the derivative there."""

    slope: tuple
    applied: tf.Tensor


class Impulses(Solver):
    """Steps of another solver, backward through an adjoint equation that jumps at saved times.

    The cotangent `g` of a saved state that lies within a step from `t1` back to `t0` is moved to the step's ends by
    the transpose of cubic Hermite interpolation: with `y(t) = h00 y0 + h01 y1 + (t1 - t0) (h10 f0 + h11 f1)` it adds
    `h00 g` and `h01 g` to the cotangents of the ends, and `(t1 - t0) h10 g`, `(t1 - t0) h11 g` to those of the
    derivatives there, which the field's Jacobians carry on. So a step may be as long as the solution allows, however
    dense the saved times; where this interpolation misses the saved states themselves by too much, it is rejected.

    Args:
        solver: The solver of the steps.
        equation: The adjoint equation; its `orientation` is the sign of time along its own time.
        stops: The saved times, as times since the backward start: `[K]`, or `[K, B]`; behind them, times of other
            states that are known.
        ys: The states there, leaves `[K, ...]` or more.
        cotangents: Those of the saved states, leaves `[K, ...]`.
        mismatch: How much of the interpolation's error at known states counts as a step's.
    """

    def __init__(self, solver, equation, stops, ys, cotangents, mismatch):
        self.solver, self.equation, self.stops, self.ys, self.cotangents = solver, equation, stops, ys, cotangents
        self.mismatch = mismatch
        self.count = tf.shape(cotangents[0])[0]
        self.order, self.error_order = solver.order, solver.error_order

    def start(self, field, t, z):
        inner, evaluations = self.solver.start(field, t, z)
        owed = tf.zeros_like(t, dtype=tf.bool)
        return Carry(inner, tree.zeros_like(self.equation.cotangent(z)), owed), evaluations

    def first_derivative(self, carry):
        return self.solver.first_derivative(carry.inner)

    def step(self, field, interval, z, carry, with_dense=False):
        equation, impulse = self.equation, self._impulse(interval)
        length = -interval.size * equation.orientation
        meets = tf.reduce_any(impulse.inside[: self.count], axis=0)
        pushed = carry.owed | meets
        pushes = tf.reduce_any(pushed)
        none = tree.zeros_like(carry.slope)
        added, start_slope, end_slope = tf.cond(
            tf.reduce_any(meets),
            lambda: tuple(map(impulse.sum, (impulse.end_value, impulse.start_slope, impulse.end_slope))),
            lambda: (none, none, none),
        )
        slope = tree.add(carry.slope, tree.scale(length, start_slope))
        z, inner, integral, evaluations = tf.cond(
            pushes | tf.reduce_any(impulse.here),
            lambda: self._jump(field, interval, z, slope, pushes, impulse),
            lambda: (z, carry.inner, equation.no_integral(), 0),
        )
        step = self.solver.step(field, interval, z, inner, with_dense)
        y = equation.with_cotangent(step.y, tree.add(equation.cotangent(step.y), added))
        error = step.error
        if error is not None:
            error = tf.cond(
                tf.reduce_any(impulse.inside), lambda: self._with_mismatch(interval, step, inner, impulse), lambda: error
            )
        return step._replace(
            y=y,
            error=error,
            integral=tf.cond(pushes, lambda: tree.add(step.integral, integral), lambda: step.integral) if integral else (),
            carry=Carry(step.carry, tree.scale(length, end_slope), meets),
            evaluations=step.evaluations + evaluations,
            extra=Jump(slope, pushed),
        )

    def finish(self, t, z, carry, parameters):
        """Applies what is owed at the end: the cotangent's leaves there, the parameters' cotangents, and evaluations.

        Args:
            parameters: The parameters' cotangents before that.
        """
        a = tuple(self.equation.cotangent(z))

        def push():
            change, added = self.equation.push(t, z, carry.slope)
            return tree.add(a, change), tree.add(parameters, added), 1

        return tf.cond(tf.reduce_any(carry.owed), push, lambda: (a, tuple(parameters), 0))

    def interpolate(self, stages, size, y, theta):
        return self.solver.interpolate(stages, size, y, theta)

    def _push(self, t, z, slope):
        """The equation's push; without the parameters where the equation does not integrate their cotangents."""
        change, parameters = self.equation.push(t, z, slope)
        return tuple(change), tuple(parameters) if self.equation.no_integral() else ()

    def _impulse(self, interval):
        """Which saved times the step meets, with Hermite's weights at `x`: 0 at the step's end, 1 at its start."""
        stops, since, until = self.stops, interval.since, interval.until
        here = (stops == since) & (since > 0)
        inside = (stops > since) & (stops < until)
        x = tf.where(inside, until - stops, 0) / tf.where(until > since, until - since, 1)
        mask = tf.cast(inside, x.dtype)
        start_value = x * x * (3 - 2 * x)
        return _Impulse(
            here, inside, mask * (1 - start_value), start_value, x * (1 - x) ** 2, x * x * (x - 1), self.cotangents
        )

    def _jump(self, field, interval, z, slope, any_slope, impulse):
        """Applies the impulses at the start of the step, and those within it that belong to its start."""
        equation = self.equation
        z = equation.reset(z, impulse.here, self.ys)
        a = tuple(equation.cotangent(z))

        def push():
            change, integral = self._push(interval.start, z, slope)
            return tree.add(a, change), integral

        # Two sums, not one: within a branch of a loop, Grappler leaks the temporary variable that it makes of a larger one.
        a, integral = tf.cond(any_slope, push, lambda: (a, equation.no_integral()))
        value = impulse.sum(impulse.start_value + tf.cast(impulse.here, interval.start.dtype))
        z = equation.with_cotangent(z, tree.add(a, value))
        inner, evaluations = self.solver.start(field, interval.start, z)
        return z, inner, integral, tf.cast(any_slope, tf.int32) + evaluations

    def _with_mismatch(self, interval, step, inner, impulse):
        """The step's error, raised where Hermite interpolation misses a known state by more.

        It is that within the step which is nearest to its middle, where interpolation is worst.
        """
        equation, index, inside = self.equation, impulse.most_central(), tf.reduce_any(impulse.inside, axis=0)
        y1, f1 = equation.state(interval.start, step.start, self.solver.first_derivative(inner))
        end = equation.reset(step.y, self.stops == interval.until, self.ys)
        y0, f0 = equation.state(interval.end, end, self.solver.first_derivative(step.carry))
        at = [tree.take(weight, index) for weight in impulse.weights()]
        weights = [at[0], at[1], -interval.size * at[2], -interval.size * at[3]]
        predicted = tree.tensor_weighted_sum(weights, (y0, y1, f0, f1))
        known = tuple(tree.take(leaf, index) for leaf in self.ys)
        factor = self.mismatch * tf.cast(inside, interval.size.dtype)
        missed = tree.scale(factor, tuple(tf.abs(a - b) for a, b in zip(predicted, known, strict=True)))
        return equation.raise_error(step, missed, y0)


class _Impulse(NamedTuple):
    """The stops that a step meets, each `[K]` or `[K, B]`; the weights of those outside it are zero."""

    here: tf.Tensor
    inside: tf.Tensor
    end_value: tf.Tensor
    start_value: tf.Tensor
    end_slope: tf.Tensor
    start_slope: tf.Tensor
    cotangents: tuple

    def weights(self):
        """Those of the states at the step's end and start, and of the slopes there."""
        return self.end_value, self.start_value, self.end_slope, self.start_slope

    def most_central(self):
        """Which stop within the step is nearest to its middle: a scalar or `[B]`."""
        return tf.argmax(self.end_value * self.start_value, axis=0, output_type=tf.int32)

    def sum(self, weights):
        """The weighted sum of the cotangents, leaves."""
        weights = weights[: tf.shape(self.cotangents[0])[0]]
        if weights.shape.rank == 1:
            return tuple(tree.tensordot(tf.cast(weights, g.dtype), g) for g in self.cotangents)
        return tuple(tf.reduce_sum(tree.expand(tf.cast(weights, g.dtype), g) * g, axis=0) for g in self.cotangents)

