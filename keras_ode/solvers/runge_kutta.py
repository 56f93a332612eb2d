"""Explicit Runge-Kutta methods: the step that a Butcher tableau describes."""

import functools
import itertools
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_ode import dense, tree
from keras_ode.solvers.base import Solver, Step


class ExplicitRungeKutta(Solver):
    """A method given by its `tableau` and `interpolant` alone.

    Every step ends with an evaluation at its new point: the end slope of the interpolant and the first stage of the
    next step. Methods whose last stage is that point anyway ("first same as last") get it for nothing.

    Reference: Hairer, Norsett, Wanner (1993), Solving Ordinary Differential Equations I, chapter II.
    """

    tableau = None
    interpolant = None

    def start(self, field, t, y):
        return field(t, y), 1

    def first_derivative(self, carry):
        return carry.derivative

    def step(self, field, interval, y, carry, with_dense=False):
        table = _table(type(self))
        times = _stage_times(interval, table.c)
        last = table.num_stages - 1
        stages, points = [carry], [y]
        for i in range(1, self.num_stages(with_dense)):
            points.append(self._point(i, interval, y, [stage.derivative for stage in stages]))
            counts = i == last or (i < last and table.integrates[i])
            stages.append(field(times[i], points[i], with_integrand=counts))
        step = self._assembled(interval, y, [stage.derivative for stage in stages], points[last - 1], points[last])
        integrands = [stage.integrand for stage in stages]
        return step._replace(
            integral=_integral(table.b, integrands, interval.size),
            integral_error=(self.error(integrands, interval.size) or ()) if integrands[0] else (),
            carry=stages[last],
            evaluations=len(stages) - 1,
        )

    def assemble(self, interval, y, stages):
        last = _table(type(self)).num_stages - 1
        near, end = (self._point(i, interval, y, stages) for i in (last - 1, last))
        return self._assembled(interval, y, stages, near, end)

    def transposed_step(self, push, interval, y, stages, of_stages, of_y, of_parameters):
        table, count = _table(type(self)), 0
        times = _stage_times(interval, table.c)
        # All with the opposite sign: what follows are differences, for sums of many are not safe here (see `tree`).
        of_stages = [None if leaves is None else tree.scale(-1, leaves) for leaves in of_stages]
        for i in reversed(range(len(stages))):
            if of_stages[i] is None:
                continue
            of_point, change = push(times[i], self._point(i, interval, y, stages), of_stages[i])
            count += 1
            of_y, of_parameters = tree.subtract(of_y, of_point), tree.subtract(of_parameters, change)
            scaled = tree.scale(-interval.size, of_point)
            for j, weight in enumerate(table.a[i]):
                share = tree.weighted_sum([weight], [scaled]) if weight else None
                if weight and of_stages[j] is None:
                    of_stages[j] = tree.scale(-1, share)
                elif weight:
                    of_stages[j] = tree.subtract(of_stages[j], share)
        return of_y, of_parameters, count

    def _point(self, i, interval, y, slopes):
        """The state of a stage, from the derivatives of those before it."""
        if i == 0:
            return y
        return tree.add_scaled(y, interval.size, tree.weighted_sum(_table(type(self)).a[i], slopes[:i]))

    def _assembled(self, interval, y, slopes, near, end):
        """The step without carry and integral; `near` and `end` are the states of its last two stages."""
        last = _table(type(self)).num_stages - 1
        return Step(
            start=y,
            y=end,
            error=self.error(slopes, interval.size),
            integral=(),
            stages=tuple(slopes),
            carry=None,
            evaluations=0,
            neighbors=((near, slopes[last - 1]), (end, slopes[last])),
        )

    def error(self, slopes, size):
        """The estimated error of a step from the derivatives of its stages, or `None`."""
        weights = _table(type(self)).b_error
        if weights is None:
            return None
        return tree.scale(size, tree.weighted_sum(weights, slopes[: len(weights)]))

    @property
    def degree(self):
        return _table(type(self)).interpolant.shape[1]

    def interpolate(self, stages, size, y, theta):
        rows = _table(type(self)).interpolant
        weights = theta * _polynomial(rows, theta)
        if theta.shape.rank == size.shape.rank:
            return tree.add_scaled(y, size, tree.tensor_weighted_sum(tf.unstack(weights, num=len(rows)), stages))
        # Not by tf.transpose: in a second derivative XLA would not know its permutation.
        weights = tf.stack(tf.unstack(size * weights, num=len(rows)), axis=1)
        increments = _contract(weights, map(tf.stack, zip(*stages, strict=True)))
        return tree.add(tuple(leaf[None] for leaf in y), increments)

    def transposed_interpolate(self, size, theta, among, cotangents):
        rows = _table(type(self)).interpolant
        weights = size * theta * _polynomial(np.vstack([np.zeros_like(rows[:1]), rows]), theta)
        # That of the start is one.
        weights += tf.reshape(tf.one_hot(0, 1 + len(rows), dtype=theta.dtype), [-1] + [1] * theta.shape.rank)
        products = _contract(weights * tf.cast(among, theta.dtype), cotangents)
        of_start, *of_stages = zip(*map(tf.unstack, products), strict=True)
        return of_start, of_stages

    def num_stages(self, dense):
        table = _table(type(self))
        return len(table.c) if dense else table.num_stages

    def polynomials(self, step, size):
        return dense.polynomials(_table(type(self)).interpolant, step.start, step.stages, size)


def _contract(weights, leaves):
    """Sums of leaves `[N, ...]` with weights `[M, N]`, or `[M, N, B]` for rows of their own: leaves `[M, ...]`."""
    if weights.shape.rank == 2:
        return tuple(tree.tensordot(tf.cast(weights, leaf.dtype), leaf) for leaf in leaves)
    return tuple(tf.reduce_sum(tree.expand(tf.cast(weights, leaf.dtype), leaf[None]) * leaf[None], axis=1) for leaf in leaves)


class _Table(NamedTuple):
    """The numbers of a closed tableau as floats, dense stages behind the others.

    `integrates` tells for each stage whether its integrand counts, in the integral or in the estimate of its error.
    """

    num_stages: int
    integrates: list
    c: np.ndarray
    a: list
    b: list
    b_error: list | None
    interpolant: np.ndarray


@functools.cache
def _table(method):
    tableau = method.tableau.closed
    errors = tableau.b_error or [0] * len(tableau.b)
    return _Table(
        num_stages=len(tableau.c),
        integrates=[b != 0 or e != 0 for b, e in itertools.zip_longest(tableau.b, errors, fillvalue=0)],
        c=np.array([float(c) for c in (*tableau.c, *tableau.c_dense)]),
        a=[_padded(row) for row in (*tableau.a, *tableau.a_dense)],
        b=_padded(tableau.b),
        b_error=None if tableau.b_error is None else _padded(tableau.b_error),
        interpolant=np.array([_padded(row) for row in method.interpolant.weights(method.tableau)]),
    )


def _padded(row):
    return [float(x) for x in row]


def _stage_times(interval, c):
    """The stages' times: the first and the last exactly the interval's ends."""
    shape = (-1,) + (1,) * interval.size.shape.rank
    nodes = tf.constant(c.reshape(shape), interval.size.dtype)
    times = interval.start + nodes * interval.size
    # By rounding, a stage could lie beyond the end, where the field need not be defined.
    times = tf.maximum(tf.minimum(times, tf.maximum(interval.start, interval.end)), tf.minimum(interval.start, interval.end))
    times = tf.unstack(times, num=len(c))
    return [interval.end if c[i] == 1 else times[i] for i in range(len(c))]


def _integral(weights, integrands, size):
    """The weighted sum of the stages' integrands, times the size of the step; empty where there is no integrand."""
    weighted = [(weight, leaves) for weight, leaves in zip(weights, integrands, strict=False) if weight != 0]
    if not weighted[0][1]:
        return ()
    weights, integrands = zip(*weighted, strict=True)
    return tree.tensor_weighted_sum([weight * size for weight in weights], integrands)


def _polynomial(rows, theta):
    """Horner's rule for all rows at once: `sum_j rows[:, j] theta^j`."""
    shape = (-1,) + (1,) * theta.shape.rank
    columns = [tf.constant(column.reshape(shape), theta.dtype) for column in rows.T]
    value = columns[-1] + tf.zeros_like(theta)
    for column in columns[-2::-1]:
        value = value * theta + column
    return value
