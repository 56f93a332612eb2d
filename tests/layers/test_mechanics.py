"""Hamiltonian, Lagrangian and second-order dynamics: known equations, conserved energies, gradients through a solve."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ode
from keras_ode.layers import HamiltonianDynamics, LagrangianDynamics, SecondOrderDynamics, TimeDense
from tests.marks import nightly

Y = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")


@keras.saving.register_keras_serializable(package="tests")
class Energy(keras.Layer):
    """`|p|^2 / 2 - sum(cos q)`: independent pendulums."""

    def call(self, y):
        q, p = tf.split(y, 2, axis=-1)
        return tf.reduce_sum(p**2 / 2 - tf.cos(q), axis=-1, keepdims=True)


@keras.saving.register_keras_serializable(package="tests")
class DoublePendulum(keras.Layer):
    """Unit masses and lengths, gravity 1."""

    def call(self, y):
        a, b, u, v = tf.unstack(y, axis=-1)
        kinetic = u**2 + v**2 / 2 + u * v * tf.cos(a - b)
        return (kinetic + 2 * tf.cos(a) + tf.cos(b))[:, None]


def small(activation="tanh"):
    return keras.Sequential([keras.layers.Dense(8, activation), keras.layers.Dense(1)])


def test_hamiltonian_dynamics_of_a_pendulum():
    derivative = HamiltonianDynamics(Energy())(tf.constant(0.0), Y)
    np.testing.assert_allclose(derivative, np.concatenate([Y[:, 2:], -np.sin(Y[:, :2])], axis=1), rtol=1e-5, atol=1e-6)


def test_lagrangian_dynamics_of_a_double_pendulum():
    """Against the accelerations of the double pendulum in closed form."""
    a, b, u, v = Y.T.astype("float64")
    mass = np.array([[2 + 0 * a, np.cos(a - b)], [np.cos(a - b), 1 + 0 * a]]).transpose(2, 0, 1)
    force = np.stack([-np.sin(a - b) * v**2 - 2 * np.sin(a), np.sin(a - b) * u**2 - np.sin(b)], axis=1)
    expected = np.concatenate([Y[:, 2:], np.linalg.solve(mass, force[..., None])[..., 0]], axis=1)
    found = LagrangianDynamics(DoublePendulum(), kinetic=False)(tf.constant(0.0), Y)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_singular_lagrangian_gives_no_number_but_no_error():
    flat = keras.layers.Dense(1, kernel_initializer="zeros")  # d^2 L / dv^2 is zero
    for states in (Y, Y[:, :2]):
        found = LagrangianDynamics(flat, kinetic=False)(tf.constant(0.0), states)
        assert not np.isfinite(found[:, states.shape[1] // 2 :]).any()
        flat = keras.layers.Dense(1, kernel_initializer="zeros")


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, nightly(True)])
@pytest.mark.parametrize("kind, activation", [(HamiltonianDynamics, "tanh"), (LagrangianDynamics, "softplus")])
def test_energy_of_any_network_is_conserved_and_its_weights_have_gradients(kind, activation, jit_compile):
    layer = keras_ode.ODELayer(kind(small(activation)), t=(0.0, 5.0), rtol=1e-6, solver="bosh3", jit_compile=jit_compile)
    with tf.GradientTape() as tape:
        end = layer(Y)
        loss = tf.reduce_sum(end**2)
    before, after = layer.dynamics.energy(Y), layer.dynamics.energy(end)
    np.testing.assert_allclose(after, before, atol=1e-4)
    assert np.abs(end - Y).max() > 0.1
    gradients = tape.gradient(loss, [v.value for v in layer.trainable_variables])
    assert sum(float(tf.reduce_max(tf.abs(g))) > 1e-3 for g in gradients[:3]) == 3  # the last bias moves nothing


def test_a_lagrangian_network_has_finite_gradients_at_rest():
    dynamics = LagrangianDynamics(small("softplus"))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(dynamics(tf.constant(0.0), Y[:, :1] * [1.0, 0.0]) ** 2)
    assert all(np.isfinite(g).all() for g in tape.gradient(loss, dynamics.trainable_variables[:3]))


def test_second_order_dynamics_is_a_forced_oscillator():
    """`q'' = -q + t` from rest at zero has the solution `t - sin t`."""
    force = TimeDense(1, use_bias=False)
    layer = keras_ode.ODELayer(SecondOrderDynamics(force), t=(0.0, 3.0), rtol=1e-6, jit_compile=False)
    layer.build((1, 2))
    force.set_weights([np.array([[-1.0], [0.0], [1.0]])])
    np.testing.assert_allclose(layer(np.zeros([1, 2], "float32")), [[3 - np.sin(3), 1 - np.cos(3)]], rtol=1e-4)


@pytest.mark.slow
def test_training_reaches_the_layer_from_a_solve():
    network = keras.Sequential([keras.layers.Dropout(0.5), keras.layers.Dense(1, kernel_initializer="ones")])
    layer = keras_ode.ODELayer(SecondOrderDynamics(network), solver="euler", step_size=1.0, jit_compile=False)
    y = tf.ones([32, 2])
    spread = [float(tf.math.reduce_std(layer.solve(y, training=mode).ys[-1][:, 1])) for mode in (False, True)]
    assert spread[0] == 0 and spread[1] > 0.1


def test_a_state_without_halves_is_refused():
    with pytest.raises(ValueError, match="needs a state .* of two halves.*Received: a state of shape"):
        HamiltonianDynamics(small())(tf.constant(0.0), tf.zeros([2, 3]))


@pytest.mark.parametrize("kind", [HamiltonianDynamics, LagrangianDynamics])
def test_a_layer_of_several_numbers_for_each_row_is_refused(kind):
    with pytest.raises(ValueError, match=r"one number for each row, \[batch, 1\]. Received: a layer 'many' .* shape \(3, 3\)"):
        kind(keras.layers.Dense(3, name="many"))(tf.constant(0.0), Y)


def test_a_lagrangian_that_takes_the_time_is_refused():
    with pytest.raises(TypeError, match="must be a function of the state alone.*Received: <TimeDense"):
        LagrangianDynamics(TimeDense(1))
