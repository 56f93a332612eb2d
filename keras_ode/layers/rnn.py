"""A recurrent network whose hidden state flows along an ODE between observations."""

import keras
import tensorflow as tf

from keras_ode import tree
from keras_ode.layers.ode import ODELayer


@keras.saving.register_keras_serializable(package="keras_ode")
class ODERNN(keras.Layer):
    """A recurrent layer for irregular times: the hidden state follows an ODE from one observation to the next.

    At each time where something is observed, the cell takes it in; where nothing is, the state only flows on.

    Args:
        cell: A cell of a Keras recurrent layer, such as `keras.layers.GRUCell(16)`. Of several states, the first flows.
        dynamics: The dynamics of the hidden state, a Keras layer `f(h)` or `f(t, h)` that keeps its shape.
        return_sequences: Whether to return the states after all times, or (the default) that after the last.
        go_backwards: Whether to begin with the last time and go back to the first, with sequences in that order. Defaults
            to `False`.
        name, dtype, trainable: As in `keras.Layer`.
        **ode: Arguments of `ODELayer`: `solver`, `rtol`, `atol`, `per_sample`, ... `per_sample=True` is needed where rows
            have their own times.

    Call arguments:
        x: The observations.
        t: Their times: strictly monotone, shape `[T]`; or with `per_sample=True`, `[B, T]`, where rows that have fewer
            are padded by repeating their last time, and masked there.
        mask: Where something was observed, bool `[B, T]`. Defaults to everywhere.

    Input shape:
        `(batch, T, features)`.

    Output shape:
        `(batch, units)`; with `return_sequences`, `(batch, T, units)`.

    Example:

    >>> layer = keras_ode.layers.ODERNN(keras.layers.GRUCell(8), keras.layers.Dense(8, activation="tanh"))
    >>> layer(tf.zeros([4, 3, 2]), t=tf.constant([0.0, 0.1, 0.7])).shape
    TensorShape([4, 8])

    Reference: Rubanova, Chen, Duvenaud (2019), Latent ODEs for irregularly-sampled time series, NeurIPS.
    """

    def __init__(
        self, cell, dynamics, return_sequences=False, go_backwards=False, name=None, dtype=None, trainable=True, **ode
    ):
        super().__init__(name=name, dtype=dtype, trainable=trainable, autocast=False)
        if not hasattr(cell, "state_size"):
            raise TypeError(f"cell must be a cell of a recurrent layer, such as keras.layers.GRUCell(16). Received: {cell!r}")
        self.cell, self.dynamics = cell, dynamics
        self.return_sequences, self.go_backwards = bool(return_sequences), bool(go_backwards)
        self.ode = ODELayer(dynamics, dtype=self.dtype_policy, **ode)
        self.supports_masking = True
        self._compiled = tf.function(self._states, autograph=False)

    def build(self, x_shape, t_shape=None, mask_shape=None):
        if not self.cell.built:
            self.cell.build((x_shape[0], x_shape[-1]))
        self.ode.build((x_shape[0], self._units()))

    def call(self, x, t, mask=None, training=None):
        x, t = tf.convert_to_tensor(x), tree.as_tensor(t)
        # Double precision is kept: times are subtracted before they are rounded.
        t = t if t.dtype == tf.float64 else tf.cast(t, self.variable_dtype)
        mask = tf.ones(tf.shape(x)[:2], bool) if mask is None else tf.cast(mask, bool)
        t = tf.transpose(t)
        x, mask = tf.transpose(x, [1, 0, 2]), tf.transpose(mask)
        if self.go_backwards:
            x, t, mask = (tf.reverse(sequence, axis=[0]) for sequence in (x, t, mask))
        # In eager code one traced loop serves all steps and calls.
        states = (self._compiled if tf.executing_eagerly() else self._states)(x, t, mask, training)
        return tf.transpose(states, [1, 0, 2]) if self.return_sequences else states[-1]

    def compute_output_shape(self, x_shape, t_shape=None, mask_shape=None):
        return (*(x_shape[:2] if self.return_sequences else x_shape[:1]), self._units())

    def get_config(self):
        return {
            **super().get_config(),
            "cell": keras.saving.serialize_keras_object(self.cell),
            "dynamics": keras.saving.serialize_keras_object(self.dynamics),
            "return_sequences": self.return_sequences,
            "go_backwards": self.go_backwards,
            **{name: value for name, value in self.ode.get_options().items() if name not in ("t", "return_sequences")},
        }

    @classmethod
    def from_config(cls, config):
        parts = {name: keras.saving.deserialize_keras_object(config[name]) for name in ("cell", "dynamics")}
        return cls(**{**config, **parts})

    def _states(self, x, t, mask, training):
        """The hidden states after all times, time first, like all sequences here: `[T, B, units]`."""
        start = self.cell.get_initial_state(batch_size=tf.shape(x)[1])
        first = self._observe(tf.nest.flatten(start), x[0], mask[0], training)

        def advance(states, step):
            before, now, x, mask = step
            flowed = self.ode(states[0], t=tf.stack([before, now], axis=-1))
            return self._observe([flowed, *states[1:]], x, mask, training)

        if x.shape[0] == 1:
            return first[0][None]
        later = tf.scan(advance, (t[:-1], t[1:], x[1:], mask[1:]), first)
        return tf.concat([first[0][None], later[0]], axis=0)

    def _observe(self, states, x, mask, training):
        """The states after the cell has seen an observation, in the rows where there is one."""
        x = tf.where(mask[:, None], x, tf.zeros_like(x))
        _, new = self.cell(x, states if len(states) > 1 else states[0], training=training)
        return [tf.where(mask[:, None], b, a) for a, b in zip(states, tf.nest.flatten(new), strict=True)]

    def _units(self):
        return tf.nest.flatten(self.cell.state_size)[0]
