"""Neural controlled differential equations: a continuous recurrent network, driven by a path through irregular observations."""

from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_ode import paths, tree
from keras_ode.dynamics import build as build_layer
from keras_ode.layers.checks import times_in_order
from keras_ode.layers.ode import ODELayer
from keras_ode.layers.time import check_layer

_INTERPOLATIONS = ("hermite", "natural", "linear")


@keras.saving.register_keras_serializable(package="keras_ode")
class NeuralCDE(keras.Layer):
    """A neural controlled differential equation, `dz = f(z) dX`, along the path X through a series of observations.

    X interpolates the observations of each channel, and the last channel of X is the time. The times of a series may therefore
    be irregular, every series of a batch may have its own times, and values may be missing (pass them as NaN). The hidden state
    starts at `g`, a function of the first values. Because the time is a channel, the solution does not depend on how the path
    is parametrized. The layer uses the index of the observation as the parameter, so one solve is enough for all rows of a
    batch.

    Args:
        dynamics: A Keras layer `f(z)` that maps the hidden state `[batch, units]` to a matrix for each row, as a vector
            `[batch, units * (channels + 1)]`. It should end with `"tanh"`, as in the paper, so that `f` is bounded.
        units: The size of the hidden state.
        initial: A Keras layer `g` that maps the first values and the first time, `[batch, channels + 1]`, to the hidden state
            `[batch, units]`. If the first value of a channel is missing, the channel's first observed value is used. Defaults
            to a `Dense` layer.
        interpolation: How the observations are interpolated. `"hermite"` (the default) uses cubic polynomials that look ahead
            by at most one observation. `"natural"` is the natural cubic spline, which uses the whole series. With `"linear"`, a
            step of the solver ends at each observation.
        observed: Whether to add to each channel a second one, the number of the channel's observations so far. Use it if the
            fact that something was observed is itself informative. The matrices then have `2 * channels + 1` columns.
            Defaults to `False`.
        return_sequences: Whether to return the hidden states at all times, or only at the last time (the default).
        name, dtype, trainable: As in `keras.Layer`.
        **ode: Arguments of `ODELayer`, without `t`: `solver`, `rtol`, `atol`, `adjoint`, ...

    Call arguments:
        x: The observations, with NaN where a value is missing. Every channel of every series needs at least one observation.
            Pad shorter series with NaN.
        t: The increasing times of the observations, `[T]` or `[B, T]`. If a row has fewer times, pad it by repeating its last
            time. Defaults to `0, 1, ..., T - 1`.

    Input shape:
        `(batch, T, channels)`.

    Output shape:
        `(batch, units)`, or `(batch, T, units)` with `return_sequences`.

    Raises:
        ValueError: If the dynamics does not return `units * (channels + 1)` numbers for each row, if the times decrease, or if
            they are so far from zero that the layer's dtype cannot tell them apart. In a graph that learns the times only when
            it runs, the output is NaN where they decrease.

    Example:

    >>> dynamics = keras.Sequential([keras.layers.Dense(16, activation="tanh"), keras.layers.Dense(8 * 3, activation="tanh")])
    >>> layer = keras_ode.layers.NeuralCDE(dynamics, units=8)
    >>> series = tf.constant([[[0.0, 1.0], [1.0, np.nan], [0.5, 0.0]]])
    >>> layer(series, t=tf.constant([0.0, 0.1, 0.7])).shape
    TensorShape([1, 8])

    Reference: Kidger, Morrill, Foster, Lyons (2020), Neural controlled differential equations for irregular time series,
    NeurIPS.
    """

    def __init__(
        self,
        dynamics: keras.Layer,
        units: int,
        initial: keras.Layer | None = None,
        interpolation: Literal["hermite", "natural", "linear"] = "hermite",
        observed: bool = False,
        return_sequences: bool = False,
        name: str | None = None,
        dtype: "str | keras.DTypePolicy | None" = None,
        trainable: bool = True,
        **ode: Any,
    ) -> None:
        super().__init__(name=name, dtype=dtype, trainable=trainable, autocast=False)
        check_layer(dynamics)
        if interpolation not in _INTERPOLATIONS:
            raise ValueError(f"interpolation must be one of {_INTERPOLATIONS}. Received: interpolation={interpolation!r}")
        if "t" in ode:
            raise ValueError(f"Pass the times in the call, layer(x, t=times). Received: t={ode['t']!r}")
        self.dynamics, self.units, self.interpolation = dynamics, int(units), interpolation
        self.initial = keras.layers.Dense(self.units, dtype=self.dtype_policy) if initial is None else initial
        self.observed, self.return_sequences = bool(observed), bool(return_sequences)
        # States and paths keep the precision of the variables; the layers inside cast their own copies.
        self.ode = ODELayer(
            ControlledDynamics(dynamics, self.units, dtype=self.variable_dtype),
            dtype=self.variable_dtype,
            **{**ode, "return_sequences": self.return_sequences},
        )

    def build(self, x_shape, t_shape=None):
        channels = x_shape[-1] * (2 if self.observed else 1) + 1
        if not self.initial.built:
            self.initial(keras.KerasTensor((x_shape[0], channels), self.variable_dtype))
        state = keras.KerasTensor((x_shape[0], self.units), self.variable_dtype)
        build_layer(self.dynamics, keras.KerasTensor((), self.variable_dtype), state)
        size, wanted = self.dynamics.compute_output_spec(state).shape[-1], self.units * channels
        if size != wanted:
            raise ValueError(
                "The dynamics must return units * channels numbers for each row, where the time is a channel too: "
                f"{self.units} * {channels} = {wanted} here. Received: a dynamics '{self.dynamics.name}' that returns {size}"
            )
        self.ode.dynamics.built = self.ode.built = True

    def call(self, x, t=None, training=None):
        x = tf.cast(tree.as_tensor(x), self.variable_dtype)
        values = self._with_time(x, t)
        count = x.shape[1] if x.shape[1] is not None else tf.shape(x)[1]
        knots = tf.cast(tf.range(count), x.dtype)
        is_linear = self.interpolation == "linear"
        path = paths.LinearPath(knots, values) if is_linear else paths.CubicPath(knots, values, self.interpolation)
        start = tf.cast(self.initial(path.evaluate(knots[0])), self.variable_dtype)
        times = knots if self.return_sequences else tf.stack([knots[0], knots[-1]])
        # The derivative of a linear path jumps at the observations.
        jumps = {"jump_times": knots[1:-1]} if is_linear and count != 2 else {}
        states = self.ode(start, t=times, args=(path,), training=training, **jumps)
        return tf.cast(states, self.compute_dtype)

    def _with_time(self, x, t):
        """Returns the channels of the path: the observations, their counts so far if `observed`, and the times."""
        parts = [x]
        if self.observed:
            parts.append(tf.cumsum(tf.cast(~tf.math.is_nan(x), x.dtype), axis=1))
        t = tf.cast(tf.range(tf.shape(x)[1]), x.dtype) if t is None else _checked_times(t, x.dtype)
        t = tf.broadcast_to(t if t.shape.rank == 2 else t[None], tf.shape(x)[:2])
        return tf.concat([*parts, t[..., None]], axis=-1)

    def compute_output_shape(self, x_shape, t_shape=None):
        return (*x_shape[:2], self.units) if self.return_sequences else (x_shape[0], self.units)

    def get_config(self):
        return {
            **super().get_config(),
            "dynamics": keras.saving.serialize_keras_object(self.dynamics),
            "units": self.units,
            "initial": keras.saving.serialize_keras_object(self.initial),
            "interpolation": self.interpolation,
            "observed": self.observed,
            "return_sequences": self.return_sequences,
            **{name: value for name, value in self.ode.get_options().items() if name not in ("t", "return_sequences")},
        }

    @classmethod
    def from_config(cls, config):
        parts = {name: keras.saving.deserialize_keras_object(config[name]) for name in ("dynamics", "initial")}
        return cls(**{**config, **parts})


def _checked_times(t, dtype):
    """Returns increasing times in the dtype of the path, unless some of those that are known become equal."""
    t = tree.as_tensor(t)
    t = times_in_order(t if t.dtype.is_floating else tf.cast(t, tf.float64), increasing=True)
    known = tf.get_static_value(t)
    if known is not None and np.any((np.diff(known) > 0) & (np.diff(known.astype(dtype.as_numpy_dtype)) == 0)):
        raise ValueError(
            f"The time is a channel of the path, in {dtype.name}, which cannot tell some of these times apart: count them from a "
            f"time nearby, such as the first one. Received: t={known!r}"
        )
    return tf.cast(t, dtype)


@keras.saving.register_keras_serializable(package="keras_ode")
class ControlledDynamics(keras.Layer):
    """The dynamics `f(z) X'(t)`. Half precision cannot resolve the times of a path, so this layer casts nothing."""

    def __init__(self, dynamics, units, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.dynamics, self.units = dynamics, units

    def call(self, t, z, path, training=None):  # Keras passes `training` on to the dynamics
        slope = path.derivative(t)  # [B, channels]
        matrices = tf.cast(self.dynamics(z), z.dtype)
        return ops.matmul(ops.reshape(matrices, (-1, self.units, slope.shape[-1])), slope[..., None])[..., 0]

    def get_config(self):
        return {
            **super().get_config(), "dynamics": keras.saving.serialize_keras_object(self.dynamics), "units": self.units
        }

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "dynamics": keras.saving.deserialize_keras_object(config["dynamics"])})
