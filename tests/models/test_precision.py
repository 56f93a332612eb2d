"""The models in mixed precision: they train, and agree with single precision."""

import keras
import numpy as np
import pytest

from keras_ode import layers, models

X = np.random.default_rng(0).normal(size=(8, 5, 2)).astype("float32")
FAST = {"solver": "euler", "step_size": 0.25, "adjoint": "direct", "max_steps": 16}


def latent(encoder):
    dynamics, decoder = keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(2)
    return models.LatentODE(encoder, dynamics, decoder, 4, t=np.linspace(0, 1, 5), **FAST)


def ode_rnn():
    return layers.ODERNN(keras.layers.GRUCell(8), keras.layers.Dense(8, activation="tanh"), go_backwards=True, **FAST)


MODELS = {
    "LatentODE": (lambda: latent(keras.layers.GRU(8, go_backwards=True)), None, X, None),
    "LatentODE with an ODERNN": (lambda: latent(ode_rnn()), None, X, None),
    "flow": (lambda: models.ContinuousNormalizingFlow(layers.ConcatSquash(2, activation="tanh"), **FAST), None, X[:, 0], None),
    "ODENet": (
        lambda: models.ODENet(3, channels=4, **FAST),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        np.ones([4, 8, 8, 1], "float32"),
        np.arange(4) % 3,
    ),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name == "flow" else pytest.mark.slow) for name in MODELS])
@pytest.mark.slow
def test_model_in_half_precision_has_the_loss_of_single_precision(name):
    make, loss, x, y = MODELS[name]
    losses, weights = [], None
    for policy in ("float32", "mixed_float16"):
        keras.config.set_dtype_policy(policy)
        keras.utils.set_random_seed(0)
        model = make()
        model.compile("sgd", loss, jit_compile=False)
        model(x)
        weights = weights or model.get_weights()
        model.set_weights(weights)
        losses.append(model.fit(x, y, verbose=0).history["loss"][0])
    # Rounding to 11 bits, and for the latent models another sample of the posterior.
    np.testing.assert_allclose(*losses, rtol=0.2 if name.startswith("Latent") else 0.02)


def test_flow_gives_log_densities_in_single_precision():
    keras.config.set_dtype_policy("mixed_float16")
    flow = MODELS["flow"][0]()
    assert flow(keras.Input([2])).dtype == flow(X[:, 0]).dtype.name == "float32"
