"""Diagonally implicit Runge-Kutta methods whose first stage is explicit."""

import functools
import math
from typing import NamedTuple

import tensorflow as tf

from keras_ode import tree
from keras_ode.solvers import esdirk_tables
from keras_ode.solvers.base import Solver, Stage, Step, hermite_stages
from keras_ode.solvers.esdirk_tables import ESDIRKTableau
from keras_ode.solvers.implicit import Newton
from keras_ode.solvers.mass import derivative


class ESDIRK(Solver):
    """A method given by its `table` alone. The derivative at the end of a step is the first stage of the next one.

    A stage's derivative is taken from its solution, as `z / (gamma h)`: evaluated there, it would be wrong by the error of the
    iteration times the stiffness. The interpolant is Hermite's cubic: slopes of stages within the step would raise its order, but
    are wrong where the equation is stiff.

    References:
        Hairer, Wanner (1996), Solving Ordinary Differential Equations II, sections IV.6 and IV.8.
        Kennedy, Carpenter (2016), Diagonally implicit Runge-Kutta methods for ordinary differential equations: a review,
            NASA TM-2016-219173.
    """

    table: ESDIRKTableau | None = None
    is_implicit = True
    takes_mass_matrix = True
    # By itself, the derivative where a step starts would go wrong by the stiffness times small errors, in gradients too.
    remembers = True

    @property
    def takes_algebraic_equations(self):
        return _numbers(type(self)).is_stiffly_accurate

    def start(self, field, t, y):
        return derivative(field, t, y)

    def step(self, field, interval, y, carry, with_dense=False):
        numbers, size = _numbers(type(self)), interval.size
        stages = self._stages(field, interval, y, carry)
        points, slopes = stages.points, stages.slopes
        integrands, count = self._integrands(field, stages, carry)
        end, closing, near = points[-1], Stage(slopes[-1], integrands[-1]), (points[-2], slopes[-2])
        if stages.are_additive or not numbers.is_stiffly_accurate:
            end, near = _added(y, size, numbers.b, slopes), (points[-1], slopes[-1])
            closing, extra = derivative(field, interval.end, end)
            count += extra
        return Step(
            start=y,
            y=end,
            error=None if self.error_order is None else tree.scale(size, tree.weighted_sum(numbers.b_error, slopes)),
            integral=_integral(numbers.b, integrands, size),
            integral_error=() if self.error_order is None else _integral(numbers.b_error, integrands, size),
            stages=hermite_stages(interval, y, carry.derivative, end, closing.derivative),
            carry=closing,
            evaluations=stages.evaluations + count,
            neighbors=(near, (end, closing.derivative)),
            converged=stages.converged,
        )

    def _stages(self, field, interval, y, carry):
        """The stages, of both parts of a field where the method has a table for each."""
        numbers, size = _numbers(type(self)), interval.size
        parts = field.parts() if numbers.a_explicit else None
        stiff, other = (field, None) if parts is None else parts
        newton = Newton(stiff, interval, y, numbers.gamma)
        factor = tf.constant(numbers.gamma, size.dtype) * size
        reciprocal = 1 / tree.select(size == 0, tf.ones_like(size), factor)
        points, times = [y], [interval.start]
        others = [] if other is None else [other(interval.start, y).derivative]
        slopes = [carry.derivative if other is None else tree.subtract(carry.derivative, others[0])]
        for i in range(1, len(numbers.c)):
            times.append(interval.at(numbers.c[i]))
            base = _added(y, size, numbers.a[i][:-1], slopes)
            if other is not None:
                base = _added(base, size, numbers.a_explicit[i], others)
            # From far away, a step that cannot be made smaller could find another root.
            guess = tree.weighted_sum(numbers.guesses[i], slopes) if field.adaptive else tree.zeros_like(y)
            z = newton.solve(times[i], base, tree.scale(factor, guess))
            slopes.append(tree.where(size == 0, slopes[0], tree.scale(reciprocal, z)))
            points.append(tree.add(base, z))
            if other is not None:
                others.append(other(times[i], points[i]).derivative)
        if other is not None:
            slopes = list(map(tree.add, slopes, others))
        return _Stages(times, points, slopes, newton.evaluations + len(others), newton.converged, other is not None)

    def _integrands(self, field, stages, carry):
        """The integrands of stages, empty where they do not count, and the evaluations that this took."""
        integrands = [carry.integrand] + [()] * (len(stages.points) - 1)
        if not carry.integrand:
            return integrands, 0
        numbers = _numbers(type(self))
        counting = [i for i in range(1, len(integrands)) if numbers.b[i] or numbers.b_error[i]]
        for i in counting:
            integrands[i] = field(stages.times[i], stages.points[i]).integrand
        return integrands, len(counting)


class _Stages(NamedTuple):
    """The times, the states and the derivatives of the stages, what they took, and whether all were solved."""

    times: list
    points: list
    slopes: list
    evaluations: tf.Tensor
    converged: tf.Tensor
    are_additive: bool


class Kvaerno3(ESDIRK):
    """Kvaerno's method for stiff equations: order 3(2), 4 stages, L-stable, with a cubic interpolant.

    Example:

    >>> stiff = lambda t, y: -1000.0 * (y - tf.cos(t))
    >>> solution = keras_ode.solve(stiff, tf.constant([0.0]), [0.0, 1.0], solver="kvaerno3")
    >>> print(f"{float(solution.ys[-1, 0]):.3f}", int(solution.stats["num_steps"]) < 100)
    0.541 True

    Reference: Kvaerno (2004), Singly diagonally implicit Runge-Kutta methods with an explicit first stage, BIT 44(3), 489-502.
    """

    table = esdirk_tables.KVAERNO3
    order, error_order = table.order, table.error_order


class Kvaerno5(ESDIRK):
    """Kvaerno's method for stiff equations: order 5(4), 7 stages, L-stable, with a cubic interpolant.

    One of its stages lies 0.23 steps beyond the end of each step.

    Example:

    >>> stiff = lambda t, y: -1000.0 * (y - tf.cos(t))
    >>> solution = keras_ode.solve(stiff, tf.constant([0.0]), [0.0, 1.0], solver="kvaerno5")
    >>> print(f"{float(solution.ys[-1, 0]):.3f}", int(solution.stats["num_steps"]) < 100)
    0.541 True

    Reference: Kvaerno (2004), Singly diagonally implicit Runge-Kutta methods with an explicit first stage, BIT 44(3), 489-502.
    """

    table = esdirk_tables.KVAERNO5
    order, error_order = table.order, table.error_order

    @property
    def backward(self):
        return KenCarp4()  # the state is known within steps only


class KenCarp4(ESDIRK):
    """Kennedy and Carpenter's additive method for stiff equations: order 4(3), 6 stages, L-stable, with a cubic interpolant.

    Its explicit half integrates the part of a `keras_ode.Split` that is not stiff; any other dynamics is integrated by its implicit
    half. All of its stages lie within the step.

    Example:

    >>> stiff = lambda t, y: -1000.0 * (y - tf.cos(t))
    >>> solution = keras_ode.solve(stiff, tf.constant([0.0]), [0.0, 1.0], solver="kencarp4")
    >>> print(f"{float(solution.ys[-1, 0]):.3f}", int(solution.stats["num_steps"]) < 100)
    0.541 True

    Reference: Kennedy, Carpenter (2003), Additive Runge-Kutta schemes for convection-diffusion-reaction equations, Appl. Numer.
    Math. 44(1-2), 139-181.
    """

    table = esdirk_tables.KENCARP4
    order, error_order = table.order, table.error_order


class ImplicitEuler(ESDIRK):
    """Euler's implicit method: order 1, L-stable, no error estimate.

    Example:

    >>> solution = keras_ode.solve(lambda t, y: -y, tf.constant([1.0]), [0.0, 1.0], solver="implicit_euler", step_size=0.1)
    >>> print(f"{float(solution.ys[-1, 0]):.4f}")
    0.3855

    Reference: Hairer, Wanner (1996), Solving Ordinary Differential Equations II, section IV.3.
    """

    table = ESDIRKTableau(gamma=1, c=(0, 1), a=((0,), (0, 1)), b=(0, 1), b_error=(0, 0), order=1, error_order=1)
    order = table.order


class ImplicitMidpoint(ESDIRK):
    """The implicit midpoint rule: order 2, A-stable, no error estimate. It keeps quadratic invariants.

    Example:

    >>> solution = keras_ode.solve(lambda t, y: -y, tf.constant([1.0]), [0.0, 1.0], solver="implicit_midpoint", step_size=0.1)
    >>> print(f"{float(solution.ys[-1, 0]):.4f}")
    0.3676

    Reference: Hairer, Lubich, Wanner (2006), Geometric Numerical Integration, section IV.2.
    """

    table = ESDIRKTableau(gamma="1/2", c=(0, "1/2"), a=((0,), (0, "1/2")), b=(0, 1), b_error=(0, 0), order=2, error_order=2)
    order = table.order
    remembers = False


class Trapezoid(ESDIRK):
    """The trapezoidal rule: order 2, A-stable, no error estimate.

    Example:

    >>> solution = keras_ode.solve(lambda t, y: -y, tf.constant([1.0]), [0.0, 1.0], solver="trapezoid", step_size=0.1)
    >>> print(f"{float(solution.ys[-1, 0]):.4f}")
    0.3676

    Reference: Hairer, Wanner (1996), Solving Ordinary Differential Equations II, section IV.3.
    """

    table = ESDIRKTableau(
        gamma="1/2", c=(0, 1), a=((0,), ("1/2", "1/2")), b=("1/2", "1/2"), b_error=(0, 0), order=2, error_order=2
    )
    order = table.order


class _Numbers:
    """The numbers of a table as floats; `guesses` are the weights of a stage's first guess."""

    def __init__(self, table):
        self.gamma = float(table.gamma)
        self.c, self.b, self.b_error = ([float(x) for x in row] for row in (table.c, table.b, table.b_error))
        self.a, self.a_explicit = ([[float(x) for x in row] for row in rows] for rows in (table.a, table.a_explicit))
        self.is_stiffly_accurate = self.a[-1] == self.b
        self.guesses = [_extrapolation(self.c[:i], self.c[i]) for i in range(len(self.c))]


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
