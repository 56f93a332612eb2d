"""Layers that take the time and the state, `layer(t, y)`: building blocks for a dynamics `f(t, y)`."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_ode.dynamics import build as build_layer
from keras_ode.signature import arguments_of, keywords_of, mask_of, takes_time, with_mask


class _TimeAsChannel:
    """Lets a Keras layer of one input take `(t, y)`, where the time is appended to `y` as a channel."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.input_spec = None  # Keras would hold it against the first argument, the time.

    def build(self, t_shape, y_shape):
        axis = self._channel_axis()
        super().build(tuple(n + 1 if i == axis % len(y_shape) else n for i, n in enumerate(y_shape)))
        self.input_spec = None

    def call(self, t, y):
        return super().call(append_time(t, y, self._channel_axis()))

    def compute_output_spec(self, t, y):
        return keras.KerasTensor(self.compute_output_shape(y.shape), self.compute_dtype)

    def _channel_axis(self):
        return 1 if getattr(self, "data_format", None) == "channels_first" else -1


@keras.saving.register_keras_serializable(package="keras_ode")
class TimeDense(_TimeAsChannel, keras.layers.Dense):
    """A `Dense` layer of the state and the time: `activation([y, t] kernel + bias)`.

    Args:
        units: The size of the output.
        activation: As in `keras.layers.Dense`, like all other arguments.

    Call arguments:
        t: The time, a scalar, or `[B, 1, ..., 1]`.
        y: The state.

    Input shape:
        `()` or `(batch, 1, ..., 1)` for `t`, and `(batch, ..., channels)` for `y`.

    Output shape:
        `(batch, ..., units)`.

    Example:

    >>> keras_ode.layers.TimeDense(16, activation="tanh")(tf.constant(0.5), tf.zeros([8, 2])).shape
    TensorShape([8, 16])
    """


@keras.saving.register_keras_serializable(package="keras_ode")
class TimeConv2D(_TimeAsChannel, keras.layers.Conv2D):
    """A `Conv2D` layer of the state and the time: the time is an additional input channel.

    Use `padding="same"` in a dynamics, so that the output has the height and width of the input.

    Args:
        filters: The number of output channels.
        kernel_size: The size of the convolution window.
        padding: As in `keras.layers.Conv2D`, like all other arguments.

    Call arguments:
        t: The time, a scalar, or `[B, 1, 1, 1]`.
        y: The state.

    Input shape:
        `()` or `(batch, 1, 1, 1)` for `t`, and `(batch, height, width, channels)` for `y`.

    Output shape:
        `(batch, new_height, new_width, filters)`, as in `keras.layers.Conv2D`.

    Example:

    >>> keras_ode.layers.TimeConv2D(16, 3, padding="same")(tf.constant(0.5), tf.zeros([8, 7, 7, 4])).shape
    TensorShape([8, 7, 7, 16])

    Reference: Chen, Rubanova, Bettencourt, Duvenaud (2018), Neural Ordinary Differential Equations, NeurIPS, whose code for
    MNIST appends the time to the channels.
    """


@keras.saving.register_keras_serializable(package="keras_ode")
class ConcatSquash(keras.Layer):
    """A dense layer with a gate and a shift that depend on the time: `activation((y W + b) * sigmoid(t w + c) + t v)`.

    Args:
        units: The size of the output.
        activation: A name or a function, as in `keras.layers.Dense`. Defaults to `None`, which applies no activation.
        **kwargs: Arguments of `keras.Layer`.

    Call arguments:
        t: The time, a scalar, or `[B, 1, ..., 1]`.
        y: The state.

    Input shape:
        `()` or `(batch, 1, ..., 1)` for `t`, and `(batch, ..., channels)` for `y`.

    Output shape:
        `(batch, ..., units)`.

    Example:

    >>> keras_ode.layers.ConcatSquash(16, activation="tanh")(tf.constant(0.5), tf.zeros([8, 2])).shape
    TensorShape([8, 16])

    Reference: Grathwohl, Chen, Bettencourt, Sutskever, Duvenaud (2019), FFJORD: free-form continuous dynamics for scalable
    reversible generative models, ICLR.
    """

    def __init__(self, units: int, activation: str | Callable[..., Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units, self.activation = units, keras.activations.get(activation)
        self.linear = keras.layers.Dense(units, dtype=self.dtype_policy)
        self.gate = keras.layers.Dense(units, activation="sigmoid", dtype=self.dtype_policy)
        self.shift = keras.layers.Dense(units, use_bias=False, dtype=self.dtype_policy)

    def build(self, t_shape, y_shape):
        self.linear.build(y_shape)
        self.gate.build((None, 1))
        self.shift.build((None, 1))

    def call(self, t, y):
        t = broadcastable(t, y)
        t = t if len(t.shape) else ops.reshape(t, [1] * len(y.shape))
        return self.activation(self.linear(y) * self.gate(t) + self.shift(t))

    def compute_output_spec(self, t, y):
        return keras.KerasTensor((*y.shape[:-1], self.units), self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "units": self.units, "activation": keras.activations.serialize(self.activation)}


@keras.saving.register_keras_serializable(package="keras_ode")
class TimeSequential(keras.Layer):
    """A stack of layers that forms a dynamics `f(t, y)`. Each layer receives the state, and also the time if it takes it.

    Args:
        layers: A list of Keras layers, `layer(t, y)` or `layer(y)`.
        **kwargs: Arguments of `keras.Layer`.

    Call arguments:
        t: The time, a scalar, or `[B, 1, ..., 1]`.
        y: The state.

    Input shape:
        `()` or `(batch, 1, ..., 1)` for `t`, and the input shape of the first layer for `y`.

    Output shape:
        The output shape of the last layer.

    Example:

    >>> dynamics = keras_ode.layers.TimeSequential([
    ...     keras_ode.layers.TimeDense(16, activation="tanh"),
    ...     keras_ode.layers.TimeDense(2),
    ... ])
    >>> keras_ode.ODELayer(dynamics)(tf.zeros([8, 2])).shape
    TensorShape([8, 2])
    """

    def __init__(self, layers: Sequence[keras.Layer], **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)  # The layers cast for themselves: half precision would round the time.
        for layer in layers:
            check_layer(layer)
        self.layers = list(layers)

    def build(self, t_shape, y_shape):
        t, y = keras.KerasTensor(t_shape, self.variable_dtype), keras.KerasTensor(y_shape, self.variable_dtype)
        for layer in self.layers:
            build_layer(layer, t, y)
            y = layer.compute_output_spec(*arguments_of(layer, t, y))

    def call(self, t, y, training=None):
        for layer in self.layers:
            y = call_layer(layer, t, y)
        return y

    def get_config(self):
        return {**super().get_config(), "layers": [keras.saving.serialize_keras_object(layer) for layer in self.layers]}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "layers": [keras.saving.deserialize_keras_object(layer) for layer in config["layers"]]})


def broadcastable(t, y):
    """Returns the time in the dtype of `y`: a scalar, or `[B, 1, ..., 1]` with as many axes as `y`."""
    t = ops.cast(t, y.dtype)
    return ops.reshape(t, (-1, *[1] * (len(y.shape) - 1))) if len(t.shape) else t


def append_time(t, y, axis=-1):
    """Returns `y` with the time appended as a channel."""
    shape = list(ops.shape(y))
    shape[axis] = 1
    return ops.concatenate([y, ops.broadcast_to(broadcastable(t, y), shape)], axis=axis)


def call_layer(layer, t, y):
    """Returns the layer's output with the mask of the state. Keras would attach the mask of the first argument, the time."""
    mask = mask_of(y)
    is_masked = not keras.tree.is_nested(y) and mask is not None
    output = layer(*arguments_of(layer, t, y), **(keywords_of(layer, mask=mask) if is_masked else {}))
    keeps = is_masked and layer.supports_masking and tf.is_tensor(output) and mask_of(output) is None
    return with_mask(output, mask) if keeps else output


def check_layer(layer):
    """Raises an error unless `layer` is a Keras layer, `layer(y)` or `layer(t, y)`."""
    if not isinstance(layer, keras.Layer):
        raise TypeError(f"Expected a Keras layer, layer(y) or layer(t, y). Received: {layer!r}")
    takes_time(layer)
