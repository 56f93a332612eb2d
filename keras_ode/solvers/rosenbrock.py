"""Rosenbrock-Wanner methods: linearly implicit, so that a step of a stiff equation needs no iteration."""

import functools

import numpy as np
import tensorflow as tf

from keras_ode import tree
from keras_ode.solvers import rodas_tables
from keras_ode.solvers.base import Solver, Stage, Step
from keras_ode.solvers.esdirk import KenCarp4
from keras_ode.solvers.systems import System


class Rosenbrock(Solver):
    """A method given by its `table` alone. Each stage solves a linear equation with the Jacobian at the start of the step.

    Its carry is the value of the field, which is not the derivative where there is a mass matrix. Its stages are the table's
    `u_i`, divided by the size of the step.

    Reference: Hairer, Wanner (1996), Solving Ordinary Differential Equations II, section IV.7.
    """

    table: rodas_tables.RosenbrockTableau | None = None
    is_implicit = True
    takes_mass_matrix = takes_algebraic_equations = True
    # For adjoint equations, whose derivative by time would be a second derivative of the dynamics.
    backward = KenCarp4()

    @property
    def weights(self):
        return _numbers(type(self)).dense

    def start(self, field, t, y):
        return field(t, y), 1

    def step(self, field, interval, y, carry, with_dense=False):
        numbers, size, mass = _numbers(type(self)), interval.size, field.mass
        near = field.linearize(interval.start, y)
        system = System(field, numbers.gamma * size)
        prepared, stages, converged = system.at(near), [], None
        for i in range(len(numbers.a)):
            slope = carry.derivative if i == 0 else field(*self._point(i, interval, y, stages)).derivative
            if any(numbers.c[i]):
                earlier = tree.weighted_sum(numbers.c[i], stages)
                slope = tree.add(slope, earlier if mass is None else mass.times(earlier))
            if near.by_time is not None and numbers.gammas[i]:
                slope = tree.add_scaled(slope, tf.constant(numbers.gammas[i], size.dtype) * size, near.by_time)
            found = system.solve(prepared, slope, field.derivatives)
            if near.matrix is None:
                converged = _is_solved(found, slope, size, converged)
            stages.append(tree.scale(tf.constant(numbers.gamma, size.dtype), found))
        end = tree.add_scaled(y, size, tree.weighted_sum(numbers.m, stages))
        next_carry = field(interval.end, end)
        return Step(
            start=y,
            y=end,
            error=tree.scale(size, tree.weighted_sum(numbers.e, stages)),
            integral=(),
            stages=tuple(stages),
            carry=Stage(next_carry.derivative),
            evaluations=len(stages) + near.evaluations,
            neighbors=((y, carry.derivative), (end, next_carry.derivative)),
            converged=converged,
        )

    def _point(self, i, interval, y, stages):
        """The time and the state of a stage."""
        numbers, t = _numbers(type(self)), interval.at(_numbers(type(self)).alpha[i])
        if not any(numbers.a[i]):
            return t, y
        return t, tree.add_scaled(y, interval.size, tree.weighted_sum(numbers.a[i], stages))


class Rodas5P(Rosenbrock):
    """Steinebach's method for stiff equations: order 5(4), 8 stages, L-stable, with an interpolant of order 4.

    Example:

    >>> stiff = lambda t, y: -1000.0 * (y - tf.cos(t))
    >>> solution = keras_ode.solve(stiff, tf.constant([0.0]), [0.0, 1.0], solver="rodas5p")
    >>> print(f"{float(solution.ys[-1, 0]):.3f}", int(solution.stats["num_steps"]) < 100)
    0.541 True

    Reference: Steinebach (2023), Construction of Rosenbrock-Wanner method Rodas5P and numerical benchmarks within the Julia
    Differential Equations package, BIT 63, article 27.
    """

    table = rodas_tables.RODAS5P
    order, error_order = table.order, table.error_order


class Rosenbrock23(Rosenbrock):
    """Shampine and Reichelt's method for stiff equations at loose tolerances: order 2(3), 3 stages, L-stable.

    Example:

    >>> stiff = lambda t, y: -1000.0 * (y - tf.cos(t))
    >>> solution = keras_ode.solve(stiff, tf.constant([0.0]), [0.0, 1.0], solver="rosenbrock23")
    >>> print(f"{float(solution.ys[-1, 0]):.3f}", int(solution.stats["num_steps"]) < 100)
    0.541 True

    Reference: Shampine, Reichelt (1997), The MATLAB ODE suite, SIAM J. Sci. Comput. 18(1), 1-22.
    """

    table = rodas_tables.ROSENBROCK23
    order, error_order = table.order, table.error_order


class _Numbers:
    """The numbers of a table as floats. `dense` are the `weights` of a `Solver`."""

    def __init__(self, table):
        self.gamma = float(table.gamma)
        self.alpha, self.gammas, self.m, self.e = ([float(x) for x in row] for row in (table.alpha, table.gammas, table.m, table.e))
        self.a, self.c = ([[float(x) for x in row] for row in rows] for rows in (table.a, table.c))
        # theta m + theta (1 - theta) (K_0 + theta (K_1 + ...)), by powers of theta.
        self.dense = np.zeros([len(table.m), len(table.dense) + 1])
        self.dense[:, 0] = self.m
        for power, row in enumerate(table.dense):
            row = np.array([float(x) for x in row])
            self.dense[:, power] += row
            self.dense[:, power + 1] -= row


def _is_solved(found, slope, size, before):
    """Whether equations were solved, and those before them: a right-hand side that is not finite is another fault."""
    known, right = (tree.is_finite(leaves, size) for leaves in (found, slope))
    return known | ~right if before is None else before & (known | ~right)


@functools.cache
def _numbers(method):
    return _Numbers(method.table)
