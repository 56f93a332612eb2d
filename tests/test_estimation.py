"""Estimation of parameters: rates that are known, by three optimizers, single and multiple shooting."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ode
from tests.marks import nightly

T = np.linspace(0, 2, 9)
RATE = tf.Variable(0.0)
FAST = {"solver": "bosh3", "jit_compile": False}


def decay(t, y):
    return -RATE * y


def observed(rate=1.5):
    return np.exp(-rate * T)[:, None].astype("float32")


@pytest.mark.parametrize("optimizer, options", [("lbfgs", {}), nightly("adam", {"num_steps": 800})])
@pytest.mark.slow
def test_the_rate_of_a_decay_is_found(optimizer, options):
    RATE.assign(0.5)
    result = keras_ode.estimate(decay, observed(), T, variables=[RATE], optimizer=optimizer, rtol=1e-5, **FAST, **options)
    np.testing.assert_allclose(RATE.numpy(), 1.5, rtol=1e-2)
    assert result.loss < 1e-5 < result.losses[0]
    assert result.converged is (True if optimizer == "lbfgs" else None)


@pytest.mark.slow
def test_a_keras_layer_and_the_start_are_estimated_with_missing_values():
    layer, row = keras.layers.Dense(1, use_bias=False), keras.Variable([[0.5]])
    layer.build((None, 1))
    layer.kernel.assign([[-1.0]])
    ys = 2 * observed()
    ys[::2] = np.nan
    keras_ode.estimate(layer, ys[:, None], T, row, variables=[layer.kernel, row], optimizer="lbfgs", rtol=1e-5, **FAST)
    np.testing.assert_allclose([layer.kernel.numpy()[0, 0], row.numpy()[0, 0]], [-1.5, 2.0], rtol=1e-2)


@pytest.mark.slow
def test_multiple_shooting_is_zero_at_the_truth_and_single_shooting_with_one_group():
    RATE.assign(1.5)
    ys = observed()
    assert keras_ode.multiple_shooting(decay, ys, T, 4, rtol=1e-6, **FAST) < 1e-8
    RATE.assign(1.0)
    single = keras_ode.multiple_shooting(decay, ys, T, 9, rtol=1e-6, **FAST)
    np.testing.assert_allclose(single, np.mean((np.exp(-T)[:, None] - ys)[1:] ** 2) * 8 / 9, rtol=1e-3)


def test_multiple_shooting_sums_squares_of_groups_and_jumps():
    """Groups of 4, 4 and 3 observations, against closed forms; an observation that two groups share counts once."""
    RATE.assign(1.0)
    ys = observed()[:, 0].astype("float64")
    squares, jumps = [0.0], []
    for first, last in ((0, 3), (3, 6), (6, 8)):
        found = ys[first] * np.exp(-(T[first : last + 1] - T[first]))
        squares += list((found - ys[first : last + 1])[1:] ** 2)
        jumps.append((found[-1] - ys[last]) ** 2)
    expected = np.mean(squares) + 10 * np.mean(jumps[:-1])
    found = keras_ode.multiple_shooting(decay, observed(), T, 4, continuity=10.0, rtol=1e-6, **FAST)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_multiple_shooting_subtracts_times_before_it_rounds_them():
    """Timestamps in seconds, of which float32 resolves 128."""
    RATE.assign(1 / 1000)
    t = np.linspace(0, 3000, 7)
    ys = np.exp(-t / 1000)[:, None].astype("float32")
    near, far = (keras_ode.multiple_shooting(decay, ys, times, 3, rtol=1e-5, **FAST) for times in (t, 1.7e9 + t))
    np.testing.assert_allclose(far, near, atol=1e-8)


@pytest.mark.slow
def test_multiple_shooting_finds_a_frequency_that_single_shooting_misses():
    frequency = tf.Variable(1.0)
    t = np.linspace(0, 20, 81)
    ys = np.stack([np.cos(2 * t), -2 * np.sin(2 * t)], axis=1).astype("float32")

    def oscillator(t, y):
        return tf.stack([y[..., 1], -(frequency**2) * y[..., 0]], axis=-1)

    options = {"variables": [frequency], "optimizer": "lbfgs", "num_steps": 30, "rtol": 1e-5, "jit_compile": False}
    keras_ode.estimate(oscillator, ys, t, **options)
    assert abs(frequency.numpy() - 2) > 0.5
    frequency.assign(1.0)
    keras_ode.estimate(oscillator, ys, t, group_size=5, **options)
    np.testing.assert_allclose(frequency.numpy(), 2, rtol=1e-3)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_an_error_and_changes_nothing():
    RATE.assign(0.5)
    with pytest.raises(ArithmeticError, match="The loss is nan at step 0"):
        keras_ode.estimate(decay, np.full([9, 1], np.nan), T, [1.0], variables=[RATE], **FAST)
    assert RATE.numpy() == 0.5


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
@pytest.mark.slow
def test_a_gradient_that_is_not_finite_is_an_error_and_changes_nothing(optimizer):
    """The derivative of a root at zero is infinite."""
    square = tf.Variable(0.0)
    with pytest.raises(ArithmeticError, match=r"The gradient of the loss is not finite.*although the loss is 0\.\d.*adjoint="):
        options = {**FAST, "optimizer": optimizer, "num_steps": 3}
        keras_ode.estimate(lambda t, y: -tf.sqrt(square) * y, observed(), T, variables=[square], **options)
    assert square.numpy() == 0


@pytest.mark.slow
def test_constraint_of_a_variable_holds():
    rate = tf.Variable(1.7, constraint=lambda v: tf.maximum(v, 1.6))
    options = {"optimizer": keras.optimizers.SGD(10.0), "num_steps": 5, **FAST}
    keras_ode.estimate(lambda t, y: -rate * y, observed(), T, variables=[rate], **options)
    np.testing.assert_allclose(rate.numpy(), 1.6)


@pytest.mark.parametrize("arguments, message", [
    ({"optimizer": "lbfgs", "variables": [tf.Variable(1.0, constraint=tf.abs)]}, "'lbfgs' knows no constraints.*Received: variables"),
    ({"variables": None}, "Pass the variables to estimate"),
    ({"t": T[:3]}, "t must be two or more strictly increasing times, and ys must have one entry for each"),
    ({"group_size": 1}, "group_size must be a whole number from 2 to the number of times, 9. Received: 1"),
    ({"group_size": 3, "loss": abs}, "loss cannot be combined with group_size"),
    ({"group_size": 3, "starts": np.zeros([2, 1])}, r"starts must have the shape \(4, 1\)"),
    ({"group_size": 3, "ys": np.where(np.arange(9) == 2, np.nan, 1.0)[:, None]}, r"missing value.*in the entries \[2\]"),
    ({"ys": observed()[:, 0], "y0": [1.0]}, r"ys must have the shape of the states.*\(9, 1\).*Received: ys of shape \(9,\)"),
    ({"y0": [1.0, 0.5]}, r"ys must have the shape of the states.*\(9, 2\).*or pass a loss. Received: ys of shape \(9, 1\)"),
    ({"variables": [tf.Variable(1.0)]}, "The loss does not depend on the variables"),
])
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        keras_ode.estimate(**{"dynamics": decay, "ys": observed(), "t": T, "variables": [RATE], **FAST, **arguments})


@pytest.mark.slow
def test_average_of_the_steps_is_kept_with_use_ema():
    ends = []
    for number, use_ema in [(1, False), (2, False), (2, True)]:
        RATE.assign(0.5)
        optimizer = keras.optimizers.SGD(1.0, use_ema=use_ema, ema_momentum=0.75)
        keras_ode.estimate(decay, observed(), T, variables=[RATE], optimizer=optimizer, num_steps=number, **FAST)
        ends.append(float(RATE))
    # The first step has no average before it.
    np.testing.assert_allclose(ends[2], 0.75 * ends[0] + 0.25 * ends[1], rtol=1e-6)
    assert ends[0] != ends[1]


@pytest.mark.slow
def test_penalty_of_a_regularizer_is_added_to_the_loss():
    layer = keras.layers.Dense(1, use_bias=False, kernel_regularizer=keras.regularizers.L2(1e3))
    layer.build((None, 1))
    layer.kernel.assign([[-1.5]])  # With the true rate, the error and its gradient vanish.
    optimizer = keras.optimizers.SGD(1e-4)
    result = keras_ode.estimate(layer, observed()[:, None], T, optimizer=optimizer, num_steps=1, rtol=1e-5, **FAST)
    np.testing.assert_allclose(result.loss, 1e3 * 1.5**2, rtol=1e-6)
    np.testing.assert_allclose(layer.kernel, [[-1.5 + 1e-4 * 2e3 * 1.5]], rtol=1e-5)
