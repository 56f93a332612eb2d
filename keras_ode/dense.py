"""Dense output: each step's interpolant as the coefficients of a polynomial.

A leaf of a polynomial has the shape of the state's leaf with one more axis behind: the coefficients of `theta^0,
theta^1, ...`, where `theta` is the fraction of the step.
"""

import tensorflow as tf

from keras_ode import tree


def polynomials(weights, y, stages, size):
    """The polynomials of one step.

    Args:
        weights: The interpolant's matrix, a NumPy array `[stages, degree]`.
        y: The leaves where the step starts.
        stages: The derivatives of its stages.
        size: Its size, scalar or `[B]`.
    """

    def polynomial(leaf, *slopes):
        slopes = tf.stack(slopes, axis=-1)
        slopes = tree.expand(tf.cast(size, leaf.dtype), slopes) * slopes
        return tf.concat([leaf[..., None], tf.tensordot(slopes, tf.constant(weights, leaf.dtype), axes=1)], axis=-1)

    return tuple(polynomial(*leaves) for leaves in zip(y, *stages, strict=True))


def evaluate(leaves, theta):
    """The values of polynomials at `theta`, scalar or `[B]`."""
    return tuple(_combine(leaf, _powers(theta, leaf.shape[-1])) for leaf in leaves)


def slope(leaves, theta):
    """Their derivatives by `theta`."""

    def derivative(leaf):
        degree = leaf.shape[-1] - 1
        factors = tf.range(1, degree + 1, dtype=leaf.dtype)
        return _combine(leaf[..., 1:] * factors, _powers(theta, degree))

    return tuple(derivative(leaf) for leaf in leaves)


def _powers(theta, count):
    powers = [tf.ones_like(theta)]
    for _ in range(count - 1):
        powers.append(powers[-1] * theta)
    return tf.stack(powers, axis=-1)


def _combine(leaf, powers):
    powers = tf.cast(powers, leaf.dtype)
    if powers.shape.rank == 1:
        return tf.tensordot(leaf, powers, axes=1)
    inner = [1] * (leaf.shape.rank - 2)
    return tf.reduce_sum(leaf * tf.reshape(powers, [-1, *inner, leaf.shape[-1]]), axis=-1)
