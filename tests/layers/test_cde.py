"""Neural CDEs: closed forms along a path, irregular times, missing values."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_ode.layers import NeuralCDE
from tests.marks import nightly

X = np.random.default_rng(0).normal(size=(3, 5, 2)).astype("float32")
T = np.sort(np.random.default_rng(1).uniform(size=(3, 5)), axis=1).astype("float32")


@keras.saving.register_keras_serializable(package="tests")
class Growth(keras.Layer):
    """`dz = z dx`, and nothing of the time: for one unit and one channel."""

    def call(self, z):
        return tf.concat([z, 0 * z], axis=-1)


def constant(matrix):
    """A dynamics that does not depend on the state."""
    values = keras.initializers.Constant(np.ravel(matrix))
    return keras.layers.Dense(np.size(matrix), kernel_initializer="zeros", bias_initializer=values)


def one():
    return keras.layers.Dense(1, kernel_initializer="zeros", bias_initializer="ones")


def network(units=4, columns=3):
    return keras.Sequential([keras.layers.Dense(8, "tanh"), keras.layers.Dense(units * columns, "tanh")])


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", ["hermite", nightly("linear")])
def test_a_constant_matrix_integrates_the_increments_of_values_and_time(interpolation):
    matrix = np.array([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]])
    layer = NeuralCDE(constant(matrix), 2, interpolation=interpolation, return_sequences=True, rtol=1e-5, jit_compile=False, solver="bosh3")
    channels = np.concatenate([X, T[..., None]], axis=-1)
    found = layer(X, t=T).numpy()
    expected = (channels - channels[:, :1]) @ matrix.T
    np.testing.assert_allclose(found - found[:, :1], expected, atol=1e-3)


@pytest.mark.slow
def test_the_linear_equation_has_the_exponential_of_the_increment_at_every_observation():
    layer = NeuralCDE(Growth(), 1, one(), "natural", return_sequences=True, rtol=1e-6, jit_compile=False)
    x = X[..., :1]
    expected = np.exp(x - x[:, :1])
    np.testing.assert_allclose(layer(x, t=T), expected, rtol=1e-4)
    x[:, 2] = np.nan  # the path is the same elsewhere, up to its shape
    found = layer(x, t=T).numpy()
    np.testing.assert_allclose(np.delete(found, 2, axis=1), np.delete(expected, 2, axis=1), rtol=1e-4)


@pytest.mark.slow
def test_every_row_follows_its_own_times_and_padding_changes_nothing():
    layer = NeuralCDE(network(), 4, rtol=1e-5, jit_compile=False)
    batch = layer(X, t=T).numpy()
    np.testing.assert_allclose(layer(X[2:], t=T[2])[0], batch[2], atol=1e-3)
    padded = np.concatenate([X, np.full([3, 1, 2], np.nan, "float32")], axis=1)
    np.testing.assert_allclose(layer(padded, t=np.concatenate([T, T[:, -1:]], axis=1)), batch, atol=1e-3)


@pytest.mark.slow
def test_numbers_of_observations_tell_missing_values_apart():
    layer = NeuralCDE(network(columns=5), 4, observed=True, jit_compile=False)
    straight, gap = np.linspace(0, 1, 5, dtype="float32")[None, :, None] * np.ones([1, 1, 2], "float32"), None
    gap = straight.copy()
    gap[:, 2] = np.nan  # the same line without this point
    assert np.abs(layer(straight) - layer(gap)).max() > 1e-3


@pytest.mark.slow
def test_times_that_decrease_give_nan_in_graphs():
    layer = NeuralCDE(network(), 4, jit_compile=False)
    states = tf.function(lambda t: layer(X, t=t))(tf.constant([0.2, 0.5, 1.2, 0.0, 0.0]))
    assert np.isnan(states).all()


@pytest.mark.slow
def test_it_learns_in_fit():
    """The sign of the last increment, with one value in five missing."""
    random = np.random.default_rng(0)
    x = np.cumsum(random.normal(size=(64, 6, 1)), axis=1).astype("float32")
    labels = (x[:, -1] > x[:, 0]).astype("float32")
    x[:, 1:-1][random.uniform(size=(64, 4, 1)) < 0.2] = np.nan
    layer = NeuralCDE(network(columns=2), 4, solver="bosh3", adjoint="direct", max_steps=64, jit_compile=False)
    model = keras.Sequential([keras.Input([6, 1]), layer, keras.layers.Dense(1, "sigmoid")])
    model.compile(keras.optimizers.Adam(0.03), "binary_crossentropy")
    losses = model.fit(x, labels, epochs=8, batch_size=32, verbose=0).history["loss"]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("call, message", [
    (lambda: NeuralCDE(network(), 4, interpolation="cubic"), "interpolation must be one of .*Received: interpolation='cubic'"),
    (lambda: NeuralCDE(network(), 4, t=(0, 1)), "Pass the times in the call"),
    (lambda: NeuralCDE(network(), 4)(X, t=[0.2, 0.5, 1.2, 0.0, 0.0]), "t must be increasing.*repeating its last time. Received: t=array"),
    (lambda: NeuralCDE(network(), 4)(X, t=np.array([0.5, 0.2, 1.2, 1.3, 1.4])), "t must be increasing"),
    (lambda: NeuralCDE(network(), 4)(X, t=1.7e9 + 10 * np.arange(5.0)), "float32, which cannot tell some.*from a time nearby"),
    (lambda: NeuralCDE(network(columns=2), 4)(X), r"4 \* 3 = 12 here.*returns 8"),
])
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
