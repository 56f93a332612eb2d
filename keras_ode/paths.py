"""Paths: continuous inputs of a dynamics, made from observed values, for controlled and forced equations and neural CDEs."""

from typing import Literal, NamedTuple

import tensorflow as tf

from keras_ode import tree
from keras_ode.path_fields import as_real, fields, slope_at, value_at
from keras_ode.signature import refuse_symbolic
from keras_ode.typing import TensorsLike, Times, do_not_convert

__all__ = [
    "CubicPath",
    "LinearPath",
    "Path",
]

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
    """A piecewise polynomial in time, the base class of `LinearPath` and `CubicPath`.

    Before the first knot and after the last one, the path is constant and its derivative is zero.

    Example:

    >>> path = keras_ode.paths.LinearPath([0.0, 1.0, 3.0], [0.0, 2.0, 4.0])
    >>> isinstance(path, keras_ode.paths.Path)
    True
    >>> float(path.evaluate(2.0)), float(path.derivative(2.0))
    (3.0, 1.0)
    """

    __slots__ = ()

    @property
    def knots(self) -> tf.Tensor:
        """The times at which the pieces meet, `[T]` or `[B, T]`, for the `jump_times` of a solve (`[B, T]` with `per_sample`)."""
        return self.times

    @do_not_convert
    def evaluate(self, t: Times) -> tf.Tensor:
        """Returns the values at times `t`, in the dtype of `t` if this is a tensor.

        At a knot, the piece after it is evaluated, and at the last knot the piece before it.

        Args:
            t: Times of any shape, such as the `t` that a dynamics gets. If the path was made from values `[B, T, C]`, `t`
                is one number for all rows, or its first axis is `B`, or one.

        Returns:
            A tensor that broadcasts against the state as `t` does. If the path was made from values `[T]`, it has the
            shape of `t`. Otherwise, if `t` has two or more axes and the last has length one, that axis becomes `C`: a
            `t` of `[B, 1]` gives `[B, C]`. In all other cases there is a new last axis: a scalar gives `[C]`, or
            `[B, C]` if the path was made from `[B, T, C]`; `[K]` gives `[K, C]`; `[B, K]` gives `[B, K, C]`.
        """
        return self._read(t, value_at)

    @do_not_convert
    def derivative(self, t: Times) -> tf.Tensor:
        """Returns the derivative with respect to time; arguments and shapes are those of `evaluate`."""
        return self._read(t, slope_at)

    def _read(self, t, read):
        """Returns the result of the function `read`, applied to the pieces at the times `t`."""
        refuse_symbolic((*self, t), "Pass the path to the dynamics in args, and evaluate it there.")
        if self.times.dtype.size < 4:
            raise TypeError(
                f"The times of a path cannot be told apart in {self.times.dtype.name}, to which a Keras layer in mixed precision "
                "casts its arguments. Build the layer that takes the path with dtype='float32', or autocast=False. Received: a "
                f"path with times of {self.times.dtype.name}"
            )
        is_tensor = tree.holds_tensors(t)
        t = as_real(t, "t", self.times.dtype)
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
        """Returns times as `[N]`, or as `[B, K]` or `[1, K]` if the values have rows."""
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

    A path is a nested structure of tensors: pass it to a dynamics in the `args` of `keras_ode.solve` or of a call of
    `ODELayer`, or return it from a `tf.function`. It is differentiable with respect to the values and the times. In a
    functional model these may be Keras tensors.

    Args:
        times: The times at which the values were observed, shape `[T]`, or `[B, T]` if every row has its own. At least two,
            strictly increasing. They are rounded to the dtype of the values.
        values: The observed values, shape `[T]`, `[T, C]` or `[B, T, C]`. NaN marks a missing value: there the
            path is the line between the neighboring observations of that channel. Before the first and after the last
            observation of a channel, the nearest observed value is used.

    Raises:
        ValueError, TypeError: For invalid times and values, and, in eager code, for a channel without any observation. In a
            graph the values of such a channel are NaN.

    Example:

    >>> path = keras_ode.paths.LinearPath([0.0, 1.0, 3.0], [0.0, 2.0, 0.0])
    >>> print(float(path.evaluate(0.5)), float(path.derivative(2.0)))
    1.0 -1.0

    Reference: Morrill, Kidger, Yang, Lyons (2022), On the choice of interpolation scheme for neural CDEs, Transactions on
    Machine Learning Research.
    """

    __slots__ = ()

    def __new__(cls, times: Times, values: TensorsLike) -> "LinearPath":
        return _LinearPath(*fields(times, values, None))


class CubicPath(Path):
    """Cubic polynomials between observed values, with a continuous derivative.

    Like `LinearPath`, it is a nested structure of tensors.

    Args:
        times: See `LinearPath`.
        values: See `LinearPath`. Each channel is interpolated through its observed values alone. If its first or last value is
            missing, the nearest observed value takes its place.
        kind: `"natural"`, the default: the natural cubic spline, the smoothest curve through the values, with a
            continuous second derivative. The whole curve depends on every value. `"hermite"`: the slope at a value is that of
            the line from the previous value, and the first piece is straight. So the curve up to a value does not depend
            on later values.

    Raises:
        ValueError, TypeError: See `LinearPath`.

    Example:

    >>> path = keras_ode.paths.CubicPath([0.0, 1.0, 3.0], [0.0, 2.0, 0.0], kind="hermite")
    >>> print(float(path.derivative(1.0)))
    2.0

    Reference: Morrill, Kidger, Yang, Lyons (2022), On the choice of interpolation scheme for neural CDEs, Transactions on
    Machine Learning Research.
    """

    __slots__ = ()

    def __new__(cls, times: Times, values: TensorsLike, kind: Literal["natural", "hermite"] = "natural") -> "CubicPath":
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}. Received: kind={kind!r}")
        return _CubicPath(*fields(times, values, kind))


class _LinearPath(LinearPath):
    """A path that is made from its fields, by which nests are taken apart and put together again."""

    __slots__ = ()
    __new__ = _Fields.__new__  # type: ignore[assignment]


class _CubicPath(CubicPath):
    """See `_LinearPath`."""

    __slots__ = ()
    __new__ = _Fields.__new__  # type: ignore[assignment]


_LINEAR, _CUBIC = "keras_ode.paths.LinearPath", "keras_ode.paths.CubicPath"
_STORED = {_LINEAR: _LinearPath, _CUBIC: _CubicPath}


def as_plain(nest):
    """A nest with paths as dicts, of which `from_plain` makes paths again: in a file they would be lists.

    There are only tensors in these dicts: Keras takes no strings beside tensors.
    """
    if isinstance(nest, Path):
        return {_LINEAR if isinstance(nest, LinearPath) else _CUBIC: list(nest)}
    if type(nest) in (list, tuple):
        return type(nest)(map(as_plain, nest))
    return {key: as_plain(x) for key, x in nest.items()} if isinstance(nest, dict) else nest


def from_plain(nest):
    """The nest of which `as_plain` was made."""
    if type(nest) in (list, tuple):
        return type(nest)(map(from_plain, nest))
    if not isinstance(nest, dict):
        return nest
    if set(nest) == {"path", "fields"}:  # in files that were saved before there were symbolic paths
        return _STORED[_LINEAR if nest["path"] == "linear" else _CUBIC](*nest["fields"])
    for name, path in _STORED.items():
        if set(nest) == {name}:
            return path(*nest[name])
    return {key: from_plain(x) for key, x in nest.items()}


def _piece(times, asked):
    """The index of the piece in which each time lies: the nearest one where it lies in none."""
    if tree.is_standard():  # other runtimes do not search
        known = times if times.shape.rank == 1 else times[:, None]
        after = tf.reduce_sum(tf.cast(known <= asked[..., None], tf.int32), axis=-1)
    elif times.shape.rank == 1:
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
