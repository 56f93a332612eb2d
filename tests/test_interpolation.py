"""Interpolants as polynomial identities in theta, in exact rational arithmetic."""

from fractions import Fraction

import numpy as np
import pytest
import scipy.integrate

from keras_ode.interpolation import CorrectedHermite, CubicHermite, Polynomial
from keras_ode.solvers.explicit import RK4, Bosh3, Dopri5, Dopri8, Euler, Heun, Midpoint, Ralston, Tsit5
from tests.rooted_trees import dot, elementary_weights, gamma, size, trees, trees_up_to

METHODS = [Euler, Midpoint, Heun, Ralston, RK4, Bosh3, Dopri5, Tsit5, Dopri8]
LIMITED_BY_INTERPOLANT = [RK4, Dopri5, Tsit5, Dopri8]

# Tables of irrational numbers are rounded, to 40 decimals and to 29 digits; a condition adds up some twenty rounded
# terms, the largest of them near 500.
ROUNDING = {Tsit5: Fraction(1, 10**37), Dopri8: Fraction(1, 10**25)}


def weights(method):
    return method.interpolant.weights(method.tableau)


def residual(method, among):
    """The largest coefficient of `sum_i W_i(theta) phi_i(tree) - theta^size / gamma(tree)` over trees."""
    columns = list(zip(*weights(method), strict=True))
    phi = elementary_weights(method.tableau.closed.a + method.tableau.a_dense)
    return max(
        abs(dot(column, phi(tree)) - (Fraction(1, gamma(tree)) if power == size(tree) else 0))
        for tree in among
        for power, column in enumerate(columns, start=1)
    )


def unit(i, length):
    return [int(j == i) for j in range(length)]


@pytest.mark.parametrize("method", METHODS)
def test_interpolant_meets_all_conditions_of_its_order_at_every_theta(method):
    order = min(method.order, method.interpolant.order)
    assert residual(method, trees_up_to(order)) <= ROUNDING.get(method, 0)


@pytest.mark.parametrize("method", LIMITED_BY_INTERPOLANT)
def test_interpolant_misses_conditions_of_the_next_order(method):
    assert residual(method, trees(method.interpolant.order + 1)) > Fraction(1, 10**3)


@pytest.mark.parametrize("method", METHODS)
def test_interpolant_ends_at_the_end_of_the_step_exactly(method):
    b = method.tableau.closed.b + (0,) * len(method.tableau.c_dense)
    assert tuple(map(sum, weights(method))) == b


@pytest.mark.parametrize("method", METHODS)
def test_interpolant_starts_with_the_first_slope_exactly(method):
    rows = weights(method)
    assert [row[0] for row in rows] == unit(0, len(rows))


@pytest.mark.parametrize("method", METHODS)
def test_interpolant_ends_with_the_end_slope_exactly(method):
    rows = weights(method)
    slopes = [sum(power * weight for power, weight in enumerate(row, start=1)) for row in rows]
    assert slopes == unit(len(method.tableau.closed.c) - 1, len(rows))


@pytest.mark.parametrize("method", METHODS)
def test_weights_are_exact(method):
    assert all(isinstance(weight, Fraction) for row in weights(method) for weight in row)


def test_dopri5_interpolant_is_the_published_polynomial():
    expanded = Polynomial(
        order=4,
        coefficients=(
            (1, "-8048581381/2820520608", "8663915743/2820520608", "-12715105075/11282082432"),
            (0, 0, 0, 0),
            (0, "131558114200/32700410799", "-68118460800/10900136933", "87487479700/32700410799"),
            (0, "-1754552775/470086768", "14199869525/1410260304", "-10690763975/1880347072"),
            (0, "127303824393/49829197408", "-318862633887/49829197408", "701980252875/199316789632"),
            (0, "-282668133/205662961", "2019193451/616988883", "-1453857185/822651844"),
            (0, "40617522/29380423", "-110615467/29380423", "69997945/29380423"),
        ),
    )
    assert weights(Dopri5) == expanded.weights(Dopri5.tableau)


@pytest.mark.parametrize(
    "method, theirs",
    [
        (Bosh3, scipy.integrate.RK23),
        (Dopri5, scipy.integrate.RK45),
        (Dopri8, scipy.integrate.DOP853),
    ],
)
def test_interpolated_step_is_that_of_scipy(method, theirs):
    def f(t, y):
        return np.cos(3 * t) - y**2

    h, start = 0.5, 0.7
    solver = theirs(f, 0.0, [start], h, first_step=h, rtol=1.0, atol=1.0)
    solver.step()
    assert solver.t == h
    slopes = []
    tableau = method.tableau.closed
    for c, row in zip(tableau.c + tableau.c_dense, tableau.a + tableau.a_dense, strict=True):
        slopes.append(f(float(c) * h, start + h * dot(map(float, row), slopes)))
    theta = np.linspace(0, 1, 11)
    powers = [theta**power for power in range(1, len(weights(method)[0]) + 1)]
    at_theta = [dot(map(float, row), powers) for row in weights(method)]
    ours = start + h * dot(slopes, at_theta)
    # A rounding of the largest of DOP853's weights, near 1e3, is 1e-13.
    np.testing.assert_allclose(ours, solver.dense_output()(theta * h)[0], rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    "interpolant, name",
    [
        (Polynomial(order=1, coefficients=((1,), (0,))), "`coefficients`"),
        (CorrectedHermite(order=4, corrections=((1, -1),)), r"`corrections\[0\]`"),
    ],
)
def test_interpolant_of_another_tableau_is_refused(interpolant, name):
    with pytest.raises(ValueError, match=f"{name} must have an entry for each of the 4 stages, .* Received 2"):
        interpolant.weights(Bosh3.tableau)


def test_hermite_without_corrections_is_the_cubic():
    assert CorrectedHermite(order=3, corrections=()).weights(RK4.tableau) == CubicHermite().weights(RK4.tableau)
