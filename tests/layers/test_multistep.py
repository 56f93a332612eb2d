"""Linear multistep blocks: powers of the companion matrix, residual blocks for k = 0, and random omission in training."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_ode.layers import LinearMultistepBlocks, ResidualBlocks, TimeDense

Y = np.random.default_rng(0).normal(size=(5, 2)).astype("float32")


def linear(rate):
    return keras.layers.Dense(2, use_bias=False, kernel_initializer=keras.initializers.Identity(rate))


@pytest.mark.parametrize("k", [0.0, -0.3, 0.7, 1.0])
def test_linear_blocks_are_powers_of_the_companion_matrix(k):
    rate, count = -0.2, 9
    blocks = LinearMultistepBlocks(linear(rate), count, shared=True, k_initializer=keras.initializers.Constant(k))
    companion = np.array([[1 - k + rate, k], [1, 0]])
    factor = (np.linalg.matrix_power(companion, count) @ [1, 1])[0]
    np.testing.assert_allclose(blocks(Y), factor * Y, rtol=1e-5, atol=1e-6)


def test_for_zero_k_they_are_residual_blocks():
    multistep = LinearMultistepBlocks(TimeDense(2, activation="tanh"), 3, k_initializer="zeros")
    residual = ResidualBlocks(TimeDense(2, activation="tanh"), 3)
    expected = residual(Y)
    multistep(Y)
    multistep.set_weights([multistep.k.numpy(), *residual.get_weights()])
    np.testing.assert_allclose(multistep(Y), expected, rtol=1e-6)


def test_every_k_but_the_first_is_trained():
    blocks = LinearMultistepBlocks(keras.layers.Dense(2, activation="tanh"), 3)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(blocks(Y) ** 2)
    gradient = tape.gradient(loss, blocks.k.value).numpy()
    assert (gradient != 0).tolist() == [False, True, True]


def test_stochastic_blocks_keep_f_as_often_as_their_probability_says():
    """With `f = 1`, `k = 0` and survival 1/2, each of two blocks adds 1 with the probabilities 3/4 and 1/2."""
    one = keras.layers.Dense(1, kernel_initializer="zeros", bias_initializer="ones")
    blocks = LinearMultistepBlocks(one, 2, survival=0.5, k_initializer="zeros", seed=0)
    y = np.zeros([20000, 1], "float32")
    np.testing.assert_allclose(blocks(y), 1.25 + y, rtol=1e-6)
    added = tf.function(blocks)(y, training=True).numpy()
    shares = [np.mean(added == n) for n in range(3)]
    np.testing.assert_allclose(shares, [1 / 8, 1 / 2, 3 / 8], atol=0.02)  # a standard deviation is 0.004 at most


def test_a_wrong_probability_is_refused():
    with pytest.raises(ValueError, match="survival must be a probability, above 0 and at most 1. Received: survival=0"):
        LinearMultistepBlocks(linear(1.0), 2, survival=0)
