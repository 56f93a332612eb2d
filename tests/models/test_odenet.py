"""The ODE network for pictures."""

import keras
import numpy as np
import pytest

from keras_ode.models import ODENet

PICTURES = np.random.default_rng(0).uniform(size=(32, 8, 8, 1)).astype("float32")
BRIGHT = (PICTURES[:, :, :4].mean(axis=(1, 2, 3)) > PICTURES[:, :, 4:].mean(axis=(1, 2, 3))).astype(int)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return ODENet(2, channels=4, rtol=1e-2, atol=1e-2)


def test_learns_which_half_of_a_picture_is_brighter(model):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.03), loss, jit_compile=False)
    losses = model.fit(PICTURES, BRIGHT, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < 0.9 * losses[0]


def test_parameters_are_those_of_its_convolutions_norms_and_head():
    """3 x 3 convolutions 1 -> 64 -> 64, a norm; two 65 -> 64 in the dynamics, a norm; and the dense head."""
    model = ODENet(10)
    model.build((None, 28, 28, 1))
    assert model.count_params() == (640 + 36_928 + 128) + (2 * 37_504 + 128) + 650


def test_model_is_saved_and_loaded(model, tmp_path):
    model(PICTURES)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(PICTURES), model(PICTURES))
    assert loaded.ode.rtol == 1e-2


def test_dynamics_may_be_ones_own():
    model = ODENet(3, channels=4, dynamics=keras.layers.Conv2D(4, 1), solver="euler", step_size=0.5)
    assert model(PICTURES).shape == (32, 3)
