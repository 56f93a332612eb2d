"""What the backward passes of all adjoints do with cotangents."""

import numpy as np
import tensorflow as tf

from keras_ode import tree
from keras_ode.adjoints.fields import ForwardField
from keras_ode.solvers.mass import derivative


def without_padding(problem, cotangents):
    """The cotangents with those of repeated last times, as in padded grids, added to the last."""
    times = problem.since_start()
    if times.shape[0] == 2:
        return cotangents
    repeated = tf.concat([tf.zeros_like(times[:1]), tf.cast(times[1:-1] == times[-1], times.dtype)], axis=0)

    def move(g):
        weights = tree.expand(tf.cast(repeated, g.dtype), g)
        return tf.concat([g[:-1] * (1 - weights), g[-1:] + tf.reduce_sum(weights * g[:-1], axis=0, keepdims=True)], axis=0)

    if tree.is_compiled():
        return tuple(move(g) for g in cotangents)
    return tf.cond(tf.reduce_any(repeated > 0), lambda: tuple(move(g) for g in cotangents), lambda: tuple(cotangents))


def size_of(problem, ys, cotangents):
    """How large the cotangents are, measured by the states: a scalar, or `[B]`, since rows must not depend on others.

    Divided by this number, they suit the same tolerances. Also how large they are in themselves, the largest of all rows.
    """
    times = problem.times
    like = tf.TensorSpec([None], times.dtype)  # one for each time, and row

    def largest(leaves):
        """The largest root mean square at a time, without what a failed row holds."""
        shape = tf.shape(leaves[0])[: times.shape.rank]
        rows = tf.reduce_prod(shape)[None]
        leaves = (tf.where(tf.math.is_finite(leaf), leaf, 0) for leaf in leaves)
        leaves = tuple(tf.reshape(leaf, tf.concat([rows, tf.shape(leaf)[times.shape.rank :]], axis=0)) for leaf in leaves)
        peak = tree.peak(leaves, like)
        unit = tf.where(peak > 0, peak, 1)  # squares of small numbers are zero
        size = unit * tree.rms(tree.scale(1 / unit, leaves), like)
        return tf.reduce_max(tf.reshape(size, shape), axis=0)

    later = tuple(leaf[1:] for leaf in cotangents)
    controlled = problem.controlled(later)
    states, seen = largest(problem.controlled(ys)), largest(controlled)
    all_of_them = seen if len(controlled) == len(later) else largest(later)
    of_cotangents = tf.where(seen > 0, seen, all_of_them)
    size = of_cotangents / tf.where(states > 0, states, 1)
    return tf.where(size > 0, size, 1), tf.reduce_max(of_cotangents)


def integral_weights(problem, of_cotangents):
    """For each differentiable parameter the number times which its cotangent compares with absolute tolerances.

    In the unit of the loss' own cotangents, a cotangent of a parameter is a change of the state by a change of the parameter:
    so it is taken for a change of one, or of the parameter's whole size where that is larger.
    """
    unit = tf.where(of_cotangents > 0, of_cotangents, 1)
    return tuple(tf.maximum(tree.rms((p,), unit), 1) / unit for p in problem.field.select(problem.parameters))


def time_cotangents(problem, ys, slopes, cotangents, first_cotangent):
    """The cotangents of the times: each saved state moves along the field, and so does the start.

    Args:
        ys, cotangents: Leaves `[T, ...]`.
        slopes: The derivatives of the states at all times but the first, leaves `[T - 1, ...]`; empty: those of the field.
        first_cotangent: The cotangent of the start from all later times, leaves.
    """
    field, times = ForwardField(problem), problem.times

    def rate(t, y, cotangent):
        slope = derivative(field, t, y)[0].derivative
        return tree.dot(cotangent, slope, t)

    first = -rate(times[0], tuple(y[0] for y in ys), first_cotangent)
    function, leaves = rate, tf.nest.map_structure(lambda x: x[1:], (times, ys, tuple(cotangents)))
    if slopes:
        function, leaves = lambda slope, cotangent: tree.dot(cotangent, slope, times[0]), (slopes, leaves[2])
    later = tf.map_fn(lambda at: function(*at), leaves, fn_output_signature=times.dtype)
    return tf.concat([first[None], later], axis=0)


def nan_unless(condition, leaves):
    """NaN in place of what a failed solve would give; and so is the gradient through it."""
    return tree.scale(tf.where(condition, 1.0, np.nan), leaves)
