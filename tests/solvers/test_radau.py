"""Radau's method: its coefficients, its stability function, and the gradient of its steps."""

from decimal import Decimal, localcontext

import numpy as np
import pytest
import scipy.optimize
import tensorflow as tf
from scipy.integrate._ivp import radau as by_scipy

import keras_ode
from keras_ode.solvers import radau
from tests.marks import nightly

NUMBERS = radau._numbers()


def test_coefficients_are_scipys():
    np.testing.assert_allclose(NUMBERS.nodes, by_scipy.C, rtol=1e-15)
    np.testing.assert_allclose(NUMBERS.gamma, by_scipy.MU_REAL, rtol=1e-14)
    pair = by_scipy.MU_COMPLEX
    np.testing.assert_allclose(NUMBERS.pair, max(pair, pair.conjugate(), key=lambda x: x.imag), rtol=1e-14)
    np.testing.assert_allclose(NUMBERS.error, by_scipy.E, rtol=1e-13)
    np.testing.assert_allclose(NUMBERS.dense, by_scipy.P, rtol=1e-12)


def test_stages_integrate_powers_up_to_their_nodes():
    """`sum_j a_ij c_j^(k - 1) = c_i^k / k`, and so of the inverse, with the nodes to 40 digits."""
    with localcontext(prec=40):
        nodes = [(4 - Decimal(6).sqrt()) / 10, (4 + Decimal(6).sqrt()) / 10, Decimal(1)]
        for row, node in zip(NUMBERS.inverse, nodes, strict=True):
            for k in (1, 2, 3):
                found = sum(Decimal(a) * c**k / k for a, c in zip(row, nodes, strict=True))
                assert abs(found - node ** (k - 1)) < Decimal("5e-15")


def test_basis_makes_the_system_diagonal():
    gamma, pair = NUMBERS.gamma, NUMBERS.pair
    blocks = [[gamma, 0, 0], [0, pair.real, -pair.imag], [0, pair.imag, pair.real]]
    np.testing.assert_allclose(NUMBERS.from_basis @ blocks @ NUMBERS.to_basis, NUMBERS.inverse, atol=1e-14)


def one_step(dynamics, y0, rate, **options):
    return keras_ode.solve(
        dynamics, y0, [0.0, 0.5], args=(rate,), solver="radau", step_size=0.5, controller="constant", max_steps=4, jit_compile=False,
        **options,
    ).ys[-1]  # fmt: skip


def stability(z):
    return (1 + 2 * z / 5 + z**2 / 20) / (1 - 3 * z / 5 + 3 * z**2 / 20 - z**3 / 60)


@pytest.mark.slow
def test_step_of_a_linear_equation_is_the_pade_approximation_and_has_its_derivative():
    """Which vanishes at infinity, so that the method is L-stable."""
    rate = tf.constant([[1.0], [20.0], [1e3], [1e8]], tf.float64)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(rate)
        found = one_step(lambda t, y, rate: -rate * y, tf.ones_like(rate), rate, adjoint="checkpointed", per_sample=True)
        exact = stability(-0.5 * rate)
    np.testing.assert_allclose(found, exact, atol=1e-12)
    np.testing.assert_allclose(tape.gradient(found, rate), tape.gradient(exact, rate), rtol=1e-9, atol=1e-14)


def collocation(rate, y0):
    """A step of size 1/2 for `y' = -rate (1 + t) y^2`, by SciPy's root finder."""
    matrix = np.linalg.inv(NUMBERS.inverse)
    equations = lambda z: z + 0.5 * rate * matrix @ ((1 + 0.5 * by_scipy.C) * (y0 + z) ** 2)
    return y0 + scipy.optimize.fsolve(equations, np.zeros(3), xtol=1e-12)[2]


@pytest.mark.parametrize("adjoint", ["checkpointed", nightly("direct")])
@pytest.mark.slow
def test_gradient_of_a_step_is_that_of_the_implicit_function(adjoint):
    rate, y0 = tf.constant(2.0, tf.float64), tf.constant([1.3], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch((rate, y0))
        end = one_step(lambda t, y, rate: -rate * (1 + t) * y**2, y0, rate, adjoint=adjoint)[0]
    np.testing.assert_allclose(end, collocation(2.0, 1.3), rtol=1e-11)
    by_rate, by_start = tape.gradient(end, (rate, y0))
    np.testing.assert_allclose(by_rate, (collocation(2 + 1e-4, 1.3) - collocation(2 - 1e-4, 1.3)) / 2e-4, rtol=1e-7)
    np.testing.assert_allclose(by_start, [(collocation(2.0, 1.3 + 1e-4) - collocation(2.0, 1.3 - 1e-4)) / 2e-4], rtol=1e-7)
