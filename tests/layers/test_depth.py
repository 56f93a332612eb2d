"""Weights that vary with depth: residual blocks are Euler steps, and piecewise weights solve piecewise."""

import keras
import numpy as np
import pytest
import scipy.linalg
import tensorflow as tf

from keras_ode import ODELayer
from keras_ode.layers import DepthVarying, LinearMultistepBlocks, ResidualBlocks, TimeDense
from tests.marks import nightly

Y = np.random.default_rng(0).normal(size=(5, 2)).astype("float32")


def matrix():
    return keras.layers.Dense(2, use_bias=False)


def euler(dynamics, steps):
    return ODELayer(dynamics, t=(0, steps), solver="euler", controller="constant", step_size=1, jit_compile=False)


@pytest.mark.parametrize("make", [lambda: keras.layers.Dense(2, activation="tanh"), lambda: TimeDense(2, activation="tanh")])
def test_residual_blocks_with_shared_weights_are_euler_steps(make):
    blocks = ResidualBlocks(make(), 7, shared=True)
    np.testing.assert_allclose(blocks(Y), euler(blocks.layers[0], 7)(Y), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [lambda: keras.layers.Dense(2, activation="tanh"), lambda: TimeDense(2, activation="tanh")])
def test_residual_blocks_with_their_own_weights_are_euler_steps_of_piecewise_constant_ones(make):
    blocks, varying = ResidualBlocks(make(), 7), DepthVarying(make(), 7, t=(0, 7))
    layer = euler(varying, 7)
    expected, _ = blocks(Y), layer(Y)
    varying.set_weights(blocks.get_weights())
    np.testing.assert_allclose(layer(Y), expected, rtol=1e-5, atol=1e-6)


def test_gradients_of_residual_blocks_and_of_euler_steps_agree():
    blocks = ResidualBlocks(TimeDense(2, activation="tanh"), 3, shared=True)
    layer = ODELayer(blocks.layers[0], t=(0, 3), solver="euler", step_size=1, adjoint="checkpointed", jit_compile=False)
    gradients = []
    for model in (blocks, layer):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(Y) ** 2)
        gradients.append(tape.gradient(loss, [v.value for v in blocks.trainable_variables]))
    for one, other in zip(*gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frozen_first", [False, True])
def test_frozen_weights_vary_too(frozen_first):
    """All weights that could be trained do, whether they are now or not."""
    layer = DepthVarying(keras.layers.Dense(1, use_bias=False, trainable=not frozen_first), num_pieces=2)
    layer(tf.constant(0.0), tf.ones([1, 1]))
    layer.set_weights([np.array([[1.0]]), np.array([[5.0]])])
    layer.trainable = False
    assert not layer.trainable_variables
    np.testing.assert_array_equal([layer(tf.constant(t), tf.ones([1, 1]))[0, 0] for t in (0.25, 0.75)], [1, 5])


@pytest.mark.slow
def test_layers_with_a_state_within_keep_it():
    """Dropout draws another mask in each call, and batch normalization follows the mean of the batches."""
    y = tf.constant([[1.0] * 32, [3.0] * 32])
    inside = keras.Sequential([keras.layers.Dropout(0.5), keras.layers.BatchNormalization(momentum=0.5)])
    layer = ODELayer(DepthVarying(inside, num_pieces=2), jit_compile=False)
    first, second = (layer(y, training=True) for _ in range(2))
    assert not np.array_equal(first, second)
    moving_mean = layer.dynamics.layers[0].layers[1].moving_mean
    assert np.all(np.asarray(moving_mean) >= 0) and np.any(np.asarray(moving_mean) > 0)
    rows = ODELayer(layer.dynamics, per_sample=True, jit_compile=False)
    with pytest.raises(ValueError, match="changes its state.*use a time for all rows"):
        rows(y, training=True)


def test_blocks_share_their_weights_only_if_asked():
    own, shared = ResidualBlocks(matrix(), 4), ResidualBlocks(matrix(), 4, shared=True)
    own.build((None, 2)), shared.build((None, 2))
    assert (len(own.weights), len(shared.weights)) == (4, 1)
    assert len({w.numpy().tobytes() for w in own.weights}) == 4


@pytest.mark.parametrize("fit_compiled", [False, nightly(True)])
@pytest.mark.slow
def test_piecewise_constant_weights_give_a_product_of_matrix_exponentials(fit_compiled):
    """And `fit` lowers the loss, with jumps in the plain graph and under XLA."""
    dynamics = DepthVarying(matrix(), 2, t=(0.0, 1.0))
    layer = ODELayer(dynamics, t=(0.0, 1.0), jump_times=dynamics.knots[1:-1], rtol=1e-6)
    model = keras.Sequential([keras.Input([2]), layer])
    flow = np.linalg.multi_dot([scipy.linalg.expm(0.5 * w.numpy()) for w in dynamics.weights])
    np.testing.assert_allclose(model(Y), Y @ flow, rtol=1e-4, atol=1e-5)
    model.compile("adam", "mse", jit_compile=fit_compiled)
    losses = model.fit(Y, 0 * Y, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("per_sample", [nightly(False), True])
def test_piecewise_linear_weights_give_the_exponential_of_their_integral(per_sample):
    """`y' = a(t) y` with `a` through (0, 1), (1, -1), (2, 3), whose integral is 1 (trapezoids)."""
    dynamics = DepthVarying(keras.layers.Dense(1, use_bias=False), 2, t=(0.0, 2.0), kind="linear")
    options = {"jump_times": [1.0], "rtol": 1e-6, "per_sample": per_sample, "jit_compile": False}
    layer = ODELayer(dynamics, t=(0.0, 2.0), **options)
    layer.build((3, 1))
    dynamics.set_weights([np.array([[a]]) for a in (1.0, -1.0, 3.0)])
    np.testing.assert_allclose(layer(tf.ones([3, 1])), np.full([3, 1], np.e), rtol=1e-5)


@pytest.mark.parametrize("kind, times, expected", [
    ("constant", [-1.0, 0.0, 0.49, 0.5, 1.0, 2.0], [1, 1, 1, 3, 3, 3]),
    ("linear", [-1.0, 0.0, 0.25, 0.5, 0.75, 1.0, 2.0], [1, 1, 2, 3, 4, 5, 5]),
])
def test_weights_at_a_time(kind, times, expected):
    layer = DepthVarying(keras.layers.Dense(1, use_bias=False), 2, kind=kind)
    layer(tf.constant(0.0), tf.ones([1, 1]))
    layer.set_weights([np.array([[w]]) for w in (1.0, 3.0, 5.0)[: len(layer.weights)]])
    np.testing.assert_allclose([layer(tf.constant(t), tf.ones([1, 1]))[0, 0] for t in times], expected)
    rows = tf.ones([len(times), 1])
    np.testing.assert_allclose(layer(tf.reshape(times, [-1, 1]), rows)[:, 0], expected)


def test_mixed_precision_does_not_round_the_time():
    """In float16, 0.4999 is 0.5, where the second piece begins, and 1000.6 is 1000.5."""
    inside = keras.layers.Dense(1, use_bias=False, dtype="mixed_float16")
    for t, times in (((0.0, 1.0), [0.4999, 0.5]), ((1000.0, 1001.0), [1000.45, 1000.55])):
        layer = DepthVarying(inside, 2, t=t, dtype="mixed_float16")
        layer(tf.constant(t[0]), tf.ones([1, 1]))
        layer.set_weights([np.array([[w]]) for w in (1.0, 3.0)])
        found = [layer(tf.constant(time), tf.ones([1, 1])) for time in times]
        np.testing.assert_array_equal(np.ravel(found), [1, 3])
        assert found[0].dtype == tf.float16


KINDS = [ResidualBlocks, DepthVarying, LinearMultistepBlocks]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frozen", [0, 2])
def test_blocks_that_are_frozen_on_their_own_are_so_when_loaded(kind, frozen):
    layer = kind(keras.Sequential([matrix(), keras.layers.Dense(2)]), 3)
    layer.layers[frozen].layers[1].trainable = False
    layer = kind.from_config(layer.get_config())
    layer.build(*([()] if kind is DepthVarying else []), (None, 2))
    found = [[bool(part.trainable_variables) for part in block.layers] for block in layer.layers]
    assert found == [[True, n != frozen] for n in range(3)]


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_a_layer_with_a_seed_differ(kind):
    draw = keras.initializers.GlorotUniform(seed=1)
    layer = kind(keras.Sequential([keras.layers.Dense(2, kernel_initializer=draw), keras.layers.Dropout(0.5, seed=1)]), 3)
    layer.build(*([()] if kind is DepthVarying else []), (None, 2))
    assert len({block.layers[0].kernel.numpy().tobytes() for block in layer.layers}) == 3
    assert [block.layers[1].seed for block in layer.layers] == [1, 2, 3]


@pytest.mark.parametrize("make, message", [
    (lambda: ResidualBlocks([matrix(), matrix()], 3), "A list of layers must have 3 of them here. Received: 2 layers"),
    (lambda: DepthVarying(matrix(), 0), "num_pieces must be a positive whole number. Received: num_pieces=0"),
    (lambda: DepthVarying(matrix(), 2, kind="cubic"), "kind must be 'constant' or 'linear'. Received: kind='cubic'"),
    (lambda: DepthVarying(matrix(), 2, t=(1, 0)), r"t must be two increasing times. Received: t=\(1, 0\)"),
    (lambda: ResidualBlocks(matrix(), 2.0), "num_blocks must be a positive whole number. Received: num_blocks=2.0"),
])
def test_wrong_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
