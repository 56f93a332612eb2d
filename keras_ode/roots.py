"""Roots of functions of one number, found by keeping them between two points: everything is a scalar, or has any one shape."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_ode import tree

# How much of the distance between a secant's root and the middle of the bracket a point is moved toward the middle, per
# relative width of the bracket.
_TOWARD_MIDDLE = 0.2
# How many more points than bisection the search may take.
_SLACK = 2
# By how much a search for a bracket grows its steps.
_GROWTH = 8


class Bracket(NamedTuple):
    """Two points between which a function changes its sign, and its values there.

    Attributes:
        early, late: The points: at the late one the root has been passed.
        of_early, of_late: The values: those after the root are positive.
    """

    early: tf.Tensor
    late: tf.Tensor
    of_early: tf.Tensor
    of_late: tf.Tensor


def is_past(value, strict):
    """Whether a value is one from behind the root: positive; or zero, unless `strict`."""
    return tree.select(strict, value > 0, value >= 0)


def narrow(function, bracket, strict, resolution):
    """Narrows a bracket to a width of `resolution`.

    The points are those of the secant, moved toward the middle, as far as they keep the number of points within two of
    that of bisection, which happens where a secant says nothing: a function that jumps, or that is infinite somewhere.

    Args:
        function: A function of a point, negative before the root and positive behind it.
        bracket: A `Bracket`.
        strict: Where a value of zero does not count as behind the root.
        resolution: The width at which to end.

    Reference: Oliveira, Takahashi (2020), An enhancement of the bisection method average performance preserving minmax
    optimality, ACM TOMS 47(1).
    """
    width = bracket.late - bracket.early
    bits = np.finfo(width.dtype.as_numpy_dtype).nmant + 1

    def is_wide(i, *now):
        now = Bracket(*now)
        return (i < bits + _SLACK) & tf.reduce_any(now.late - now.early > resolution)

    def step(i, *now):
        now = Bracket(*now)
        allowed = width * tf.cast(2.0, width.dtype) ** tf.cast(_SLACK - 1 - i, width.dtype)
        point = _next_point(now, width, allowed)
        value = function(point)
        past = is_past(value, strict)
        return (
            i + 1,
            tree.select(past, now.early, point),
            tree.select(past, point, now.late),
            tree.select(past, now.of_early, value),
            tree.select(past, value, now.of_late),
        )

    return Bracket(*tree.while_loop(is_wide, step, (tf.constant(0), *bracket))[1:])


def _next_point(now, first_width, allowed):
    """A point within the bracket that leaves no more than the `allowed` width on either side."""
    width = now.late - now.early
    middle = now.early + width / 2
    fraction = now.of_early / (now.of_early - now.of_late)
    fraction = tree.select((fraction >= 0) & (fraction <= 1), fraction, 0.5)  # not so if it is NaN
    secant = now.early + fraction * width
    moved = _TOWARD_MIDDLE * width * tf.math.divide_no_nan(width, first_width)
    side = tf.sign(middle - secant)
    point = tree.select(moved <= tf.abs(middle - secant), secant + side * moved, middle)
    radius = tf.maximum(allowed - width / 2, 0)
    return tree.select(tf.abs(point - middle) <= radius, point, middle - side * radius)


def search(function, value, strict, first, reach_back, reach_ahead):
    """Looks for a bracket around zero, in growing steps: back where the root is passed at zero, else ahead.

    Args:
        function, strict: As in `narrow`.
        value: The function's value at zero.
        first: The first step.
        reach_back, reach_ahead: How far to go at most.

    Returns:
        Whether there is one, and the `Bracket`.
    """
    passed = is_past(value, strict)
    reach = tree.select(passed, reach_back, reach_ahead)
    direction = tree.select(passed, -tf.ones_like(first), 1)
    limit = np.finfo(first.dtype.as_numpy_dtype).nmant

    def is_open(i, inner, outer, of_inner, of_outer):
        return (is_past(of_outer, strict) == passed) & (outer < reach)

    def step(i, *now):
        goes_on = is_open(i, *now)
        _, outer, _, of_outer = now
        further = tf.minimum(tree.select(outer > 0, outer * _GROWTH, first), reach)
        new = outer, further, of_outer, function(direction * further)
        return i + 1, *(tree.select(goes_on, a, b) for a, b in zip(new, now, strict=True))

    start = (tf.constant(0), tf.zeros_like(first), tf.zeros_like(first), value, value)
    _, inner, outer, of_inner, of_outer = tree.while_loop(
        lambda i, *now: (i < limit) & tf.reduce_any(is_open(i, *now)), step, start
    )
    return is_past(of_outer, strict) != passed, Bracket(
        early=tree.select(passed, -outer, inner),
        late=tree.select(passed, -inner, outer),
        of_early=tree.select(passed, of_outer, of_inner),
        of_late=tree.select(passed, of_inner, of_outer),
    )
