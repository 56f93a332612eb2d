"""Models that are converted to LiteRT and to ONNX answer as Keras does, at any batch size."""

import contextlib
import io
import logging

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_ode import ODELayer, layers, models
from tests.layers.test_served import model

ROWS = 1, 7, 300


class Explodes(keras.layers.Layer):
    """`y' = -3 y` near zero; far from there it is infinite, so that a long step from near is not finite."""

    def call(self, y):
        return -3 * y * (1 + 1e-30 * tf.exp(y * y))


def exploding(**options):
    return keras.Sequential([keras.Input([2]), ODELayer(Explodes(), t=(0.0, 0.5, 2.0), step_size=64.0, **options)])


def small():
    return keras.Sequential([keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(4)])


def recurrent(**options):
    x = keras.Input([4, 3])
    cell = keras.layers.GRUCell(4)
    return keras.Model(x, layers.ODERNN(cell, small(), t=(0.0, 0.5, 1.0, 2.0), solver="bosh3", **options)(x))


def controlled():
    x = keras.Input([5, 2])
    dynamics = keras.Sequential([keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(4 * 3, activation="tanh")])
    return keras.Model(x, layers.NeuralCDE(dynamics, 4, solver="bosh3")(x))


def flow():
    """Its dynamics holds the divergence, which is made of gradients."""
    x = keras.Input([2])
    dynamics = keras.Sequential([keras.layers.Dense(4, activation="softplus"), keras.layers.Dense(2)])
    return keras.Model(x, models.ContinuousNormalizingFlow(dynamics, solver="bosh3")(x))


TIMES = {"t": (0.0, 0.3, 0.7, 1.0), "return_sequences": True}
MODELS = {
    "constant": lambda: model(solver="rk4", step_size=0.25),
    "exploding": lambda: exploding(return_sequences=True, solver="bosh3"),
    "per_sample": lambda: exploding(return_sequences=True, per_sample=True, solver="bosh3", adjoint="checkpointed"),
    "backsolve": lambda: model(adjoint="backsolve"),
    "direct": lambda: model(solver="bosh3", adjoint="direct", **TIMES),
    "reversible": lambda: model(solver="reversible_heun", adjoint="reversible"),
    "rodas5p": lambda: model(solver="rodas5p"),
    "kvaerno5": lambda: model(solver="kvaerno5"),
    "bdf": lambda: model(solver="bdf"),
    "recurrent": recurrent,
    "controlled": controlled,
    "flow": flow,
}


def leaves(nest):
    return [np.asarray(x) for x in keras.tree.flatten(nest)]


def lite(model, path):
    """A function of an array that runs the LiteRT model, which has no operations of TensorFlow's own."""
    model.export(str(path / "exported"), verbose=False)
    converted = tf.lite.TFLiteConverter.from_saved_model(str(path / "exported")).convert()
    runner = tf.lite.Interpreter(model_content=converted).get_signature_runner()
    (name,) = runner.get_input_details()
    return lambda x: list(runner(**{name: x}).values())


def onnx(model, path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("tf2onnx")
    model(np.zeros([1, *model.inputs[0].shape[1:]], "float32"))
    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)
    with contextlib.redirect_stderr(io.StringIO()):
        model.export(str(path / "model.onnx"), format="onnx", verbose=False)
    session = runtime.InferenceSession(str(path / "model.onnx"))
    (given,) = session.get_inputs()
    return lambda x: session.run(None, {given.name: x})


def assert_answers_as_keras(run, model):
    for rows in ROWS:
        x = np.random.default_rng(rows).normal(size=[rows, *model.inputs[0].shape[1:]]).astype("float32")
        # Both take steps within a tolerance of 1e-3, and may take others where a step is just accepted by one of them.
        for got, expected in zip(run(x), leaves(model(x, training=False)), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.slow
def test_litert_answers_as_keras_at_any_batch_size(name, tmp_path):
    """Converted without TensorFlow's own operations, which SELECT_TF_OPS would ask for."""
    network = MODELS[name]()
    assert_answers_as_keras(lite(network, tmp_path), network)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.slow
def test_onnx_answers_as_keras_at_any_batch_size(name, tmp_path):
    network = MODELS[name]()
    assert_answers_as_keras(onnx(network, tmp_path), network)
