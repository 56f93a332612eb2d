"""Keras' own checks of a layer: configuration, building, symbolic and eager calls, a compiled training step, mixed precision."""

import json

import keras
import numpy as np
import pytest

import keras_ode
from keras_ode.layers import (
    ODERNN,
    AntisymmetricDynamics,
    Augment,
    ConcatSquash,
    DepthVarying,
    HamiltonianBlocks,
    HamiltonianDynamics,
    LagrangianDynamics,
    LeapfrogBlocks,
    LinearMultistepBlocks,
    NeuralCDE,
    ResidualBlocks,
    SecondOrderDynamics,
    TensorProduct,
    TimeDense,
    TimeSequential,
)

testing = pytest.importorskip("keras.src.testing")  # not public: Keras may move it


def dense():
    return keras.layers.Dense(2, activation="tanh")


FAST = {"solver": "euler", "step_size": 0.5, "adjoint": "direct", "max_steps": 8}
CASES = {
    "ODELayer": (keras_ode.ODELayer, lambda: {"dynamics": dense(), **FAST}, (4, 2), {}),
    "ResidualBlocks": (ResidualBlocks, lambda: {"layer": dense(), "num_blocks": 2}, (4, 2), {}),
    "LinearMultistepBlocks": (LinearMultistepBlocks, lambda: {"layer": dense(), "num_blocks": 2, "survival": 0.5}, (4, 2), {}),
    "AntisymmetricDynamics": (AntisymmetricDynamics, lambda: {"gamma": 0.1}, (4, 2), {}),
    "HamiltonianBlocks": (HamiltonianBlocks, lambda: {"num_blocks": 2}, (4, 2), {}),
    "LeapfrogBlocks": (LeapfrogBlocks, lambda: {"num_blocks": 2}, (4, 2), {}),
    "Augment": (Augment, lambda: {"num_channels": 1}, (4, 2), {}),
    "ODERNN": (
        ODERNN,
        lambda: {"cell": keras.layers.GRUCell(2), "dynamics": dense(), "t": (0.0, 0.5, 1.0), **FAST},
        (4, 3, 1),
        {},
    ),
    "ODERNN sequences": (
        ODERNN,
        lambda: {"cell": keras.layers.LSTMCell(2), "dynamics": TimeDense(2), "return_sequences": True, "t": (0.0, 0.5, 1.0), **FAST},
        (4, 3, 1),
        {},
    ),
}


# These have no masks.
UNMASKED = {
    "TensorProduct": (TensorProduct, lambda: {"units": 2, "degree": 2}, (4, 2), {}),
    "NeuralCDE": (NeuralCDE, lambda: {"dynamics": keras.layers.Dense(4, activation="tanh"), "units": 2, **FAST}, (4, 3, 1), {}),
}


@pytest.mark.parametrize("case", UNMASKED)
def test_layer_without_masks_passes_the_checks_of_keras(case):
    layer, arguments, shape, call = UNMASKED[case]
    harness = testing.TestCase()
    harness.setUp()
    harness.run_layer_test(layer, arguments(), input_shape=shape, call_kwargs=call, supports_masking=False)


@pytest.mark.parametrize("case", CASES)
def test_layer_passes_the_checks_of_keras(case):
    layer, arguments, shape, call = CASES[case]
    harness = testing.TestCase()
    harness.setUp()
    harness.run_layer_test(layer, arguments(), input_shape=shape, call_kwargs=call, supports_masking=True)


@pytest.mark.parametrize(
    "layer, arguments",
    [
        (TimeDense, lambda: {"units": 2}),
        (ConcatSquash, lambda: {"units": 2}),
        (TimeSequential, lambda: {"layers": [TimeDense(4), keras.layers.Dense(2)]}),
        (DepthVarying, lambda: {"layer": dense(), "num_pieces": 2}),
        (HamiltonianDynamics, lambda: {"layer": keras.layers.Dense(1, activation="tanh")}),
        (LagrangianDynamics, lambda: {"layer": keras.layers.Dense(1, activation="tanh")}),
        (SecondOrderDynamics, lambda: {"layer": keras.layers.Dense(1)}),
        (DepthVarying, lambda: {"layer": TimeDense(2), "num_pieces": 2, "kind": "linear"}),
    ],
)
def test_layer_of_time_passes_the_checks_of_keras(layer, arguments):
    harness = testing.TestCase()
    harness.setUp()
    shape = {"t_shape": (4, 1), "y_shape": (4, 2)}
    harness.run_layer_test(layer, arguments(), input_shape=shape, run_training_check=False)


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
    single = keras_ode.ODELayer(make(), jit_compile=False)
    expected = single(y)
    keras.config.set_dtype_policy(policy)
    for dynamics in (make(), single.dynamics):
        layer = keras_ode.ODELayer(dynamics, jit_compile=False)
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
