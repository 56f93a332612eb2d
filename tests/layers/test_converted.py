"""Models that are converted to LiteRT and to ONNX answer as Keras does, at any batch size."""

import contextlib
import functools
import io
import logging

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ode
from keras_ode import ODELayer, layers, models
from tests.layers.test_served import model
from tests.marks import graded

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
    x = keras.Input([4, 2])
    dynamics = keras.Sequential([keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(3 * 3, activation="tanh")])
    return keras.Model(x, layers.NeuralCDE(dynamics, 3, solver="bosh3")(x))


def flow():
    """Its dynamics holds the divergence, which is made of gradients."""
    x = keras.Input([2])
    dynamics = keras.Sequential([keras.layers.Dense(4, activation="softplus"), keras.layers.Dense(2)])
    return keras.Model(x, models.ContinuousNormalizingFlow(dynamics, solver="heun", step_size=0.25)(x))


class Mean(keras.layers.Layer):
    """The trajectory from the mean of the posterior of a `LatentODE`, whose call draws random numbers."""

    def __init__(self, latent):
        super().__init__()
        self.latent = latent

    def call(self, x):
        return self.latent.decode(self.latent.encode(x).loc)


def latent():
    parts = keras.layers.GRU(3, unroll=True, go_backwards=True), small(), keras.layers.Dense(1)
    network = models.LatentODE(*parts, latent_dim=4, t=(0.0, 0.3, 0.7), solver="bosh3")
    network.build((None, 3, 1))
    x = keras.Input([3, 1])
    return keras.Model(x, Mean(network)(x))


class Rest(keras.layers.Layer):
    """Where `y' = cos(y) - y` comes to rest, which is the same from everywhere."""

    def __init__(self):
        super().__init__()
        self.ode = ODELayer(lambda y: tf.cos(y) - y, solver="bosh3")

    def call(self, y):
        return self.ode.solve(y, float("inf"), event=keras_ode.SteadyState()).event_state


TIMES = {"t": (0.0, 0.3, 0.7, 1.0), "return_sequences": True}
MODELS = {
    "constant": lambda: model(solver="rk4", step_size=0.25),
    "exploding": lambda: exploding(return_sequences=True, solver="bosh3"),
    "per_sample": lambda: exploding(return_sequences=True, per_sample=True, solver="bosh3", adjoint="checkpointed"),
    "backsolve": lambda: model(adjoint="backsolve"),
    "direct": lambda: model(solver="bosh3", adjoint="direct", **TIMES),
    "reversible": lambda: model(solver="reversible_heun", adjoint="reversible"),
    "adams": lambda: model(solver="abm2", step_size=0.25),
    "rodas5p": lambda: model(solver="rodas5p"),
    "kvaerno5": lambda: model(solver="kvaerno5"),
    "bdf": lambda: model(solver="bdf"),
    "recurrent": recurrent,
    "controlled": controlled,
    "flow": flow,
    "latent": latent,
    "rest": lambda: keras.Sequential([keras.Input([2]), Rest()]),
}


def leaves(nest):
    return [np.asarray(x) for x in keras.tree.flatten(nest)]


def runs_litert(converted):
    """A function of an array that runs a LiteRT model, which has no operations of TensorFlow's own."""
    runner = tf.lite.Interpreter(model_content=converted).get_signature_runner()
    (name,) = runner.get_input_details()
    return lambda x: list(runner(**{name: x}).values())


def litert(model, path):
    model.export(str(path / "exported"), verbose=False)
    return runs_litert(tf.lite.TFLiteConverter.from_saved_model(str(path / "exported")).convert())


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


CONVERSIONS = [(name, convert) for name in MODELS for convert in (litert, onnx) if (name, convert) != ("adams", onnx)]
# Each model in one format, and most in both.
NIGHTLY = [(name, onnx) for name in ("constant", "backsolve", "reversible", "kvaerno5", "controlled")]
NIGHTLY += [(name, litert) for name in ("direct", "rodas5p", "bdf")]
SLOW = [pair for pair in CONVERSIONS if pair not in NIGHTLY]


@functools.lru_cache(maxsize=1)
def with_answers(name):
    """A model, and pairs of its inputs and of its outputs at each number of rows. They are the same for both formats."""
    network = MODELS[name]()
    shape = network.inputs[0].shape[1:]
    answer = tf.function(lambda x: network(x, training=False), input_signature=[tf.TensorSpec([None, *shape])])
    inputs = [np.random.default_rng(rows).normal(size=[rows, *shape]).astype("float32") for rows in ROWS]
    return network, [(x, leaves(answer(x))) for x in inputs]


def assert_same(run, pairs):
    for x, answers in pairs:
        # Both take steps within a tolerance of 1e-3, and may take others where a step is just accepted by one of them.
        for got, expected in zip(run(x), answers, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "conversion", graded(CONVERSIONS, quick=[], slow_ones=SLOW), ids=lambda pair: f"{pair[0]}-{pair[1].__name__}"
)
def test_converted_model_answers_as_keras_at_any_batch_size(conversion, tmp_path):
    """To LiteRT without TensorFlow's own operations, which SELECT_TF_OPS would ask for."""
    name, convert = conversion
    network, pairs = with_answers(name)
    assert_same(convert(network, tmp_path), pairs)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_keras_exports_to_litert_itself(tmp_path):
    if "litert" not in keras.Model.export.__doc__:
        pytest.skip("This version of Keras does not export to LiteRT")
    network, pairs = with_answers("constant")
    network.export(str(tmp_path / "model.tflite"), format="litert", verbose=False)
    assert_same(runs_litert((tmp_path / "model.tflite").read_bytes()), pairs)
