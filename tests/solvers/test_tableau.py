"""The tables of the explicit methods, in exact rational arithmetic."""

from fractions import Fraction

import numpy as np
import pytest
import scipy.integrate

from keras_ode.solvers import SOLVERS
from keras_ode.solvers.explicit import RK4, Bosh3, Dopri5, Dopri8, Euler, Tsit5
from keras_ode.solvers.tableau import ButcherTableau
from tests.references import EXPLICIT
from tests.rooted_trees import dot, elementary_weights, gamma, trees, trees_up_to

# Verner's, whose trees are many, have tests of their own in test_tables.py.
METHODS = [SOLVERS[name] for name in EXPLICIT if not name.startswith("vern")]
ADAPTIVE = [method for method in METHODS if method.error_order is not None]
FIRST_SAME_AS_LAST = [Bosh3, Dopri5, Tsit5]

# Tables of irrational numbers are rounded, to 40 decimals and to 28 digits or more; a condition adds up some ten
# rounded terms, the largest of them near 50.
ROUNDING = {Tsit5: Fraction(1, 10**38), Dopri8: Fraction(1, 10**27)}
RATIONAL = [method for method in METHODS if method not in ROUNDING]

EMBEDDED = [
    *((method, "tableau.b_error", method.error_order - 1) for method in ADAPTIVE if method is not Dopri8),
    (Dopri8, "tableau.b_error", 5),
    (Dopri8, "b_error_third", 3),
]


def residual(tableau, order):
    """The largest residual of the conditions for trees of `order` nodes."""
    phi = elementary_weights(tableau.a)
    return max(abs(dot(tableau.b, phi(tree)) - Fraction(1, gamma(tree))) for tree in trees(order))


def estimate(method, name):
    """The elementary weights of an error estimate, for the trees up to the method's order."""
    phi = elementary_weights(method.tableau.closed.a)
    b_error = method.b_error_third if name == "b_error_third" else method.tableau.closed.b_error
    return {tree: dot(b_error, phi(tree)) for tree in trees_up_to(method.order)}


def test_number_of_rooted_trees_is_cayleys():
    assert [len(trees(nodes)) for nodes in range(1, 9)] == [1, 1, 2, 4, 9, 20, 48, 115]


@pytest.mark.parametrize("method", METHODS)
def test_method_meets_all_conditions_of_its_order(method):
    residuals = [residual(method.tableau, order) for order in range(1, method.order + 1)]
    assert max(residuals) <= ROUNDING.get(method, 0)


@pytest.mark.parametrize("method", METHODS)
def test_method_misses_conditions_of_the_next_order(method):
    assert residual(method.tableau, method.order + 1) > Fraction(1, 10**6)


@pytest.mark.parametrize("method", METHODS)
def test_closed_tableau_is_of_the_same_order(method):
    residuals = [residual(method.tableau.closed, order) for order in range(1, method.order + 1)]
    assert max(residuals) <= ROUNDING.get(method, 0)


def test_table_with_two_weights_exchanged_misses_its_order():
    b = ("1/6", "1/6", "1/2", "1/6")
    wrong = ButcherTableau(c=RK4.tableau.c, a=RK4.tableau.a, b=b)
    assert [residual(wrong, order) for order in (1, 2, 3)] == [0, 0, Fraction(1, 24)]


@pytest.mark.parametrize("method, name, order", EMBEDDED)
def test_embedded_method_meets_all_conditions_of_its_order(method, name, order):
    error = estimate(method, name)
    assert max(abs(error[tree]) for tree in trees_up_to(order)) <= ROUNDING.get(method, 0)


@pytest.mark.parametrize("method, name, order", EMBEDDED)
def test_error_estimate_sees_the_order_after_the_embedded_one(method, name, order):
    error = estimate(method, name)
    assert max(abs(error[tree]) for tree in trees(order + 1)) > Fraction(1, 10**4)


def test_dopri8_estimate_of_both_errors_is_of_its_error_order():
    fifth, third = 6, 4
    assert Dopri8.error_order == 2 * fifth - third


@pytest.mark.parametrize("method", [Euler, RK4])
def test_method_without_embedded_one_has_no_error_order(method):
    assert method.tableau.b_error is None
    assert method.error_order is None


@pytest.mark.parametrize("method", RATIONAL)
def test_rows_of_rational_table_sum_to_its_nodes_exactly(method):
    assert tuple(map(sum, method.tableau.a)) == method.tableau.c


@pytest.mark.parametrize("method", METHODS)
def test_first_same_as_last_is_known_from_the_table(method):
    assert method.tableau.first_same_as_last == (method in FIRST_SAME_AS_LAST)


@pytest.mark.parametrize("method", FIRST_SAME_AS_LAST)
def test_table_with_first_same_as_last_is_closed(method):
    assert method.tableau.closed is method.tableau


@pytest.mark.parametrize("method", [method for method in METHODS if method not in FIRST_SAME_AS_LAST])
def test_closed_tableau_ends_with_the_end_stage(method):
    tableau, closed = method.tableau, method.tableau.closed
    assert (closed.c[:-1], closed.a[:-1], closed.b[:-1]) == (tableau.c, tableau.a, tableau.b)
    assert (closed.c[-1], closed.a[-1], closed.b[-1]) == (1, tableau.b, 0)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_closed_tableau_weighs_every_stage_in_its_error(method):
    closed = method.tableau.closed
    assert len(closed.b_error) == len(closed.c)


def test_error_weight_of_the_end_stage_is_kept():
    euler_with_trapezoidal = ButcherTableau(c=(0,), a=((),), b=(1,), b_error=("1/2", "-1/2"))
    assert euler_with_trapezoidal.closed.b_error == (Fraction(1, 2), Fraction(-1, 2))


@pytest.mark.parametrize(
    "method, theirs",
    [
        (Bosh3, scipy.integrate.RK23),
        (Dopri5, scipy.integrate.RK45),
        (Dopri8, scipy.integrate.DOP853),
    ],
)
def test_table_is_that_of_scipy(method, theirs):
    stages = len(theirs.C)  # Without the end stage.
    for i, row in enumerate(method.tableau.a[:stages]):
        np.testing.assert_allclose([float(weight) for weight in row], theirs.A[i, :i], rtol=1e-15)
    np.testing.assert_allclose([float(weight) for weight in method.tableau.b[:stages]], theirs.B, rtol=1e-15)


GOOD = {"c": (0, "1/2"), "a": ((), ("1/2",)), "b": (0, 1)}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"c": (), "a": (), "b": ()}, "Received 0 in `c`, 0 in `a` and 0 in `b`"),
        ({"b": (1,)}, "Received 2 in `c`, 2 in `a` and 1 in `b`"),
        ({"a": ((),)}, "Received 2 in `c`, 1 in `a` and 2 in `b`"),
        ({"a": ((0,), ("1/2",))}, r"Row 0 of `a` must weigh the 0 stages .* Received \(0\)"),
        ({"a": ((), (0, "1/2"))}, r"Row 1 of `a` must weigh the 1 stages .* Received \(0, 1/2\)"),
        ({"a": ((), ("1/3",))}, r"Row 1 of `a` must sum to 1/2. Received \(1/3\), whose sum is 1/3"),
        ({"a": ((), (0.1 + 0.4 + 1e-16,))}, "Row 1 of `a` must sum to 1/2"),
        ({"b": (1, 1)}, r"`b` must sum to 1. Received \(1, 1\), whose sum is 2"),
        ({"b_error": (1, 0)}, r"`b_error` must sum to 0. Received \(1, 0\), whose sum is 1"),
        ({"b_error": (0,)}, r"`b_error` must weigh the 2 stages, .* Received \(0\)"),
        ({"b_error": (0, 0, 0, 0)}, r"`b_error` must weigh the 2 stages, .* Received \(0, 0, 0, 0\)"),
        ({"c_dense": ("1/3",)}, "Received 1 in `c_dense` and 0 in `a_dense`"),
        (
            {"c_dense": ("1/3",), "a_dense": ((0, "1/3"),)},
            r"Row 0 of `a_dense` must weigh the 3 stages .* Received \(0, 1/3\)",
        ),
        ({"c_dense": ("1/3",), "a_dense": ((0, "1/3", 1),)}, "Row 0 of `a_dense` must sum to 1/3"),
        ({"b": (0, "one")}, "one"),
    ],
)
def test_bad_table_is_refused_with_what_was_received(change, message):
    with pytest.raises(ValueError, match=message):
        ButcherTableau(**{**GOOD, **change})


def test_error_weight_of_a_second_end_stage_is_refused():
    """A table that ends with the end stage has no further one to weigh."""
    with pytest.raises(ValueError, match="must weigh the 4 stages"):
        ButcherTableau(c=Bosh3.tableau.c, a=Bosh3.tableau.a, b=Bosh3.tableau.b, b_error=(0,) * 5)
