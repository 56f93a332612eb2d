"""Backward differentiation formulas of variable order and step size."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_ode import tree
from keras_ode.solvers.base import Solver, Step, contract
from keras_ode.solvers.esdirk import KenCarp4
from keras_ode.solvers.implicit import Newton

_MOST = 5  # the highest order
# 0.9 times 9 / (8 + n) for n = 2 iterations, as in Hairer, Wanner (1996), section IV.8.
_SAFETY = 0.81
_LEAST_ERROR = 1e-10
# The error of a step stays in the differences of the next ones, so errors at the end are larger than those of a one-step method.
# Twice the estimate halves them, and takes about a tenth more steps.
_STRICTNESS = 2
_GROWTH = 0.2, 10.0  # the smallest and the largest change of one step to the next


class Carry(NamedTuple):
    """What the method remembers.

    Attributes:
        differences: The backward differences of the last states, of orders one to seven, each a tuple of leaves. Those up to
            `order` make the polynomial through these states; the next one or two estimate errors.
        slope: The derivative at the last point, leaves.
        order: The order of the next step, a float, a scalar or `[B]`.
        num_equal: The number of steps that had this size and order, a float.
        size: The signed distance of the points to which the differences belong; zero before the first step.
    """

    differences: tuple
    slope: tuple
    order: tf.Tensor
    num_equal: tf.Tensor
    size: tf.Tensor


class BDF(Solver):
    """Backward differentiation formulas for stiff equations: orders 1 to 5, chosen in each step with its size.

    These are the numerical differentiation formulas (NDF). They use a history of equal steps, which is interpolated if the size
    changes, and size and order change only after `order + 1` equal steps. Each step solves one system of equations of the
    size of the state, whatever its order is. The order follows from estimated errors, so use an adaptive controller.

    Example:

    >>> stiff = lambda t, y: -1000.0 * (y - tf.cos(t))
    >>> solution = keras_ode.solve(stiff, tf.constant([0.0]), [0.0, 1.0], solver="bdf")
    >>> print(f"{float(solution.ys[-1, 0]):.3f}", int(solution.stats["num_steps"]) < 100)
    0.541 True

    References:
        Shampine, Reichelt (1997), The MATLAB ODE suite, SIAM J. Sci. Comput. 18(1), 1-22.
        Byrne, Hindmarsh (1975), A polyalgorithm for the numerical solution of ordinary differential equations, ACM Trans. Math.
            Softw. 1(1), 71-96.
    """

    order = _MOST
    error_order = 2  # of the first step, which is of order one
    is_implicit = True
    remembers = True

    @property
    def weights(self):
        return _WEIGHTS

    @property
    def backward(self):
        return KenCarp4()  # adjoint equations jump at saved times, where a history would start again

    def start(self, field, t, y):
        return self._first(t, field(t, y).derivative), 1

    def carry_like(self, t, y):
        return self._first(t, tree.zeros_like(y))

    def first_derivative(self, carry):
        return carry.slope

    def step(self, field, interval, y, carry, with_dense=False):
        size, order = interval.size, carry.order
        fits = interval.is_as_long_as(carry.size)
        differences = _at_distance(interval, carry, fits)
        used = [tf.cast(order >= j, size.dtype) for j in range(1, _MOST + 1)]
        predicted = tree.add(y, tree.tensor_weighted_sum(used, differences[:_MOST]))
        by_order = _ByOrder(order)
        weights = [u * g for u, g in zip(used, _GAMMA[1:], strict=False)]
        past = tree.scale(by_order(1 / _ALPHA), tree.tensor_weighted_sum(weights, differences[:_MOST]))
        newton = Newton(field, interval._replace(start=interval.end), predicted, by_order(1 / _ALPHA))
        z = newton.solve(interval.end, tree.subtract(predicted, past), past)
        change = tree.subtract(z, past)
        end = tree.add(predicted, change)
        error = tree.scale(by_order(_ERROR), change)
        history = _with(change, differences, order)
        reciprocal = tree.select(size == 0, tf.zeros_like(size), 1 / tree.select(size == 0, tf.ones_like(size), size))
        slope = tree.where(size == 0, carry.slope, tree.scale(reciprocal * by_order(_ALPHA), z))
        num_equal = tree.select(fits, carry.num_equal, 0) + 1
        next_order, growth = _next(field, size, y, end, error, history, order, num_equal)
        return Step(
            start=y,
            y=end,
            error=error,
            integral=(),
            stages=tuple(tree.scale(reciprocal * u, leaves) for u, leaves in zip(used, history, strict=False)),
            carry=Carry(history, slope, next_order, tree.select(next_order == order, num_equal, 0), tf.stop_gradient(size)),
            evaluations=newton.evaluations,
            neighbors=((y, carry.slope), (end, slope)),
            converged=newton.converged,
            growth=growth,
        )

    def _first(self, t, slope):
        zero = tf.zeros_like(t)
        return Carry((tree.zeros_like(slope),) * (_MOST + 2), slope, zero + 1, zero, zero)


# Numbers of the formulas of orders 0 to 6: see Shampine and Reichelt (1997), section 2.
_KAPPA = np.array([0, -0.1850, -1 / 9, -0.0823, -0.0415, 0, 0])
_GAMMA = np.concatenate([[0], np.cumsum(1 / np.arange(1, _MOST + 2))])
_ALPHA = np.concatenate([[1], ((1 - _KAPPA) * _GAMMA)[1:]])
_ERROR = _STRICTNESS * (_KAPPA * _GAMMA + 1 / np.arange(1, _MOST + 3))


def _weights():
    """Newton's polynomial through the last points, in `theta` from the start of a step: a row for each difference."""
    rows, product = np.zeros([_MOST, _MOST]), np.poly1d([1.0])
    for j in range(_MOST):
        product *= np.poly1d([1.0, j - 1.0]) / (j + 1.0)
        rows[j, : j + 1] = product.coeffs[::-1][1 : j + 2]
    return rows


_WEIGHTS = _weights()
# Of the differences at other distances: row i, column k is (-1)^i C(k, i), for 1 to 5.
_UNIT = np.array([[np.prod([(m - 1 - k) / m for m in range(1, i + 1)]) for k in range(1, 6)] for i in range(1, 6)])


class _ByOrder:
    """Picks from a table of numbers, one for each order."""

    def __init__(self, order):
        self._index, self._dtype = tf.cast(order, tf.int32), order.dtype

    def __call__(self, table, shift=0):
        return tf.gather(tf.constant(table, self._dtype), self._index + shift)


def _pick(differences, number):
    """The difference of an order that is a tensor."""
    return tree.tensor_weighted_sum([tf.cast(number == j, number.dtype) for j in range(1, len(differences) + 1)], differences)


def _at_distance(interval, carry, fits):
    """The backward differences of the polynomial through the last states, at points as far apart as the step is long."""

    def changed():
        dtype, rows = carry.size.dtype, [1] * carry.size.shape.rank
        ratio = interval.size / tree.select(carry.size == 0, tf.ones_like(carry.size), carry.size)
        number = tf.reshape(tf.range(1, _MOST + 1, dtype=dtype), [-1, *rows])
        i, j = number[:, None], number[None]
        # From the difference of order i to that of order k, with axes k, i and those of the size.
        products = tree.running_products((i - 1 - ratio * j) / i)
        matrix = tf.reduce_sum(products[None] * tf.constant(_UNIT.T.reshape([_MOST, 1, _MOST, *rows]), dtype), axis=2)
        matrix *= tf.cast(number <= carry.order, dtype)[None]
        stacked = contract(matrix, tuple(map(tf.stack, zip(*carry.differences[:_MOST], strict=True))))
        first = (tree.scale(interval.size, carry.slope),) + (tree.zeros_like(carry.slope),) * (_MOST - 1)
        moved = zip(*(tf.unstack(leaf, num=_MOST) for leaf in stacked), strict=True)
        return tuple(
            tree.where(fits, old, tree.where(carry.size == 0, start, new))
            for old, start, new in zip(carry.differences, first, moved, strict=False)
        )

    # Other runtimes know branches, but their converters lose those within a loop.
    moved = changed() if tree.is_standard() else tf.cond(tf.reduce_all(fits), lambda: carry.differences[:_MOST], changed)
    return (*moved, *carry.differences[_MOST:])


def _with(change, differences, order):
    """The differences at the end of a step, of which that of order `order + 1` is `change`."""
    history, above = [], tree.zeros_like(change)
    for j in range(_MOST + 2, 0, -1):
        below = differences[j - 2] if j > 1 else change
        beyond = tree.where(j == order + 2, tree.subtract(change, below), tree.zeros_like(change))
        above = tree.where(j <= order, tree.add(differences[j - 1], above), tree.where(j == order + 1, change, beyond))
        history.insert(0, above)
    return tuple(history)


def _next(field, size, y, end, error, history, order, num_equal):
    """The order of the next step, and by which factor it should be longer."""
    by_order = _ByOrder(order)

    def factor(error, y, order):
        size_of = tf.maximum(field.scaled(error, y, size), _LEAST_ERROR)
        return tf.stop_gradient(_SAFETY * size_of ** (-1 / (order + 1)))

    same = factor(error, y, order)
    lower = factor(tree.scale(by_order(_ERROR, -1), _pick(history, order)), end, order - 1)
    higher = factor(tree.scale(by_order(_ERROR, 1), _pick(history, order + 2)), end, order + 1)
    lower, higher = tree.select(order > 1, lower, 0), tree.select(order < _MOST, higher, 0)
    best = tf.maximum(same, tf.maximum(lower, higher))
    chosen = tree.select(best == lower, order - 1, tree.select(best == same, order, order + 1))
    may_change, accurate = num_equal > order, same >= _SAFETY
    growth = tree.select(accurate, tree.select(may_change, best, 1), same)
    return tree.select(accurate & may_change, chosen, order), tf.clip_by_value(growth, *_GROWTH)
