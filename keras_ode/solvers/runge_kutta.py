"""Explicit Runge-Kutta methods: the step that a Butcher tableau describes."""

import functools
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
        stages, slopes, points = [carry], [carry.derivative], [y]
        for i in range(1, len(table.c) if with_dense else table.num_stages):
            points.append(tree.add_scaled(y, interval.size, tree.weighted_sum(table.a[i], slopes)))
            counts = i == last or (i < last and table.b[i] != 0)
            stages.append(field(times[i], points[i], with_integrand=counts))
            slopes.append(stages[i].derivative)
        return Step(
            start=y,
            y=points[last],
            error=self.error(slopes, interval.size),
            integral=_integral(table.b, stages, interval.size),
            stages=tuple(slopes),
            carry=stages[last],
            evaluations=len(stages) - 1,
            neighbors=((points[last - 1], slopes[last - 1]), (points[last], slopes[last])),
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
        if theta.shape.rank > size.shape.rank:
            y, stages = _with_axis(y), [_with_axis(stage) for stage in stages]
            size = size[None] if size.shape.rank else size
        weights = tf.unstack(theta * _polynomial(rows, theta), num=len(rows))
        return tree.add_scaled(y, size, tree.tensor_weighted_sum(weights, stages))

    def polynomials(self, step, size):
        return dense.polynomials(_table(type(self)).interpolant, step.start, step.stages, size)


def _with_axis(leaves):
    return tuple(leaf[None] for leaf in leaves)


class _Table(NamedTuple):
    """The numbers of a closed tableau as floats, dense stages behind the others."""

    num_stages: int
    c: np.ndarray
    a: list
    b: list
    b_error: list | None
    interpolant: np.ndarray


@functools.cache
def _table(method):
    tableau = method.tableau.closed
    return _Table(
        num_stages=len(tableau.c),
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


def _integral(b, stages, size):
    weighted = [(weight, stage.integrand) for weight, stage in zip(b, stages, strict=False) if weight != 0]
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
