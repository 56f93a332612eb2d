"""Multistep methods of Adams: they reuse derivatives of earlier steps, so that a step takes one or two evaluations."""

import functools
from fractions import Fraction
from typing import NamedTuple

import tensorflow as tf

from keras_ode import tree
from keras_ode.solvers.base import Solver, Stage, Step, hermite_stages
from keras_ode.solvers.explicit import RK4, Dopri5


class Carry(NamedTuple):
    """What a multistep method remembers.

    Attributes:
        slopes: The derivatives at the last points, the newest first, each a tuple of leaves.
        count: How many of them are known. It is a float, a scalar or `[B]`, because a tape passes it by.
        size: The signed size of the steps between these points.
    """

    slopes: tuple
    count: tf.Tensor
    size: tf.Tensor


class Adams(Solver):
    """The Adams-Bashforth method of an `order`; with `corrects`, the Adams-Bashforth-Moulton pair of that order.

    The first method extrapolates the derivative by the polynomial through its last `order` values and integrates that. The pair
    predicts with it, evaluates, corrects with the polynomial through the predicted derivative and the last `order - 1` values,
    and evaluates again (PECE).

    All steps have one size. A Runge-Kutta method of at least the same order takes the first steps and those of another size, such
    as a last step that ends at the end of the interval.

    Reference: Hairer, Norsett, Wanner (1993), Solving Ordinary Differential Equations I, section III.1.
    """

    corrects = False
    remembers = has_branches = True

    @property
    def starter(self):
        """The method for steps that the history does not fit."""
        return RK4() if self.order <= RK4.order else Dopri5()

    @property
    def backward(self):
        return RK4()

    def start(self, field, t, y):
        unknown = (tree.zeros_like(y),) * (self.order - 1)
        return Carry((field(t, y).derivative, *unknown), tf.ones_like(t), tf.zeros_like(t)), 1

    def carry_like(self, t, y):
        return Carry((tree.zeros_like(y),) * self.order, tf.zeros_like(t), tf.zeros_like(t))

    def first_derivative(self, carry):
        return carry.slopes[0]

    def step(self, field, interval, y, carry, with_dense=False):
        fits = interval.is_as_long_as(carry.size)
        # Rows that are done take a step of no length, by whichever method.
        is_full = (fits & (carry.count >= self.order)) | (interval.size == 0)

        def multistep():
            return self._multistep(field, interval, y, carry.slopes)

        def runge_kutta():
            step = self.starter.step(field, interval, y, Stage(carry.slopes[0]))
            return step.neighbors

        if is_full.shape.rank == 0:
            near, end = tf.cond(is_full, multistep, runge_kutta)
        else:
            near, end = known = multistep()
            near, end = tf.cond(
                tf.reduce_all(is_full), lambda: known, lambda: _where(is_full, known, runge_kutta())
            )
        return Step(
            start=y,
            y=end[0],
            error=None,
            integral=(),
            stages=hermite_stages(interval, y, carry.slopes[0], *end),
            carry=Carry(
                (end[1], *carry.slopes[:-1]),
                tree.select(fits, tf.minimum(carry.count + 1, self.order), 2),
                tf.stop_gradient(tree.select(fits, carry.size, interval.size)),
            ),
            evaluations=tree.select(is_full, 1 + int(self.corrects), len(self.starter.tableau.closed.c) - 1),
            neighbors=(near, end),
        )

    def _multistep(self, field, interval, y, slopes):
        """Two points close to each other, the last of them the end of the step: leaves, each with the derivative there."""
        end = _extended(interval, y, _bashforth(self.order), slopes)
        slope = field(interval.end, end).derivative
        if not self.corrects:
            return (y, slopes[0]), (end, slope)
        corrected = _extended(interval, y, _moulton(self.order), (slope, *slopes[:-1]))
        return (end, slope), (corrected, field(interval.end, corrected).derivative)


class AB2(Adams):
    """The Adams-Bashforth method of order 2, for constant steps: one evaluation per step.

    Example:

    >>> solution = keras_ode.solve(lambda t, y: -y, tf.constant([1.0]), [0.0, 1.0], solver="ab2", step_size=0.1)
    >>> print(f"{float(solution.ys[-1, 0]):.4f}")
    0.3693

    Reference: Hairer, Norsett, Wanner (1993), Solving Ordinary Differential Equations I, section III.1.
    """

    order = 2


class AB3(Adams):
    """The Adams-Bashforth method of order 3, for constant steps: one evaluation per step.

    Example:

    >>> solution = keras_ode.solve(lambda t, y: -y, tf.constant([1.0]), [0.0, 1.0], solver="ab3", step_size=0.1)
    >>> print(f"{float(solution.ys[-1, 0]):.4f}")
    0.3678

    Reference: Hairer, Norsett, Wanner (1993), Solving Ordinary Differential Equations I, section III.1.
    """

    order = 3


class AB4(Adams):
    """The Adams-Bashforth method of order 4, for constant steps: one evaluation per step.

    Example:

    >>> solution = keras_ode.solve(lambda t, y: -y, tf.constant([1.0]), [0.0, 1.0], solver="ab4", step_size=0.1)
    >>> print(f"{float(solution.ys[-1, 0]):.4f}")
    0.3679

    Reference: Hairer, Norsett, Wanner (1993), Solving Ordinary Differential Equations I, section III.1.
    """

    order = 4


class AB5(Adams):
    """The Adams-Bashforth method of order 5, for constant steps: one evaluation per step.

    Example:

    >>> solution = keras_ode.solve(lambda t, y: -y, tf.constant([1.0]), [0.0, 1.0], solver="ab5", step_size=0.1)
    >>> print(f"{float(solution.ys[-1, 0]):.4f}")
    0.3679

    Reference: Hairer, Norsett, Wanner (1993), Solving Ordinary Differential Equations I, section III.1.
    """

    order = 5


class ABM2(AB2):
    """The Adams-Bashforth-Moulton pair of order 2, for constant steps: it predicts and corrects, in two evaluations per step.

    Example:

    >>> solution = keras_ode.solve(lambda t, y: -y, tf.constant([1.0]), [0.0, 1.0], solver="abm2", step_size=0.1)
    >>> print(f"{float(solution.ys[-1, 0]):.4f}")
    0.3675

    Reference: Hairer, Norsett, Wanner (1993), Solving Ordinary Differential Equations I, section III.1.
    """

    corrects = True


class ABM3(AB3):
    """The Adams-Bashforth-Moulton pair of order 3, for constant steps: it predicts and corrects, in two evaluations per step.

    Example:

    >>> solution = keras_ode.solve(lambda t, y: -y, tf.constant([1.0]), [0.0, 1.0], solver="abm3", step_size=0.1)
    >>> print(f"{float(solution.ys[-1, 0]):.4f}")
    0.3679

    Reference: Hairer, Norsett, Wanner (1993), Solving Ordinary Differential Equations I, section III.1.
    """

    corrects = True


class ABM4(AB4):
    """The Adams-Bashforth-Moulton pair of order 4, for constant steps: it predicts and corrects, in two evaluations per step.

    Example:

    >>> solution = keras_ode.solve(lambda t, y: -y, tf.constant([1.0]), [0.0, 1.0], solver="abm4", step_size=0.1)
    >>> print(f"{float(solution.ys[-1, 0]):.4f}")
    0.3679

    Reference: Hairer, Norsett, Wanner (1993), Solving Ordinary Differential Equations I, section III.1.
    """

    corrects = True


class ABM5(AB5):
    """The Adams-Bashforth-Moulton pair of order 5, for constant steps: it predicts and corrects, in two evaluations per step.

    Example:

    >>> solution = keras_ode.solve(lambda t, y: -y, tf.constant([1.0]), [0.0, 1.0], solver="abm5", step_size=0.1)
    >>> print(f"{float(solution.ys[-1, 0]):.4f}")
    0.3679

    Reference: Hairer, Norsett, Wanner (1993), Solving Ordinary Differential Equations I, section III.1.
    """

    corrects = True


def coefficients(nodes):
    """The weights, exact, with which values at whole numbers `nodes` integrate their polynomial from zero to one."""
    return tuple(_integral_of_basis(node, [other for other in nodes if other != node]) for node in nodes)


def _integral_of_basis(node, others):
    """The integral from zero to one of the polynomial that is one at `node` and zero at the others."""
    polynomial = [Fraction(1)]  # by rising powers
    for other in others:
        shifted, scaled = [Fraction(0), *polynomial], [other * c for c in polynomial] + [Fraction(0)]
        polynomial = [(a - b) / (node - other) for a, b in zip(shifted, scaled, strict=True)]
    return sum(c / (power + 1) for power, c in enumerate(polynomial))


@functools.cache
def _bashforth(order):
    return [float(c) for c in coefficients([-i for i in range(order)])]


@functools.cache
def _moulton(order):
    return [float(c) for c in coefficients([1 - i for i in range(order)])]


def _extended(interval, y, weights, slopes):
    return tree.add_scaled(y, interval.size, tree.weighted_sum(weights, slopes))


def _where(condition, points, others):
    return tuple(
        tuple(tree.where(condition, *pair) for pair in zip(*point, strict=True)) for point in zip(points, others, strict=True)
    )
