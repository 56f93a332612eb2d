"""Equations `M y' = f(t, y)`, whose constant mass matrix M may be singular: then some of them are algebraic.

All is done with the projector P onto the left null space of M: `P M = 0`, so that `P f(t, y) = 0` are the algebraic equations. If
they determine the algebraic unknowns (the equation is of index 1), `M + P df/dy` is regular.

Reference: Hairer, Wanner (1996), Solving Ordinary Differential Equations II, chapter VI.
"""

import functools

import numpy as np
import tensorflow as tf

from keras_ode import tree
from keras_ode.solvers import krylov
from keras_ode.solvers.base import Stage, WrappedField
from keras_ode.solvers.linear import inverse, matmul, product

# Rounding errors of the state that are no inconsistency.
_ROUNDING_ERRORS = 100


class MassMatrix:
    """A matrix `[D, D]` that multiplies the last axis of the one leaf of a state. Equal to another one with the same numbers."""

    def __init__(self, matrix):
        self.matrix = np.array(matrix, np.float64)
        self.matrix.setflags(write=False)

    def __eq__(self, other):
        return type(other) is MassMatrix and np.array_equal(self.matrix, other.matrix)

    def __hash__(self):
        return hash(self.matrix.tobytes())

    def __repr__(self):
        return f"MassMatrix({self.matrix.tolist()})"

    @functools.cached_property
    def projector(self):
        """The orthogonal projector P onto the left null space, exact where rows of the matrix are zero."""
        size = np.abs(self.matrix).max(axis=1, initial=0)
        zero, scale = size == 0, np.where(size > 0, size, 1)
        # Rows by their own size: a small number is not a zero.
        left, values, _ = np.linalg.svd(self.matrix / scale[:, None])
        rank = int(np.sum(values > len(size) * np.finfo(float).eps * max(values[0], 1)))
        if rank == np.sum(~zero):
            return np.diag(zero.astype(float))
        basis, _ = np.linalg.qr(left[:, rank:] / scale[:, None])
        return basis @ basis.T

    @property
    def is_singular(self):
        return bool(self.projector.any())

    @functools.cached_property
    def inverse(self):
        """That of a regular matrix."""
        return np.linalg.inv(self.matrix)

    def blocks(self, matrix, like):
        """A `[D, D]` matrix as one that multiplies as many vectors in a row as a Jacobian `like` is of."""
        return tf.constant(np.kron(np.eye(like.shape[-1] // len(matrix)), matrix), like.dtype)

    def times(self, leaves, transposed=False):
        """M times the leaf."""
        return _times(self.matrix.T if transposed else self.matrix, leaves)

    def projected(self, leaves):
        """P times the leaf: the part of a derivative that is algebraic equations."""
        return _times(self.projector, leaves)


def _times(matrix, leaves):
    (leaf,) = leaves
    diagonal = np.diagonal(matrix)
    if np.array_equal(matrix, np.diag(diagonal)):
        return (tf.constant(diagonal, leaf.dtype) * leaf,)
    return (tree.tensordot(leaf, tf.constant(matrix.T, leaf.dtype)),)


def _determined(field, near, right, constant=False):
    """The solution of `(M + P df/dy) x = right`; `constant`: with derivatives by the right-hand side alone."""
    mass, rows, vectors = field.mass, field.rows, tree.packed(right, field.rows)
    if near.matrix is None:
        t, *y = near.point
        operator, tolerance = krylov.Operator(field, t, tuple(y), None), krylov.exact(vectors.dtype)
        if constant:
            found = krylov.applied(operator.constant(), vectors, tolerance)
        else:
            found = krylov.solved(operator, vectors, tolerance, field.derivatives)
        return tree.unpacked(found, right, rows)
    matrix = inverse(mass.blocks(mass.matrix, near.matrix) + matmul(mass.blocks(mass.projector, near.matrix), near.matrix))
    return tree.unpacked(product(tf.stop_gradient(matrix) if constant else matrix, vectors), right, rows)


def derivative(field, t, y):
    """The derivative `y'` at a point, and how many evaluations this took: from `M y' = f`, and the algebraic equations
    differentiated by time."""
    mass, stage = field.mass, field(t, y)
    if mass is None:
        return stage, 1
    if not mass.is_singular:
        return stage._replace(derivative=_times(mass.inverse, stage.derivative)), 1
    near = field.linearize(t, y)
    algebraic = stage.derivative if near.by_time is None else tree.add(stage.derivative, near.by_time)
    right = tree.subtract(stage.derivative, mass.projected(algebraic))
    return stage._replace(derivative=_determined(field, near, right)), 1 + near.evaluations


def correction(field, t, y, like=None):
    """Newton's correction of a state towards `P f(t, y) = 0` and `M y = M like`: the latter holds already if not given."""
    mass = field.mass
    right = tree.scale(-1, mass.projected(field(t, y, with_integrand=False).derivative))
    if like is not None:
        right = tree.add(right, mass.times(tree.subtract(like, y)))
    return _determined(field, field.linearize(t, y), right, constant=True)


def consistent(field, t, y):
    """The same state, whose derivatives are those of a consistent one: what is algebraic in it follows from the rest.

    What a caller gives there is a solution of the algebraic equations, but its derivatives need not be those of one: a constant has
    none by a parameter.
    """
    fixed = tuple(map(tf.stop_gradient, y))
    changes = correction(field, t, fixed, y)
    changes = (x - tf.stop_gradient(x) for x in changes)
    return tree.add(fixed, tuple(tree.select(tf.math.is_finite(x), x, 0) for x in changes))


def inconsistency(field, t, y, tolerance):
    """How far a state is from one that fulfills the algebraic equations, in units of the tolerance: a number like `t`."""
    scales, size = tolerance.scale(y, y), tree.rms(y, t)
    scales = tuple(
        s + tree.expand(tf.cast(_ROUNDING_ERRORS * np.finfo(leaf.dtype.as_numpy_dtype).eps * size, leaf.dtype), leaf)
        for s, leaf in zip(scales, y, strict=True)
    )
    return tolerance.norm([d / s for d, s in zip(correction(field, t, y), scales, strict=True)], t)


class Solved(WrappedField):
    """The field `y' = g(t, y)` that an equation `M y' = f(t, y)` stands for."""

    def __call__(self, t, y, with_integrand=True):
        return Stage(derivative(self._field, t, y)[0].derivative)
