"""Stable architectures: eigenvalues, volume, inverses, powers of matrices, and propagation to great depth."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_ode.layers import AntisymmetricDynamics, HamiltonianBlocks, LeapfrogBlocks, ResidualBlocks

Y = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")


def jacobian(function, x):
    """That of a function of one row."""
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = function(x)
    return tape.jacobian(y, x).numpy()[0, :, 0, :]


@pytest.mark.parametrize("gamma", [0.0, 0.3])
def test_jacobian_of_the_antisymmetric_dynamics_has_no_eigenvalue_on_the_right(gamma):
    layer = AntisymmetricDynamics(gamma, kernel_initializer=keras.initializers.RandomNormal(stddev=3.0), bias_initializer="normal")
    for row in Y:
        slope = 1 - layer(row[None]).numpy()[0] ** 2  # the derivative of tanh
        found = jacobian(layer, tf.constant(row[None]))
        kernel = layer.kernel.numpy()
        np.testing.assert_allclose(found, slope[:, None] * (kernel - kernel.T - gamma * np.eye(3)), rtol=1e-4, atol=1e-5)
        assert np.linalg.eigvals(found.astype("float64")).real.max() < 1e-5


def constant(kind, rate, count, step_size):
    """Linear blocks of one channel with the matrix `rate`."""
    return kind(count, step_size, "linear", kernel_initializer=keras.initializers.Constant(rate))


def test_linear_hamiltonian_blocks_are_powers_of_a_matrix_of_determinant_one():
    h, k, count = 0.5, 2.0, 200
    shear_z, shear_y = np.array([[1, 0], [-h * k, 1]]), np.array([[1, h * k], [0, 1]])
    expected = np.linalg.matrix_power(shear_y @ shear_z, count) @ [1.0, 0.5]
    y, z = constant(HamiltonianBlocks, k, count, h)([np.array([[1.0]], "float32"), np.array([[0.5]], "float32")])
    np.testing.assert_allclose([y[0, 0], z[0, 0]], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(constant(HamiltonianBlocks, k, 1, h)(np.ones([1, 1], "float32")), [[1 - (h * k) ** 2]])


def test_linear_leapfrog_blocks_oscillate_as_a_cosine():
    """The recurrence `y[n+1] = (2 - w^2) y[n] - y[n-1]` from rest has the solution `cos(2 n arcsin(w / 2))`."""
    h, k, count = 0.5, 1.0, 100
    found = constant(LeapfrogBlocks, k, count, h)(np.ones([1, 1], "float32"))
    np.testing.assert_allclose(found, [[np.cos(2 * count * np.arcsin(h * k / 2))]], atol=1e-4)


def test_hamiltonian_blocks_preserve_volume_and_are_inverted():
    blocks = HamiltonianBlocks(4, 0.5, kernel_initializer="random_normal", bias_initializer="random_normal")
    blocks.build((None, 3))
    blocks.set_weights([3 * w for w in blocks.get_weights()])
    start = [Y, Y[::-1]]
    for found, expected in zip(blocks.inverse(blocks(start)), start, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    matrix = jacobian(lambda x: tf.concat(blocks([x[:, :3], x[:, 3:]]), axis=1), tf.ones([1, 6]))
    np.testing.assert_allclose(np.linalg.det(matrix), 1, rtol=1e-4)
    np.testing.assert_array_equal(blocks(Y), blocks([Y, 0 * Y])[0])


def test_stable_blocks_stay_bounded_where_residual_blocks_explode():
    """What 200 blocks make of a small change at the origin, for weights of the same size."""
    def growth(blocks):
        return np.abs(blocks(np.full([1, 3], 1e-12, "float32"))).max() / 1e-12

    start = keras.initializers.Identity(1.0)
    stable = [growth(kind(200, 0.1, kernel_initializer=start)) for kind in (HamiltonianBlocks, LeapfrogBlocks)]
    assert max(stable) < 1.5
    residual = ResidualBlocks(keras.layers.Dense(3, "tanh", kernel_initializer=start), 200, shared=True, step_size=0.1)
    np.testing.assert_allclose(growth(residual), 1.1**200, rtol=1e-3)


def test_refined_blocks_have_interpolated_weights_and_approach_the_same_flow():
    blocks = HamiltonianBlocks(8, 0.25, kernel_initializer="random_normal", bias_initializer="random_normal")
    errors, levels = [], [blocks]
    blocks(Y)
    np.testing.assert_allclose(blocks.refined().bias.numpy()[:3], [blocks.bias[0], (blocks.bias[0] + blocks.bias[1]) / 2, blocks.bias[1]])
    blocks.set_weights([np.broadcast_to(w[:1], w.shape) for w in blocks.get_weights()])  # constant: then only h differs
    for _ in range(4):
        levels.append(levels[-1].refined())
    assert (levels[-1].num_blocks, levels[-1].step_size) == (128, 0.25 / 16)
    outputs = [level(Y).numpy() for level in levels]
    errors = [np.abs(output - outputs[-1]).max() for output in outputs[:3]]
    assert 1.6 < errors[0] / errors[1] < 3 and 1.6 < errors[1] / errors[2] < 3  # z starts half a step late: order one


def test_smoothness_counts_once_and_of_frozen_blocks_too():
    blocks, y = HamiltonianBlocks(num_blocks=3, step_size=0.5, smoothness=0.1), tf.ones([1, 2])
    start = [y, y]
    end = blocks(start)
    blocks.inverse(end)
    (loss,) = blocks.losses
    kernel, bias = blocks.get_weights()
    np.testing.assert_allclose(loss, 0.1 * (np.sum(np.diff(kernel, axis=0) ** 2) + np.sum(np.diff(bias, axis=0) ** 2)), rtol=1e-5)
    blocks.trainable = False
    blocks(start)
    np.testing.assert_allclose(blocks.losses, [loss], rtol=1e-6)


def test_smoothness_is_a_loss_of_the_model():
    blocks = LeapfrogBlocks(3, 0.5, smoothness=0.1, bias_initializer="random_normal")
    blocks(Y)
    expected = 0.1 * sum((np.diff(w, axis=0) ** 2).sum() for w in blocks.get_weights()) / (2 * 0.5)
    np.testing.assert_allclose(sum(blocks.losses), expected, rtol=1e-5)


@pytest.mark.parametrize("make, message", [
    (lambda: HamiltonianBlocks(0), "num_blocks must be a positive whole number. Received: num_blocks=0"),
    (lambda: LeapfrogBlocks(2, step_size=-1.0), "step_size must be positive.*Received: step_size=-1.0"),
    (lambda: AntisymmetricDynamics(-1), "gamma must be zero or positive. Received: gamma=-1"),
    (lambda: HamiltonianBlocks(2).refined(), "before you refine it"),
])
def test_wrong_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
