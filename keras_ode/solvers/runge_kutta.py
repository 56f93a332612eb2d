"""Explicit Runge-Kutta methods: the step that a Butcher tableau describes."""

import functools
import itertools
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_ode import tree
from keras_ode.interpolation import CorrectedHermite, Polynomial
from keras_ode.solvers.base import Solver, Stage, Step
from keras_ode.solvers.tableau import ButcherTableau


class ExplicitRungeKutta(Solver):
    """A method given by its `tableau` and `interpolant` alone.

    Every step ends with an evaluation at its new point: the end slope of the interpolant and the first stage of the
    next step. Methods whose last stage is that point anyway ("first same as last") get it for nothing.

    Reference: Hairer, Norsett, Wanner (1993), Solving Ordinary Differential Equations I, chapter II.
    """

    tableau: ButcherTableau | None = None
    interpolant: CorrectedHermite | Polynomial | None = None

    def start(self, field, t, y):
        return field(t, y), 1

    def step(self, field, interval, y, carry, with_dense=False):
        table = _table(type(self))
        last = table.num_stages - 1
        stages, points = self._stages(field, interval, y, carry, self.num_stages(with_dense))
        step = self._assembled(interval, y, [stage.derivative for stage in stages], points[last - 1], points[last])
        integrands = [stage.integrand for stage in stages]
        return step._replace(
            integral=_integral(table.b, integrands, interval.size),
            integral_error=(self.error(integrands, interval.size) or ()) if integrands[0] else (),
            carry=stages[last],
            evaluations=len(stages) - 1,
        )

    def _stages(self, field, interval, y, first, count):
        """The first `count` stages of a step, and the states of these."""
        table = _table(type(self))
        times = _stage_times(interval, table.c)[:count]
        fields = [None, *field.at_each(times[1:])]
        last = table.num_stages - 1
        stages, points = [first], [y]
        for i in range(1, count):
            points.append(self._point(i, interval, y, [stage.derivative for stage in stages]))
            counts = i == last or (i < last and table.integrates[i])
            stages.append(fields[i](times[i], points[i], with_integrand=counts))
        return stages, points

    def mean_slope(self, field, interval, y, slope):
        """What a step adds to `y` for each unit of its size, without the evaluation where it ends.

        Args:
            slope: The derivative at `y`.

        Returns:
            The mean slope; the derivatives of the stages; and the state of the last of these.
        """
        last = _table(type(self)).num_stages - 1
        stages, points = self._stages(field, interval, y, Stage(slope), last)
        slopes = [stage.derivative for stage in stages]
        return tree.weighted_sum(_table(type(self)).a[last], slopes), slopes, points[-1]

    def memory(self, step):
        return tuple(leaf for stage in step.stages for leaf in stage)

    def memory_like(self, y, dense):
        return y * self.num_stages(dense)

    def pullback(self, field, interval, y, carry, memory, outputs, dense, of_y, of_parameters):
        """One vector-Jacobian product for each stage: the stages are known, and the rest is algebra."""
        stages = [memory[i : i + len(y)] for i in range(0, len(memory), len(y))]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch((y, stages))
            targets, weights = outputs(self._assemble(interval, y, stages))
        of_start, of_stages = tape.gradient(targets, (y, stages), weights)
        of_stages = [_filled(*pair) for pair in zip(of_stages, stages, strict=True)]
        of_y = tree.add(of_y, _filled(of_start, y) or tree.zeros_like(y))
        return self._transposed(field, interval, y, stages, of_stages, of_y, of_parameters)

    def _assemble(self, interval, y, stages):
        """The step from `y` whose stages are known: no evaluation, and neither carry nor integral."""
        last = _table(type(self)).num_stages - 1
        near, end = (self._point(i, interval, y, stages) for i in (last - 1, last))
        return self._assembled(interval, y, stages, near, end)

    def _transposed(self, field, interval, y, stages, of_stages, of_y, of_parameters):
        """Carries the cotangents of stages (`None` where nothing depends on one but other stages) back to the start."""
        table, count = _table(type(self)), 0
        times = _stage_times(interval, table.c)
        # All with the opposite sign: what follows are differences, for sums of many are not safe here (see `tree`).
        of_stages = [None if leaves is None else tree.scale(-1, leaves) for leaves in of_stages]
        for i in reversed(range(len(stages))):
            if of_stages[i] is None:
                continue
            of_point, change = field.vjp(times[i], self._point(i, interval, y, stages), of_stages[i])
            count += 1
            of_y, of_parameters = tree.subtract(of_y, of_point), tree.subtract(of_parameters, change)
            scaled = tree.scale(-interval.size, of_point)
            for j, weight in enumerate(table.a[i]):
                share = tree.weighted_sum([weight], [scaled]) if weight else None
                if weight and of_stages[j] is None:
                    of_stages[j] = tree.scale(-1, share)
                elif weight:
                    of_stages[j] = tree.subtract(of_stages[j], share)
        return of_y, (), of_parameters, count

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
    def weights(self):
        return _table(type(self)).interpolant

    def num_stages(self, dense):
        table = _table(type(self))
        return len(table.c) if dense else table.num_stages


def _filled(cotangents, leaves):
    """Zeros for leaves that nothing depends on; `None` if there are no others."""
    if all(cotangent is None for cotangent in cotangents):
        return None
    return tuple(tf.zeros_like(x) if g is None else g for g, x in zip(cotangents, leaves, strict=True))


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
