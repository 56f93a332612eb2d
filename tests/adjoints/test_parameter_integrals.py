"""Gradients by parameters whose integrand is harder than the state and its cotangent: closed forms."""

import numpy as np
import pytest
import tensorflow as tf
from scipy.integrate import quad

import keras_ode
from tests.marks import graded

END = 10.0
KNOTS = np.linspace(0, END, 41)
SIGNAL = np.random.default_rng(0).normal(size=41)
FREQUENCIES = np.random.default_rng(1).uniform(5, 30, 16)
PHASES = np.random.default_rng(2).uniform(0, 6, 16)


def fast(t, y, p):
    """An integrand that oscillates 64 times: the integral of sin(20 t)^2."""
    return p * tf.sin(20 * t) ** 2 + 0 * y


def bump(t, y, p):
    """A bump of a width of 0.14, which only the forward steps meet: the cotangent is constant."""
    return p * tf.exp(-(((t - 6.1234) / 0.14) ** 2)) + tf.cos(t) + 0 * y


def features(t, y, weights):
    """A last layer, initialized to zero, over features of time: the state is constant."""
    angles = tf.constant(FREQUENCIES) * t + tf.constant(PHASES)
    return tf.reduce_sum(weights * tf.sin(angles), axis=-1, keepdims=True) + 0 * y


def signal(t, y, values):
    """A tabulated signal, linear between its knots."""
    position = t * 40 / END
    index = tf.clip_by_value(tf.cast(position, tf.int32), 0, 39)
    part = position - tf.cast(index, t.dtype)
    return -y + (1 - part) * tf.gather(values, index) + part * tf.gather(values, index + 1)


def by_signal():
    def response(t, k):
        return np.exp(t - END) * max(0, 1 - abs(t - KNOTS[k]) * 4)

    return np.array([quad(response, max(0, x - 0.25), min(END, x + 0.25), args=(k,), points=[x], epsabs=1e-13)[0]
                     for k, x in enumerate(KNOTS)])  # fmt: skip


CASES = {
    "fast": (fast, 4.29, END / 2 - np.sin(40 * END) / 80),
    "fast, from zero": (fast, 0.0, END / 2 - np.sin(40 * END) / 80),
    "features": (features, np.zeros(16), (np.cos(PHASES) - np.cos(FREQUENCIES * END + PHASES)) / FREQUENCIES),
    "signal": (signal, SIGNAL, by_signal()),
}


def gradient(dynamics, parameter, rows=1, **options):
    parameter = tf.constant(parameter, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(parameter)
        ys = keras_ode.odeint(
            dynamics, tf.zeros([rows, 1], tf.float64), [0.0, END], args=(parameter,), jit_compile=False, **options
        )
        value = tf.reduce_sum(ys[-1])
    return tape.gradient(value, parameter)


def error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", graded(CASES, quick=["fast, from zero", "signal"], slow_ones=[]))
def test_gradient_is_right_within_a_hundred_times_the_tolerance(name):
    dynamics, parameter, expected = CASES[name]
    for tolerance in (1e-3, 1e-6, 1e-9):
        found = gradient(dynamics, parameter, rtol=tolerance, atol=1e-3 * tolerance, max_steps=20000)
        assert error(found, expected) < 100 * tolerance


@pytest.mark.slow
def test_bump_that_the_forward_steps_met_is_not_passed_over():
    expected = 0.14 * np.sqrt(np.pi)
    for tolerance in (1e-4, 1e-6, 1e-9):
        assert error(gradient(bump, 2.0, rtol=tolerance, atol=tolerance), expected) < 100 * tolerance


@pytest.mark.slow
def test_backsolve_sees_the_integrand_too():
    dynamics, parameter, expected = CASES["features"]
    for tolerance in (1e-3, 1e-6):
        options = {"rtol": tolerance, "atol": 1e-3 * tolerance, "adjoint": "backsolve"}
        assert error(gradient(dynamics, parameter, **options), expected) < 100 * tolerance


@pytest.mark.parametrize("adjoint", ["interpolating", "backsolve"])
@pytest.mark.slow
def test_rows_with_steps_of_their_own_see_the_integrand_too(adjoint):
    _, parameter, expected = CASES["features"]
    for tolerance in (1e-3, 1e-6):
        options = {"rtol": tolerance, "atol": 1e-3 * tolerance, "adjoint": adjoint, "per_sample": True}
        assert error(gradient(features, parameter, rows=2, **options), 2 * expected) < 100 * tolerance


@pytest.mark.slow
def test_rows_with_steps_of_their_own_have_gradients_in_double_precision():
    """To a tolerance that weights of the quadrature in single precision would miss."""
    found = gradient(lambda t, y, p: p * tf.cos(t) + 0 * y, 0.7, per_sample=True, rtol=1e-11, atol=1e-11, solver="dopri8")
    assert error(found, np.sin(END)) < 1e-10


@pytest.mark.slow
def test_gradient_of_a_small_loss_is_as_right():
    """Error control of the integral does not depend on the unit of the loss or of the parameter."""
    for unit in (1e-9, 1e9):
        found = gradient(lambda t, y, p: fast(t, y, p * unit), 4.29 / unit, rtol=1e-6, atol=1e-6)
        assert error(found / unit, CASES["fast"][2]) < 1e-4


@pytest.mark.slow
def test_gradient_under_xla_in_single_precision():
    @tf.function(jit_compile=True)
    def compute(p):
        with tf.GradientTape() as tape:
            tape.watch(p)
            value = tf.reduce_sum(keras_ode.odeint(fast, tf.zeros([1]), [0.0, END], args=(p,), rtol=1e-4)[-1])
        return tape.gradient(value, p)

    assert error(compute(tf.constant(0.0)), CASES["fast"][2]) < 1e-2
