"""`check_gradients` tells right gradients from wrong ones, by closed forms."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ode
from keras_ode import gradient_check

TIMES = [0.0, 2.0]
FAST = {"solver": "bosh3", "jit_compile": False}


def field(rate, times_rate, rest=((0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0))):
    """One family of `f(t, y)`, which TensorFlow traces once for all tests: `rate A z + B z`, where `z` is `(p, q, pq, p^2 q)`.

    Args:
        rate: A variable.
        times_rate, rest: The matrices `A` and `B`.
    """
    times_rate, rest = tf.constant(times_rate, tf.float64), tf.constant(rest, tf.float64)

    def f(t, y):
        product = y[0] * y[1]
        z = tf.stack([y[0], y[1], product, y[0] * product])
        return rate * tf.linalg.matvec(times_rate, z) + tf.linalg.matvec(rest, z)

    return f


def variable(rate):
    return tf.Variable(rate, dtype=tf.float64, name="rate")


def decay(rate):
    return field(rate, [[-1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0]])


def decay_report(**options):
    """Of `y' = -k y`, `k = 3`, `y(0) = 1`, and the sum of the states as the loss."""
    options = {"adjoint": "checkpointed", **options}
    return keras_ode.check_gradients(decay(variable(3.0)), tf.ones([2], tf.float64), TIMES, loss=tf.reduce_sum, **options)


@pytest.mark.slow
def test_error_of_a_gradient_is_that_of_the_closed_form():
    # Times as a tensor, and a variable: this is traced together with what the report solves.
    rate, times = variable(3.0), tf.constant(TIMES, tf.float64)
    options = {"rtol": 1e-3, "atol": 1e-3, "adjoint": "checkpointed", "jit_compile": False}
    with tf.GradientTape() as tape:
        ys = keras_ode.odeint(decay(rate), tf.ones([2], tf.float64), times, **options)
        loss = tf.reduce_sum(ys)
    exact = -4 * np.exp(-6)  # of two equal coordinates
    expected = abs(float(tape.gradient(loss, rate)) / exact - 1)
    report = decay_report(rtol=1e-3, atol=1e-3)
    assert expected > 1e-3
    assert report.errors["rate:0"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_tolerance_found_is_the_loosest_of_a_ladder_that_does():
    report = decay_report(rtol=1e-2, atol=1e-2, target=1e-3)
    rtol, atol = report.tolerance
    assert max(report.errors.values()) > 1e-3
    assert max(decay_report(rtol=rtol, atol=atol).errors.values()) <= 1e-3
    assert max(decay_report(rtol=10 * rtol, atol=10 * atol).errors.values()) > 1e-3


@pytest.mark.slow
def test_times_far_from_zero_are_subtracted_before_they_are_rounded():
    check = gradient_check._Check(lambda y: -y / 100, tf.constant([1.0]), 1.7e9 + np.array([0.0, 100.0]), (), tf.reduce_sum, FAST)
    found = check.gradients("checkpointed", 1e-4, 1e-6)["y0"]
    np.testing.assert_allclose(found, [1 + np.exp(-1)], rtol=1e-3)


def test_report_reads_as_a_table():
    text = str(decay_report())
    assert text.splitlines()[0].split() == ["gradient", "by", "relative", "error", "known", "to", "within"]
    assert "rate:0" in text
    assert "For errors of at most 0.01: rtol=" in text


@pytest.mark.slow
def test_every_leaf_argument_time_and_variable_has_an_error():
    dynamics = keras.Sequential([keras.layers.Dense(2, use_bias=False)])
    report = keras_ode.check_gradients(
        lambda t, y, c, d: {"a": dynamics(y["b"]) * c, "b": y["a"] * d["d"]},
        {"a": tf.ones([1, 2]), "b": tf.zeros([1, 2])},
        TIMES,
        args=(0.5, {"d": tf.constant(2.0)}),
        solver="bosh3",
    )
    assert sorted(report.errors) == ["args[0]", "args[1]", "kernel:0", "t", "y0[0]", "y0[1]"]


@pytest.mark.slow
def test_variables_of_the_same_name_are_all_checked():
    """As all are that get none: TensorFlow calls each `Variable:0`."""
    factors = [tf.Variable(1.0), tf.Variable(2.0), tf.Variable(0.5)]
    product = lambda y: -factors[0] * factors[1] * factors[2] * y
    report = keras_ode.check_gradients(product, tf.ones([1]), TIMES, solver="bosh3")
    assert {"Variable:0", "Variable:0 (2)", "Variable:0 (3)"} <= set(report.errors)


@pytest.mark.slow
def test_backsolve_that_fails_is_told_apart_and_another_adjoint_advised():
    # Van der Pol's oscillator, whose limit cycle repels backward in time.
    dynamics = field(
        variable(5.0), [[0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, -1.0]], [[0.0, 1.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0]]
    )
    report = keras_ode.check_gradients(
        dynamics, tf.constant([2.0, 0.0], tf.float64), [0.0, 20.0], adjoint="backsolve", rtol=1e-9, atol=1e-9
    )
    assert np.isnan(report.errors["y0"])
    assert report.tolerance is None
    assert "try another adjoint" in str(report)


def test_gradients_that_nothing_knows_are_told_apart():
    # A constant solution of Lotka and Volterra: steps grow without limit, and their derivative is not that of the equation.
    report = keras_ode.check_gradients(
        field(
            variable(1.0), [[1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0]], [[0.0, 0.0, -1.0, 0.0], [0.0, 0.0, 1.0, 0.0]]
        ),
        tf.ones([2], tf.float64),
        [0.0, 10.0],
        loss=tf.reduce_sum,
        adjoint="checkpointed",
        rtol=1e-6,
        atol=1e-6,
    )
    assert report.errors["rate:0"] > 1
    assert report.reference_errors["rate:0"] > 1
    assert report.tolerance is None


def test_graphs_are_refused():
    with pytest.raises(RuntimeError, match="eager code only"):
        tf.function(lambda: keras_ode.check_gradients(lambda y: -y, tf.ones([1]), TIMES))()


@pytest.mark.parametrize("target", [0, 1, -1.0])
def test_target_that_is_no_small_error_is_refused(target):
    with pytest.raises(ValueError, match=f"Received: target={target}"):
        decay_report(target=target)
