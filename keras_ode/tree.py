"""Arithmetic on the leaves of a state.

Inside the package a state is a tuple of tensors, the leaves of the user's nest in the order of `tf.nest.flatten`.
A scalar that belongs to a solve (a time, a step size) has shape `[]` where all samples share their steps and `[B]`
where every sample has its own; `expand` makes it broadcast against a leaf. What reduces leaves to such a scalar
takes another one as its template, `like`: the result has its shape and, if it is a number, its dtype.
"""

import contextlib
import itertools
import threading

import numpy as np
import tensorflow as tf

from keras_ode import internals

# A sum of no more terms needs no matrix product where XLA fuses it with what is around it.
_FEW = 16
# An operation on so many elements takes about as long as to start it.
_MOST_SMALL = 4096

_building = threading.local()  # conditions: by graph and condition, what `select` made of it; absent or `None` outside of exports


def as_tensor(value):
    """A tensor; Python numbers in double precision, where TensorFlow would round them to single.

    Lists may hold tensors and variables beside numbers: gradients go through to them.
    """
    if _is_known(value):
        return tf.convert_to_tensor(value)
    if not holds_tensors(value):
        return tf.convert_to_tensor(np.asarray(value))
    leaves = tf.nest.flatten(value)
    dtypes = [tf.as_dtype(x.dtype) if _is_known(x) else _dtype_of(x) for x in leaves]
    return _stacked(value, max(dtypes, key=lambda dtype: (dtype.is_floating, dtype.size)))


def holds_tensors(value):
    """Whether this is a tensor or a variable, or a nest with one in it."""
    return any(map(_is_known, tf.nest.flatten(value)))


def _is_known(value):
    return tf.is_tensor(value) or isinstance(value, tf.Variable)


def _dtype_of(number):
    """The shortest type that holds a number, or an array of them, as it is."""
    array = np.asarray(number)
    if array.dtype.kind in "iub":
        array = array.astype("float64")
    if array.dtype != np.float64:
        return tf.as_dtype(array.dtype)
    return tf.float32 if np.array_equal(array.astype("float32"), array) else tf.float64


def _stacked(value, dtype):
    if isinstance(value, (list, tuple)):
        return tf.stack([_stacked(x, dtype) for x in value])
    return tf.cast(value, dtype) if _is_known(value) else tf.constant(value, dtype)


def rounded(value, dtype):
    """A float tensor, or an array, in another type, and what that took from it."""
    if isinstance(value, np.ndarray):  # by NumPy: numbers need no double precision on the device
        high = value.astype(dtype.as_numpy_dtype)
        with np.errstate(invalid="ignore"):  # an open end is infinite
            lost = value - high
        return tf.constant(high), tf.constant(lost.astype(dtype.as_numpy_dtype))
    high = tf.cast(value, dtype)
    if value.dtype.size <= dtype.size:
        return high, tf.zeros_like(high)
    return high, tf.cast(value - tf.cast(high, value.dtype), dtype)


def expand(scalar, leaf):
    """Gives a scalar of the solve the trailing axes of length one that broadcast it against `leaf`."""
    missing = leaf.shape.rank - scalar.shape.rank
    if scalar.shape.rank == 0 or missing == 0:
        return scalar
    return tf.reshape(scalar, _joined(_shape(scalar), [1] * missing))


def _shape(x):
    """A list where the shape is known, which takes fewer operations; else a tensor."""
    return x.shape.as_list() if x.shape.is_fully_defined() else tf.shape(x)


def _joined(first, second):
    """A shape of two parts, each a list or a tensor."""
    is_known = isinstance(first, list) and isinstance(second, list)
    return first + second if is_known else tf.concat([first, second], axis=0)


def weighted_sum(weights, trees):
    """The sum of trees with Python numbers as weights; zeros cost nothing."""
    terms = [(weight, tree) for weight, tree in zip(weights, trees, strict=True) if weight != 0]
    return tuple(_weighted([weight for weight, _ in terms], leaves) for leaves in zip(*(tree for _, tree in terms), strict=True))


def combinations(matrix, leaves):
    """The sums of leaves with each row of a NumPy matrix as weights, one leaf for each."""
    if is_compiled() or _is_large(leaves[0]):
        return [_weighted(*zip(*((w, x) for w, x in zip(row, leaves, strict=True) if w != 0), strict=True)) for row in matrix]
    stacked = tf.stack(leaves)
    return tf.unstack(tensordot(tf.constant(matrix, stacked.dtype), stacked), num=len(matrix))


def _is_large(leaf):
    """Whether its elements take longer than what TensorFlow needs for each operation."""
    return leaf.shape.num_elements() is not None and leaf.shape.num_elements() > _MOST_SMALL


def tensor_weighted_sum(weights, trees):
    """The sum of trees with scalar (or `[B]`) tensors as weights."""
    return tuple(_weighted(weights, leaves) for leaves in zip(*trees, strict=True))


def add_scaled(tree, scale, increments):
    """`tree + scale * increments`, with a number, or a scalar or `[B]` tensor, as scale."""
    return tuple(leaf + _scale(scale, increment) for leaf, increment in zip(tree, increments, strict=True))


def add(tree, other):
    return tuple(a + b for a, b in zip(tree, other, strict=True))


def subtract(tree, other):
    return tuple(a - b for a, b in zip(tree, other, strict=True))


def scale(factor, tree):
    """`factor * tree`, with a number, or a scalar or `[B]` tensor, as factor."""
    return tuple(_scale(factor, leaf) for leaf in tree)


def zeros_like(tree):
    return tuple(tf.zeros_like(leaf) for leaf in tree)


def select(condition, a, b):
    """`tf.where`, also where the value that is not selected is not finite and the graph is converted to ONNX.

    tf2onnx makes `c * a + (1 - c) * b` of a `tf.where`, which is NaN if either is infinite or NaN: the rejected step of a solve
    would be its end. It keeps those whose condition is one on NaN; so that is what the condition becomes.
    """
    return tf.where(_as_nan(condition) if is_standard() and _are_floats(a, b) else condition, a, b)


def _are_floats(a, b):
    return any(tf.as_dtype(x.dtype).is_floating if hasattr(x, "dtype") else isinstance(x, float) for x in (a, b))


def _as_nan(condition):
    """The same condition as that a number is NaN; one for all that use it in a graph."""
    key = tf.compat.v1.get_default_graph(), condition.ref()
    if key not in _building.conditions:
        _building.conditions[key] = tf.math.is_nan(tf.where(condition, tf.constant(np.nan), 0.0))
    return _building.conditions[key]


def where(condition, tree, other):
    """Selects whole trees by a scalar condition, or rows of them by a `[B]` one."""
    return tuple(select(expand(condition, a), a, b) for a, b in zip(tree, other, strict=True))


def where_nest(condition, nest, other):
    """Selects among nests of scalars, `[B]` tensors and leaves; what is `None` stays."""

    def chosen(a, b):
        return None if a is None else select(expand(condition, a) if a.shape.rank else condition, a, b)

    return tf.nest.map_structure(chosen, nest, other)


def where_rows(condition, tree, other):
    """`where` for leaves that have the same shapes, which broadcasts the condition faster: for rows, a tenth of the time."""
    if condition.shape.rank != 1 or is_compiled() or is_standard():
        return where(condition, tree, other)
    return tuple(tf.raw_ops.Select(condition=condition, x=a, y=b) for a, b in zip(tree, other, strict=True))


def is_compiled():
    """Whether XLA compiles the graph that is being traced."""
    return internals.is_in_xla_context(tf.compat.v1.get_default_graph())


@contextlib.contextmanager
def standard_operations():
    """Inside, this thread builds graphs of operations that converters for other runtimes know, such as that of LiteRT.

    Buffers are not written in place, nor by `tf.tensor_scatter_nd_update`, of which LiteRT's converter makes a product that is NaN
    where what is replaced is not finite. Contractions over a few stages are sums. Products of long vectors stay in double
    precision: on a GPU, single precision would cost digits.
    """
    before = getattr(_building, "conditions", None)
    _building.conditions = {} if before is None else before
    try:
        yield
    finally:
        _building.conditions = before


def is_standard():
    """Whether `standard_operations` is in effect."""
    return getattr(_building, "conditions", None) is not None


def _writes_in_place():
    """Whether the graph is for TensorFlow's own kernels, which write in place."""
    return not (is_compiled() or is_standard())


def repeat(leaf, count):
    """`count` copies of a leaf along a new first axis."""
    return tf.tile(tf.expand_dims(leaf, 0), [count] + [1] * leaf.shape.rank)


def room(like, count, filled=False):
    """A buffer of `count` entries like a leaf, for `put_in_place`: copies of it where `filled`, else anything at all."""
    if filled:
        return repeat(like, count)
    shape = _joined([count], _shape(like))
    buffer = tf.raw_ops.Empty(shape=shape, dtype=like.dtype) if _writes_in_place() else tf.zeros(shape, like.dtype)
    return tf.ensure_shape(buffer, [None if tf.is_tensor(count) else count, *like.shape])


def copied_where(condition, buffers):
    """Copies to put into, of buffers that somebody else reads too; where the scalar condition is false, nobody may put anything."""
    if not _writes_in_place():
        return tuple(map(tf.identity, buffers))
    return tf.cond(condition, lambda: tuple(tf.raw_ops.DeepCopy(x=x) for x in buffers), lambda: tuple(buffers))


def put_in_place(buffer, index, value):
    """`put` into a buffer that nobody else reads, before it or after it, in a loop that is not differentiated.

    Without XLA, which writes in place by itself, `put` would copy the whole buffer.
    """
    return put(buffer, index, value) if index.shape.rank else put_rows_in_place(buffer, index, tf.expand_dims(value, 0))


def put_rows_in_place(buffer, index, values):
    """`put_rows` into a buffer that nobody else reads: see `put_in_place`."""
    if is_compiled() and 0 not in buffer.shape:
        return internals.dynamic_update_slice(buffer, values, index)
    if not _writes_in_place() or 0 in buffer.shape:
        return put_rows(buffer, index, values)
    return internals.update_in_place(buffer, _places(index, values), values)


def put_rows(buffer, index, values):
    """`buffer` with `buffer[index], buffer[index + 1], ...` replaced."""
    if 0 in buffer.shape:  # nothing to put: TensorFlow refuses empty updates
        return buffer
    if is_standard():
        places, last = tf.range(tf.shape(buffer)[0]) - index, tf.shape(values)[0] - 1
        if values.shape[0] == 1:
            return where(places == 0, (values,), (buffer,))[0]
        return where((places >= 0) & (places <= last), (tf.gather(values, tf.clip_by_value(places, 0, last)),), (buffer,))[0]
    return tf.tensor_scatter_nd_update(buffer, tf.expand_dims(_places(index, values), 1), values)


def _places(index, values):
    """Where each row of values belongs, from the place of the first."""
    return tf.expand_dims(index, 0) if values.shape[0] == 1 else index + tf.range(tf.shape(values)[0])


def put(buffer, index, value):
    """`buffer` with `buffer[index]` replaced; `[B]` indices replace `buffer[index[b], b]` for every sample."""
    if index.shape.rank == 0:
        return put_rows(buffer, index, tf.expand_dims(value, 0))
    if 0 in buffer.shape:
        return buffer
    if is_standard():
        return where(tf.range(tf.shape(buffer)[0])[:, None] == index, (value[None],), (buffer,))[0]
    return tf.tensor_scatter_nd_update(buffer, tf.stack([index, tf.range(tf.shape(index)[0])], axis=1), value)


def take(buffer, index):
    """`buffer[index]`, or `buffer[index[b], b]` for every sample."""
    if index.shape.rank == 0:
        return tf.gather(buffer, index)
    return tf.gather_nd(buffer, tf.stack([index, tf.range(tf.shape(index)[0])], axis=1))


def take_each(buffer, indices):
    """`buffer[k]` for each of `[K]` indices, or `buffer[k[b], b]` for each row of `[K, B]` indices."""
    if indices.shape.rank == 1:
        return tf.gather(buffer, indices)
    samples = tf.broadcast_to(tf.range(tf.shape(indices)[1]), tf.shape(indices))
    return tf.gather_nd(buffer, tf.stack([indices, samples], axis=-1))


def all_so_far(conditions, axis=0):
    """Whether each of the conditions along an axis, and all before it, hold."""
    return tf.cumsum(tf.cast(~conditions, tf.int32), axis=axis) == 0


def running_products(x):
    """The products of a few entries along the first axis up to each."""
    # Not tf.math.cumprod, which other runtimes do not have.
    return tf.stack([*itertools.accumulate(tf.unstack(x), lambda a, b: a * b)])


def while_loop(condition, body, state, bound=None):
    """`tf.while_loop`, one iteration after the other: several at a time would each keep their own buffers.

    Args:
        bound: A number of iterations, for a loop that is differentiated.
    """
    return tf.while_loop(condition, body, state, parallel_iterations=1, maximum_iterations=bound)


def packed(leaves, rows):
    """The vectors of leaves: `[B, D]` where `rows` are independent, else `[1, N]`."""
    flat = [tf.reshape(leaf, [tf.shape(leaf)[0] if rows else 1, _width(leaf, rows)]) for leaf in leaves]
    dtype = max((leaf.dtype for leaf in leaves), key=lambda d: d.size)
    return flat[0] if len(flat) == 1 else tf.concat([tf.cast(x, dtype) for x in flat], axis=1)


def unpacked(vectors, like, rows):
    """The leaves of vectors, of the shapes of leaves `like`."""
    parts = tf.split(vectors, [_width(leaf, rows) for leaf in like], axis=1) if len(like) > 1 else [vectors]
    return tuple(tf.cast(tf.reshape(x, tf.shape(leaf)), leaf.dtype) for x, leaf in zip(parts, like, strict=True))


def _width(leaf, rows):
    width = leaf.shape[1:].num_elements() if rows else leaf.shape.num_elements()
    if width is None:
        raise ValueError(
            "An implicit solver needs to know the size of the state when it is traced"
            + (", except for the number of rows" if rows else "")
            + f": use tf.ensure_shape. Received: a state with a leaf of shape {leaf.shape}"
        )
    return width


def tensordot(a, b):
    """The contraction of the last axis of `a` with the first of `b`, in their full precision.

    That of a matrix product is less by default: ten bits of the numbers on GPUs, seven on TPUs.
    """
    is_short = b.shape[0] is not None and b.shape[0] <= _FEW
    if not (is_compiled() or is_standard() and is_short):
        return tf.cast(tf.tensordot(tf.cast(a, tf.float64), tf.cast(b, tf.float64), axes=1), a.dtype)
    if is_short:
        a = tf.reshape(a, tf.concat([tf.shape(a), [1] * (b.shape.rank - 1)], axis=0))
        return tf.reduce_sum(a * b, axis=a.shape.rank - b.shape.rank)
    return internals.dot_in_full_precision(a, b)


def is_finite(tree, like):
    """Whether all elements are finite: a boolean, or `[B]`."""
    return tf.reduce_all(tf.stack([_reduce(tf.reduce_all, tf.math.is_finite(leaf), like) for leaf in tree]), axis=0)


def rms(tree, like):
    """The root mean square over all elements of all leaves."""
    return tf.sqrt(mean_square(tree, like))


def mean_square(tree, like):
    """Its square."""
    squares = [_reduce(tf.reduce_sum, tf.cast(tf.square(leaf), like.dtype), like) for leaf in tree]
    shapes = [leaf.shape[like.shape.rank :] for leaf in tree]
    if all(shape.is_fully_defined() for shape in shapes):
        return _sum(squares) / max(sum(shape.num_elements() for shape in shapes), 1)
    count = _sum([tf.cast(tf.reduce_prod(tf.shape(leaf)[like.shape.rank :]), like.dtype) for leaf in tree])
    return _sum(squares) / tf.maximum(count, 1)


def peak(tree, like):
    """The largest magnitude among all elements of all leaves, or zero."""
    peaks = [tf.cast(_reduce(tf.reduce_max, tf.abs(leaf), like), like.dtype) for leaf in tree]
    return tf.maximum(tf.reduce_max(peaks, axis=0), 0)


def dot(tree, other, like):
    """The product summed over all elements of all leaves."""
    return _sum([tf.cast(_reduce(tf.reduce_sum, a * b, like), like.dtype) for a, b in zip(tree, other, strict=True)])


def _reduce(operation, leaf, like):
    return operation(leaf, axis=list(range(1, leaf.shape.rank)) if like.shape.rank else None)


def _weighted(weights, leaves):
    # Differences, not sums: Grappler makes one operation of a chain of sums and, where it expects much memory to be in use, a
    # temporary variable of that, which it loses within a branch of a loop and within a loop in a loop.
    total = _scale(weights[0], leaves[0])
    for weight, leaf in zip(weights[1:], leaves[1:], strict=True):
        total -= _scale(-weight, leaf)
    return total


def _scale(weight, leaf):
    if not tf.is_tensor(weight):
        # Not tf.cast, which takes a Python number through float32.
        return leaf if weight == 1 else tf.constant(weight, leaf.dtype) * leaf
    return expand(tf.cast(weight, leaf.dtype), leaf) * leaf


def _sum(scalars):
    return scalars[0] if len(scalars) == 1 else tf.reduce_sum(tf.stack(scalars), axis=0)
