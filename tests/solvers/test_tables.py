"""The tables of implicit methods and of high order: order conditions in exact arithmetic, and plain NumPy steps."""

from fractions import Fraction
from functools import cache
from itertools import pairwise

import numpy as np
import pytest

from keras_ode.solvers.rodas_tables import RODAS3, RODAS3P, RODAS5P, ROSENBROCK23, RosenbrockTableau
from tests.rooted_trees import dot, gamma, trees

# Rational tables are exact. Others are rounded, to 16 digits of numbers up to 200, or to 40 decimals.
ROSENBROCK = {
    "rodas5p": (RODAS5P, Fraction(1, 10**12)),
    "rodas3": (RODAS3, 0),
    "rodas3p": (RODAS3P, 0),
    "rosenbrock23": (ROSENBROCK23, Fraction(1, 10**38)),
}
STIFF = -(10**10)

each_rosenbrock = pytest.mark.parametrize("table, rounding", ROSENBROCK.values(), ids=ROSENBROCK)


def padded(rows, width):
    return [[*row, *[0] * (width - len(row))] for row in rows]


def product(a, b):
    return [[dot(row, column) for column in zip(*b, strict=True)] for row in a]


def inverse_of_lower(matrix):
    inverse = []
    for i, row in enumerate(matrix):
        unit = [Fraction(i == j) for j in range(len(matrix))]
        done = product([row[:i]], inverse)[0] if i else [0] * len(matrix)
        inverse.append([(x - y) / row[i] for x, y in zip(unit, done, strict=True)])
    return inverse


@cache
def classical(table):
    """The matrices alpha and Gamma of the form with `k`, where `u = Gamma k`."""
    stages = len(table.alpha)
    inverse = [[-x for x in row] for row in padded(table.c, stages)]
    for i in range(stages):
        inverse[i][i] += 1 / table.gamma
    coupling = inverse_of_lower(inverse)
    return product(padded(table.a, stages), coupling), coupling


@cache
def rosenbrock_weights(table):
    """Returns `phi`: a node with one branch sees alpha + Gamma, and a node with more branches alpha."""
    alpha, coupling = classical(table)
    both = [[x + y for x, y in zip(*rows, strict=True)] for rows in zip(alpha, coupling, strict=True)]

    @cache
    def phi(tree):
        weights = [Fraction(1)] * len(alpha)
        for branch in tree:
            at_stages = [dot(row, phi(branch)) for row in (both if len(tree) == 1 else alpha)]
            weights = [x * y for x, y in zip(weights, at_stages, strict=True)]
        return weights

    return phi


def elementary(table, weights, tree):
    """What weights of `u` make of a tree."""
    return dot(product([weights], classical(table)[1])[0], rosenbrock_weights(table)(tree))


def powers_of_theta(table):
    """Rows of weights of `u`: for theta, theta^2, ..."""
    rows = [list(table.m), *([0] * len(table.m) for _ in range(len(table.dense) + 1))]
    for power, row in enumerate(table.dense):
        rows[power] = [x + y for x, y in zip(rows[power], row, strict=True)]
        rows[power + 1] = [x - y for x, y in zip(rows[power + 1], row, strict=True)]
    return rows


@each_rosenbrock
def test_rosenbrock_method_meets_all_conditions_of_its_order_and_misses_the_next(table, rounding):
    def residual(order):
        return max(abs(elementary(table, table.m, tree) - Fraction(1, gamma(tree))) for tree in trees(order))

    assert max(map(residual, range(1, table.order + 1))) <= rounding
    assert residual(table.order + 1) > Fraction(1, 1000)


@each_rosenbrock
def test_rosenbrock_error_estimate_is_of_its_error_order(table, rounding):
    def largest(order):
        return max(abs(elementary(table, table.e, tree)) for tree in trees(order))

    assert max(map(largest, range(1, table.error_order))) <= rounding
    assert largest(table.error_order) > Fraction(1, 1000)


@each_rosenbrock
def test_rosenbrock_interpolant_meets_all_conditions_of_its_order_and_misses_the_next(table, rounding):
    def residual(order):
        return max(
            abs(elementary(table, row, tree) - Fraction(power == order, gamma(tree)))
            for tree in trees(order)
            for power, row in enumerate(powers_of_theta(table), 1)
        )

    assert max(map(residual, range(1, table.dense_order + 1))) <= rounding
    assert residual(table.dense_order + 1) > Fraction(1, 1000)


@each_rosenbrock
def test_rosenbrock_nodes_and_time_factors_are_row_sums(table, rounding):
    for rows, sums in zip(classical(table), (table.alpha, table.gammas), strict=True):
        assert max(abs(sum(row) - expected) for row, expected in zip(rows, sums, strict=True)) <= rounding


@pytest.mark.parametrize("table", [RODAS5P, RODAS3, RODAS3P], ids=["rodas5p", "rodas3", "rodas3p"])
def test_stiffly_accurate_rosenbrock_step_ends_at_its_last_stage(table):
    assert table.m == (*table.a[-1], 1)
    assert table.alpha[-1] == 1


def test_last_stage_of_rosenbrock23_starts_the_next_step():
    assert ROSENBROCK23.m == (*ROSENBROCK23.a[-1], 0)


@each_rosenbrock
def test_rosenbrock_method_is_l_stable_in_the_stiff_limit(table, rounding):
    u = []
    for a, c in zip(table.a, table.c, strict=True):
        u.append((STIFF * (1 + dot(a, u)) + dot(c, u)) / (1 / table.gamma - STIFF))
    assert abs(1 + dot(table.m, u)) < 1e-6


# The exact solution of this system is (exp(sin t), 1 / (1 + t)).
def field(t, y):
    return np.array([y[0] * y[1] * np.cos(t) * (1 + t), y[0] - np.exp(np.sin(t)) - y[1] ** 2])


def jacobian(t, y):
    return np.array([[y[1] * np.cos(t) * (1 + t), y[0] * np.cos(t) * (1 + t)], [1.0, -2 * y[1]]])


def time_derivative(t, y):
    return np.array([y[0] * y[1] * (np.cos(t) - np.sin(t) * (1 + t)), -np.cos(t) * np.exp(np.sin(t))])


def exact(t):
    return np.array([np.exp(np.sin(t)), 1 / (1 + t)])


def rosenbrock_step(table, t, y, h):
    """Returns the end of the step, the error estimate and the interpolant."""
    system = np.eye(2) / (h * float(table.gamma)) - jacobian(t, y)
    u = np.zeros((len(table.alpha), 2))
    rows = zip(table.alpha, table.a, table.c, table.gammas, strict=True)
    for i, (alpha, a, c, factor) in enumerate(rows):
        a, c = np.array(a, float), np.array(c, float)
        slope = field(t + float(alpha) * h, y + a @ u[:i])
        u[i] = np.linalg.solve(system, slope + c @ u[:i] / h + float(factor) * h * time_derivative(t, y))
    end = y + np.array(table.m, float) @ u
    nested = [np.array(row, float) @ u for row in table.dense]

    def interpolant(theta):
        bend = sum(theta**power * k for power, k in enumerate(nested))
        return (1 - theta) * y + theta * (end + (1 - theta) * bend)

    return end, np.array(table.e, float) @ u, interpolant


def slope_of(errors):
    """The smallest power of the step size between halvings."""
    return min(np.log2(larger / smaller) for larger, smaller in pairwise(errors))


@each_rosenbrock
def test_rosenbrock_steps_converge_with_the_order_of_the_method(table, rounding):
    errors = []
    for steps in (8, 16, 32):
        y, h = exact(0.0), 1 / steps
        for i in range(steps):
            y = rosenbrock_step(table, i * h, y, h)[0]
        errors.append(np.abs(y - exact(1.0)).max())
    assert slope_of(errors) > table.order - 0.25


@each_rosenbrock
def test_rosenbrock_estimate_and_interpolant_shrink_with_their_orders(table, rounding):
    tries = [(h, *rosenbrock_step(table, 0.25, exact(0.25), h)) for h in (0.05, 0.025, 0.0125)]
    assert slope_of([np.abs(estimate).max() for _, _, estimate, _ in tries]) > table.error_order - 0.25
    for theta in (0.3, 0.7):
        errors = [np.abs(interpolant(theta) - exact(0.25 + theta * h)).max() for h, _, _, interpolant in tries]
        assert slope_of(errors) > table.dense_order + 0.75


@pytest.mark.parametrize(
    "change, message",
    [
        ({"m": (1,)}, "`m` must have 4 entries. Received 1."),
        ({"c": ((), (), (1, -1), (1, -1, "-8/3"))}, "Row 1 of `c` must have 1 entries. Received 0."),
        ({"dense": ((1, 2),)}, "Row 0 of `dense` must have 4 entries. Received 2."),
    ],
)
def test_rosenbrock_table_of_wrong_lengths_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        RosenbrockTableau(**{**vars(RODAS3), **change})
