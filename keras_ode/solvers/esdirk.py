"""Diagonally implicit Runge-Kutta methods whose first stage is explicit."""

import functools
import math

import numpy as np
import tensorflow as tf

from keras_ode import tree
from keras_ode.solvers import esdirk_tables
from keras_ode.solvers.base import Solver, Stage, Step
from keras_ode.solvers.esdirk_tables import ESDIRKTableau
from keras_ode.solvers.implicit import Newton
from keras_ode.solvers.mass import derivative


class ESDIRK(Solver):
    """A method given by its `table` alone. The derivative at the end of a step is the first stage of the next one.

    A stage's derivative is taken from its solution, as `z / (gamma h)`: evaluated there, it would be wrong by the error of the
    iteration times the stiffness.

    References:
        Hairer, Wanner (1996), Solving Ordinary Differential Equations II, sections IV.6 and IV.8.
        Kennedy, Carpenter (2016), Diagonally implicit Runge-Kutta methods for ordinary differential equations: a review,
            NASA TM-2016-219173.
    """

    table = None
    is_implicit = True
    takes_mass_matrix = True
    # By itself, the derivative where a step starts would go wrong by the stiffness times small errors, in gradients too.
    remembers = True

    @property
    def weights(self):
        return _numbers(type(self)).dense

    @property
    def takes_algebraic_equations(self):
        return _numbers(type(self)).is_stiffly_accurate

    def start(self, field, t, y):
        return derivative(field, t, y)

    def step(self, field, interval, y, carry, with_dense=False):
        numbers, size = _numbers(type(self)), interval.size
        newton = Newton(field, interval, y, numbers.gamma)
        factor = tf.constant(numbers.gamma, size.dtype) * size
        reciprocal = 1 / tf.where(size == 0, tf.ones_like(size), factor)
        slopes, points, times = [carry.derivative], [y], [interval.start]
        for i in range(1, len(numbers.c)):
            times.append(interval.end if numbers.c[i] == 1 else interval.start + tf.constant(numbers.c[i], size.dtype) * size)
            base = _added(y, size, numbers.a[i][:-1], slopes)
            # From far away, a step that cannot be made smaller could find another root.
            guess = tree.weighted_sum(numbers.guesses[i], slopes) if field.adaptive else tree.zeros_like(y)
            z = newton.solve(times[i], base, tree.scale(factor, guess))
            slopes.append(tree.where(size == 0, carry.derivative, tree.scale(reciprocal, z)))
            points.append(tree.add(base, z))
        integrands, count = self._integrands(field, times, points, carry)
        end, closing = points[-1], Stage(slopes[-1], integrands[-1])
        if not numbers.is_stiffly_accurate:
            end = _added(y, size, numbers.b, slopes)
            closing, extra = derivative(field, interval.end, end)
            count += extra
            slopes.append(closing.derivative)
        before = points[-2] if numbers.is_stiffly_accurate else points[-1]
        return Step(
            start=y,
            y=end,
            error=None if self.error_order is None else tree.scale(size, tree.weighted_sum(numbers.b_error, slopes[: len(points)])),
            integral=_integral(numbers.b, integrands, size),
            integral_error=() if self.error_order is None else _integral(numbers.b_error, integrands, size),
            stages=tuple(slopes),
            carry=closing,
            evaluations=newton.evaluations + count,
            neighbors=((before, slopes[-2]), (end, slopes[-1])),
            converged=newton.converged,
        )

    def _integrands(self, field, times, points, carry):
        """The integrands of stages, empty where they do not count, and the evaluations that this took."""
        integrands = [carry.integrand] + [()] * (len(points) - 1)
        if not carry.integrand:
            return integrands, 0
        numbers = _numbers(type(self))
        counting = [i for i in range(1, len(points)) if numbers.b[i] or numbers.b_error[i]]
        for i in counting:
            integrands[i] = field(times[i], points[i]).integrand
        return integrands, len(counting)


class Kvaerno3(ESDIRK):
    """Kvaerno's method for stiff equations: order 3(2), 4 stages, L-stable, with a cubic interpolant.

    Reference: Kvaerno (2004), Singly diagonally implicit Runge-Kutta methods with an explicit first stage, BIT 44(3), 489-502.
    """

    table = esdirk_tables.KVAERNO3
    order, error_order = table.order, table.error_order


class Kvaerno5(ESDIRK):
    """Kvaerno's method for stiff equations: order 5(4), 7 stages, L-stable, with a cubic interpolant.

    One of its stages lies 0.23 steps beyond the end of each step.

    Reference: Kvaerno (2004), Singly diagonally implicit Runge-Kutta methods with an explicit first stage, BIT 44(3), 489-502.
    """

    table = esdirk_tables.KVAERNO5
    order, error_order = table.order, table.error_order

    @property
    def backward(self):
        return KenCarp4()  # the state is known within steps only


class KenCarp4(ESDIRK):
    """The implicit half of Kennedy and Carpenter's pair for stiff equations: order 4(3), 6 stages, L-stable, cubic interpolant.

    All of its stages lie within the step.

    Reference: Kennedy, Carpenter (2003), Additive Runge-Kutta schemes for convection-diffusion-reaction equations, Appl. Numer.
    Math. 44(1-2), 139-181.
    """

    table = esdirk_tables.KENCARP4
    order, error_order = table.order, table.error_order


class ImplicitEuler(ESDIRK):
    """Euler's implicit method: order 1, L-stable, no error estimate."""

    table = ESDIRKTableau(gamma=1, c=(0, 1), a=((0,), (0, 1)), b=(0, 1), b_error=(0, 0), order=1, error_order=1)
    order = table.order


class ImplicitMidpoint(ESDIRK):
    """The implicit midpoint rule: order 2, A-stable, no error estimate. It keeps quadratic invariants.

    Reference: Hairer, Lubich, Wanner (2006), Geometric Numerical Integration, section IV.2.
    """

    table = ESDIRKTableau(gamma="1/2", c=(0, "1/2"), a=((0,), (0, "1/2")), b=(0, 1), b_error=(0, 0), order=2, error_order=2)
    order = table.order
    remembers = False


class Trapezoid(ESDIRK):
    """The trapezoidal rule: order 2, A-stable, no error estimate."""

    table = ESDIRKTableau(
        gamma="1/2", c=(0, 1), a=((0,), ("1/2", "1/2")), b=("1/2", "1/2"), b_error=(0, 0), order=2, error_order=2
    )
    order = table.order


class _Numbers:
    """The numbers of a table as floats. `dense` are the `weights` of a `Solver`, `guesses` those of a stage's first guess."""

    def __init__(self, table):
        self.gamma = float(table.gamma)
        self.c, self.b, self.b_error = ([float(x) for x in row] for row in (table.c, table.b, table.b_error))
        self.a = [[float(x) for x in row] for row in table.a]
        self.is_stiffly_accurate = self.a[-1] == self.b
        self.guesses = [_extrapolation(self.c[:i], self.c[i]) for i in range(len(self.c))]
        # Hermite's cubic; the mean slope is the stages' sum with the weights `b`. The slopes of stages within the step would raise
        # its order, but are wrong where the equation is stiff.
        self.dense = np.zeros([len(self.c) + (not self.is_stiffly_accurate), 3])
        self.dense[: len(self.b)] += np.outer(self.b, [0, 3, -2])
        self.dense[0] += [1, -2, 1]
        self.dense[-1] += [0, -1, 1]


def _extrapolation(nodes, node):
    """The weights with which values at nodes give that at another: by the polynomial through the last three."""
    weights = [0.0] * len(nodes)
    if node in nodes:
        weights[nodes.index(node)] = 1.0
        return weights
    last = range(max(len(nodes) - 3, 0), len(nodes))
    for i in last:
        weights[i] = math.prod((node - nodes[j]) / (nodes[i] - nodes[j]) for j in last if j != i)
    return weights


@functools.cache
def _numbers(method):
    return _Numbers(method.table)


def _added(y, size, weights, slopes):
    """The state further by the sum of slopes with these weights."""
    if not any(weights):
        return y
    return tree.add_scaled(y, size, tree.weighted_sum(weights, slopes[: len(weights)]))


def _integral(weights, integrands, size):
    """The sum of integrands, times the size of the step; empty where there are none."""
    if not integrands[0] or not any(weights):
        return ()
    return tree.scale(size, tree.weighted_sum(weights, integrands))
