"""The ODE network for pictures."""

import keras
import numpy as np
import pytest

from keras_ode.models import ODENet
from keras_ode.models.odenet import GridMeans

PICTURES = np.random.default_rng(0).uniform(size=(32, 8, 8, 1)).astype("float32")
BRIGHT = (PICTURES[:, :, :4].mean(axis=(1, 2, 3)) > PICTURES[:, :, 4:].mean(axis=(1, 2, 3))).astype(int)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return ODENet(2, channels=4, rtol=1e-2, atol=1e-2)


@pytest.mark.slow
def test_learns_which_half_of_a_picture_is_brighter(model):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.03), loss, jit_compile=False)
    losses = model.fit(PICTURES, BRIGHT, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < 0.9 * losses[0]


def test_parameters_are_those_of_its_convolutions_norms_and_head():
    """Convolutions 1 -> 64 -> 64 -> 64 and three norms; 65 -> 128 and 129 -> 64 and a norm; and a norm and nine means a map."""
    model = ODENet(10)
    model.build((None, 28, 28, 1))
    downsample = 25 * 64 + 64 + 2 * (9 * 64 * 64 + 64) + 3 * 128
    dynamics = 9 * 65 * 128 + 128 + 256 + 9 * 129 * 64 + 64
    assert model.count_params() == downsample + dynamics + 128 + 9 * 64 * 10 + 10


@pytest.mark.parametrize("channels", [16, 32, 64])
def test_no_normalization_is_of_single_maps(channels):
    """Normalized alone, each map has the mean that the layer's shift gives it, whatever the image."""
    net = ODENet(3, channels)
    inner = [*net.downsample.layers, *net.ode.dynamics.layers, *net.head.layers]
    groups = [layer.groups for layer in inner if isinstance(layer, keras.layers.GroupNormalization)]
    assert groups == [channels // 4] * 3 + [channels // 2, channels // 4]


def test_head_tells_a_feature_at_the_left_from_one_at_the_right():
    """Means over the whole image, as before, are the same for both."""
    image = np.zeros((1, 6, 9, 2), "float32")
    image[:, :2, :3] = 6.0
    left, right = (np.reshape(GridMeans(3)(x), (3, 3, 2)) for x in (image, image[:, :, ::-1]))
    np.testing.assert_allclose(left, 6 * np.eye(9)[0].reshape(3, 3, 1) * [1, 1], atol=1e-5)
    np.testing.assert_allclose(right, left[:, ::-1], atol=1e-5)


def test_means_over_a_grid_share_a_pixel_between_parts_by_area():
    """Four pixels in three parts: of each 4/3 pixel, weights 3/4 and 1/4 at the ends, 1/2 and 1/2 in the middle."""
    rows = np.arange(4, dtype="float32")[None, :, None, None] * np.ones((1, 4, 4, 1), "float32")
    means = np.reshape(GridMeans(3)(rows), (3, 3))
    np.testing.assert_allclose(means, np.array([0.25, 1.5, 2.75])[:, None] * np.ones(3), rtol=1e-5)


def test_size_of_images_need_not_be_known():
    assert ODENet(3, channels=4)(keras.Input((None, None, 1))).shape == (None, 3)


def test_dynamics_may_be_ones_own():
    model = ODENet(3, channels=4, dynamics=keras.layers.Conv2D(4, 1), solver="euler", step_size=0.5)
    assert model(PICTURES).shape == (32, 3)


def test_parts_that_were_replaced_are_saved(tmp_path):
    model = ODENet(3, channels=4, dynamics=keras.layers.Conv2D(4, 1), solver="euler", step_size=0.5)
    model.downsample = keras.Sequential([keras.layers.Conv2D(4, 3, strides=1)])
    expected = model(PICTURES)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.downsample.layers[0].strides == (1, 1)
    np.testing.assert_array_equal(loaded(PICTURES), expected)
