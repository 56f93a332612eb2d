"""More dimensions for a state."""

import keras
import numpy as np
import pytest

from keras_ode.layers import Augment


@pytest.mark.parametrize("shape", [(4, 2), (4, 5, 5, 3)])
def test_channels_of_zeros_are_appended(shape):
    y = np.random.default_rng(0).normal(size=shape).astype("float32")
    out = Augment(2)(y)
    np.testing.assert_array_equal(out[..., :-2], y)
    np.testing.assert_array_equal(out[..., -2:], np.zeros((*shape[:-1], 2)))


def test_output_shape_is_known_without_running():
    assert Augment(3)(keras.Input([7, 2])).shape == (None, 7, 5)


def test_negative_number_of_channels_is_refused():
    with pytest.raises(ValueError, match="num_channels must be a whole number, zero or more. Received: num_channels=-1"):
        Augment(-1)
