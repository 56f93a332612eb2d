"""A recurrent layer whose hidden state follows an ODE between observations."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_ode import internals, tree
from keras_ode.configurable import Configurable
from keras_ode.exports import standard_where_exported
from keras_ode.graphs import traced
from keras_ode.layers.checks import times_in_order
from keras_ode.layers.ode import ODELayer
from keras_ode.recent import Recent
from keras_ode.signature import mask_of
from keras_ode.typing import Tensors, TensorsLike, Times

# By which part rounding may change what lies between two times in an exported graph: far less than the tolerances of solves.
_ROUNDED = 1e-5
# What a layer is set to by, and a trace knows as a constant.
_SETTINGS = (bool, int, float, str, type(None), Configurable)


@keras.saving.register_keras_serializable(package="keras_ode")
class ODERNN(keras.Layer):
    """A recurrent layer for irregular times: the hidden state follows an ODE from one observation to the next.

    At the time of each observation, the cell updates the state. At a masked time, the state is not updated and continues to
    follow the ODE. Use `output_times` to get states at other times.

    Args:
        cell: A cell of a Keras recurrent layer, such as `keras.layers.GRUCell(16)`. If the cell has several states, the first
            one follows the ODE.
        dynamics: The dynamics of the hidden state, a Keras layer `f(h)` or `f(t, h)` that keeps its shape.
        return_sequences: Whether to return the states at all times, or only the state at the last time (the default).
        return_before: Whether to return the states right before each observation, from which you can predict it, instead of
            the states right after it. Defaults to `False`.
        return_state: Whether to return the last states of the cell too, as `(output, *states)`, so that you can continue from
            them. Defaults to `False`.
        go_backwards: Whether to process the sequence from the last time to the first, and return sequences in that order.
            Defaults to `False`.
        t: The times of the observations, if they are the same for all series. Use it inside layers that cannot pass times,
            such as `keras.layers.Bidirectional`. Defaults to `None`: pass the times in the call.
        output_times: The times at which the states are returned, if they are the same for all series: see the call argument.
        name, dtype, trainable: As in `keras.Layer`.
        **ode: Arguments of `ODELayer`: `solver`, `rtol`, `atol`, `per_sample`, ... Use `per_sample=True` if each row has its
            own times.

    Call arguments:
        x: The observations.
        t: The times of the observations, strictly increasing or decreasing, shape `[T]`, or `[B, T]` with `per_sample=True`.
            If a row has fewer times, pad it by repeating its last time, and mask the padding. Defaults to the times of the
            layer.
        mask: Which times have an observation, bool `[B, T]`. Defaults to the mask that Keras attaches to `x`, for example after
            `Masking`. Without a mask, every time has an observation.
        initial_state: The states of the cell right before the first observation: `[B, units]`, or a list if the cell has
            several. Defaults to the initial state of the cell.
        output_times: The times at which the states are returned, instead of the times of the observations: `[K]`, or `[B, K]`
            with `per_sample=True`. They are strictly monotone in the direction of `t`, and none lies before the first
            observation. At the time of an observation, the state right after it is returned, or the state right before it
            with `return_before`. `return_state` returns the states at the last of all times, whether it is an output time or
            the time of an observation. Defaults to the output times of the layer.

    Input shape:
        `(batch, T, features)`.

    Output shape:
        `(batch, units)`. With `return_sequences`, `(batch, T, units)`, or `(batch, K, units)` if there are `output_times`.

    Raises:
        TypeError: If `cell` is not a cell of a recurrent layer.
        ValueError: If `cell` is a stack of cells, if there is a `regularizer`, whose penalties cannot leave the loop over the
            observations, if the times do not fit the observations or are not in order, or if `output_times` are not monotone or
            begin too early. In a graph that learns the times only when it runs, such states are NaN instead.

    Example:

    >>> layer = keras_ode.layers.ODERNN(keras.layers.GRUCell(8), keras.layers.Dense(8, activation="tanh"))
    >>> layer(tf.zeros([4, 3, 2]), t=tf.constant([0.0, 0.1, 0.7])).shape
    TensorShape([4, 8])

    Reference: Rubanova, Chen, Duvenaud (2019), Latent ODEs for irregularly-sampled time series, NeurIPS.
    """

    def __init__(
        self,
        cell: keras.Layer,
        dynamics: keras.Layer,
        return_sequences: bool = False,
        return_before: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        t: Times | None = None,
        output_times: Times | None = None,
        name: str | None = None,
        dtype: "str | keras.DTypePolicy | None" = None,
        trainable: bool = True,
        **ode: Any,
    ) -> None:
        super().__init__(name=name, dtype=dtype, trainable=trainable, autocast=False)
        if not hasattr(cell, "state_size"):
            raise TypeError(f"cell must be a cell of a recurrent layer, such as keras.layers.GRUCell(16). Received: {cell!r}")
        if hasattr(cell, "cells"):
            raise ValueError(f"cell must be a single cell: stack ODERNN layers instead of their cells. Received: {cell!r}")
        self.cell, self.dynamics = cell, dynamics
        self.return_sequences, self.go_backwards = bool(return_sequences), bool(go_backwards)
        self.return_before = bool(return_before)
        self.return_state, self.stateful = bool(return_state), False  # Keras' wrappers ask for both
        # States keep the precision of the variables; cell and dynamics cast their own copies.
        times: dict[str, Any] = {} if t is None else {"t": t}
        self.ode = ODELayer(dynamics, dtype=self.variable_dtype, **ode, **times)
        if self.ode.random_end_time is not None:
            raise ValueError(f"The times of ODERNN are those of its observations, so none can be random. Received: t={t!r}")
        if self.ode.regularizers:
            raise ValueError(
                "ODERNN takes no regularizer, since penalties cannot leave the loop over the observations. Received: "
                f"regularizer={ode['regularizer']!r}"
            )
        self.t = None if t is None else self.ode.t
        self.output_times = None if output_times is None else _checked_output_times(output_times)
        self.supports_masking = True
        self._compiled = Recent(8)

    def __call__(self, x: TensorsLike, *args: Any, output_times: Times | None = None, **kwargs: Any) -> Tensors:
        # Keras knows the shapes of arrays, but not of lists.
        if isinstance(output_times, (list, tuple)) and not tree.holds_tensors(output_times):
            output_times = np.asarray(output_times)
        return super().__call__(x, *args, **kwargs, **({} if output_times is None else {"output_times": output_times}))

    def build(self, x_shape, t_shape=None, mask_shape=None, initial_state_shape=None, output_times_shape=None):
        if not self.cell.built:
            self.cell.build((x_shape[0], x_shape[-1]))
        self.ode.build((x_shape[0], self._sizes()[0]))

    def call(self, x, t=None, mask=None, training=None, initial_state=None, output_times=None):
        with standard_where_exported():
            return self._outputs(x, t, mask, training, initial_state, output_times)

    def _outputs(self, x, t, mask, training, initial_state, output_times):
        mask = given_mask = mask_of(x) if mask is None else mask
        x, t = tf.convert_to_tensor(x), self._checked_times(t, x)
        outputs = self.output_times if output_times is None else output_times
        outputs = None if outputs is None else self._as_times(outputs)
        mask = tf.ones(tf.shape(x)[:2], bool) if mask is None else tf.cast(mask, bool)
        start = self._start(initial_state, x)
        if self.go_backwards:
            x, mask = (tf.reverse(sequence, axis=[1]) for sequence in (x, mask))
            t, outputs = (None if times is None else tf.reverse(times, axis=[-1]) for times in (t, outputs))
        slots = None
        if outputs is not None:
            x, t, mask, slots, fine = merged(x, t, mask, outputs, self.return_before, self.ode.per_sample)
        # In eager code one traced loop serves all steps, and all calls until a setting of a layer changes.
        compute = self._compiled.get(_settings(self), lambda: traced(self._states)) if tf.executing_eagerly() else self._states
        hidden, last = compute(tf.transpose(x, [1, 0, 2]), tf.transpose(t), tf.transpose(mask), training, start)
        hidden = tf.transpose(hidden, [1, 0, 2])
        if slots is not None:
            hidden = tf.gather(hidden, slots, axis=1, batch_dims=slots.shape.rank - 1)
            hidden = tree.select(fine[..., None], hidden, tf.constant(np.nan, hidden.dtype))
        output = hidden if self.return_sequences else hidden[:, -1]
        output, *last = (tf.cast(state, self.compute_dtype) for state in (output, *last))
        if slots is not None and self.return_sequences and given_mask is not None:
            internals.set_mask(output, tf.ones(tf.shape(output)[:2], bool))
        return (output, *last) if self.return_state else output

    def compute_output_shape(
        self, x_shape, t_shape=None, mask_shape=None, initial_state_shape=None, output_times_shape=None
    ):
        sizes, length = self._sizes(), x_shape[1]
        if output_times_shape is not None or self.output_times is not None:
            length = len(self.output_times) if output_times_shape is None else output_times_shape[-1]
        output = (x_shape[0], length, sizes[0]) if self.return_sequences else (x_shape[0], sizes[0])
        return (output, *((x_shape[0], size) for size in sizes)) if self.return_state else output

    def compute_output_spec(self, x, *args, output_times=None, **kwargs):
        specs = super().compute_output_spec(
            x, *args, **kwargs, **({} if output_times is None else {"output_times": output_times})
        )
        if self.return_sequences and (output_times is not None or self.output_times is not None) and mask_of(x) is not None:
            output = specs[0] if self.return_state else specs
            internals.set_mask(output, keras.KerasTensor(output.shape[:2], "bool"))
        return specs

    def compute_mask(self, x, previous_mask):
        mask = previous_mask if self.return_sequences and self.output_times is None else None
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
            "output_times": self.output_times,
            **{name: value for name, value in self.ode.get_options().items() if name not in ("t", "return_sequences")},
        }

    @classmethod
    def from_config(cls, config):
        parts = {name: keras.saving.deserialize_keras_object(config[name]) for name in ("cell", "dynamics")}
        return cls(**{**config, **parts})

    def _states(self, x, t, mask, training, start):
        """Returns the hidden states at all times, `[T, B, units]` (time first, like all sequences here), and the last states."""
        _draw_dropout_anew(self.cell)
        first = self._observe(start, x[0], mask[0], training)
        shown = (start if self.return_before else first)[0][None]

        def advance(carry, step):
            states, _ = carry
            before, now, x, mask = step
            flowed = self.ode(states[0], t=tf.stack([before, now], axis=-1))
            return self._observe([flowed, *states[1:]], x, mask, training), flowed

        if x.shape[0] == 1:
            return shown, first
        states, flowed = _scan(advance, (t[:-1], t[1:], x[1:], mask[1:]), (first, first[0]))
        _draw_dropout_anew(self.cell)  # its masks are tensors of this graph
        return tf.concat([shown, flowed if self.return_before else states[0]], axis=0), [state[-1] for state in states]

    def _observe(self, states, x, mask, training):
        """Returns the states after the cell has processed an observation, in the rows that have one."""
        x = tree.select(mask[:, None], x, tf.zeros_like(x))
        _, new = self.cell(x, states if len(states) > 1 else states[0], training=training)
        return [tree.select(mask[:, None], tf.cast(b, a.dtype), a) for a, b in zip(states, tf.nest.flatten(new), strict=True)]

    def _start(self, initial_state, x):
        """Returns the states before the first observation."""
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
            raise ValueError(
                "ODERNN needs the times of the observations: call layer(x, t=times), or create ODERNN(..., t=times)."
            )
        t = self._as_times(self.t if t is None else t)
        if None not in (t.shape[-1], x.shape[1]) and t.shape[-1] != x.shape[1]:
            raise ValueError(f"There must be one time for each observation. Received: {t.shape[-1]} times for x of shape {x.shape}")
        return times_in_order(t)

    def _as_times(self, t):
        """Returns times as a tensor. Float64 is kept, because times are subtracted before they are rounded."""
        t = tree.as_tensor(t)
        keeps = t.dtype == tf.float64 and not (tree.is_standard() and _may_be_rounded(t, self.variable_dtype))
        return t if keeps else tf.cast(t, self.variable_dtype)

    def _sizes(self):
        return tf.nest.flatten(self.cell.state_size)


def _settings(layer):
    """What a trace of an `ODERNN` holds that its user may change between calls: a hashable value."""
    of_layers = (
        (each.trainable, *((name, value) for name, value in vars(each).items() if _is_setting(name, value)))
        for each in internals.layers_within(layer)
    )
    return layer.ode._recorder, *of_layers


def _is_setting(name, value):
    return isinstance(value, _SETTINGS) and not name.startswith("_") and name != "built"


def _draw_dropout_anew(cell):
    """Makes a cell forget the masks of its dropout, which it keeps from step to step."""
    for name in ("reset_dropout_mask", "reset_recurrent_dropout_mask"):
        getattr(cell, name, lambda: None)()


def _may_be_rounded(times, dtype):
    """Whether rounding changes what lies between times by little: not all runtimes have float64."""
    known = tf.get_static_value(times)
    return known is not None and np.allclose(np.diff(known.astype(dtype)), np.diff(known), rtol=_ROUNDED, atol=0)


def _scan(advance, sequences, first):
    """`tf.scan`; in a graph for an export without lists of tensors, which other runtimes have with fixed shapes at most."""
    if not tree.is_standard():
        return tf.scan(advance, sequences, first)
    count = tf.shape(sequences[0])[0] if sequences[0].shape[0] is None else sequences[0].shape[0]

    def once_more(i, carry, buffers):
        carry = advance(carry, tuple(tf.gather(x, i) for x in sequences))
        return i + 1, carry, tf.nest.map_structure(lambda buffer, x: tree.put(buffer, i, x), buffers, carry)

    room = tf.nest.map_structure(lambda x: tree.room(x, count), first)
    return tree.while_loop(lambda i, *_: i < count, once_more, (0, first, room))[2]


def merged(x, t, mask, outputs, before, per_sample):
    """Merges a series with further times, at which nothing is observed.

    Args:
        x, t, mask: The series: `[B, T, features]`, `[T]` or `[B, T]`, and `[B, T]`.
        outputs: The further times, `[K]` or `[B, K]`.
        before: Whether a further time comes before an observation at the same time, and not after it.
        per_sample: Whether rows may have times of their own.

    Returns:
        The longer series; the positions of the further times in it, `[K]` or `[B, K]`; and which of them are valid, in the same
        shape.
    """
    _check_outputs(outputs, t, per_sample)
    dtype = max((t.dtype, outputs.dtype), key=lambda d: d.size)
    t, outputs = tf.cast(t, dtype), tf.cast(outputs, dtype)
    if max(t.shape.rank, outputs.shape.rank) == 2:
        t, outputs = (s if s.shape.rank == 2 else tf.tile(s[None], [tf.shape(x)[0], 1]) for s in (t, outputs))
    direction = tf.sign(t[..., -1:] - t[..., :1])
    direction = tree.select(direction == 0, tf.sign(outputs[..., -1:] - outputs[..., :1]), direction)
    direction = tree.select(direction == 0, tf.ones_like(direction), direction)
    fine = _are_fine(outputs, t, direction)
    _refuse(fine, outputs, t)
    # Those that make no sense come last: so they do not change what the others are.
    last = tf.reduce_max(tree.select(fine, direction * outputs, direction * t[..., -1:]), axis=-1, keepdims=True)
    outputs = tree.select(fine, outputs, direction * tf.maximum(last, direction * t[..., -1:]))
    ahead = (direction * outputs)[..., None, :] - (direction * t)[..., :, None]  # [T, K]
    later = ahead > 0 if before else ahead >= 0
    count, number = outputs.shape[-1], tf.shape(t)[-1]
    of_t = tf.range(number) + tf.reduce_sum(tf.cast(~later, tf.int32), axis=-1)
    of_outputs = tf.range(count) + tf.reduce_sum(tf.cast(later, tf.int32), axis=-2)
    order = tf.argsort(tf.concat([of_t, of_outputs], axis=-1))
    rows, batch_dims = tf.shape(x)[0], order.shape.rank - 1
    x = tf.concat([x, tf.zeros([rows, count, x.shape[-1]], x.dtype)], axis=1)
    mask = tf.concat([mask, tf.zeros([rows, count], bool)], axis=1)
    x, mask = (tf.gather(s, order, axis=1, batch_dims=batch_dims) for s in (x, mask))
    t = tf.gather(tf.concat([t, outputs], axis=-1), order, axis=-1, batch_dims=batch_dims)
    return x, t, mask, of_outputs, fine


def _are_fine(outputs, t, direction):
    """Tells which output times are strictly monotone and not before the first observation."""
    steps = direction[..., :1] * (outputs[..., 1:] - outputs[..., :-1])
    follows = tf.concat([direction * (outputs[..., :1] - t[..., :1]) >= 0, steps > 0], axis=-1)
    return tree.all_so_far(follows, axis=-1)


def _check_outputs(outputs, t, per_sample):
    if outputs.shape.rank not in ((1, 2) if per_sample else (1,)) or not outputs.shape[-1]:
        raise ValueError(
            "The number of output_times must be known, shape [K], or [B, K] with per_sample=True. Received: "
            f"output_times of shape {outputs.shape}, per_sample={per_sample!r}"
        )


def _refuse(fine, outputs, t):
    """Raises an error for invalid output times in eager code. In graphs, the states there are NaN."""
    known = tf.get_static_value(fine)
    if known is not None and not np.all(known):
        raise ValueError(
            "output_times must be strictly monotone in the direction of the observations' times, and none may come before the "
            f"first observation. Received: output_times={tf.get_static_value(outputs)!r}, t={tf.get_static_value(t)!r}"
        )


def _checked_output_times(output_times):
    if tree.holds_tensors(output_times):
        raise TypeError(
            "The layer's output_times must be numbers: pass tensors in the call, layer(x, t=times, output_times=...). "
            f"Received: output_times={output_times!r}"
        )
    try:
        times = np.asarray(output_times, dtype="float64")
    except (TypeError, ValueError):
        times = np.array(np.nan)
    steps = np.diff(np.atleast_1d(times))
    if times.ndim != 1 or not times.size or not np.isfinite(times).all() or not (np.all(steps > 0) or np.all(steps < 0)):
        raise ValueError(f"output_times must be a list of strictly monotone numbers. Received: output_times={output_times!r}")
    return tuple(float(x) for x in times)
