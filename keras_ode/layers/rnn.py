"""A recurrent network whose hidden state flows along an ODE between observations."""

import keras
import tensorflow as tf
from keras import ops

from keras_ode import tree
from keras_ode.layers.ode import ODELayer
from keras_ode.signature import mask_of


@keras.saving.register_keras_serializable(package="keras_ode")
class ODERNN(keras.Layer):
    """A recurrent layer for irregular times: the hidden state follows an ODE from one observation to the next.

    At each time where something is observed, the cell takes it in; where nothing is, the state only flows on. So states at
    times of your own are those of a sequence that has these times too, masked.

    Args:
        cell: A cell of a Keras recurrent layer, such as `keras.layers.GRUCell(16)`. Of several states, the first flows.
        dynamics: The dynamics of the hidden state, a Keras layer `f(h)` or `f(t, h)` that keeps its shape.
        return_sequences: Whether to return the states after all times, or (the default) that after the last.
        return_before: Whether to return the states right before each observation, which predict it, in place of those right
            after. Defaults to `False`.
        return_state: Whether to return the cell's last states too, `(output, *states)`, to go on from. Defaults to `False`.
        go_backwards: Whether to begin with the last time and go back to the first, with sequences in that order. Defaults
            to `False`.
        t: The times of the observations, where all series have the same: for layers such as `keras.layers.Bidirectional` that
            cannot pass them. Defaults to `None`: they come with the call.
        name, dtype, trainable: As in `keras.Layer`.
        **ode: Arguments of `ODELayer`: `solver`, `rtol`, `atol`, `per_sample`, ... `per_sample=True` is needed where rows
            have their own times.

    Call arguments:
        x: The observations.
        t: Their times: strictly monotone, shape `[T]`; or with `per_sample=True`, `[B, T]`, where rows that have fewer
            are padded by repeating their last time, and masked there. Defaults to the layer's.
        mask: Where something was observed, bool `[B, T]`. Defaults to the mask that Keras sends with `x`, as after `Masking`,
            or else to everywhere.
        initial_state: The cell's states right before the first observation: `[B, units]`, or a list where the cell has
            several. Defaults to the cell's own.

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
        self,
        cell,
        dynamics,
        return_sequences=False,
        return_before=False,
        return_state=False,
        go_backwards=False,
        t=None,
        name=None,
        dtype=None,
        trainable=True,
        **ode,
    ):
        super().__init__(name=name, dtype=dtype, trainable=trainable, autocast=False)
        if not hasattr(cell, "state_size"):
            raise TypeError(f"cell must be a cell of a recurrent layer, such as keras.layers.GRUCell(16). Received: {cell!r}")
        self.cell, self.dynamics = cell, dynamics
        self.return_sequences, self.go_backwards = bool(return_sequences), bool(go_backwards)
        self.return_before = bool(return_before)
        self.return_state, self.stateful = bool(return_state), False  # Keras' wrappers ask for both
        # States keep the precision of the variables; cell and dynamics cast their own copies.
        self.ode = ODELayer(dynamics, dtype=self.variable_dtype, **ode, **({} if t is None else {"t": t}))
        self.t = None if t is None else self.ode.t
        self.supports_masking = True
        self._compiled = tf.function(self._states, autograph=False)

    def build(self, x_shape, t_shape=None, mask_shape=None, initial_state_shape=None):
        if not self.cell.built:
            self.cell.build((x_shape[0], x_shape[-1]))
        self.ode.build((x_shape[0], self._sizes()[0]))

    def call(self, x, t=None, mask=None, training=None, initial_state=None):
        mask = mask_of(x) if mask is None else mask
        x, t = tf.convert_to_tensor(x), self._checked_times(t, x)
        mask = tf.ones(tf.shape(x)[:2], bool) if mask is None else tf.cast(mask, bool)
        start = self._start(initial_state, x)
        t = tf.transpose(t)
        x, mask = tf.transpose(x, [1, 0, 2]), tf.transpose(mask)
        if self.go_backwards:
            x, t, mask = (tf.reverse(sequence, axis=[0]) for sequence in (x, t, mask))
        # In eager code one traced loop serves all steps and calls.
        compute = self._compiled if tf.executing_eagerly() else self._states
        hidden, last = compute(x, t, mask, training, start)
        output = tf.transpose(hidden, [1, 0, 2]) if self.return_sequences else hidden[-1]
        output, *last = (tf.cast(state, self.compute_dtype) for state in (output, *last))
        return (output, *last) if self.return_state else output

    def compute_output_shape(self, x_shape, t_shape=None, mask_shape=None, initial_state_shape=None):
        sizes = self._sizes()
        output = (*(x_shape[:2] if self.return_sequences else x_shape[:1]), sizes[0])
        return (output, *((x_shape[0], size) for size in sizes)) if self.return_state else output

    def compute_mask(self, x, previous_mask):
        mask = previous_mask if self.return_sequences else None
        if mask is not None and self.go_backwards:
            mask = ops.flip(mask, axis=1)
        return (mask, *(None for _ in self._sizes())) if self.return_state else mask

    def get_config(self):
        return {
            **super().get_config(),
            "cell": keras.saving.serialize_keras_object(self.cell),
            "dynamics": keras.saving.serialize_keras_object(self.dynamics),
            "return_sequences": self.return_sequences,
            "return_before": self.return_before,
            "return_state": self.return_state,
            "go_backwards": self.go_backwards,
            "t": self.t,
            **{name: value for name, value in self.ode.get_options().items() if name not in ("t", "return_sequences")},
        }

    @classmethod
    def from_config(cls, config):
        parts = {name: keras.saving.deserialize_keras_object(config[name]) for name in ("cell", "dynamics")}
        return cls(**{**config, **parts})

    def _states(self, x, t, mask, training, start):
        """The hidden states at all times, time first, like all sequences here, `[T, B, units]`; and the last of all states."""
        first = self._observe(start, x[0], mask[0], training)
        shown = (start if self.return_before else first)[0][None]

        def advance(carry, step):
            states, _ = carry
            before, now, x, mask = step
            flowed = self.ode(states[0], t=tf.stack([before, now], axis=-1))
            return self._observe([flowed, *states[1:]], x, mask, training), flowed

        if x.shape[0] == 1:
            return shown, first
        states, flowed = tf.scan(advance, (t[:-1], t[1:], x[1:], mask[1:]), (first, first[0]))
        return tf.concat([shown, flowed if self.return_before else states[0]], axis=0), [state[-1] for state in states]

    def _observe(self, states, x, mask, training):
        """The states after the cell has seen an observation, in the rows where there is one."""
        x = tf.where(mask[:, None], x, tf.zeros_like(x))
        _, new = self.cell(x, states if len(states) > 1 else states[0], training=training)
        return [tf.where(mask[:, None], tf.cast(b, a.dtype), a) for a, b in zip(states, tf.nest.flatten(new), strict=True)]

    def _start(self, initial_state, x):
        """The states before the first observation."""
        if initial_state is None:
            initial_state = self.cell.get_initial_state(batch_size=tf.shape(x)[0])
        states = tf.nest.flatten(initial_state)
        if len(states) != len(self._sizes()):
            raise ValueError(
                f"initial_state must have as many parts as the cell has states, {len(self._sizes())}. Received: {len(states)}"
            )
        return [tf.cast(state, self.variable_dtype) for state in states]

    def _checked_times(self, t, x):
        if t is None and self.t is None:
            raise ValueError("ODERNN needs the times of the observations: call layer(x, t=times), or make ODERNN(..., t=times).")
        t = tree.as_tensor(self.t if t is None else t)
        # Double precision is kept: times are subtracted before they are rounded.
        t = t if t.dtype == tf.float64 else tf.cast(t, self.variable_dtype)
        if None not in (t.shape[-1], x.shape[1]) and t.shape[-1] != x.shape[1]:
            raise ValueError(f"There must be one time for each observation. Received: {t.shape[-1]} times for x of shape {x.shape}")
        return t

    def _sizes(self):
        return tf.nest.flatten(self.cell.state_size)
