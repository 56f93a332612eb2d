"""Cotangents of many saved times: what they cost, and the polynomial that stands for their staircase."""

import numpy as np
import pytest
import tensorflow as tf

import keras_ode
from keras_ode.adjoints.impulses import _staircase_weights
from tests.marks import nightly
from tests.references import Counting, TanhNetwork


@pytest.mark.parametrize("degree", range(5))
def test_polynomial_in_place_of_a_staircase_has_its_integrals(degree):
    weights = _staircase_weights(degree)
    for x in (0.0, 0.3, 0.95):
        height, *coefficients = np.polynomial.polynomial.polyval(x, weights.T)
        assert height == 1
        for power in range(degree + 1):
            of_polynomial = sum(c / (m + power + 1) for m, c in enumerate(coefficients))
            np.testing.assert_allclose(of_polynomial, (1 - x ** (power + 1)) / (power + 1), atol=1e-12)


WEIGHTS = tuple(map(tf.constant, TanhNetwork(16).weights))
DYNAMICS = Counting(TanhNetwork(16).of_tensors(WEIGHTS))


def backward_evaluations(adjoint, number, tolerance):
    start = tf.constant(TanhNetwork(16).start)
    with tf.GradientTape() as tape:
        tape.watch((start, WEIGHTS))
        ys = keras_ode.odeint(
            DYNAMICS, start, np.linspace(0, 3, number), adjoint=adjoint, rtol=tolerance, atol=tolerance, jit_compile=False
        )
        loss = tf.reduce_sum(ys**2)
    DYNAMICS.take()  # those of the forward solve
    assert None not in tape.gradient(loss, (start, *WEIGHTS))
    return DYNAMICS.take()


@pytest.mark.parametrize("tolerance", [nightly(1e-3), 1e-5])
@pytest.mark.parametrize("adjoint", ["interpolating", "backsolve", "checkpointed"])
@pytest.mark.slow
def test_a_hundred_saved_times_cost_few_backward_evaluations(adjoint, tolerance):
    few, many = (backward_evaluations(adjoint, number, tolerance) for number in (2, 100))
    # One evaluation more for each step; and a sum over all times asks for other steps than the last state alone.
    assert many <= 1.2 * few
