"""Weights that vary with depth: residual blocks, and the dynamics of the differential equation that they discretize."""

import numbers
from collections.abc import Sequence
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from keras_ode import internals
from keras_ode.dynamics import build as build_layer
from keras_ode.layers.time import call_layer, check_layer
from keras_ode.signature import arguments_of, with_mask
from keras_ode.step_sizes import check_is_number


@keras.saving.register_keras_serializable(package="keras_ode")
class DepthVarying(keras.Layer):
    """A layer whose weights are functions of time, either piecewise constant or piecewise linear.

    The interval `t` is divided into equal pieces. Piecewise constant weights have one value for each piece, and piecewise
    linear weights have one value for each knot. Before and after the interval, the weights keep the values at its ends.

    A solver does not know the knots, so a step across a knot is less accurate than the tolerances require. Pass the knots to
    the layer that solves the equation, `ODELayer(dynamics, jump_times=dynamics.knots[1:-1])`, or use tighter tolerances. The
    effect is smaller for piecewise linear weights.

    Args:
        layer: A Keras layer `layer(y)` or `layer(t, y)`. Its own weights are the values of the first piece or knot. Copies of
            the layer hold the other values. Moving statistics are those of the layer itself at all times. Or a list of layers
            that hold the values of one piece or knot each.
        num_pieces: The number of pieces.
        t: The start and the end of the interval. Defaults to `(0.0, 1.0)`.
        kind: `"constant"` or `"linear"`. Defaults to `"constant"`.
        **kwargs: Arguments of `keras.Layer`.

    Call arguments:
        t: The time, a scalar, or `[B, 1, ..., 1]`. In the latter case every row has its own weights, and the layer is called
            for each row separately.
        y: The state.

    Input shape:
        `()` or `(batch, 1, ..., 1)` for `t`, and the input shape of `layer` for `y`.

    Output shape:
        The output shape of `layer`.

    Raises:
        ValueError: If `kind` is not one of its two values, if there is a list of layers of the wrong length, if `t` is not two
            increasing times, or if rows have times of their own and `layer` changes its state, as dropout and batch
            normalization do in training.

    Example:

    >>> dynamics = keras_ode.layers.DepthVarying(keras.layers.Dense(2, activation="tanh"), num_pieces=4)
    >>> keras_ode.ODELayer(dynamics)(tf.zeros([8, 2])).shape
    TensorShape([8, 2])

    Reference: Massaroli, Poli, Park, Yamashita, Asama (2020), Dissecting neural ODEs, NeurIPS, for piecewise constant weights.
    """

    def __init__(
        self,
        layer: keras.Layer | Sequence[keras.Layer],
        num_pieces: int,
        t: tuple[float, float] = (0.0, 1.0),
        kind: Literal["constant", "linear"] = "constant",
        **kwargs: Any,
    ) -> None:
        # Half precision would choose the weights of another time.
        super().__init__(autocast=False, **kwargs)
        if kind not in ("constant", "linear"):
            raise ValueError(f"kind must be 'constant' or 'linear'. Received: kind={kind!r}")
        self.t = tuple(float(x) for x in t)
        if len(self.t) != 2 or not np.all(np.isfinite(self.t)) or not self.t[0] < self.t[1]:
            raise ValueError(f"t must be two increasing times. Received: t={t!r}")
        self.num_pieces, self.kind = checked_count("num_pieces", num_pieces), kind
        self.knots = np.linspace(*self.t, self.num_pieces + 1)
        self.layers = copies(layer, self.num_pieces + (kind == "linear"))

    def build(self, t_shape, y_shape):
        build_all(self.layers, y_shape, self.compute_dtype)

    def call(self, t, y, training=None):
        if not len(t.shape):
            output, changes = self._at(t, y)
            for variable, value in changes:
                variable.assign(value)
            return ops.cast(output, self.compute_dtype)
        times = ops.reshape(t, (-1,))
        rows = ops.vectorized_map(lambda row: self._of_row(row[0], row[1][None]), (times, y))
        return ops.cast(rows, self.compute_dtype)

    def compute_output_shape(self, t_shape, y_shape):
        y = keras.KerasTensor(y_shape, self.compute_dtype)
        return self.layers[0].compute_output_spec(*arguments_of(self.layers[0], _scalar(self.compute_dtype), y)).shape

    def get_config(self):
        return {
            **super().get_config(),
            "layer": described(self.layers),
            "num_pieces": self.num_pieces,
            "t": self.t,
            "kind": self.kind,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "layer": keras.saving.deserialize_keras_object(config["layer"])})

    def _of_row(self, t, y):
        output, changes = self._at(t, y)
        if changes:
            raise ValueError(
                f"The layer '{self.layers[0].name}' changes its state, as dropout and batch normalization do, but with times for "
                "each row (per_sample=True) DepthVarying calls it for one row after the other: use a time for all rows. Received: "
                f"changes of {[getattr(v, 'path', v.name) for v, _ in changes]}"
            )
        return output[0]

    def _at(self, t, y):
        """Returns the layer's output with its weights at the time `t`, and what it assigns: pairs of variables and values."""
        shares, layer, mapping = self._shares(t), self.layers[0], []
        trained = internals.ids_of_trained(layer)
        for values in zip(*(layer.variables for layer in self.layers), strict=True):
            value = ops.convert_to_tensor(values[0])
            if id(values[0]) in trained:
                value = sum((s * ops.convert_to_tensor(v) for s, v in zip(shares[1:], values[1:], strict=True)), shares[0] * value)
            mapping.append((values[0], value))
        with keras.StatelessScope(state_mapping=mapping) as scope:
            before = [scope.get_current_value(v) for v, _ in mapping]
            output = call_layer(layer, t, y)
            after = [(v, scope.get_current_value(v)) for v, _ in mapping]
        return output, [(v, x) for (v, x), old in zip(after, before, strict=True) if x is not old]

    def _shares(self, t):
        """Returns the coefficient of each layer's weights at the time `t`: a list of scalars that sum to one."""
        t = ops.cast(t, self.variable_dtype)
        numbers = range(len(self.layers))
        if self.kind == "linear":
            start, end = self.t
            place = ops.clip((t - start) * (self.num_pieces / (end - start)), 0, self.num_pieces)
            return [ops.relu(1 - ops.abs(place - n)) for n in numbers]
        passed = ops.cast(t >= ops.convert_to_tensor(self.knots[1:-1], t.dtype), "int32")
        return [ops.cast(ops.equal(ops.sum(passed), n), t.dtype) for n in numbers]


@keras.saving.register_keras_serializable(package="keras_ode")
class ResidualBlocks(keras.Layer):
    """Residual blocks `h <- h + f(h)`, or `h <- h + f(n, h)` in block `n = 0, 1, ...`.

    With a `step_size`, each block computes `h <- h + step_size * f(h)`. These blocks are steps of Euler's method. With shared
    weights, they compute the same as `ODELayer(f, t=(0, num_blocks), solver="euler", step_size=1)`. With separate weights, they
    compute the same as this `ODELayer` with the dynamics `DepthVarying(f, num_blocks, t=(0, num_blocks))`.

    Args:
        layer: A Keras layer `f(h)` or `f(t, h)` that keeps the shape, or a list of one for each block.
        num_blocks: The number of blocks.
        shared: Whether all blocks have the same weights. Otherwise `layer` is the first block, and the other blocks are copies
            of it with their own weights. Defaults to `False`.
        step_size: The number by which `f` is multiplied. Defaults to `1.0`.
        **kwargs: Arguments of `keras.Layer`.

    Input shape:
        The input shape of `layer`.

    Output shape:
        The same as the input shape.

    Raises:
        ValueError: If there is a list of layers of the wrong length.

    Example:

    >>> blocks = keras_ode.layers.ResidualBlocks(keras.layers.Dense(2, activation="tanh"), num_blocks=6)
    >>> blocks(tf.zeros([8, 2])).shape, len(blocks.weights)
    (TensorShape([8, 2]), 12)

    Reference: He, Zhang, Ren, Sun (2016), Deep residual learning for image recognition, CVPR.
    """

    def __init__(
        self,
        layer: keras.Layer | Sequence[keras.Layer],
        num_blocks: int,
        shared: bool = False,
        step_size: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_is_number(step_size)
        self.step_size = float(step_size)
        self.num_blocks, self.shared = checked_count("num_blocks", num_blocks), bool(shared)
        self.supports_masking = True
        self.layers = copies(layer, 1 if shared else self.num_blocks)

    def build(self, y_shape):
        build_all(self.layers, y_shape, self.compute_dtype)

    def call(self, y, training=None, mask=None):
        for n in range(self.num_blocks):
            y = y if mask is None else with_mask(y, mask)
            change = ops.cast(call_layer(self.layers[0 if self.shared else n], ops.cast(n, y.dtype), y), y.dtype)
            y = y + (change if self.step_size == 1 else self.step_size * change)
        return y

    def compute_output_shape(self, y_shape):
        return y_shape

    def get_config(self):
        return {
            **super().get_config(),
            "layer": described(self.layers),
            "num_blocks": self.num_blocks,
            "shared": self.shared,
            "step_size": self.step_size,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "layer": keras.saving.deserialize_keras_object(config["layer"])})


def copies(layer, count):
    """Returns a list of the layer and `count - 1` copies of it, which have their own weights; a list of layers as it is."""
    if not isinstance(layer, (list, tuple)):
        check_layer(layer)
        return [layer, *(type(layer).from_config(reseeded(layer.get_config(), n)) for n in range(1, count))]
    for each in layer:
        check_layer(each)
    if len(layer) != count:
        raise ValueError(f"A list of layers must have {count} of them here. Received: {len(layer)} layers, {layer!r}")
    return list(layer)


def described(layers):
    """Returns the configuration of a list of layers, each of which may be frozen on its own; of one layer that of itself."""
    return keras.saving.serialize_keras_object(list(layers) if len(layers) > 1 else layers[0])


def reseeded(config, number):
    """Returns a configuration whose seeds are larger by a number: copies should neither start nor drop units alike."""
    if isinstance(config, dict):
        return {name: _next(value, number) if name == "seed" else reseeded(value, number) for name, value in config.items()}
    return [reseeded(value, number) for value in config] if isinstance(config, list) else config


def _next(seed, number):
    return seed + number if isinstance(seed, int) else reseeded(seed, number)


def build_all(layers, y_shape, dtype):
    for layer in layers:
        build_layer(layer, _scalar(dtype), keras.KerasTensor(y_shape, dtype))


def _scalar(dtype):
    return keras.KerasTensor((), dtype)


def checked_count(name, count):
    if not isinstance(count, numbers.Integral) or isinstance(count, bool) or count < 1:
        raise ValueError(f"{name} must be a positive whole number. Received: {name}={count!r}")
    return int(count)
