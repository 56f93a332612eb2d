"""Linear equations of implicit methods: states as vectors, Jacobians as matrices of them, and their inverses.

Where the rows of a batch are independent, each has a vector and a matrix of its own, `[B, D]` and `[B, D, D]`. Otherwise the
whole state is one vector, `[1, N]` and `[1, N, N]`.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from keras_ode import tree
from keras_ode.custom_gradient import custom_gradient

# Up to so many unknowns the elimination is written out.
_FEW = 8
# Up to so many, products of matrices are sums of products of all their elements.
_MOST_SUMMED = 32


class Linearization(NamedTuple):
    """A field near a point.

    Attributes:
        matrix: Its Jacobian by the state, `[B, D, D]` or `[1, N, N]`; `None` where that is too large.
        by_time: Its derivative by time, leaves; `None` if the field has none.
        evaluations: How many evaluations finding them is worth.
        point: Time and leaves of the point, where there is no matrix.
    """

    matrix: tf.Tensor | None
    by_time: tuple | None
    evaluations: Any
    point: tuple = ()


def scaled(factor, matrix):
    """Matrices times a factor that is a scalar, or one for each row."""
    factor = tf.cast(factor, matrix.dtype)
    return (factor[:, None, None] if factor.shape.rank else factor) * matrix


def identity_less(factor, matrix):
    """`I - factor * matrix`."""
    return tf.eye(matrix.shape[-1], dtype=matrix.dtype) - scaled(factor, matrix)


def mass_less(mass, factor, matrix):
    """`M - factor * matrix` with a `MassMatrix`, or `I - factor * matrix` with `None`."""
    if mass is None:
        return identity_less(factor, matrix)
    # Rows that are done take steps of no length, in which a singular M would be left alone.
    none = tf.cast(factor == 0, matrix.dtype)
    none = none[:, None, None] if none.shape.rank else none
    return mass.blocks(mass.matrix, matrix) + none * tf.eye(matrix.shape[-1], dtype=matrix.dtype) - scaled(factor, matrix)


def product(matrix, vectors):
    """Each matrix times its vector, in their full precision: that of a matrix product is less on GPUs and TPUs."""
    return tf.reduce_sum(matrix * tf.expand_dims(vectors, 1), axis=-1)


def radius_of(matrix):
    """A bound of the spectral radius of each matrix `[R, D, D]`, by Gelfand's formula: the norm of its fourth power.

    The norm of the matrix itself can be far too large where the units of the unknowns differ.

    Reference: Golub, Van Loan (2013), Matrix Computations, section 7.3.
    """

    def norm(x):
        return tf.reduce_max(tf.reduce_sum(tf.abs(x), axis=-1), axis=-1)

    size = norm(matrix)
    power = tf.math.divide_no_nan(matrix, size[:, None, None])
    for _ in range(2):
        power = matmul(power, power)
    return size * norm(power) ** 0.25


def inverse(matrix):
    """The inverses of matrices `[R, D, D]`: not finite where one is singular.

    TensorFlow's own raise an error for that, which ends the program; a solve rejects the step.

    Reference: Golub, Van Loan (2013), Matrix Computations, section 3.4.
    """

    @custom_gradient
    def invert(matrix):
        found = _eliminated(matrix)

        def gradient(g):
            transposed = tf.linalg.matrix_transpose(inverse(matrix))
            return -matmul(transposed, matmul(g, transposed))

        return found, gradient

    return invert(matrix)


def matmul(a, b):
    """Products of matrices in their full precision."""
    if a.shape[-1] <= _MOST_SUMMED:
        return tf.reduce_sum(a[..., :, :, None] * b[..., None, :, :], axis=-2)
    return tf.cast(tf.linalg.matmul(tf.cast(a, tf.float64), tf.cast(b, tf.float64)), a.dtype)


def _eliminated(matrix):
    """Elimination by Gauss and Jordan, with the largest pivot of each column."""
    size = matrix.shape[-1]
    both = tf.concat([matrix, tf.zeros_like(matrix) + tf.eye(size, dtype=matrix.dtype)], axis=-1)

    def eliminate(k, both):
        rows = tf.range(size)
        column = tf.gather(both, k, axis=-1)
        pivot = tf.argmax(tree.select(rows >= k, tf.abs(column), -1), axis=-1, output_type=tf.int32)
        here, there = rows == k, rows == pivot[:, None]
        pivot_row, row = _row(both, there), _row(both, tf.broadcast_to(here, tf.shape(there)))
        both = tree.select(there[..., None], row[:, None], both)
        scaled = pivot_row / tf.reduce_sum(tree.select(there, column, 0), axis=-1)[:, None]
        column = tree.select(there, tf.reduce_sum(tree.select(here, column, 0), axis=-1)[:, None], column)
        return k + 1, tree.select(here[:, None], scaled[:, None], both - column[..., None] * scaled[:, None])

    if size <= _FEW:
        for k in range(size):
            both = eliminate(tf.constant(k), both)[1]
    else:
        both = tree.while_loop(lambda k, _: k < size, eliminate, (tf.constant(0), both))[1]
    return both[..., size:]


def _row(both, chosen):
    """The row of each matrix that is chosen."""
    return tf.reduce_sum(tree.select(chosen[..., None], both, 0), axis=1)
