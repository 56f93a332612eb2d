"""Arithmetic on the leaves of a state.

Inside the package a state is a tuple of tensors, the leaves of the user's nest in the order of `tf.nest.flatten`.
A scalar that belongs to a solve (a time, a step size) has shape `[]` where all samples share their steps and `[B]`
where every sample has its own; `expand` makes it broadcast against a leaf.
"""

import numpy as np
import tensorflow as tf


def as_tensor(value):
    """A tensor; Python numbers in double precision, where TensorFlow would round them to single."""
    known = tf.is_tensor(value) or isinstance(value, tf.Variable)
    return tf.convert_to_tensor(value if known else np.asarray(value))


def expand(scalar, leaf):
    """Gives a scalar of the solve the trailing axes of length one that broadcast it against `leaf`."""
    missing = leaf.shape.rank - scalar.shape.rank
    if scalar.shape.rank == 0 or missing == 0:
        return scalar
    return tf.reshape(scalar, tf.concat([tf.shape(scalar), [1] * missing], axis=0))


def weighted_sum(weights, trees):
    """The sum of trees with Python numbers as weights; zeros cost nothing."""
    terms = [(weight, tree) for weight, tree in zip(weights, trees, strict=True) if weight != 0]
    return tuple(_sum([_scale(weight, leaf) for (weight, _), leaf in zip(terms, leaves, strict=True)])
                 for leaves in zip(*(tree for _, tree in terms), strict=True))


def tensor_weighted_sum(weights, trees):
    """The sum of trees with scalar (or `[B]`) tensors as weights."""
    return tuple(_sum([expand(tf.cast(weight, leaf.dtype), leaf) * leaf for weight, leaf in zip(weights, leaves, strict=True)])
                 for leaves in zip(*trees, strict=True))


def add_scaled(tree, scale, increments):
    """`tree + scale * increments`, with a scalar or `[B]` tensor as scale."""
    return tuple(leaf + expand(tf.cast(scale, leaf.dtype), leaf) * increment
                 for leaf, increment in zip(tree, increments, strict=True))


def add(tree, other):
    return tuple(a + b for a, b in zip(tree, other, strict=True))


def scale(factor, tree):
    return tuple(expand(tf.cast(factor, leaf.dtype), leaf) * leaf for leaf in tree)


def zeros_like(tree):
    return tuple(tf.zeros_like(leaf) for leaf in tree)


def where(condition, tree, other):
    """Selects whole trees by a scalar condition, or rows of them by a `[B]` one."""
    return tuple(tf.where(expand(condition, a), a, b) for a, b in zip(tree, other, strict=True))


def put(buffer, index, value):
    """`buffer` with `buffer[index]` replaced; `[B]` indices replace `buffer[index[b], b]` for every sample."""
    if 0 in buffer.shape:  # nothing to put: TensorFlow refuses empty updates
        return buffer
    if index.shape.rank == 0:
        return tf.tensor_scatter_nd_update(buffer, tf.reshape(index, [1, 1]), value[None])
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


def while_loop(condition, body, state, bound=None):
    """`tf.while_loop`, one iteration after the other: several at a time would each keep their own buffers.

    Args:
        bound: A number of iterations, for a loop that is differentiated.
    """
    return tf.while_loop(condition, body, state, parallel_iterations=1, maximum_iterations=bound)


def is_finite(tree, per_sample):
    """Whether all elements are finite: a scalar, or `[B]` where every sample is judged alone."""
    return tf.reduce_all(tf.stack([_reduce(tf.reduce_all, tf.math.is_finite(leaf), per_sample) for leaf in tree]), axis=0)


def rms(tree, per_sample, dtype):
    """The root mean square over all elements of all leaves: a scalar, or `[B]`."""
    return tf.sqrt(mean_square(tree, per_sample, dtype))


def mean_square(tree, per_sample, dtype):
    """Its square."""
    squares = [_reduce(tf.reduce_sum, tf.cast(tf.square(leaf), dtype), per_sample) for leaf in tree]
    count = _sum([_count(leaf, per_sample, dtype) for leaf in tree])
    return _sum(squares) / tf.maximum(count, 1)


def dot(tree, other, per_sample, dtype):
    """The product summed over all elements of all leaves: a scalar, or `[B]`."""
    return _sum([tf.cast(_reduce(tf.reduce_sum, a * b, per_sample), dtype) for a, b in zip(tree, other, strict=True)])


def _count(leaf, per_sample, dtype):
    shape = leaf.shape[1:] if per_sample else leaf.shape
    if shape.is_fully_defined():
        return tf.constant(shape.num_elements(), dtype)
    return tf.cast(tf.reduce_prod(tf.shape(leaf)[1 if per_sample else 0:]), dtype)


def _reduce(operation, leaf, per_sample):
    return operation(leaf, axis=list(range(1, leaf.shape.rank)) if per_sample else None)


def _scale(weight, leaf):
    # Not tf.cast, which takes a Python number through float32.
    return leaf if weight == 1 else tf.constant(weight, leaf.dtype) * leaf


def _sum(terms):
    if len(terms) == 1:
        return terms[0]
    return terms[0] + terms[1] if len(terms) == 2 else tf.add_n(terms)
