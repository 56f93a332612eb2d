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
from tests.marks import slow as slow_case

testing = pytest.importorskip("keras.src.testing")  # not public: Keras may move it
ROOT = pathlib.Path(__file__).parents[2]
FIRST = {case.cls: name for name, case in reversed(CASES.items())}.values()  # the first case of each class
# What takes seconds to trace. CI runs these as well.
SLOW = {
    "DepthVarying linear",
    "ODELayer of steps of its own",
    "ODERNN sequences",
    "LatentODE of an ODERNN",
    "ResidualBlocks shared",
}


def every(slow=SLOW):
    return pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in slow)) for n in CASES])


def test_every_public_layer_and_model_has_a_case():
    public = {getattr(module, name) for module in (layers, models) for name in module.__all__}
    assert public == {case.cls for case in CASES.values()}


@every(slow=SLOW | {"LatentODE", "ODENet", "ODERNN", "NeuralCDE", "ContinuousNormalizingFlow"})
def test_layer_passes_the_checks_of_keras(name):
    case, harness = CASES[name], testing.TestCase()
    harness.setUp()
    # Keras' training step passes one argument; a dynamics of time has two, and trains in another test.
    trains = name in FIRST and not isinstance(case.shape, dict)
    checks = {"run_training_check": trains, "run_mixed_precision_check": name in FIRST}
    masks = case.supports_masking
    harness.run_layer_test(case.cls, case.arguments(), input_shape=case.shape, supports_masking=masks, **checks)


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
@every(slow=SLOW | {"LatentODE", "ODENet"})
def test_copy_has_its_own_weights_and_the_same_outputs(name, how):
    case, model, expected = original(name)
    copy = COPIES[how](model)
    if not copy.built:  # a model of its own class gets to know its shapes when it is called
        case.output(copy)
    assert not {id(v) for v in copy.variables} & {id(v) for v in model.variables}
    if how != "pickle":  # which copies the weights as well
        copy.set_weights(model.get_weights())
    np.testing.assert_allclose(case.output(copy), expected, rtol=1e-6, atol=case.noise)


# A process takes all cases, as it takes seconds to import TensorFlow. It reads and writes arrays in the directory that it gets,
# and prints what went wrong, by the name of the case.
PROCESS = """
import json, pathlib, sys, traceback
import numpy as np

{imports}

folder, errors = pathlib.Path(sys.argv[1]), {{}}
for file in folder.glob("*.npz"):
    try:
        inputs = list(np.load(file).values())
        run = {load}
        for rows in map(int, sys.argv[2:]):
            some = [x[:rows] for x in inputs]
            np.save(file.with_suffix(f".{{rows}}.npy"), run(some[0] if len(some) == 1 else some))
    except Exception:
        errors[file.stem] = traceback.format_exc()
print(json.dumps(errors))
"""
LOAD = PROCESS.format(
    imports="import keras, keras_ode",
    load='lambda x, model=keras.models.load_model(file.with_suffix(".keras")): model(x, training=False)',
)
SERVE = PROCESS.format(
    imports='sys.modules["keras_ode"] = None  # Importing it raises an ImportError.\nimport tensorflow as tf',
    load='lambda x, model=tf.saved_model.load(file.with_suffix(".exported")): model.serve(x)',
)


def differences(code, write, folder, cwd, rows, tolerance):
    """What goes wrong in a new process with the cases that are written here, by their names.

    Args:
        code: What the process runs.
        write: A function of a model and of a path without suffix.
        folder: A directory for files.
        cwd: The directory in which the process runs.
        rows: The sizes of batches.
        tolerance: By how much outputs may differ.
    """
    for name in CASES:
        case, model, _ = original(name)
        try:
            write(model, str(folder / name))
        except Exception as error:
            error.add_note(f"It is the case {name!r}.")
            raise
        np.savez(folder / f"{name}.npz", *case.data())
    command = [sys.executable, "-c", code, str(folder), *map(str, rows)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for name in CASES.keys() - found:
        case, _, expected = original(name)
        for n in rows:
            got = np.load(folder / f"{name}.{n}.npy")
            try:
                np.testing.assert_allclose(got, expected[:n], rtol=tolerance, atol=max(tolerance, case.noise))
            except AssertionError as error:
                found[name] = f"{n} rows: {error}"
    return found


def save(model, path):
    model.save(f"{path}.keras")


def export(model, path):
    model.export(f"{path}.exported", verbose=False)


@pytest.mark.slow
def test_saved_models_are_the_same_in_a_new_process(tmp_path):
    # Threads may add in another order.
    found = differences(LOAD, save, tmp_path, ROOT, rows=[4], tolerance=1e-6)
    assert found == {}, "\n\n".join(f"{name}: {what}" for name, what in found.items())


@pytest.mark.slow
def test_exported_models_are_served_without_the_package_at_any_batch_size(tmp_path):
    # Fused operations round otherwise.
    found = differences(SERVE, export, tmp_path, tmp_path, rows=[1, 4], tolerance=1e-5)
    assert found == {}, "\n\n".join(f"{name}: {what}" for name, what in found.items())


@pytest.mark.parametrize(
    "make, policy",
    [
        (lambda: TimeDense(2), "mixed_float16"),
        (lambda: ConcatSquash(2), "mixed_bfloat16"),
        slow_case(lambda: TimeSequential([TimeDense(4), keras.layers.Dense(2)]), "mixed_float16"),
        slow_case(lambda: DepthVarying(TimeDense(2), 2, kind="linear"), "mixed_bfloat16"),
        slow_case(lambda: ResidualBlocks(dense(), 2), "mixed_float16"),
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
        lambda: ODERNN(keras.layers.GRUCell(2), dense(), go_backwards=np.bool_(True), **{**NUMPY, "regularizer": None}),
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
