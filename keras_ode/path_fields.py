"""What a path is made of: from times and values to the values and slopes at its knots, and the polynomials between them."""

import keras
import numpy as np
import tensorflow as tf

from keras_ode import tree
from keras_ode.closure import no_autocast
from keras_ode.exports import standard_where_exported


def value_at(left, right, part, length):
    """The value at a part of a piece, from the value (and the slope) at both ends; held outside."""
    part = tree.select(part < 0, tf.zeros_like(part), tree.select(part > 1, tf.ones_like(part), part))  # NaN stays
    if len(left) == 1:
        return left[0] + part * (right[0] - left[0])
    rate = (right[0] - left[0]) / length
    second, third = _bends(left[1], right[1], rate)
    return left[0] + length * part * (left[1] + part * (second + part * third))


def slope_at(left, right, part, length):
    """Its derivative by time."""
    slope = (right[0] - left[0]) / length
    if len(left) == 2:
        second, third = _bends(left[1], right[1], slope)
        slope = left[1] + part * (2 * second + 3 * part * third)
    return tree.select((part >= 0) & (part <= 1), slope, 0 * part)  # NaN stays


def _bends(left, right, rate):
    """The coefficients of a cubic piece's second and third power, from the slopes at its ends and their mean."""
    return 3 * rate - 2 * left - right, left + right - 2 * rate


def fields(times, values, kind):
    """The knots and the nodes of a path (see `paths`); Keras tensors where times or values are.

    Args:
        kind: That of a cubic path, or `None`.
    """
    is_symbolic = [isinstance(x, keras.KerasTensor) for x in (times, values)]
    if not any(is_symbolic):
        return _computed(times, values, kind)
    for name, x in (("times", times), ("values", values)):
        if isinstance(x, (tf.Variable, keras.Variable)):
            raise TypeError(
                "If one of times and values is a Keras tensor, the other must be a Keras tensor or numbers: the gradient with "
                "respect to a variable would be lost. Construct the path in the call of a layer of your own. Received: "
                f"{name}={x!r}"
            )
    if is_symbolic[0]:
        return PathFields(kind)(values if is_symbolic[1] else tree.as_tensor(values), times)
    return PathFields(kind, np.asarray(times, "float64").tolist())(values)


@keras.saving.register_keras_serializable(package="keras_ode")
class PathFields(keras.layers.Layer):
    """`fields` as a layer, for functional models.

    Args:
        kind: That of a cubic path, or `None`.
        times: The times, if they are numbers.
        **options: Those of `keras.layers.Layer`.
    """

    def __init__(self, kind=None, times=None, **options):
        super().__init__(autocast=False, **options)
        self.kind, self.times = kind, times

    def call(self, values, times=None):
        return _computed(self.times if times is None else times, values, self.kind)

    def compute_output_spec(self, values, times=None):
        like = keras.KerasTensor([len(self.times)], "float32") if times is None else times
        dtype = tf.as_dtype(values.dtype)
        dtype = (tf.float64 if not dtype.is_floating else tf.float32 if dtype.size < 4 else dtype).name
        shape = (*values.shape, 1 if self.kind is None else 2)
        return keras.KerasTensor(like.shape, dtype), keras.KerasTensor(shape, dtype)

    def get_config(self):
        return {**super().get_config(), "kind": self.kind, "times": self.times}


@tf.autograph.experimental.do_not_convert
def _computed(times, values, kind):
    with standard_where_exported():
        return _fields(*_checked(times, values), kind)


def _fields(times, values, kind):
    rows = values[None] if values.shape.rank == 1 else tf.linalg.matrix_transpose(values)
    by_row = tf.broadcast_to(times[..., None, :], tf.shape(rows))
    nodes = tf.stack(_at_knots(by_row, rows, kind), axis=-1)
    increasing = tf.reduce_all(times[..., 1:] > times[..., :-1], axis=-1)
    nodes = tree.select(increasing[..., None, None, None], nodes, tf.constant(np.nan, nodes.dtype))
    if values.shape.rank == 1:
        return times, nodes[0]
    axes = list(range(nodes.shape.rank - 3))
    return times, tf.transpose(nodes, [*axes, *(len(axes) + i for i in (1, 0, 2))])


def _at_knots(times, values, kind):
    """The values, and the slopes of cubic paths, at all knots; times and values are `[..., T]`."""
    values, observed = _with_ends(values)
    # The observed points first, in their order. What follows them takes part in nothing.
    order = tf.argsort(tree.select(observed, 0, 1), axis=-1, stable=True)
    place, count = tf.range(tf.shape(values)[-1]), tf.reduce_sum(tf.cast(observed, tf.int32), axis=-1, keepdims=True)
    start, value = (_along(x, order) for x in (times, values))
    is_piece = place < count - 1
    length = tree.select(is_piece, _next(start) - start, 1)
    rate = tree.select(is_piece, (_next(value) - value) / length, 0)
    piece = tf.cumsum(tf.cast(observed, tf.int32), axis=-1) - 1

    def at_piece(x):
        return _along(x, piece)

    length_there = at_piece(length)
    part = (times - at_piece(start)) / length_there
    left, right = [at_piece(value)], [at_piece(_next(value))]
    if kind is not None:
        slopes = _natural(length, rate, is_piece, place < count) if kind == "natural" else _previous(rate, rate[..., :1])
        left, right = [*left, at_piece(slopes)], [*right, at_piece(_next(slopes))]
    return [read(left, right, part, length_there) for read in ((value_at,) if kind is None else (value_at, slope_at))]


def _with_ends(values):
    """The values with zero where they are missing, and which are observed; the first and the last value take the place of a
    missing one at the ends."""
    observed = ~tf.math.is_nan(values)
    known = tree.select(observed, values, 0)
    place, last = tf.range(tf.shape(values)[-1]), tf.shape(values)[-1] - 1
    marks = tf.cast(observed, tf.int32)
    first_seen, last_seen = (tf.argmax(x, axis=-1, output_type=tf.int32) for x in (marks, tf.reverse(marks, [-1])))
    missing = tree.select(tf.reduce_any(observed, axis=-1, keepdims=True), tf.zeros([], values.dtype), np.nan)
    for end, index in ((0, first_seen), (last, last - last_seen)):
        found = _along(known, index[..., None]) + missing
        known = tree.select((place == end) & ~observed, found, known)
    return known, observed | (place == 0) | (place == last)


def _along(x, index):
    """The entries of each row, the last axis, at indices of its own."""
    if not tree.is_standard():
        return tf.gather(x, index, axis=-1, batch_dims=x.shape.rank - 1)
    # One flat axis, as converters do not know several axes of rows.
    length, width = tf.shape(x)[-1], tf.shape(index)[-1]
    rows = tf.reshape(index, [-1, width])
    places = rows + length * tf.range(tf.shape(rows)[0])[:, None]
    return tf.reshape(tf.gather(tf.reshape(x, [-1]), places), tf.shape(index))


def _natural(length, rate, is_piece, is_point):
    """The slopes of natural splines at their points, from the lengths of their pieces and the slopes of the chords."""
    weight = tree.select(is_piece, 1 / length, 0)
    before = _previous(weight, tf.zeros_like(weight[..., :1]))
    diagonal = 2 * (before + weight) + tree.select(is_point, tf.zeros([], weight.dtype), 1)
    moment = weight * rate
    right = 3 * (_previous(moment, tf.zeros_like(moment[..., :1])) + moment)
    matrix = tf.stack([weight, diagonal, before], axis=-2)
    return tf.linalg.tridiagonal_solve(matrix, right[..., None], partial_pivoting=False)[..., 0]


def _next(x):
    return tf.concat([x[..., 1:], x[..., -1:]], axis=-1)


def _previous(x, first):
    return tf.concat([first, x[..., :-1]], axis=-1)


def _checked(times, values):
    """Times and values as tensors of one float type."""
    given = times
    values = as_real(values, "values", tf.float64)
    values = tf.cast(values, tf.float32) if values.dtype.size < 4 else values
    times = tf.cast(as_real(times, "times", values.dtype), values.dtype)
    if values.shape.rank not in (1, 2, 3):
        raise ValueError(f"values must have the shape [T], [T, C] or [B, T, C]. Received: values of shape {values.shape}")
    if times.shape.rank not in ((1, 2) if values.shape.rank == 3 else (1,)):
        raise ValueError(
            "times must have the shape [T], or [B, T] where values have the shape [B, T, C]. Received: times of shape "
            f"{times.shape}, values of shape {values.shape}"
        )
    expected = values.shape[:1] if values.shape.rank == 1 else values.shape[-2:-1]
    expected = values.shape[:1] + expected if times.shape.rank == 2 else expected
    if not times.shape.is_compatible_with(expected):
        raise ValueError(
            "There must be as many times as values: times [T] or [B, T], values [T], [T, C] or [B, T, C]. Received: times of "
            f"shape {times.shape}, values of shape {values.shape}"
        )
    if times.shape[-1] is not None and times.shape[-1] < 2:
        raise ValueError(f"A path needs two or more times. Received: times={given!r}")
    _check_numbers(times, values, given)
    return times, values


def _check_numbers(times, values, given):
    """Refuses times that do not increase and channels without observation, as far as numbers are known."""
    known = tf.get_static_value(times)
    if known is not None and not np.all(known[..., 1:] > known[..., :-1]):
        raise ValueError(
            f"times must be finite and strictly increasing, also when rounded to {times.dtype.name}, the dtype of the values. "
            f"Received: times={given!r}"
        )
    known = tf.get_static_value(values)
    if known is not None:
        unseen = np.all(np.isnan(known), axis=0 if known.ndim == 1 else -2)
        if np.any(unseen):
            where = "" if known.ndim == 1 else f" at [{', '.join(map(str, np.argwhere(unseen)[0]))}]"
            raise ValueError(
                f"Every channel of values needs at least one observation. Received: values of shape {values.shape} with "
                f"nothing but NaN in {int(np.sum(unseen))} of {unseen.size} channels, the first{where}"
            )


def as_real(x, name, dtype):
    """A float tensor: a tensor or a NumPy array in its own precision, others in `dtype`."""
    try:
        with no_autocast():
            x = tree.as_tensor(x)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be real numbers. Received: {name}={x!r}") from error
    if not (x.dtype.is_floating or x.dtype.is_integer):
        raise TypeError(f"{name} must be real numbers. Received: {name}={x!r}")
    if x.shape.rank is None:
        raise ValueError(f"{name} must have a known rank. Received a tensor of unknown shape: use tf.ensure_shape.")
    return x if x.dtype.is_floating else tf.cast(x, dtype)
