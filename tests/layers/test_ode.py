"""`ODELayer` as a Keras layer: in models, in `fit`, saved, exported, and in gradients."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import scipy.linalg
import tensorflow as tf

import keras_ode
from keras_ode import ODELayer
from tests.marks import nightly, slow
from tests.references import relative_error
from tests.seeds import seed


@keras.saving.register_keras_serializable(package="tests")
class Timed(keras.layers.Layer):
    """A small network of time and state."""

    def __init__(self, width=8, **kwargs):
        super().__init__(**kwargs)
        self.width = width

    def build(self, shape):
        self.hidden = keras.layers.Dense(self.width, activation="tanh", dtype=self.dtype_policy)
        self.out = keras.layers.Dense(shape[-1], dtype=self.dtype_policy)
        self.hidden.build((*shape[:-1], shape[-1] + 1))
        self.out.build((*shape[:-1], self.width))

    def call(self, t, y):
        t = keras.ops.broadcast_to(keras.ops.cast(t, y.dtype), (*keras.ops.shape(y)[:-1], 1))
        return self.out(self.hidden(keras.ops.concatenate([t, y], axis=-1)))

    def get_config(self):
        return {**super().get_config(), "width": self.width}


@keras.saving.register_keras_serializable(package="tests")
class Exponential(keras.layers.Layer):
    """`y' = rate y`."""

    def __init__(self, rate=-1.0, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate

    def call(self, y):
        return self.rate * y

    def get_config(self):
        return {**super().get_config(), "rate": self.rate}


@keras.saving.register_keras_serializable(package="tests")
def gaussian(t, y):
    return -t * y


def untimed():
    return keras.Sequential([keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(2)])


def data(rows=64):
    """Points, and where a turn of one radian takes them."""
    x = np.random.default_rng(0).normal(size=(rows, 2)).astype("float32")
    turn = np.array([[np.cos(1), np.sin(1)], [-np.sin(1), np.cos(1)]], "float32")
    return x, x @ turn


def plain(dynamics, **options):
    """A layer that XLA does not compile, which takes seconds and is the claim of few tests."""
    return ODELayer(dynamics, jit_compile=False, **options)


# Where neither the solver nor accuracy is the claim: it has half of the stages, and is traced and compiled so much faster.
FEW_STAGES = "bosh3"


def rough(dynamics, **options):
    return plain(dynamics, solver=FEW_STAGES, **options)


def new_model(make=Timed, jit_compile=False, solve_jit_compile=False, **options):
    seed(0)
    layer = ODELayer(make(), solver=FEW_STAGES, name="flow", jit_compile=solve_jit_compile)
    model = keras.Sequential([keras.Input([2]), layer, keras.layers.Dense(2)])
    model.compile(keras.optimizers.Adam(0.03), "mse", jit_compile=jit_compile, **options)
    return model


@pytest.fixture(scope="module")
def trained():
    """A model after a few epochs, and its losses; everything compiles as it does by default."""
    model = new_model(jit_compile="auto", solve_jit_compile="auto")
    return model, model.fit(*data(), batch_size=32, epochs=8, verbose=0).history["loss"]


# Values


@pytest.mark.parametrize("t", [(0.0, 1.0), (1.0, 0.0), (0.0, 0.25, 3.0)])
def test_output_is_the_state_at_the_last_time(t):
    y = plain(Exponential(), t=t, rtol=1e-6)(tf.ones([3, 2]))
    np.testing.assert_allclose(y, np.full([3, 2], np.exp(t[0] - t[-1])), rtol=1e-5)


def test_sequences_are_the_states_at_all_times_batch_first():
    t = np.array([0.0, 0.5, 2.0])
    x = np.arange(1.0, 7.0, dtype="float32").reshape(2, 3, 1)
    y = plain(Exponential(), t=t, rtol=1e-6, return_sequences=True)(x)
    np.testing.assert_allclose(y, x[:, None] * np.exp(-t).reshape(1, 3, 1, 1), rtol=1e-5)


def test_dynamics_of_time_is_given_the_time():
    y = plain(gaussian, t=(1.0, 2.0), rtol=1e-6)(tf.ones([3, 2]))
    np.testing.assert_allclose(y, np.full([3, 2], np.exp(-1.5)), rtol=1e-5)


@pytest.mark.parametrize("t", [[0.0, 2.0], np.array([0.0, 2.0]), tf.constant([0.0, 2.0])], ids=["list", "array", "tensor"])
def test_times_of_the_call_replace_those_of_the_layer(t):
    y = plain(Exponential(), t=(0.0, 1.0), rtol=1e-6)(tf.ones([3, 2]), t=t)
    np.testing.assert_allclose(y, np.full([3, 2], np.exp(-2)), rtol=1e-5)


def test_times_of_the_call_set_the_length_of_the_sequence():
    t = np.linspace(0, 1, 5)
    y = plain(Exponential(), return_sequences=True, rtol=1e-6)(tf.ones([3, 2]), t=t)
    np.testing.assert_allclose(y, np.broadcast_to(np.exp(-t)[:, None], [3, 5, 2]), rtol=1e-5)


# Times that learn, below, claim as much.
@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.slow
def test_times_of_the_call_get_their_gradient(timed):
    layer, t = plain(gaussian if timed else Exponential(), rtol=1e-6), tf.constant([0.5, 2.0])
    with tf.GradientTape() as tape:
        tape.watch(t)
        loss = tf.reduce_sum(layer(tf.ones([1, 1]), t=t))
    # y = exp(t0 - t1), or exp((t0^2 - t1^2) / 2).
    expected = np.exp(-1.875) * np.array([0.5, -2.0]) if timed else np.exp(-1.5) * np.array([1.0, -1.0])
    np.testing.assert_allclose(tape.gradient(loss, t), expected, rtol=1e-4)


def test_state_may_be_a_dict():
    def rotation(t, y):
        return {"q": y["p"], "p": -y["q"]}

    layer = plain(rotation, t=(0.0, 0.5, 1.0), rtol=1e-6, return_sequences=True)
    y = layer({"q": tf.ones([3, 1]), "p": tf.zeros([3, 1])})
    np.testing.assert_allclose(y["q"], np.broadcast_to(np.cos([0, 0.5, 1])[:, None], [3, 3, 1]), rtol=1e-5)
    np.testing.assert_allclose(y["p"], np.broadcast_to(-np.sin([0, 0.5, 1])[:, None], [3, 3, 1]), atol=1e-5)


def test_functional_model_with_a_dict_state_predicts():
    inputs = {"q": keras.Input([1]), "p": keras.Input([1])}
    outputs = plain(lambda y: {"q": y["p"], "p": -y["q"]}, rtol=1e-6)(inputs)
    assert {name: leaf.shape for name, leaf in outputs.items()} == {"q": (None, 1), "p": (None, 1)}
    y = keras.Model(inputs, outputs).predict({"q": np.ones([3, 1]), "p": np.zeros([3, 1])}, verbose=0)
    np.testing.assert_allclose(y["q"], np.full([3, 1], np.cos(1)), rtol=1e-5)


def test_layer_and_solve_give_the_same():
    dynamics = untimed()
    x, _ = data(5)
    y = rough(dynamics, t=(0.0, 0.3, 1.0), return_sequences=True)(x)
    ys = keras_ode.odeint(dynamics, tf.constant(x), [0.0, 0.3, 1.0], solver=FEW_STAGES, jit_compile=False)
    np.testing.assert_allclose(tf.transpose(y, [1, 0, 2]), ys, rtol=1e-6)


def test_solve_of_a_layer_tells_what_the_call_does_not():
    """The same last state, and the steps behind it; options of the call replace the layer's."""
    layer = rough(Timed(), rtol=1e-4)
    y0 = tf.ones([4, 2])
    solution = layer.solve(y0)
    np.testing.assert_array_equal(solution.ys[-1], layer(y0))
    tighter = layer.solve(y0, t=[0.0, 1.0], rtol=1e-6, atol=1e-8, dense=True)
    assert tighter.stats["num_accepted"] > solution.stats["num_accepted"] > 0
    # A polynomial of degree four in single precision, whose terms are some times their sum.
    np.testing.assert_allclose(tighter.evaluate(1.0), tighter.ys[-1], rtol=1e-5)


# Shapes


@pytest.mark.parametrize("return_sequences, expected", [(False, (None, 4, 3)), (True, (None, 2, 4, 3))])
def test_output_shape_is_known_without_running(return_sequences, expected):
    layer = ODELayer(untimed(), return_sequences=return_sequences)
    assert layer.compute_output_shape((None, 4, 3)) == expected


@pytest.mark.parametrize("return_sequences", [False, True])
def test_computed_output_shape_is_that_of_the_output(return_sequences):
    layer = rough(Exponential(), t=(0.0, 0.5, 1.0), return_sequences=return_sequences)
    assert layer(tf.ones([2, 4, 3])).shape == layer.compute_output_shape((2, 4, 3))


def test_symbolic_output_of_a_functional_model_has_shape_and_dtype():
    output = ODELayer(Timed(), t=(0.0, 0.5, 1.0), return_sequences=True)(keras.Input([2]))
    assert (output.shape, output.dtype) == ((None, 3, 2), "float32")


def test_symbolic_call_with_times_knows_its_shape():
    output = ODELayer(Timed(), return_sequences=True)(keras.Input([2]), t=np.linspace(0, 1, 5))
    assert output.shape == (None, 5, 2)


# Training


# Without time, `fit` is compared below in eager code, in the plain graph and compiled; with it, the loss falls in the next
# test, and in the one of a functional model.
@pytest.mark.slow
@pytest.mark.parametrize(("make", "jit_compile"), [(Timed, True), (Timed, False), (untimed, False)])
def test_loss_falls_in_fit(make, jit_compile):
    losses = new_model(make, jit_compile).fit(*data(), batch_size=32, epochs=8, verbose=0).history["loss"]
    # The target's variance is one: a constant would do no better.
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.slow
def test_loss_falls_in_fit_with_automatic_compilation(trained):
    _, losses = trained
    assert losses[-1] < 0.5 * losses[0]


def losses_of_two_epochs(**options):
    return new_model(untimed, **options).fit(*data(), batch_size=32, epochs=2, verbose=0).history["loss"]


@pytest.fixture(scope="module")
def losses_in_the_plain_graph():
    return losses_of_two_epochs()


@pytest.mark.parametrize("options", [{"jit_compile": True}, slow({"run_eagerly": True})], ids=["compiled", "eager"])
def test_compiled_and_eager_fit_give_the_losses_of_the_plain_graph(losses_in_the_plain_graph, options):
    # float32 rounding, which may move a step within rtol = 1e-3 of the solve.
    np.testing.assert_allclose(losses_of_two_epochs(**options), losses_in_the_plain_graph, rtol=1e-3)


class NotesTraces(keras.layers.Dense):
    """Counts how often Python runs its call: in `fit`, once a trace."""

    traces = 0

    def call(self, y):
        self.traces += 1
        return super().call(y)


class TracesOfEpochs(keras.callbacks.Callback):
    def __init__(self, dynamics):
        super().__init__()
        self.dynamics, self.counts = dynamics, []

    def on_epoch_end(self, epoch, logs=None):
        self.counts.append(self.dynamics.traces)


@pytest.mark.parametrize("jit_compile", [pytest.param(True, marks=pytest.mark.slow), False])
def test_fit_traces_nothing_after_its_first_epoch(jit_compile):
    dynamics = NotesTraces(2, activation="tanh")
    noted = TracesOfEpochs(dynamics)
    model = keras.Sequential([keras.Input([2]), rough(dynamics)])
    model.compile("sgd", "mse", jit_compile=jit_compile)
    x = np.ones([80, 2], "float32")  # The last batch is a partial one.
    model.fit(x, x, batch_size=32, epochs=3, verbose=0, callbacks=[noted])
    first, *later = noted.counts
    assert first > 0
    assert later == [first, first]


FIT = """
import numpy as np
from tests.layers.test_ode import data, new_model, Timed
model = new_model(Timed, jit_compile=False, solve_jit_compile=True)
print("compiling")
model.fit(*data(96), batch_size=32, epochs=3, verbose=0)
"""


@pytest.mark.slow
def test_compiled_solve_in_a_plain_fit_is_compiled_once_and_not_at_every_batch():
    """XLA bakes in what it takes for the sizes of tensors: weights must not be among them."""
    fit = subprocess.run(
        [sys.executable, "-c", FIT],
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "0", "TF_CPP_VMODULE": "device_compiler=1"},
    )
    assert fit.returncode == 0, fit.stderr
    # One of the forward solve, one of the backward, and at most one of each for a first batch of another shape.
    assert 1 <= fit.stderr.count("Compilation of XLA executable time") <= 4


@pytest.mark.slow
def test_functional_model_with_a_branch_around_the_layer_trains():
    inputs = keras.Input([2])
    outputs = keras.layers.Dense(2)(keras.layers.Add()([inputs, rough(Timed())(inputs)]))
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.Adam(0.03), "mse", jit_compile=False)
    losses = model.fit(*data(), batch_size=32, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]


def linear(matrix):
    """A layer `y' = y matrix` in double precision."""
    size = len(matrix)
    layer = keras.layers.Dense(size, use_bias=False, dtype="float64")
    layer.build((None, size))
    layer.kernel.assign(matrix)
    return layer


A = np.array([[-0.2, 1.0], [-0.7, 0.1]])
B = np.array([[0.3, -0.5], [0.4, 0.2]])


@pytest.mark.slow  # the tests of all adjoints claim this
def test_gradients_of_two_layers_in_one_model_are_those_of_the_matrix_exponentials():
    first, second = linear(A), linear(B)
    options = {"rtol": 1e-9, "atol": 1e-9, "dtype": "float64", "jit_compile": False}
    model = keras.Sequential([keras.Input([2], dtype="float64"), ODELayer(first, **options), ODELayer(second, **options)])
    x = np.random.default_rng(0).normal(size=(3, 2))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(x))
    found = tape.gradient(loss, [first.kernel.value, second.kernel.value])
    # loss = sum(x expm(A) expm(B)).
    ones = np.ones_like(x)
    by_first = scipy.linalg.expm_frechet(A.T, x.T @ ones @ scipy.linalg.expm(B).T, compute_expm=False)
    by_second = scipy.linalg.expm_frechet(B.T, (x @ scipy.linalg.expm(A)).T @ ones, compute_expm=False)
    assert max(relative_error(found[0], by_first), relative_error(found[1], by_second)) < 1e-7


@pytest.mark.slow  # the tests of all adjoints claim this too
def test_dynamics_shared_by_two_layers_gets_the_sum_of_their_gradients():
    shared = linear(A)
    options = {"rtol": 1e-9, "atol": 1e-9, "dtype": "float64", "jit_compile": False}
    model = keras.Sequential([keras.Input([2], dtype="float64"), ODELayer(shared, **options), ODELayer(shared, **options)])
    x = np.random.default_rng(0).normal(size=(3, 2))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(x))
    found = tape.gradient(loss, shared.kernel.value)
    # loss = sum(x expm(2 A)).
    expected = 2 * scipy.linalg.expm_frechet(2 * A.T, x.T @ np.ones_like(x), compute_expm=False)
    assert relative_error(found, expected) < 1e-7
    assert len(model.trainable_weights) == 1


@pytest.mark.slow
def test_frozen_dynamics_stays_as_it_is_while_the_rest_trains():
    dynamics = untimed()
    dynamics.trainable = False
    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(2), rough(dynamics)])
    model.compile("sgd", "mse", jit_compile=False)
    before = model.get_weights()
    model.fit(*data(), epochs=1, verbose=0)
    changed = [not np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True)]
    assert changed == [True, True, False, False, False, False]


def test_layer_that_is_frozen_freezes_its_dynamics():
    layer = ODELayer(untimed(), trainable=False)
    layer.build((None, 2))
    assert layer.trainable_weights == []


def test_layer_adds_no_weight_to_those_of_the_dynamics():
    dynamics = untimed()
    layer = ODELayer(dynamics)
    layer.build((None, 2))
    assert [id(w) for w in layer.weights] == [id(w) for w in dynamics.weights]
    assert len(layer.weights) == 4


# Random dynamics


@keras.saving.register_keras_serializable(package="tests")
class Noise(keras.layers.Layer):
    """A derivative of ones, half of which dropout sets to zero and doubles the rest."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dropout = keras.layers.Dropout(0.5)

    def call(self, y, training=None):
        return self.dropout(tf.ones_like(y), training=training)


@pytest.fixture(
    scope="module", params=[lambda f: f, tf.function, slow(tf.function(jit_compile=True))], ids=["eager", "graph", "compiled"]
)
def noisy_outputs(request):
    """Those of two calls of one layer."""
    layer = rough(Noise(), t=(0.0, 0.5, 1.0))
    call = request.param(lambda: layer(tf.zeros([4, 16]), training=True))
    return call(), call()


def test_dropout_keeps_its_mask_within_a_solve(noisy_outputs):
    # Any change of mask on the way would leave values between.
    for y in noisy_outputs:
        assert set(np.round(y, 4).ravel()) == {0.0, 2.0}


def test_dropout_changes_its_mask_from_call_to_call(noisy_outputs):
    assert not np.array_equal(*noisy_outputs)


def test_dropout_does_nothing_outside_training():
    np.testing.assert_allclose(plain(Noise())(tf.zeros([4, 16]), training=False), np.ones([4, 16]), rtol=1e-6)


@pytest.mark.slow
def test_gradient_sees_the_mask_of_its_forward_solve():
    """y' = mask * w from 0 is mask * w, so that the gradient by w is the mask that the output shows."""

    class Masked(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.dropout = keras.layers.Dropout(0.5)
            self.w = self.add_weight(shape=[16], initializer="ones")

        def call(self, y, training=None):
            return self.dropout(tf.ones_like(y), training=training) * self.w

    layer = rough(Masked())
    with tf.GradientTape() as tape:
        y = layer(tf.zeros([1, 16]), training=True)
        loss = tf.reduce_sum(y)
    np.testing.assert_allclose(tape.gradient(loss, layer.dynamics.w.value), y[0], atol=1e-5)


# Saving


@pytest.mark.slow  # tests/layers/test_harness.py saves and loads every layer
def test_loaded_model_goes_on_training(trained, tmp_path):
    model, losses = trained
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    again = loaded.fit(*data(), batch_size=32, epochs=1, verbose=0).history["loss"]
    assert again[0] < 1.5 * losses[-1]


@pytest.mark.parametrize(
    "dynamics",
    [untimed, lambda: gaussian],
    ids=["model", "function"],
)
def test_dynamics_of_any_kind_is_saved(dynamics, tmp_path):
    model = keras.Sequential([keras.Input([2]), rough(dynamics(), t=(0.0, 2.0))])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    x, _ = data(3)
    np.testing.assert_array_equal(loaded(x), model(x))


@pytest.mark.slow
def test_weights_saved_alone_give_the_same_predictions(trained, tmp_path):
    model, _ = trained
    model.save_weights(tmp_path / "model.weights.h5")
    other = new_model()
    x, y = data(7)
    assert not np.allclose(other.predict(x, verbose=0), model.predict(x, verbose=0))
    other.load_weights(tmp_path / "model.weights.h5")
    # One of the two compiles its solve with XLA, which rounds otherwise.
    np.testing.assert_allclose(other.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-3, atol=1e-5)


CONFIG = {
    "t": (0.0, 0.5, 2.0),
    "solver": "dopri5",
    "rtol": 1e-4,
    "atol": 1e-7,
    "adjoint": keras_ode.adjoints.Backsolve(rtol=1e-5),
    "controller": keras_ode.controllers.PID(p=0.4, i=0.3),
    "step_size": 0.1,
    "max_steps": 77,
    "return_sequences": True,
    "jump_times": (0.7, 1.5),
    "jit_compile": False,
    "name": "flow",
}


@pytest.mark.parametrize("config", [{}, CONFIG], ids=["defaults", "everything changed"])
def test_config_makes_an_equal_layer(config):
    layer = ODELayer(Timed(width=3), **config)
    copy = ODELayer.from_config(layer.get_config())
    assert copy.get_config() == layer.get_config()
    for option, value in config.items():
        expected = keras_ode.solvers.get(value) if option == "solver" else value
        assert getattr(copy, option) == expected
    assert copy.dynamics.width == 3


def test_config_survives_json():
    config = json.loads(json.dumps(ODELayer(Timed(), **CONFIG).get_config()))
    assert ODELayer.from_config(config).adjoint == CONFIG["adjoint"]


def test_layer_saved_with_options_keeps_them(tmp_path):
    model = keras.Sequential([keras.Input([2]), ODELayer(Timed(), **CONFIG)])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    before, after = ({**layer.get_config(), "dynamics": None} for layer in (model.layers[0], loaded.layers[0]))
    assert after == before


# Prediction


def test_predict_in_uneven_batches_is_the_call(trained):
    model, _ = trained
    x, _ = data(11)
    y = model.predict(x, batch_size=4, verbose=0)
    # Steps are chosen for a batch together: rows agree within the tolerance, rtol = 1e-3.
    np.testing.assert_allclose(y, model(x), rtol=5e-3, atol=5e-3)


@pytest.mark.slow
def test_predict_of_sequences_keeps_rows_together():
    model = keras.Sequential([keras.Input([1]), plain(Exponential(), t=(0.0, 0.5, 1.0), return_sequences=True, rtol=1e-6)])
    x = np.arange(1.0, 6.0, dtype="float32")[:, None]
    y = model.predict(x, batch_size=2, verbose=0)
    np.testing.assert_allclose(y, x[:, None] * np.exp([0, -0.5, -1])[:, None], rtol=1e-5)


# Precision


@pytest.mark.parametrize("policy, rounding", [("mixed_float16", 2e-3), slow("mixed_bfloat16", 1e-2)])
def test_mixed_precision_keeps_the_state_in_single_and_gives_half(policy, rounding):
    keras.config.set_dtype_policy(policy)
    seen = []

    class Seeing(Exponential):
        def call(self, y):
            seen.append(y.dtype)
            return self.rate * y

    y = plain(Seeing())(tf.ones([2, 2]))
    half = policy.removeprefix("mixed_")
    assert (y.dtype.name, set(seen)) == (half, {tf.as_dtype(half)})
    np.testing.assert_allclose(tf.cast(y, "float32"), np.full([2, 2], np.exp(-1)), rtol=rounding)


@pytest.mark.parametrize("policy", ["mixed_float16", nightly("mixed_bfloat16")])
@pytest.mark.slow
def test_model_in_mixed_precision_trains(policy):
    keras.config.set_dtype_policy(policy)
    model = new_model()
    assert {w.dtype for w in model.trainable_weights} == {"float32"}
    losses = model.fit(*data(), batch_size=32, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]


def test_layer_in_double_precision_solves_in_it():
    y = plain(Exponential(dtype="float64"), rtol=1e-10, atol=1e-10, dtype="float64")(tf.ones([1, 1], tf.float64))
    np.testing.assert_allclose(y, [[np.exp(-1)]], rtol=1e-9)


# Failures


@keras.saving.register_keras_serializable(package="tests")
def explosion(y):
    return y * y


@pytest.mark.slow  # `predict`, below, and gradients of failed solves, in tests/test_diagnosis.py, claim what is behind it
@pytest.mark.parametrize("jit_compile", [nightly(True), False])
def test_failed_solve_in_fit_gives_a_loss_of_nan(jit_compile):
    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(2, kernel_initializer="ones"), rough(explosion)])
    model.compile("sgd", "mse", jit_compile=jit_compile)
    losses = model.fit(np.ones([4, 2]), np.ones([4, 2]), epochs=1, verbose=0).history["loss"]
    assert np.isnan(losses).all()


def test_failed_solve_in_predict_gives_nan():
    model = keras.Sequential([keras.Input([2]), rough(explosion)])
    assert np.isnan(model.predict(np.full([4, 2], 2.0), verbose=0)).all()


def test_failed_solve_in_eager_code_raises():
    with pytest.raises(keras_ode.SolveError) as raised:
        rough(explosion)(tf.fill([4, 2], 2.0))
    assert raised.value.status == keras_ode.Status.STEP_TOO_SMALL
    assert raised.value.time == pytest.approx(0.5, abs=1e-3)  # y = 1 / (1/2 - t)


@pytest.mark.parametrize(
    "option, value, words",
    [
        ("dynamics", 3, "Received: 3"),
        ("t", (0.0, 0.0), "strictly"),
        ("t", (0.0,), "two or more"),
        ("t", (0.0, np.nan), "finite.*nan"),
        ("t", "now", "now"),
        ("solver", "rk45", "'tsit5'.*solver='rk45'"),
        ("adjoint", "magic", "'backsolve'.*adjoint='magic'"),
        ("controller", "magic", "'pid'.*controller='magic'"),
        ("rtol", -1.0, "rtol=-1.0"),
        ("atol", "small", "atol='small'"),
        ("step_size", 0.0, "step_size=0.0"),
        ("max_steps", 0, "max_steps=0"),
        ("jump_times", 0.5, "a list of numbers.*jump_times=0.5"),
        ("jit_compile", "yes", "jit_compile='yes'"),
    ],
)
def test_bad_argument_is_refused_when_the_layer_is_made(option, value, words):
    with pytest.raises((ValueError, TypeError), match=f"(?s){words}"):
        ODELayer(**{"dynamics": gaussian, option: value})


def test_output_of_another_shape_than_the_state_is_refused_by_name():
    with pytest.raises(ValueError, match=r"dynamics 'widen' must return the shape of the state, \(4, 2\). Received: \(4, 3\)"):
        ODELayer(keras.layers.Dense(3, name="widen"))(tf.ones([4, 2]))


# Times


@pytest.mark.slow
def test_layer_takes_times_that_learn_where_it_is_called_and_refuses_to_keep_them():
    end = tf.Variable(1.5)
    with pytest.raises(TypeError, match=r"layer\(y, t=...\).*Variable"):
        keras_ode.ODELayer(lambda t, y: -y, t=[0.0, end])
    layer = plain(lambda t, y: -y, t=1.0, rtol=1e-5)
    assert layer.t == (0.0, 1.0)
    with tf.GradientTape() as tape:
        y = layer(tf.ones([1, 1]), t=[0.0, end])
    np.testing.assert_allclose(tape.gradient(y, end), -np.exp(-1.5), rtol=1e-4)


@pytest.mark.parametrize("in_call", [False, slow(True)], ids=["of the layer", "of the call"])
def test_times_far_from_zero_are_subtracted_before_they_are_rounded(in_call):
    t = (1.7e9, 1.7e9 + 60, 1.7e9 + 150)
    options = {"rtol": 1e-5, "return_sequences": True, "jit_compile": False}
    if in_call:
        y = keras_ode.ODELayer(lambda t, y: -y / 100, **options)(tf.ones([2, 1]), t=np.array(t))
    else:
        y = keras_ode.ODELayer(lambda t, y: -y / 100, t=t, **options)(tf.ones([2, 1]))
    np.testing.assert_allclose(y[:, :, 0], np.exp([[0, -0.6, -1.5]] * 2), rtol=1e-4)
