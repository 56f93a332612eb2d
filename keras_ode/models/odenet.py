"""The ODE network for image classification."""

import keras
from keras import layers

from keras_ode.layers import ODELayer, TimeConv2D, TimeSequential


@keras.saving.register_keras_serializable(package="keras_ode")
class ODENet(keras.Model):
    """An image classifier: a residual network whose residual blocks are replaced by one differential equation.

    Two strided convolutions reduce the size of the image, an `ODELayer` transforms the feature maps, and a dense layer
    computes the class from the result. You may replace the attributes `downsample`, `ode` and `head`.

    Args:
        num_classes: The number of classes. The output is their logits.
        channels: The number of feature maps. Defaults to `64`, as in the paper.
        dynamics: A Keras layer `f(t, y)` or `f(y)` for feature maps. `None` uses two convolutions with group
            normalization, which get the time as an additional channel.
        name, dtype, trainable: As in `keras.Model`.
        **ode: Arguments of `ODELayer`: `t`, `solver`, `rtol`, `atol`, `adjoint`, ...

    Input shape:
        `(batch, height, width, channels)`.

    Output shape:
        `(batch, num_classes)`.

    Example:

    >>> model = keras_ode.models.ODENet(num_classes=10, channels=16, rtol=1e-2)
    >>> model(tf.zeros([2, 28, 28, 1])).shape
    TensorShape([2, 10])

    Reference: Chen, Rubanova, Bettencourt, Duvenaud (2018), Neural Ordinary Differential Equations, NeurIPS.
    """

    def __init__(self, num_classes, channels=64, dynamics=None, name=None, dtype=None, trainable=True, **ode):
        super().__init__(name=name, dtype=dtype, trainable=trainable)
        num_classes, channels = int(num_classes), int(channels)
        policy, self.num_classes, self.channels = self.dtype_policy, num_classes, channels
        self.downsample = keras.Sequential([
            layers.Conv2D(channels, 3, strides=2, padding="same", activation="silu", dtype=policy),
            layers.Conv2D(channels, 3, strides=2, padding="same", dtype=policy),
            layers.GroupNormalization(_groups(channels), dtype=policy),
        ], name="downsample")
        dynamics = conv_dynamics(channels, policy) if dynamics is None else dynamics
        self.ode = ODELayer(dynamics, name="ode", dtype=policy, **ode)
        self.head = keras.Sequential([
            layers.Activation("silu", dtype=policy),
            layers.GlobalAveragePooling2D(dtype=policy),
            layers.Dense(num_classes, dtype=policy),
        ], name="head")

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
            **self.ode.get_options(),
        }

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "dynamics": keras.saving.deserialize_keras_object(config["dynamics"])})


def conv_dynamics(channels, dtype=None):
    """Returns a dynamics of feature maps: two convolutions of the maps and the time, with group normalization between them."""
    return TimeSequential([
        TimeConv2D(channels, 3, padding="same", dtype=dtype),
        layers.GroupNormalization(_groups(channels), dtype=dtype),
        layers.Activation("silu", dtype=dtype),
        TimeConv2D(channels, 3, padding="same", dtype=dtype),
    ], dtype=dtype)


def _groups(channels):
    """The largest number of groups, at most 32, that divides the channels."""
    return max(n for n in range(1, min(32, channels) + 1) if channels % n == 0)
