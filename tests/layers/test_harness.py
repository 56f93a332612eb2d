"""What holds for every public layer and model, as `tests/cases.py` lists them.

Keras' own checks of a layer (configuration, building, symbolic and eager calls, a compiled training step, mixed precision),
JSON, `.keras` files in a new process, exports that are served without the package, clones and pickles.
"""

import functools
import inspect
import json
import pathlib
import pickle
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_ode
from keras_ode import layers, models
from keras_ode.layers import ODERNN, Augment, ConcatSquash, DepthVarying, ResidualBlocks, TimeDense, TimeSequential
from tests.cases import CASES, dense

testing = pytest.importorskip("keras.src.testing")  # not public: Keras may move it
ROOT = pathlib.Path(__file__).parents[2]
# Second cases of a class, and what takes seconds to trace. CI runs these as well.
SECOND = {
    "DepthVarying linear",
    "ODELayer of steps of its own",
    "ODERNN sequences",
    "LatentODE of an ODERNN",
    "ResidualBlocks shared",
}
SLOW_TO_TRAIN = SECOND | {"LatentODE", "ODENet"}
SLOW_TO_EXPORT = SLOW_TO_TRAIN | {"ContinuousNormalizingFlow", "NeuralCDE", "ODERNN"}


def every(slow=SECOND):
    return pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in slow)) for n in CASES])


def test_every_public_layer_and_model_has_a_case():
    public = {getattr(module, name) for module in (layers, models) for name in module.__all__}
    assert public == {case.cls for case in CASES.values()}


@every(slow=SLOW_TO_TRAIN)
def test_layer_passes_the_checks_of_keras(name):
    case, harness = CASES[name], testing.TestCase()
    harness.setUp()
    # Keras' training step passes one argument; a dynamics of time has two, and trains in the next test.
    options = {"supports_masking": case.supports_masking, "run_training_check": not isinstance(case.shape, dict)}
    harness.run_layer_test(case.cls, case.arguments(), input_shape=case.shape, **options)


@every()
def test_config_has_every_argument_of_the_constructor(name):
    made = CASES[name].make()
    arguments = inspect.signature(type(made).__init__).parameters.values()
    assert {a.name for a in arguments if a.kind is a.POSITIONAL_OR_KEYWORD} - {"self"} <= set(made.get_config())


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if isinstance(case.shape, dict)])
def test_training_changes_every_weight(name):
    case = CASES[name]
    model = case.model()
    model.compile("sgd", "mse", jit_compile=False)
    before = model.get_weights()
    model.fit(case.data(), np.zeros(case.output(model).shape), verbose=0)
    # An antisymmetric or potential part may leave some entries alone, but no weight as a whole.
    assert all(np.isfinite(b).all() and (a != b).any() for a, b in zip(before, model.get_weights(), strict=True))


COPIES = {
    "JSON": lambda model: keras.models.model_from_json(model.to_json()),
    "clone_model": keras.models.clone_model,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
}


@functools.cache
def original(name):
    """The case of a name, a model of it and the model's outputs."""
    model = CASES[name].model()
    return CASES[name], model, CASES[name].output(model)


@pytest.mark.parametrize("how", COPIES)
@every()
def test_copy_has_its_own_weights_and_the_same_outputs(name, how):
    case, model, expected = original(name)
    copy = COPIES[how](model)
    if not copy.built:  # a model of its own class gets to know its shapes when it is called
        case.output(copy)
    assert not {id(v) for v in copy.variables} & {id(v) for v in model.variables}
    if how != "pickle":  # which copies the weights as well
        copy.set_weights(model.get_weights())
    np.testing.assert_allclose(case.output(copy), expected, rtol=1e-6, atol=case.noise)


# Both read and write arrays in the directory that they get. One process for all, as it takes seconds to import TensorFlow.
LOAD = """
import pathlib, sys
import keras, numpy as np
import keras_ode

for file in pathlib.Path(sys.argv[1]).glob("*.keras"):
    model, inputs = keras.models.load_model(file), list(np.load(file.with_suffix(".npz")).values())
    np.save(file.with_suffix(".npy"), model(inputs[0] if len(inputs) == 1 else inputs, training=False))
"""
SERVE = """
import pathlib, sys
import numpy as np

sys.modules["keras_ode"] = None  # Importing it raises an ImportError.
import tensorflow as tf

for folder in pathlib.Path(sys.argv[1]).glob("*.exported"):
    model, inputs = tf.saved_model.load(folder), list(np.load(folder.with_suffix(".npz")).values())
    for rows in (1, 4):
        some = [x[:rows] for x in inputs]
        np.save(folder.with_suffix(f".{rows}.npy"), model.serve(some[0] if len(some) == 1 else some))
"""


def run(code, folder, cwd):
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr


def in_one_process(slow, write, code, folders, cwd):
    """A function that returns the directory with the outputs of a case.

    A process takes all cases, or all that are not slow and all that are slow.
    """

    @functools.cache
    def outputs(is_slow):
        folder = folders.mktemp("cases")
        for name in CASES:
            if (name in slow) == is_slow:
                case, model, _ = original(name)
                write(model, folder / name)
                np.savez(folder / f"{name}.npz", *case.data())
        run(code, folder, cwd or folder)
        return folder

    return lambda name: outputs(name in slow)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Saved here, and loaded in another process."""
    return in_one_process(SECOND, lambda model, path: model.save(f"{path}.keras"), LOAD, tmp_path_factory, ROOT)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Exported here, and served by a process that cannot import the package."""

    def write(model, path):
        model.export(f"{path}.exported", verbose=False)

    return in_one_process(SLOW_TO_EXPORT, write, SERVE, tmp_path_factory, None)


@every()
def test_saved_model_is_the_same_in_a_new_process(loaded, name):
    case, _, expected = original(name)
    # Threads may add in another order.
    np.testing.assert_allclose(np.load(loaded(name) / f"{name}.npy"), expected, rtol=1e-6, atol=max(1e-6, case.noise))


@pytest.mark.parametrize("rows", [1, 4])
@every(slow=SLOW_TO_EXPORT)
def test_exported_model_is_served_without_the_package_at_any_batch_size(served, name, rows):
    case, _, expected = original(name)
    # Fused operations round otherwise.
    tolerance = {"rtol": 1e-5, "atol": max(1e-5, case.noise)}
    np.testing.assert_allclose(np.load(served(name) / f"{name}.{rows}.npy"), expected[:rows], **tolerance)


@pytest.mark.parametrize(
    "make, policy",
    [
        (lambda: TimeDense(2), "mixed_float16"),
        (lambda: ConcatSquash(2), "mixed_bfloat16"),
        (lambda: TimeSequential([TimeDense(4), keras.layers.Dense(2)]), "mixed_float16"),
        (lambda: DepthVarying(TimeDense(2), 2, kind="linear"), "mixed_bfloat16"),
        (lambda: ResidualBlocks(dense(), 2), "mixed_float16"),
    ],
)
def test_dynamics_in_mixed_precision_agrees_with_single(policy, make):
    """Both as the policy of all, and as that of the solve alone."""
    y = np.ones([3, 2], "float32")
    single = keras_ode.ODELayer(make(), solver="bosh3", jit_compile=False)
    expected = single(y)
    keras.config.set_dtype_policy(policy)
    for dynamics in (make(), single.dynamics):
        layer = keras_ode.ODELayer(dynamics, solver="bosh3", jit_compile=False)
        layer.build((3, 2))
        layer.set_weights(single.get_weights())
        assert layer(y).dtype == policy.removeprefix("mixed_")
        np.testing.assert_allclose(np.asarray(layer(y), "float32"), expected, rtol=0.03, atol=0.03)


NUMPY = {
    "t": np.array([0, 1]),
    "rtol": np.float32(1e-3),
    "atol": np.float64(1e-6),
    "step_size": np.float32(0.5),
    "max_steps": np.int64(8),
    "per_sample": np.bool_(True),
    "jit_compile": np.bool_(False),
    "jump_times": np.array([0.5], "float32"),
    "adjoint": keras_ode.adjoints.Backsolve(rtol=np.float32(1e-3)),
    "controller": keras_ode.controllers.PID(p=np.float32(0.5)),
    "regularizer": keras_ode.regularizers.Kinetic(np.float32(0.1)),
}


@pytest.mark.parametrize(
    "layer",
    [
        lambda: keras_ode.ODELayer(dense(), **NUMPY),
        lambda: ODERNN(keras.layers.GRUCell(2), dense(), go_backwards=np.bool_(True), **NUMPY),
        lambda: ResidualBlocks(dense(), np.int64(2), shared=np.bool_(True)),
        lambda: DepthVarying(dense(), np.int32(2), t=np.array([0, 2])),
        lambda: Augment(np.int64(1)),
        lambda: keras_ode.models.ODENet(np.int64(3), np.int64(4), **NUMPY),
        lambda: keras_ode.models.LatentODE(dense(), dense(), dense(), np.int64(2), noise=np.float32(0.1), **NUMPY),
        lambda: keras_ode.models.ContinuousNormalizingFlow(dense(), **NUMPY),
    ],
)
def test_configuration_of_numpy_numbers_is_json(layer):
    layer = layer()
    config = json.loads(json.dumps(layer.get_config()))
    assert json.loads(json.dumps(type(layer).from_config(config).get_config())) == config
