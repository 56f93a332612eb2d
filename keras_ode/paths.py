"""Paths: continuous inputs of a dynamics, made from observed values, for controlled and forced equations and neural CDEs."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_ode import tree
from keras_ode.closure import no_autocast
from keras_ode.signature import refuse_symbolic

KINDS = ("natural", "hermite")


class _Fields(NamedTuple):
    """What a path is made of, so that it is a nest of tensors.

    Attributes:
        times: The knots, `[T]` or `[B, T]`.
        nodes: Shape `[T, P]`, `[T, C, P]` or `[B, T, C, P]`. For each knot the value and, of a cubic path, the slope.
    """

    times: tf.Tensor
    nodes: tf.Tensor


class Path(_Fields):
    """A piecewise polynomial of time: what `LinearPath` and `CubicPath` have in common.

    Outside the knots, the first or the last value is held and the derivative is zero.
    """

    __slots__ = ()

    @property
    def knots(self):
        """The times at which the pieces meet, `[T]` or `[B, T]`, for the `jump_times` of a solve (`[B, T]` with `per_sample`)."""
        return self.times

    @tf.autograph.experimental.do_not_convert
    def evaluate(self, t):
        """The values at times `t`, in the dtype of `t` where it is a tensor.

        At a knot it is the piece to the right that counts, and at the last knot the piece to the left.

        Args:
            t: Times of any shape, such as the `t` that a dynamics gets. If the path was made from values `[B, T, C]`, `t`
                is one number for all rows, or its first axis is `B`, or one.

        Returns:
            A tensor that broadcasts against the state as `t` does. If the path was made from values `[T]`, it has the
            shape of `t`. Otherwise, if `t` has two or more axes and the last has length one, that axis becomes `C`: a
            `t` of `[B, 1]` gives `[B, C]`. In all other cases there is a new last axis: a scalar gives `[C]`, or
            `[B, C]` if the path was made from `[B, T, C]`; `[K]` gives `[K, C]`; `[B, K]` gives `[B, K, C]`.
        """
        return self._read(t, _value)

    @tf.autograph.experimental.do_not_convert
    def derivative(self, t):
        """The derivative of `evaluate` by time; arguments and shapes are the same."""
        return self._read(t, _slope)

    def _read(self, t, read):
        """What `read` makes of the pieces at times `t`."""
        if self.times.dtype.size < 4:
            raise TypeError(
                f"The times of a path cannot be told apart in {self.times.dtype.name}, to which a Keras layer in mixed precision "
                "casts its arguments. Give the layer that takes the path dtype='float32', or autocast=False. Received: a path "
                f"with times of {self.times.dtype.name}"
            )
        is_tensor = tree.holds_tensors(t)
        t = _as_real(t, "t", self.times.dtype)
        t = t if is_tensor else tf.cast(t, self.times.dtype)
        dtype = max(t.dtype, self.times.dtype, key=lambda d: d.size)
        asked, times = self._in_rows(tf.cast(t, dtype)), tf.cast(self.times, dtype)
        index = _piece(times, asked)
        ends = _at(times, index, times.shape.rank > 1)
        nodes = tf.cast(_at(self.nodes, index, self.nodes.shape.rank > 3), dtype)
        start, length = ends[..., 0], ends[..., 1] - ends[..., 0]
        if self.nodes.shape.rank > 2:
            asked, start, length = (x[..., None] for x in (asked, start, length))
        left, right = tf.unstack(nodes, axis=index.shape.rank)
        result = read(tf.unstack(left, axis=-1), tf.unstack(right, axis=-1), (asked - start) / length, length)
        return tf.cast(tf.reshape(result, self._result_shape(t)), t.dtype)

    def _in_rows(self, t):
        """Times as `[N]`, or `[B, K]` or `[1, K]` where the values have rows."""
        if self.nodes.shape.rank < 4:
            return tf.reshape(t, [-1])
        if t.shape.rank and t.shape[0] != 1 and not t.shape[:1].is_compatible_with(self.nodes.shape[:1]):
            raise ValueError(
                f"The path has values for {self.nodes.shape[0]} rows, so t must be one number, or have a first axis of that "
                f"length, or of one: t[None, :] for the same times in every row. Received: t of shape {t.shape}"
            )
        return tf.reshape(t, [_sizes(t)[0], -1] if t.shape.rank else [1, 1])

    def _result_shape(self, t):
        shape, nodes = _sizes(t), _sizes(self.nodes)
        if len(nodes) == 2:
            return shape
        if len(shape) > 1 and t.shape[-1] == 1:
            shape = shape[:-1]
        return [*shape, nodes[-2]] if len(nodes) == 3 else [nodes[0], *shape[1:], nodes[-2]]


class LinearPath(Path):
    """Straight lines between observed values.

    A nest of tensors: give it to a dynamics in the `args` of `keras_ode.solve` or of a call of `ODELayer`, or return it from a
    `tf.function`. Differentiable by the values and the times.

    Args:
        times: When the values were observed, shape `[T]`, or `[B, T]` where every row has its own. At least two, strictly
            increasing. They are rounded to the dtype of the values.
        values: What was observed, shape `[T]`, `[T, C]` or `[B, T, C]`. NaN where a channel was not observed: there the
            path is the line between the neighboring observations of that channel. Before the first observation of a
            channel its value is held, as is that of the last one afterwards.

    Raises:
        ValueError, TypeError: For times and values that make no sense, and, in eager code, for a channel without any
            observation. In a graph, where values are not known yet, the path is NaN there.

    Example:

    >>> path = keras_ode.paths.LinearPath([0.0, 1.0, 3.0], [0.0, 2.0, 0.0])
    >>> print(float(path.evaluate(0.5)), float(path.derivative(2.0)))
    1.0 -1.0
    """

    __slots__ = ()

    def __new__(cls, times, values):
        return _LinearPath(*_prepared(times, values, None))


class CubicPath(Path):
    """Cubic polynomials between observed values, with a continuous derivative.

    A nest of tensors, as `LinearPath` is.

    Args:
        times: See `LinearPath`.
        values: See `LinearPath`. Each channel's curve is the one through its observed values alone. If a channel's first
            value is missing, it takes that of its first observation; if its last one is missing, that of its last.
        kind: `"natural"`, the default: the natural cubic spline, the smoothest curve through the values. It has a
            continuous second derivative. All of it depends on every value. `"hermite"`: the slope at a value is that of
            the line from the value before, and the first piece is straight. So the curve up to a value does not depend
            on later ones.

    Raises:
        ValueError, TypeError: As `LinearPath`.

    Example:

    >>> path = keras_ode.paths.CubicPath([0.0, 1.0, 3.0], [0.0, 2.0, 0.0], kind="hermite")
    >>> print(float(path.derivative(1.0)))
    2.0

    Reference: Morrill, Kidger, Yang, Lyons (2022), On the choice of interpolation scheme for neural CDEs, Transactions on
    Machine Learning Research.
    """

    __slots__ = ()

    def __new__(cls, times, values, kind="natural"):
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}. Received: kind={kind!r}")
        return _CubicPath(*_prepared(times, values, kind))


class _LinearPath(LinearPath):
    """A path that is made from its fields, by which nests are taken apart and put together again."""

    __slots__ = ()
    __new__ = _Fields.__new__


class _CubicPath(CubicPath):
    """See `_LinearPath`."""

    __slots__ = ()
    __new__ = _Fields.__new__


_STORED = {"linear": _LinearPath, "cubic": _CubicPath}


def as_plain(nest):
    """A nest with paths as dicts, of which `from_plain` makes paths again: in a file they would be lists."""
    if isinstance(nest, Path):
        return {"path": "linear" if isinstance(nest, LinearPath) else "cubic", "fields": list(nest)}
    if type(nest) in (list, tuple):
        return type(nest)(map(as_plain, nest))
    return {key: as_plain(x) for key, x in nest.items()} if isinstance(nest, dict) else nest


def from_plain(nest):
    """The nest of which `as_plain` was made."""
    if type(nest) in (list, tuple):
        return type(nest)(map(from_plain, nest))
    if not isinstance(nest, dict):
        return nest
    if set(nest) == {"path", "fields"}:
        return _STORED[nest["path"]](*nest["fields"])
    return {key: from_plain(x) for key, x in nest.items()}


def _piece(times, asked):
    """The index of the piece in which each time lies: the nearest one where it lies in none."""
    if times.shape.rank == 1:
        after = tf.reshape(tf.searchsorted(times, tf.reshape(asked, [-1]), side="right"), _sizes(asked))
    else:
        rows = tf.broadcast_to(asked, [_sizes(times)[0], _sizes(asked)[1]])
        after = tf.searchsorted(times, rows, side="right")
    return tf.clip_by_value(after - 1, 0, _sizes(times)[-1] - 2)


def _at(x, index, by_row):
    """Both ends of each piece, `[*index.shape, 2, ...]`; with `by_row`, each row of indices is for a row of `x`."""
    if by_row:  # one flat axis: the gradient of a gather with a batch is many operations
        rows, count, *others = _sizes(x)
        index += tf.range(rows)[:, None] * count
        x = tf.reshape(x, [rows * count, *others])
    return tf.gather(x, index[..., None] + [0, 1])


def _sizes(x):
    """The lengths of the axes: numbers where they are known."""
    if x.shape.is_fully_defined():
        return x.shape.as_list()
    sizes = tf.unstack(tf.shape(x))
    return [size if known is None else known for size, known in zip(sizes, x.shape, strict=True)]


def _value(left, right, part, length):
    """The value at a part of a piece, from the value (and the slope) at both ends; held outside."""
    part = tf.where(part < 0, tf.zeros_like(part), tf.where(part > 1, tf.ones_like(part), part))  # NaN stays
    if len(left) == 1:
        return left[0] + part * (right[0] - left[0])
    rate = (right[0] - left[0]) / length
    second, third = _bends(left[1], right[1], rate)
    return left[0] + length * part * (left[1] + part * (second + part * third))


def _slope(left, right, part, length):
    """Its derivative by time."""
    slope = (right[0] - left[0]) / length
    if len(left) == 2:
        second, third = _bends(left[1], right[1], slope)
        slope = left[1] + part * (2 * second + 3 * part * third)
    return tf.where((part >= 0) & (part <= 1), slope, 0 * part)  # NaN stays


def _bends(left, right, rate):
    """The coefficients of a cubic piece's second and third power, from the slopes at its ends and their mean."""
    return 3 * rate - 2 * left - right, left + right - 2 * rate


@tf.autograph.experimental.do_not_convert
def _prepared(times, values, kind):
    """The fields of a path."""
    times, values = _checked(times, values)
    rows = values[None] if values.shape.rank == 1 else tf.linalg.matrix_transpose(values)
    by_row = tf.broadcast_to(times[..., None, :], tf.shape(rows))
    nodes = tf.stack(_at_knots(by_row, rows, kind), axis=-1)
    increasing = tf.reduce_all(times[..., 1:] > times[..., :-1], axis=-1)
    nodes = tf.where(increasing[..., None, None, None], nodes, tf.constant(np.nan, nodes.dtype))
    if values.shape.rank == 1:
        return times, nodes[0]
    axes = list(range(nodes.shape.rank - 3))
    return times, tf.transpose(nodes, [*axes, *(len(axes) + i for i in (1, 0, 2))])


def _at_knots(times, values, kind):
    """The values, and the slopes of cubic paths, at all knots; times and values are `[..., T]`."""
    batch = values.shape.rank - 1
    values, observed = _with_ends(values)
    # The observed points first, in their order. What follows them takes part in nothing.
    order = tf.argsort(tf.where(observed, 0, 1), axis=-1, stable=True)
    place, count = tf.range(tf.shape(values)[-1]), tf.reduce_sum(tf.cast(observed, tf.int32), axis=-1, keepdims=True)
    start, value = (tf.gather(x, order, axis=-1, batch_dims=batch) for x in (times, values))
    is_piece = place < count - 1
    length = tf.where(is_piece, _next(start) - start, 1)
    rate = tf.where(is_piece, (_next(value) - value) / length, 0)
    piece = tf.cumsum(tf.cast(observed, tf.int32), axis=-1) - 1

    def at_piece(x):
        return tf.gather(x, piece, axis=-1, batch_dims=batch)

    length_there = at_piece(length)
    part = (times - at_piece(start)) / length_there
    left, right = [at_piece(value)], [at_piece(_next(value))]
    if kind is not None:
        slopes = _natural(length, rate, is_piece, place < count) if kind == "natural" else _previous(rate, rate[..., :1])
        left, right = [*left, at_piece(slopes)], [*right, at_piece(_next(slopes))]
    return [read(left, right, part, length_there) for read in ((_value,) if kind is None else (_value, _slope))]


def _with_ends(values):
    """The values with zero where they are missing, and which are observed; the first and the last value take the place of a
    missing one at the ends."""
    observed = ~tf.math.is_nan(values)
    known = tf.where(observed, values, 0)
    batch, place, last = values.shape.rank - 1, tf.range(tf.shape(values)[-1]), tf.shape(values)[-1] - 1
    marks = tf.cast(observed, tf.int32)
    first_seen, last_seen = (tf.argmax(x, axis=-1, output_type=tf.int32) for x in (marks, tf.reverse(marks, [-1])))
    missing = tf.where(tf.reduce_any(observed, axis=-1, keepdims=True), tf.zeros([], values.dtype), np.nan)
    for end, index in ((0, first_seen), (last, last - last_seen)):
        found = tf.gather(known, index[..., None], axis=-1, batch_dims=batch) + missing
        known = tf.where((place == end) & ~observed, found, known)
    return known, observed | (place == 0) | (place == last)


def _natural(length, rate, is_piece, is_point):
    """The slopes of natural splines at their points, from the lengths of their pieces and the slopes of the chords."""
    weight = tf.where(is_piece, 1 / length, 0)
    before = _previous(weight, tf.zeros_like(weight[..., :1]))
    diagonal = 2 * (before + weight) + tf.where(is_point, tf.zeros([], weight.dtype), 1)
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
    refuse_symbolic((times, values), "Make the path within the call of a layer of your own, where there are tensors.")
    given = times
    values = _as_real(values, "values", tf.float64)
    values = tf.cast(values, tf.float32) if values.dtype.size < 4 else values
    times = tf.cast(_as_real(times, "times", values.dtype), values.dtype)
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


def _as_real(x, name, dtype):
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
