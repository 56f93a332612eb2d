"""One small test of each thing that depends on the versions of TensorFlow and Keras, for `.ci/versions`.

The ordinary suite does not collect this file: it has tests of the same, and more of them.
"""

import threading

import keras
import numpy as np
import pytest
import scipy.linalg
import tensorflow as tf

import keras_ode

A = np.array([[-0.3, 1.0], [-1.0, -0.3]])
POINTS = np.random.default_rng(0).normal(size=(8, 2)).astype("float32")
ENDS = POINTS @ scipy.linalg.expm(A)
RATE = -0.7


class Decay(keras.layers.Layer):
    """`y' = rate y`."""

    def __init__(self, **options):
        super().__init__(**options)
        self.rate = self.add_weight(shape=(), initializer=keras.initializers.Constant(RATE), name="rate")

    def call(self, y):
        return self.rate * y


def rotation(**options):
    """A layer whose solution is `ENDS`."""
    layer = keras_ode.ODELayer(keras.layers.Dense(2, use_bias=False), rtol=1e-6, **options)
    layer.build((None, 2))
    layer.set_weights([A])
    return layer


def model():
    return keras.Sequential([keras.Input([2]), rotation(name="ode")])


@pytest.fixture(scope="module")
def trained():
    """A model after an epoch, recorded, and its history."""
    keras.utils.set_random_seed(0)
    network, recorder = model(), keras_ode.callbacks.SolverStepRecorder()
    network.compile(keras.optimizers.SGD(0.01), "mse")
    history = network.fit(POINTS, ENDS + 1, batch_size=4, epochs=2, verbose=0, callbacks=[recorder]).history
    return network, recorder, history


def test_fit_learns_under_default_options(trained):
    losses = trained[2]["loss"]
    assert losses[1] < losses[0]


def test_recorder_keeps_logs_and_steps(trained):
    _, recorder, history = trained
    assert history["ode_nfe"][0] > 6 and history["ode_nfe_backward"][0] > 6 and history["ode_failures"] == [0, 0]
    assert {r.direction for r in recorder.records} == {"forward", "backward"}
    np.testing.assert_allclose(sum(recorder.records[0].step_size[recorder.records[0].accepted]), 1, rtol=1e-5)


def test_fit_under_xla_learns_the_same(trained):
    network = model()
    network.compile(keras.optimizers.SGD(0.01), "mse", jit_compile=True)
    losses = network.fit(POINTS, ENDS + 1, batch_size=4, epochs=2, shuffle=False, verbose=0).history["loss"]
    plain = model()
    plain.compile(keras.optimizers.SGD(0.01), "mse", jit_compile=False)
    np.testing.assert_allclose(losses, plain.fit(POINTS, ENDS + 1, batch_size=4, epochs=2, shuffle=False, verbose=0).history["loss"], rtol=1e-4)


def test_saved_model_is_the_same(trained, tmp_path):
    trained[0].save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.predict(POINTS, verbose=0), trained[0].predict(POINTS, verbose=0), rtol=1e-6)


def test_exported_model_is_the_same_and_has_gradients(trained, tmp_path):
    trained[0].export(str(tmp_path / "exported"))
    served = tf.saved_model.load(str(tmp_path / "exported"))
    x = tf.constant(POINTS)
    with tf.GradientTape() as tape:
        tape.watch(x)
        ends = served.serve(x)
    np.testing.assert_allclose(ends, trained[0].predict(POINTS, verbose=0), rtol=1e-5)
    matrix = scipy.linalg.expm(trained[0].get_weights()[0].astype("float64"))
    np.testing.assert_allclose(tape.gradient(ends, x), np.broadcast_to(matrix.sum(axis=1), POINTS.shape), rtol=1e-3)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("adjoint", ["backsolve", "interpolating", "checkpointed", "direct"])
def test_adjoint_gives_the_closed_forms_gradient(adjoint, jit_compile):
    dynamics, y0 = Decay(), tf.constant([1.0, 2.0])

    def gradients():
        with tf.GradientTape() as tape:
            tape.watch(y0)
            ys = keras_ode.odeint(dynamics, y0, [0.0, 0.5, 1.0], rtol=1e-6, adjoint=adjoint, max_steps=64)
            total = tf.reduce_sum(ys)
        return tape.gradient(total, [y0, dynamics.trainable_variables[0]])

    by_state, by_rate = tf.function(gradients, jit_compile=jit_compile)()
    times = np.array([0, 0.5, 1])
    np.testing.assert_allclose(by_state, np.full(2, np.exp(RATE * times).sum()), rtol=1e-4)
    np.testing.assert_allclose(by_rate, 3 * np.sum(times * np.exp(RATE * times)), rtol=1e-4)


def test_second_derivatives_by_direct():
    rate = tf.Variable(RATE)
    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            end = keras_ode.odeint(lambda y: rate * y, 1.0, [0.0, 1.0], rtol=1e-6, adjoint="direct", max_steps=32)[-1]
        first = inner.gradient(end, rate)
    np.testing.assert_allclose(outer.gradient(first, rate), np.exp(RATE), rtol=1e-3)


def test_rows_have_their_own_times():
    times = np.array([[0.0, 1.0], [0.0, 2.0]])
    solution = keras_ode.solve(Decay(), tf.ones([2, 1]), times, rtol=1e-6, per_sample=True)
    np.testing.assert_allclose(solution.ys[-1, :, 0], np.exp(RATE * times[:, 1]), rtol=1e-5)


def test_event_has_its_time_and_gradient():
    level = tf.Variable(0.5)
    with tf.GradientTape() as tape:
        event = keras_ode.Event(lambda t, y: y[0] - level)
        time = keras_ode.solve(lambda y: -y, tf.ones([1]), [0.0, 5.0], event=event, rtol=1e-6).event_time
    np.testing.assert_allclose(time, np.log(2), rtol=1e-4)
    np.testing.assert_allclose(tape.gradient(time, level), -2.0, rtol=1e-3)


def test_jump_is_met():
    pulse = lambda t, y: tf.where((t >= 0.3) & (t < 0.5), 1.0, 0.0) + 0 * y
    ends = keras_ode.odeint(pulse, tf.zeros([1]), [0.0, 1.0], rtol=1e-6, jump_times=[0.3, 0.5])[-1]
    np.testing.assert_allclose(ends, [0.2], rtol=1e-5)


def test_variable_read_in_an_inner_function_has_its_gradient():
    rate = tf.Variable(RATE)
    inner = tf.function(lambda y: tf.cond(tf.reduce_sum(y) > -1.0, lambda: rate * y, lambda: y))
    with tf.GradientTape() as tape:
        end = keras_ode.odeint(lambda t, y: inner(y), tf.ones([1]), [0.0, 1.0], rtol=1e-6)[-1, 0]
    np.testing.assert_allclose(tape.gradient(end, rate), np.exp(RATE), rtol=1e-4)


def test_threads_do_not_disturb_each_other():
    layer, found = rotation(), {}

    def solve(row):
        found[row] = layer(POINTS[row : row + 1]).numpy()[0]

    threads = [threading.Thread(target=solve, args=(row,)) for row in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_allclose([found[row] for row in range(4)], ENDS[:4], rtol=1e-4, atol=1e-5)


def test_further_arguments_of_a_functional_model_are_saved(tmp_path):
    y, u = keras.Input([1]), keras.Input([1])
    network = keras.Model([y, u], keras_ode.ODELayer(Driven(), rtol=1e-6)(y, args=(u,)))
    network.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    inputs = [np.ones([2, 1], "float32"), np.array([[0.0], [1.0]], "float32")]
    np.testing.assert_allclose(loaded.predict(inputs, verbose=0), [[np.exp(-1)], [1.0]], rtol=1e-5)


@keras.saving.register_keras_serializable(package="smoke")
class Driven(keras.layers.Layer):
    """`y' = u - y`."""

    def call(self, t, y, u):
        return u - y


def test_ode_rnn_learns_through_masks():
    x, mask = np.ones([4, 3, 2], "float32"), np.array([[True, True, False]] * 4)
    layer = keras_ode.layers.ODERNN(keras.layers.GRUCell(4), keras.layers.Dense(4, activation="tanh"), t=(0.0, 0.4, 1.0))
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(layer(x, mask=tf.constant(mask)))
    assert all(np.isfinite(g).all() for g in tape.gradient(total, layer.trainable_weights))


def test_latent_ode_fits_and_is_saved(tmp_path):
    network = keras_ode.models.LatentODE(
        keras.layers.GRU(4, go_backwards=True), keras.layers.Dense(2, activation="tanh"), keras.layers.Dense(1), latent_dim=2, t=(0.0, 0.5, 1.0)
    )
    network.compile("adam")
    series = np.ones([8, 3, 1], "float32")
    assert np.isfinite(network.fit(series, batch_size=8, epochs=1, verbose=0).history["loss"]).all()
    network.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.encode(series).mean(), network.encode(series).mean(), rtol=1e-6)


def test_flow_has_the_closed_forms_density_in_tensorflow_probability_too():
    tfp = pytest.importorskip("tensorflow_probability")
    flow = keras_ode.models.ContinuousNormalizingFlow(keras.layers.Dense(2, use_bias=False), rtol=1e-6)
    flow.build((None, 2))
    flow.set_weights([A])
    matrix = scipy.linalg.expm(A)
    expected = scipy.stats.multivariate_normal(np.zeros(2), matrix.T @ matrix).logpdf(POINTS)
    np.testing.assert_allclose(flow.log_prob(POINTS), expected, rtol=1e-3, atol=1e-4)
    normal = tfp.distributions.MultivariateNormalDiag([0.0, 0.0])
    transformed = tfp.distributions.TransformedDistribution(normal, flow.as_bijector())
    np.testing.assert_allclose(transformed.log_prob(POINTS), expected, rtol=1e-3, atol=1e-4)


def test_mixed_precision_keeps_the_weights_precision():
    layer = keras_ode.ODELayer(keras.layers.Dense(2, dtype="mixed_float16"), dtype="mixed_float16")
    assert layer(POINTS).dtype == tf.float16 and layer.trainable_weights[0].dtype == "float32"


def test_masks_come_through():
    network = keras.Sequential([keras.Input([3, 2]), keras.layers.Masking(), keras_ode.ODELayer(keras.layers.Dense(2)), keras.layers.GRU(1)])
    assert network(np.zeros([1, 3, 2], "float32")).shape == (1, 1)
