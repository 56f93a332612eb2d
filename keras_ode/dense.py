"""Dense output: each step's interpolant as the coefficients of a polynomial.

A leaf of a polynomial has one more axis than the state's leaf: the coefficients of `theta^0, theta^1, ...`, where `theta` is the
fraction of the step. It comes first, or behind that of the samples, so that each coefficient lies in memory as a state does.
"""

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_ode import tree


class DenseOutput(NamedTuple):
    """The interpolants of a solve's accepted steps.

    Attributes:
        start, end: The times of the solve, scalars or `[B]`.
        num_steps: How many steps there are.
        untils: Where each ended, since the start: `[S]` or `[S, B]`.
        polynomials: Leaves `[S, degree + 1, ...]`, or `[S, B, degree + 1, ...]`.
        lost: What rounding took from `start`.
        direction: The sign of the solve's time; empty where it is that of `end` less `start`.
    """

    start: tf.Tensor
    end: tf.Tensor
    num_steps: tf.Tensor
    untils: tf.Tensor
    polynomials: tuple
    lost: Any = 0.0
    direction: Any = ()

    def evaluate(self, t, y):
        """The state at times `t`, given the one at the start: see `Solution.evaluate`."""
        return self._at(t, lambda polynomials, theta, _: evaluate(polynomials, theta), y)

    def derivative(self, t):
        """Its derivative by time there."""
        sign = self._sign()
        return self._at(t, lambda polynomials, theta, length: tree.scale(sign / length, slope(polynomials, theta)))

    def _at(self, t, read, start=None):
        """What `read` makes of the polynomials, the fraction, and the length of the step for each time; where no step was
        taken, it is `start` at the start, and NaN elsewhere."""
        t = tree.as_tensor(t) if tree.holds_tensors(t) else np.asarray(t, "float64")
        is_exact = tf.as_dtype(t.dtype).size > self.start.dtype.size
        t, lost = tree.rounded(t, self.start.dtype)
        rank = self.start.shape.rank
        if rank == 0:
            shape = t.shape
            away = tf.reshape(self._away(t, lost), [-1])
        else:
            shape = (*t.shape[-1:], self.start.shape[0])
            away = self._away(*(tf.transpose(x) if x.shape.rank == 2 else x[..., None] for x in (t, lost)))
            away = tf.reshape(away, [-1, tf.shape(self.start)[0]])
        values = self._read(away, is_exact, read, start)
        if rank == 0 or t.shape.rank == 0:
            front = tf.shape(t) if rank == 0 else tf.shape(self.start)
            values = (tf.reshape(x, tf.concat([front, tf.shape(x)[1 + rank :]], axis=0)) for x in values)
        shapes = ([*shape, *leaf.shape[2 + rank :]] for leaf in self.polynomials)
        return tuple(tf.ensure_shape(x, known) for x, known in zip(values, shapes, strict=True))

    def _sign(self):
        return tf.sign(self.end - self.start) if isinstance(self.direction, tuple) else self.direction

    def _away(self, t, lost):
        """Times less that of the start, from their rounded values and what rounding took from them."""
        return (t - self.start) + (lost - self.lost)

    def _room(self, reached, is_exact):
        """How far outside of the solve rounding may put one of its ends, if times are exact before the start is subtracted."""
        epsilon = np.finfo(self.start.dtype.as_numpy_dtype).eps
        return 2 * epsilon * reached if is_exact else epsilon * (tf.abs(self.start) + tf.abs(self.end))

    def _read(self, away, is_exact, read, start):
        """`_at` for times since the start `[K]`, or `[K, B]`."""
        reached = tree.take(self.untils, tf.maximum(self.num_steps - 1, 0))
        room = self._room(reached, is_exact)
        since = _on_ends(self._sign() * away, reached, room)
        n = tf.clip_by_value(self._steps_before(since), 0, tf.maximum(self.num_steps - 1, 0))
        begin = tree.select(n > 0, tree.take_each(self.untils, tf.maximum(n - 1, 0)), 0)
        length = tree.take_each(self.untils, n) - begin
        length = tree.select(length > 0, length, 1)
        values = read(tuple(tree.take_each(leaf, n) for leaf in self.polynomials), (since - begin) / length, length)
        steps = self.num_steps > 0
        inside = (since >= 0) & (since <= reached) & steps
        outside = tuple(tf.fill(tf.shape(x), tf.constant(np.nan, x.dtype)) for x in values)
        if start is not None:
            outside = tree.where(~steps & (tf.abs(away) <= room), tuple(leaf[None] for leaf in start), outside)
            # There the state has no derivative by time.
            change = tf.math.multiply_no_nan(tree.select(steps, tf.zeros_like(away), np.nan), away - tf.stop_gradient(away))
            outside = tree.add_scaled(outside, change, [tf.ones_like(x) for x in outside])
        return tree.where(inside, values, outside)

    def _steps_before(self, since):
        """How many steps ended before each time."""
        untils, since = tf.stop_gradient(self.untils), tf.stop_gradient(since)
        if since.shape.rank == 1:
            return tf.searchsorted(untils, since)
        return tf.transpose(tf.searchsorted(tf.transpose(untils), tf.transpose(since)))


def _on_ends(since, reached, room):
    """Times since the start of a solve: those that are outside by rounding only are at its ends. Derivatives stay."""
    inside = tf.maximum(tf.minimum(since, reached), 0)
    return since + tf.stop_gradient(tree.select(tf.abs(inside - since) <= room, inside - since, 0))


def polynomials(weights, y, stages, size):
    """The polynomials of one step.

    Args:
        weights: The interpolant's matrix, a NumPy array `[stages, degree]`.
        y: The leaves where the step starts.
        stages: The derivatives of its stages.
        size: Its size, scalar or `[B]`.
    """

    def polynomial(leaf, *slopes):
        factor = tree.expand(tf.cast(size, leaf.dtype), leaf)
        return tf.stack([leaf, *(factor * row for row in tree.combinations(weights.T, slopes))], axis=size.shape.rank)

    return tuple(polynomial(*leaves) for leaves in zip(y, *stages, strict=True))


def constant(y, degree, rank):
    """Polynomials that stay where they are; `rank`: that of a scalar of the solve."""
    return tuple(tf.stack([leaf] + [tf.zeros_like(leaf)] * degree, axis=rank) for leaf in y)


def evaluate(leaves, theta):
    """The values of polynomials at `theta`, scalar or `[B]`."""
    return values([tf.unstack(leaf, axis=theta.shape.rank) for leaf in leaves], theta)


def values(coefficients, theta):
    """The values of polynomials, of each a list of its coefficients."""
    return tuple(_horner(each, theta) for each in coefficients)


def slope(leaves, theta):
    """Their derivatives by `theta`."""

    def derivative(leaf):
        _, *coefficients = tf.unstack(leaf, axis=theta.shape.rank)
        return _horner([tf.constant(j + 1, leaf.dtype) * c for j, c in enumerate(coefficients)], theta)

    return tuple(map(derivative, leaves))


def _horner(coefficients, theta):
    theta = tree.expand(tf.cast(theta, coefficients[0].dtype), coefficients[0])
    value = coefficients[-1]
    for coefficient in reversed(coefficients[:-1]):
        value = coefficient + theta * value
    return value
