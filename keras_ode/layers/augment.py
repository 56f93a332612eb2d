"""Additional dimensions for the state of an ODE."""

import numbers
from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_ode")
class Augment(keras.Layer):
    """Appends channels of zeros to the state, which gives the trajectories of an ODE room to pass each other.

    Trajectories of an ODE cannot cross, so without additional dimensions an ODE cannot, for example, move the points of a ball
    out of the spherical shell that surrounds it.

    Args:
        num_channels: The number of channels to append.
        **kwargs: Arguments of `keras.Layer`.

    Input shape:
        `(batch, ..., channels)`.

    Output shape:
        `(batch, ..., channels + num_channels)`.

    Raises:
        ValueError: If `num_channels` is not a whole number, zero or more.

    Example:

    >>> keras_ode.layers.Augment(3)(tf.ones([8, 2])).shape
    TensorShape([8, 5])

    Reference: Dupont, Doucet, Teh (2019), Augmented Neural ODEs, NeurIPS.
    """

    def __init__(self, num_channels: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(num_channels, numbers.Integral) or isinstance(num_channels, bool) or num_channels < 0:
            raise ValueError(f"num_channels must be a whole number, zero or more. Received: num_channels={num_channels!r}")
        self.num_channels = int(num_channels)
        self.supports_masking = True

    def call(self, y):
        return ops.pad(y, [(0, 0)] * (len(y.shape) - 1) + [(0, self.num_channels)])

    def compute_output_shape(self, y_shape):
        return (*y_shape[:-1], y_shape[-1] + self.num_channels)

    def get_config(self):
        return {**super().get_config(), "num_channels": self.num_channels}
