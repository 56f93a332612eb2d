"""Layers that take time and state."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ode
from keras_ode.layers import ConcatSquash, TimeConv2D, TimeDense, TimeSequential

Y = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_time_dense_is_affine_in_state_and_time():
    layer = TimeDense(5, activation="tanh", bias_initializer="normal")
    out = layer(tf.constant(0.7), Y)
    kernel, bias = (w.numpy() for w in layer.weights)
    np.testing.assert_allclose(out, np.tanh(Y @ kernel[:3] + 0.7 * kernel[3] + bias), rtol=1e-5, atol=1e-6)


def test_time_convolution_is_one_of_the_picture_with_a_channel_of_time():
    layer, plain = TimeConv2D(2, 3, padding="same"), keras.layers.Conv2D(2, 3, padding="same")
    picture = np.random.default_rng(0).normal(size=(2, 5, 5, 3)).astype("float32")
    out = layer(tf.constant(0.7), picture)
    plain.build((None, 5, 5, 4))
    plain.set_weights(layer.get_weights())
    timed = np.concatenate([picture, np.full((2, 5, 5, 1), 0.7, "float32")], axis=-1)
    np.testing.assert_allclose(out, plain(timed), rtol=1e-5, atol=1e-6)


def test_concat_squash_gates_and_shifts():
    layer = ConcatSquash(5, activation="tanh")
    out = layer(tf.constant(0.7), Y)
    kernel, bias, gate, gate_bias, shift = (w.numpy() for w in layer.weights)
    expected = np.tanh((Y @ kernel + bias) * sigmoid(0.7 * gate[0] + gate_bias) + 0.7 * shift[0])
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


def stack():
    return TimeSequential([TimeDense(8, activation="tanh"), keras.layers.LayerNormalization(), ConcatSquash(3)])


@pytest.mark.parametrize(
    "make, y",
    [(lambda: TimeDense(3), Y), (lambda: ConcatSquash(3), Y), (stack, Y), (lambda: TimeConv2D(3, 1), np.tile(Y[:, None, None], (1, 2, 2, 1)))],
    ids=["dense", "squash", "stack", "convolution"],
)
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_time_for_every_row_gives_the_rows_of_single_times(make, y, rank):
    layer, times = make(), np.linspace(0, 1, 4, dtype="float32")
    together = layer(tf.reshape(times, [4] + [1] * (rank - 1)), y)
    alone = [layer(tf.constant(t), y[i : i + 1]) for i, t in enumerate(times)]
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-5, atol=1e-6)


def test_stack_gives_the_time_to_those_layers_that_take_it():
    timed, plain = TimeDense(8), keras.layers.Dense(3)
    out = TimeSequential([timed, plain])(tf.constant(0.7), Y)
    np.testing.assert_allclose(out, plain(timed(tf.constant(0.7), Y)), rtol=1e-6)


def test_stack_refuses_what_is_no_layer():
    with pytest.raises(TypeError, match="Expected a Keras layer.*Received: <ufunc 'tanh'>"):
        TimeSequential([np.tanh])


def test_stack_passes_the_training_mode_on():
    dropout = TimeSequential([keras.layers.Dropout(0.5)])
    ones = tf.ones([1000, 3])
    assert np.all(dropout(tf.constant(0.0), ones) == 1)
    # Mean one half of 3,000, with a standard deviation of 0.01.
    assert abs(np.mean(dropout(tf.constant(0.0), ones, training=True) == 0) - 0.5) < 0.05


@pytest.mark.parametrize("per_sample", [False, True])
def test_linear_dynamics_in_time_has_its_closed_form(per_sample):
    """`y' = a y + b t` from one is `(1 + b / a^2) e^(a t) - b t / a - b / a^2`."""
    dynamics, a, b = TimeDense(1, use_bias=False), -0.5, 2.0
    layer = keras_ode.ODELayer(dynamics, t=(0.0, 1.5), rtol=1e-6, per_sample=per_sample, jit_compile=False)
    layer.build((4, 1))
    dynamics.set_weights([np.array([[a], [b]])])
    expected = (1 + b / a**2) * np.exp(1.5 * a) - 1.5 * b / a - b / a**2
    np.testing.assert_allclose(layer(tf.ones([4, 1])), np.full([4, 1], expected), rtol=1e-5)


def test_layers_compute_in_half_precision_under_a_mixed_policy():
    keras.config.set_dtype_policy("mixed_bfloat16")
    assert stack()(tf.constant(0.5), Y).dtype == tf.bfloat16


def test_stack_passes_the_time_on_unrounded_under_a_mixed_policy():
    keras.config.set_dtype_policy("mixed_bfloat16")
    received = []

    class Recorder(keras.Layer):
        def __init__(self):
            super().__init__(autocast=False)

        def call(self, t, y):
            received.append(t)
            return y

    TimeSequential([Recorder()])(tf.constant(1000.5), Y)
    assert float(received[-1]) == 1000.5  # bfloat16 has 1000 and 1004
