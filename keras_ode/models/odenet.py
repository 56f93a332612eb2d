"""The ODE network for image classification."""

from typing import Any

import keras
from keras import layers, ops

from keras_ode.layers import ODELayer, TimeConv2D, TimeSequential


@keras.saving.register_keras_serializable(package="keras_ode")
class ODENet(keras.Model):
    """An image classifier: a residual network whose residual blocks are replaced with one ODE.

    Three convolutions, two of them strided, reduce the size of the image, and an `ODELayer` transforms the feature maps. Each
    map is then averaged over the nine cells of a three by three grid, and a dense layer computes the logits from these means.
    The paper averages over the whole image, with which the model learns more slowly. You may replace the attributes
    `downsample`, `ode` (with another `ODELayer`) and `head`, which are saved with the model.

    Args:
        num_classes: The number of classes.
        channels: The number of feature maps. Defaults to `64`, as in the paper.
        dynamics: A Keras layer `f(t, y)` or `f(y)` that keeps the shape of feature maps, `[batch, height, width, channels]`.
            Defaults to `None`, which uses two convolutions that get the time as an additional channel. There are
            `2 * channels` maps between them, which are normalized in groups.
        name, dtype, trainable: As in `keras.Model`.
        **ode: Arguments of `ODELayer`: `t`, `solver`, `rtol`, `atol`, `adjoint`, ...

    Input shape:
        `(batch, height, width, colors)`.

    Output shape:
        `(batch, num_classes)`, the logits.

    Example:

    >>> model = keras_ode.models.ODENet(num_classes=10, channels=16, rtol=1e-2)
    >>> model(tf.zeros([2, 28, 28, 1])).shape
    TensorShape([2, 10])

    Reference: Chen, Rubanova, Bettencourt, Duvenaud (2018), Neural Ordinary Differential Equations, NeurIPS.
    """

    def __init__(
        self,
        num_classes: int,
        channels: int = 64,
        dynamics: keras.Layer | None = None,
        name: str | None = None,
        dtype: "str | keras.DTypePolicy | None" = None,
        trainable: bool = True,
        **ode: Any,
    ) -> None:
        super().__init__(name=name, dtype=dtype, trainable=trainable)
        num_classes, channels = int(num_classes), int(channels)
        policy, self.num_classes, self.channels = self.dtype_policy, num_classes, channels
        self.downsample = keras.Sequential([
            layers.Conv2D(channels, 5, strides=2, padding="same", dtype=policy),
            *_normalized(channels, policy),
            layers.Conv2D(channels, 3, strides=2, padding="same", dtype=policy),
            *_normalized(channels, policy),
            layers.Conv2D(channels, 3, padding="same", dtype=policy),
            layers.GroupNormalization(_groups(channels), dtype=policy),
        ], name="downsample")
        dynamics = conv_dynamics(channels, policy) if dynamics is None else dynamics
        self.ode = ODELayer(dynamics, name="ode", dtype=policy, **ode)
        self.head = keras.Sequential([
            *_normalized(channels, policy),
            GridMeans(3, dtype=policy),
            layers.Dense(num_classes, dtype=policy),
        ], name="head")
        self._ids_of_own_parts = (id(self.downsample), id(self.head))

    def build(self, pictures_shape):
        maps_shape = tuple(pictures_shape)
        for part in (self.downsample, self.ode, self.head):
            part.build(maps_shape)
            maps_shape = part.compute_output_shape(maps_shape)

    def call(self, pictures, training=None):
        return self.head(self.ode(self.downsample(pictures)))

    def get_config(self):
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "channels": self.channels,
            "dynamics": keras.saving.serialize_keras_object(self.ode.dynamics),
            "parts": {name: keras.saving.serialize_keras_object(part) for name, part in self._replaced().items()},
            **self.ode.get_options(),
        }

    @classmethod
    def from_config(cls, config):
        config = {**config, "dynamics": keras.saving.deserialize_keras_object(config["dynamics"])}
        parts = config.pop("parts", {})
        model = cls(**config)
        for name, part in parts.items():
            setattr(model, name, keras.saving.deserialize_keras_object(part))
        return model

    def _replaced(self):
        """Returns the parts that are no longer those of the constructor, by their names."""
        parts = {"downsample": self.downsample, "head": self.head}
        return {name: part for name, part in parts.items() if id(part) not in self._ids_of_own_parts}


@keras.saving.register_keras_serializable(package="keras_ode")
class GridMeans(keras.Layer):
    """The means of feature maps over the cells of a grid, for images of any size.

    Args:
        size: The number of rows, and also of columns, of the grid. A pixel that lies in several cells counts in each of them
            in proportion to the area that it has there.
        **kwargs: Arguments of `keras.Layer`.

    Input shape:
        `(batch, height, width, channels)`.

    Output shape:
        `(batch, size * size * channels)`.
    """

    def __init__(self, size, **kwargs):
        super().__init__(**kwargs)
        self.size = int(size)

    def call(self, maps):
        rows, columns = (_shares(ops.shape(maps)[axis], self.size, maps.dtype) for axis in (1, 2))
        means = ops.einsum("bhwc,hi,wj->bijc", maps, rows, columns)
        return ops.reshape(means, (-1, self.size**2 * maps.shape[-1]))

    def compute_output_shape(self, maps_shape):
        return (maps_shape[0], self.size**2 * maps_shape[-1])

    def get_config(self):
        return {**super().get_config(), "size": self.size}


def _shares(length, count, dtype):
    """Returns the weight of each of `length` pixels in the mean over each of `count` cells, shape `[length, count]`."""
    pixels = ops.cast(ops.arange(length), "float32")[:, None] / ops.cast(length, "float32")
    width = 1 / ops.cast(length, "float32")
    parts = ops.arange(count, dtype="float32") / count
    overlap = ops.minimum(pixels + width, parts + 1 / count) - ops.maximum(pixels, parts)
    return ops.cast(count * ops.relu(overlap), dtype)


def conv_dynamics(channels, dtype=None):
    """Returns a dynamics of feature maps: two convolutions of the maps and the time, with group normalization between them.

    There are `2 * channels` maps between the convolutions.
    """
    return TimeSequential([
        TimeConv2D(2 * channels, 3, padding="same", dtype=dtype),
        *_normalized(2 * channels, dtype),
        TimeConv2D(channels, 3, padding="same", dtype=dtype),
    ], dtype=dtype)


def _normalized(channels, dtype):
    """Returns a group normalization and the activation after it."""
    return layers.GroupNormalization(_groups(channels), dtype=dtype), layers.Activation("silu", dtype=dtype)


def _groups(channels):
    """Returns the largest number of groups of at least four channels. A group of one channel would lose the mean of its map."""
    return max(n for n in range(1, max(1, channels // 4) + 1) if channels % n == 0)
