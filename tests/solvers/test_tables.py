"""The tables of implicit methods and of high order: order conditions in exact arithmetic, and plain NumPy steps."""

from decimal import Decimal
from fractions import Fraction
from functools import cache
from itertools import pairwise
from itertools import product as choices
from math import prod

import numpy as np
import pytest

from keras_ode.solvers.esdirk_tables import KENCARP4, KVAERNO3, KVAERNO5, ESDIRKTableau
from keras_ode.solvers.rodas_tables import RODAS5P, ROSENBROCK23, RosenbrockTableau
from keras_ode.solvers.verner_tables import VERN7, VERN7_INTERPOLANT, VERN9, VERN9_INTERPOLANT
from tests.rooted_trees import dot, elementary_weights, gamma, trees

# A rational table, which meets its conditions exactly: Sandu, Verwer, Blom, Spee, Carmichael, Potra (1997), Benchmarking stiff ODE
# solvers for atmospheric chemistry problems II, Atmos. Environ. 31(20), 3459-3472.
RODAS3 = RosenbrockTableau(
    order=3,
    error_order=3,
    dense_order=1,
    gamma="1/2",
    alpha=(0, 0, 1, 1),
    a=((), (0,), (2, 0), (2, 0, 1)),
    c=((), (4,), (1, -1), (1, -1, "-8/3")),
    gammas=("1/2", "3/2", 0, 0),
    m=(2, 0, 1, 1),
    e=(0, 0, 0, 1),
    dense=(),
)

# How far the published digits may be from the conditions. Rational tables are exact; others are rounded to 40 decimals,
# to 25 (KenCarp4), to 17 (Kvaerno5), or to 16 digits of numbers up to 200 (Rodas5P).
ROSENBROCK = {
    "rodas5p": (RODAS5P, Fraction(1, 10**12)),
    "rodas3": (RODAS3, 0),
    "rosenbrock23": (ROSENBROCK23, Fraction(1, 10**38)),
}
ESDIRK = {
    "kvaerno3": (KVAERNO3, Fraction(1, 10**38)),
    "kvaerno5": (KVAERNO5, Fraction(1, 10**15)),
    "kencarp4": (KENCARP4, Fraction(1, 10**23)),
}
VERNER = {"vern7": (VERN7, VERN7_INTERPOLANT, 7), "vern9": (VERN9, VERN9_INTERPOLANT, 9)}
STIFF = -(10**10)

each_rosenbrock = pytest.mark.parametrize("table, rounding", ROSENBROCK.values(), ids=ROSENBROCK)
each_esdirk = pytest.mark.parametrize("table, rounding", ESDIRK.values(), ids=ESDIRK)
each_verner = pytest.mark.parametrize("table, interpolant, order", VERNER.values(), ids=VERNER)


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


@pytest.mark.parametrize("table", [RODAS5P, RODAS3], ids=["rodas5p", "rodas3"])
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


def weights_of_additive(tables, tree):
    """The elementary weights at all stages, for each way to give every branch one of the tables."""
    branches = [
        [[dot(row, at_stages) for row in a] for a in tables for at_stages in weights_of_additive(tables, branch)]
        for branch in tree
    ]
    ones = [1] * len(tables[0])
    return [[prod(factors) for factors in zip(ones, *chosen, strict=True)] for chosen in choices(*branches)]


def conditions(table, order):
    """The elementary weights of an implicit table, and of what couples it to its explicit one, with the density."""
    tables = (table.a, table.a_explicit) if table.a_explicit else (table.a,)
    return [(at_stages, gamma(tree)) for tree in trees(order) for at_stages in weights_of_additive(tables, tree)]


def test_additive_method_of_two_tables_has_a_condition_for_each_coloring():
    assert [len(conditions(KENCARP4, order)) for order in (1, 2, 3, 4)] == [1, 2, 8, 32]


@each_esdirk
def test_implicit_method_meets_all_conditions_of_its_order_and_misses_the_next(table, rounding):
    def residual(order):
        return max(abs(dot(table.b, weights) - Fraction(1, density)) for weights, density in conditions(table, order))

    assert max(map(residual, range(1, table.order + 1))) <= rounding
    assert residual(table.order + 1) > Fraction(1, 1000)


@each_esdirk
def test_implicit_error_estimate_is_of_its_error_order(table, rounding):
    def largest(order):
        return max(abs(dot(table.b_error, weights)) for weights, _ in conditions(table, order))

    assert max(map(largest, range(1, table.error_order))) <= rounding
    assert largest(table.error_order) > Fraction(1, 1000)


@each_esdirk
def test_implicit_rows_sum_to_the_nodes(table, rounding):
    for rows in filter(None, (table.a, table.a_explicit)):
        assert max(abs(sum(row) - node) for row, node in zip(rows, table.c, strict=True)) <= rounding


@each_esdirk
def test_implicit_method_has_one_diagonal_coefficient_and_is_stiffly_accurate(table, rounding):
    assert [row[-1] for row in table.a] == [0, *[table.gamma] * (len(table.c) - 1)]
    assert table.a[-1] == table.b
    assert table.c[-1] == 1


@each_esdirk
def test_implicit_method_is_l_stable_in_the_stiff_limit(table, rounding):
    k = []
    for *row, diagonal in table.a:
        k.append(STIFF * (1 + dot(row, k)) / (1 - STIFF * diagonal))
    assert abs(1 + dot(table.b, k)) < 1e-6


def test_interpolant_of_kencarp4_is_of_its_order_and_meets_the_end():
    rounding = ESDIRK["kencarp4"][1]

    def residual(order):
        return max(
            abs(dot(column, weights) - Fraction(power == order, density))
            for weights, density in conditions(KENCARP4, order)
            for power, column in enumerate(zip(*KENCARP4.dense, strict=True), 1)
        )

    assert max(map(residual, range(1, KENCARP4.dense_order + 1))) <= rounding
    assert residual(KENCARP4.dense_order + 1) > Fraction(1, 1000)
    assert max(abs(sum(row) - b) for row, b in zip(KENCARP4.dense, KENCARP4.b, strict=True)) <= rounding


@pytest.mark.parametrize(
    "change, message",
    [
        ({"b_error": (1,)}, "`b_error` must have 6 entries. Received 1."),
        ({"a": ((), *KENCARP4.a[1:])}, "Row 0 of `a` must have 1 entries. Received 0."),
        ({"a_explicit": ((0,), *KENCARP4.a_explicit[1:])}, "Row 0 of `a_explicit` must have 0 entries. Received 1."),
        ({"dense": KENCARP4.dense[1:]}, "`dense` must have 6 entries. Received 5."),
    ],
)
def test_implicit_table_of_wrong_lengths_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ESDIRKTableau(**{**vars(KENCARP4), **change})


# Arithmetic of decimals is faster than that of fractions. It rounds to 28 digits: the interpolants' weights, which reach
# 7000, are then good to some 1e-22.
@cache
def verner_weights(table):
    return elementary_weights([decimals(row) for row in (*table.closed.a, *table.a_dense)])


def decimals(row):
    return [Decimal(x.numerator) / x.denominator for x in row]


def largest_weight(table, weights, order, density_matters=False):
    """The largest elementary weight, or the largest residual, for trees of `order` nodes."""
    phi, weights = verner_weights(table), decimals(weights)
    return max(abs(dot(weights, phi(tree)) - density_matters / Decimal(gamma(tree))) for tree in trees(order))


@each_verner
def test_verners_method_meets_all_conditions_of_its_order_and_misses_the_next(table, interpolant, order):
    assert max(largest_weight(table, table.b, nodes, True) for nodes in range(1, order + 1)) < 1e-25
    assert largest_weight(table, table.b, order + 1, True) > 1e-6


@each_verner
def test_verners_error_estimate_is_of_the_order_of_the_method(table, interpolant, order):
    assert max(largest_weight(table, table.b_error, nodes) for nodes in range(1, order)) < 1e-25
    assert largest_weight(table, table.b_error, order) > 1e-5


@each_verner
def test_verners_interpolant_meets_all_conditions_of_its_order(table, interpolant, order):
    assert interpolant.order == order
    for power, weights in enumerate(zip(*interpolant.weights(table), strict=True), 1):
        assert max(largest_weight(table, weights, nodes, power == nodes) for nodes in range(1, order + 1)) < 1e-21


@each_verner
def test_verners_interpolant_meets_the_end_of_the_step_and_the_slopes_at_both_ends(table, interpolant, order):
    weights, end = interpolant.weights(table), len(table.closed.c) - 1
    for i, row in enumerate(weights):
        b = table.closed.b[i] if i <= end else 0
        assert abs(sum(row) - b) < 1e-25
        assert row[0] == (i == 0)
        assert abs(sum(power * x for power, x in enumerate(row, 1)) - (i == end)) < 1e-24
