"""Tolerances and end times that change while a model is trained: variables which are no weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ode
from keras_ode.callbacks import ToleranceSchedule

X = np.random.default_rng(0).normal(size=(8, 2)).astype("float32")


def layer(**options):
    dynamics = keras.layers.Dense(2, activation="tanh", kernel_initializer=keras.initializers.RandomNormal(seed=1))
    return keras_ode.ODELayer(dynamics, **{"solver": "bosh3", "jit_compile": False, **options})


def counting_steps(ode, **options):
    """A function of the layer's steps, and the list to which it adds where it is traced."""
    traces = []
    ode.build(X.shape)

    @tf.function(autograph=False, **options)
    def num_steps(training=False):
        traces.append(1)
        return ode.solve(X, training=training).stats["num_steps"]

    return num_steps, traces


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_assigned_tolerance_is_that_of_a_layer_made_with_it_without_a_trace(jit_compile):
    ode = layer()
    num_steps, traces = counting_steps(ode, jit_compile=jit_compile)
    loose = int(num_steps())
    ode.rtol.assign(1e-6)
    ode.atol.assign(1e-8)
    tight = ode.get_options() | {"rtol": 1e-6, "atol": 1e-8}
    other = keras_ode.ODELayer(ode.dynamics, **tight)
    assert loose < int(num_steps()) == int(other.solve(X).stats["num_steps"])
    assert len(traces) == 1


@pytest.mark.slow
def test_gradient_of_a_graph_takes_an_assigned_tolerance():
    ode = layer(adjoint="interpolating")
    weights = [w.value for w in (ode(X), ode.dynamics.kernel)[1:]]

    @tf.function(autograph=False)
    def gradient():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(ode(X) ** 2)
        return tape.gradient(loss, weights)[0]

    gradient()
    ode.rtol = 1e-6  # an attribute that is set is assigned
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(keras_ode.solve(ode.dynamics, X, [0.0, 1.0], rtol=1e-6, adjoint="checkpointed").ys[-1] ** 2)
    np.testing.assert_allclose(gradient(), tape.gradient(loss, weights)[0], rtol=1e-4, atol=1e-4)


def test_inference_has_a_tolerance_of_its_own():
    ode = layer(inference_rtol=1e-6, inference_atol=1e-6)
    trained, inferred = (int(ode.solve(X, training=training).stats["num_steps"]) for training in (True, False))
    assert trained < inferred
    ode.inference_rtol.assign(1e-2)
    ode.inference_atol.assign(1e-2)
    assert int(ode.solve(X).stats["num_steps"]) <= trained


def test_tolerances_are_no_weights():
    ode = layer(inference_rtol=1e-6)
    ode(X)
    assert len(ode.weights) == len(ode.get_weights()) == 2 and ode.count_params() == 6
    assert not any(v is ode.rtol for v in ode.non_trainable_weights) and ode.rtol.path == "rtol"
    assert [v.name for v in ode.non_trainable_variables] == ["rtol", "atol", "inference_rtol"]
    assert ode.rtol == 1e-3 and f"{ode.atol:g}" == "1e-06"


def test_files_hold_a_changed_tolerance_and_configurations_the_first(tmp_path):
    model = keras.Sequential([keras.Input([2]), layer()])
    model.save_weights(tmp_path / "unchanged.weights.h5")
    model.layers[0].rtol.assign(1e-5)
    assert model.layers[0].get_config()["rtol"] == 1e-3
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[0].rtol == 1e-5 and loaded.layers[0].get_config()["rtol"] == 1e-3
    np.testing.assert_array_equal(loaded(X), model(X))
    loaded.load_weights(tmp_path / "unchanged.weights.h5")  # a file as before: nothing in it of tolerances
    assert loaded.layers[0].rtol == 1e-5


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_wrong_tolerances_are_refused_where_they_are_assigned(value):
    with pytest.raises(ValueError, match="rtol must be a number that is not negative. Received: rtol="):
        layer().rtol.assign(value)


def test_inference_tolerance_that_was_not_given_cannot_be_set():
    with pytest.raises(ValueError, match="pass it to the constructor, inference_rtol=... Received: inference_rtol=0.1"):
        layer().inference_rtol = 0.1


def test_schedule_sets_the_tolerances_of_each_epoch_without_a_trace():
    calls = []

    class Dynamics(keras.layers.Layer):
        def call(self, y):
            calls.append(1)
            return -y

    ode = keras_ode.ODELayer(Dynamics(), solver="bosh3", name="ode", jit_compile=False)
    model = keras.Sequential([ode, keras.layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=False)
    schedule = ToleranceSchedule(rtol={1: 1e-2, 2: 1e-5}, atol=lambda epoch: 10.0 ** -(3 + epoch))
    history = model.fit(X, X[:, :1], epochs=1, verbose=0, callbacks=[schedule]).history
    traced = len(calls)
    more = model.fit(X, X[:, :1], initial_epoch=1, epochs=4, verbose=0, callbacks=[schedule]).history
    np.testing.assert_allclose(history["ode_rtol"] + more["ode_rtol"], [1e-3, 1e-2, 1e-5, 1e-5])
    np.testing.assert_allclose(history["ode_atol"] + more["ode_atol"], [1e-3, 1e-4, 1e-5, 1e-6])
    assert len(calls) == traced


def test_wrong_schedules_are_refused():
    with pytest.raises(ValueError, match="needs a function or a dictionary"):
        ToleranceSchedule()
    with pytest.raises(ValueError, match="rtol must be a number that is not negative. Received: rtol=-1"):
        ToleranceSchedule(rtol={0: -1})
    with pytest.raises(ValueError, match="keys of rtol must be epochs"):
        ToleranceSchedule(rtol={"first": 1e-2})
    with pytest.raises(TypeError, match="rtol must be a function of the epoch or a dictionary. Received: rtol=0.1"):
        ToleranceSchedule(rtol=0.1)


# Tolerances of `solve`


@tf.function(autograph=False)
def solved(rtol, atol):
    solution = keras_ode.solve(lambda y: -y, tf.ones([1]), [0.0, 1.0], solver="bosh3", rtol=rtol, atol=atol, jit_compile=False)
    return solution.ys[-1, 0], solution.stats["num_steps"], solution.status


def test_solve_takes_tensors_as_tolerances():
    loose, tight, finest = (solved(tf.constant(x), tf.constant(0.1 * x)) for x in (1e-2, 1e-5, 1e-12))
    assert solved.experimental_get_tracing_count() == 1
    assert loose[1] < tight[1] <= finest[1] and finest[2] == keras_ode.Status.SUCCESS  # raised to what float32 resolves
    np.testing.assert_allclose(tight[0], np.exp(-1), rtol=1e-4)


@pytest.mark.parametrize("rtol", [-1e-3, float("nan")])
def test_wrong_tolerance_that_only_the_graph_knows_gives_nan(rtol):
    y, _, status = solved(tf.constant(rtol), tf.constant(1e-6))
    assert np.isnan(y) and status != keras_ode.Status.SUCCESS


def test_wrong_tolerance_tensor_is_refused_in_eager_code():
    with pytest.raises(ValueError, match="rtol must be a number that is not negative. Received: rtol=-1"):
        keras_ode.solve(lambda y: -y, tf.ones([1]), [0.0, 1.0], rtol=tf.constant(-1.0))
    with pytest.raises(ValueError, match=r"rtol must be one number, a tensor of shape \[\]"):
        keras_ode.solve(lambda y: -y, tf.ones([1]), [0.0, 1.0], rtol=tf.constant([1e-3]))


# End times


@pytest.mark.slow
def test_end_time_of_a_layer_is_learned():
    """`y' = y` from 1 reaches 2 at log 2."""

    class Until(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.ode = keras_ode.ODELayer(lambda y: y, rtol=1e-6, jit_compile=False)
            self.end = self.add_weight(shape=(), initializer="ones", name="end")

        def call(self, y):
            return self.ode(y, t=[0.0, self.end])

    model = keras.Sequential([Until()])
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
    model.fit(np.ones((8, 1)), np.full((8, 1), 2.0), epochs=40, verbose=0)
    np.testing.assert_allclose(model.weights[0], np.log(2), rtol=1e-4)
