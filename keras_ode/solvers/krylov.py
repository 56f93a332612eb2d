"""Linear equations of implicit methods without their matrices, for states of many unknowns: by products with the Jacobian.

Reference: Saad, Schultz (1986), GMRES: a generalized minimal residual algorithm for solving nonsymmetric linear systems, SIAM J.
Sci. Stat. Comput. 7(3), 856-869.
"""

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_ode import tree
from keras_ode.custom_gradient import custom_gradient

# How many vectors a subspace has, and how often a new one begins.
_MOST_VECTORS = 32
_MOST_CYCLES = 60
# A cycle that leaves more than this part of the residual does not pay.
_LEAST_PROGRESS = 0.9


def exact(dtype):
    """A tolerance near what rounding errors allow."""
    return 1e-9 if dtype == tf.float64 else 1e-5


class Operator(NamedTuple):
    """`M - factor J` at a point of a field, with the identity in place of M where it has no mass matrix.

    Attributes:
        field: A `Field`.
        t, y: The point.
        factor: A scalar, or `[B]`; `None` for `M + P J` (see `keras_ode.solvers.mass`).
        is_transposed: Whether the transposed operator is meant.
    """

    field: Any
    t: tf.Tensor
    y: tuple
    factor: tf.Tensor | None
    is_transposed: bool = False

    def __call__(self, vectors):
        """The product with vectors, `[B, D]` or `[1, N]`."""
        rows, mass = self.field.rows, self.field.mass
        leaves = tree.unpacked(vectors, self.y, rows)
        if self.factor is None:
            products = self._products(mass.projected(leaves)) if self.is_transposed else mass.projected(self._products(leaves))
        else:
            products = tree.scale(-self.factor, self._products(leaves))
        if mass is None:
            return vectors + tree.packed(products, rows)
        if self.factor is not None:  # as `mass_less` of keras_ode.solvers.linear
            products = tree.add(products, tree.scale(tf.cast(self.factor == 0, vectors.dtype), leaves))
        return tree.packed(tree.add(mass.times(leaves, self.is_transposed), products), rows)

    def unit(self):
        """The size of what counts in each element of the solutions, like vectors."""
        scales = self.field.scales(self.y)
        if scales is None:
            return tf.ones_like(tree.packed(self.y, self.field.rows))
        vectors = tree.packed(scales, self.field.rows)
        largest = tf.reduce_max(vectors, axis=1, keepdims=True)
        vectors = tf.maximum(vectors, np.finfo(vectors.dtype.as_numpy_dtype).eps * largest)
        vectors = tree.select(largest > 0, vectors, 1)
        return 1 / vectors if self.is_transposed else vectors

    def _products(self, leaves):
        return self.field.products(self.t, self.y, leaves, self.is_transposed)

    def constant(self):
        """The same, of which no derivative is asked for."""
        factor = None if self.factor is None else tf.stop_gradient(self.factor)
        return Operator(
            self.field.constant(), tf.stop_gradient(self.t), tuple(map(tf.stop_gradient, self.y)), factor, self.is_transposed
        )


def solved(operator, vectors, tolerance, derivatives=0):
    """The solutions `x` of `A x = b`, not finite where they were not found.

    Args:
        operator: An `Operator` A.
        vectors: Right-hand sides b, `[B, D]` or `[1, N]`.
        tolerance: How large `b - A x` may be, measured by b, both in the units of the unknowns.
        derivatives: How many derivatives of the solutions, one of the other, are asked for.
    """
    fixed = operator.constant()
    x = tf.stop_gradient(_found(fixed, tf.stop_gradient(vectors), tolerance))
    for _ in range(derivatives):
        # Zero up to the tolerance, but each has one more derivative that is that of the solution.
        x += _rest(fixed, vectors - operator(x), tolerance)
    return x


def applied(operator, vectors, tolerance):
    """The constant operator's inverse times vectors: differentiable by these."""

    @custom_gradient
    def apply(vectors):
        def gradient(g):
            return applied(operator._replace(is_transposed=not operator.is_transposed), g, tolerance)

        return _found(operator, vectors, tolerance), gradient

    return apply(vectors)


def _found(operator, vectors, tolerance):
    """The solutions, whose residuals are measured in the units of the unknowns."""
    unit = operator.unit()
    return unit * gmres(lambda x: operator(unit * x) / unit, vectors / unit, tolerance)


def _rest(operator, residual, tolerance):
    @custom_gradient
    def pass_on(residual):
        def gradient(g):
            return applied(operator._replace(is_transposed=not operator.is_transposed), g, tolerance)

        return tf.zeros_like(residual), gradient

    return pass_on(residual)


class _Cycle(NamedTuple):
    """What goes round the iteration within one subspace of `m` vectors, for each of R rows.

    Attributes:
        k: How many vectors there are.
        basis: `[m + 1, R, N]`.
        rotations: The product of all rotations, `[R, m + 1, m + 1]`, that make the Hessenberg matrix a triangular one.
        triangle: That, `[R, m, m]`, by columns.
        left: The residual, `[R]`.
    """

    k: tf.Tensor
    basis: tf.Tensor
    rotations: tf.Tensor
    triangle: tf.Tensor
    left: tf.Tensor


def gmres(apply, vectors, tolerance):
    """The solutions of `apply(x) = vectors`, `[R, N]`: NaN where they were not found."""
    wanted = tf.cast(tolerance, vectors.dtype) * _norm(vectors)

    def cycle(n, x, residual, left, before):
        found = _in_subspace(apply, residual, left, wanted)
        x = tree.select((left > wanted)[:, None], x + found, x)
        residual = vectors - apply(x)
        return n + 1, x, residual, _norm(residual), left

    def is_running(n, x, residual, left, before):
        # What is not finite ends here too.
        return (n < _MOST_CYCLES) & tf.reduce_any((left > wanted) & (left <= _LEAST_PROGRESS * before))

    size = _norm(vectors)
    start = (tf.constant(0), tf.zeros_like(vectors), vectors, size, tf.constant(np.inf, size.dtype) + tf.zeros_like(size))
    _, x, _, left, _ = tree.while_loop(is_running, cycle, start)
    return tree.select((left <= wanted)[:, None], x, tf.constant(np.nan, x.dtype))


def _in_subspace(apply, residual, size, wanted):
    """The correction in the Krylov subspace of a residual that makes it smallest."""
    rows, width = tf.shape(residual)[0], residual.shape[1]
    most, dtype = min(_MOST_VECTORS, width), residual.dtype
    first = tf.one_hot(0, most + 1, dtype=dtype)
    start = _Cycle(
        k=tf.constant(0),
        basis=first[:, None, None] * tf.math.divide_no_nan(residual, size[:, None])[None],
        rotations=tf.eye(most + 1, batch_shape=[rows], dtype=dtype),
        triangle=tf.zeros(tf.stack([rows, most, most]), dtype),
        left=size,
    )
    end = _Cycle(
        *tree.while_loop(
            lambda k, basis, rotations, triangle, left: (k < most) & tf.reduce_any(left > wanted),
            lambda *state: tuple(_extended(apply, size, _Cycle(*state))),
            tuple(start),
        )
    )
    # Columns that there are not, or that a row no longer needed, are those of the identity.
    right = size[:, None] * end.rotations[:, :most, 0]
    triangle = tf.linalg.matrix_transpose(end.triangle)
    diagonal = tf.linalg.diag_part(triangle)
    is_there = diagonal != 0
    triangle = tf.linalg.set_diag(triangle, tree.select(is_there, diagonal, 1))
    weights = tf.linalg.triangular_solve(triangle, tree.select(is_there, right, 0)[..., None], lower=False)[..., 0]
    return tf.reduce_sum(tf.transpose(weights)[..., None] * end.basis[:most], axis=0)


def _extended(apply, size, cycle):
    """The subspace with one more vector. Gram and Schmidt's orthogonalization, twice."""
    k, basis, rotations, triangle, left = cycle
    new = apply(tf.gather(basis, k))
    before, column = _norm(new), 0.0
    for _ in range(2):
        part = tf.reduce_sum(basis * new[None], axis=2)
        new -= tf.reduce_sum(part[..., None] * basis, axis=0)
        column += tf.transpose(part)
    length = _norm(new)
    epsilon = np.finfo(new.dtype.as_numpy_dtype).eps
    length = tree.select(length > 10 * epsilon * before, length, 0)
    here, there = (tf.one_hot(k + i, basis.shape[0], dtype=new.dtype) for i in (0, 1))
    basis += there[:, None, None] * tf.math.divide_no_nan(new, length[:, None])[None]
    column = tf.reduce_sum(rotations * column[:, None], axis=2)
    # The rotation that takes the length away.
    diagonal = tf.gather(column, k, axis=1)
    whole = tf.sqrt(diagonal**2 + length**2)
    cos, sin = tree.select(whole > 0, tf.math.divide_no_nan(diagonal, whole), 1), tf.math.divide_no_nan(length, whole)
    upper, lower = (tf.gather(rotations, k + i, axis=1) for i in (0, 1))
    rotated = cos[:, None] * upper + sin[:, None] * lower, cos[:, None] * lower - sin[:, None] * upper
    rotations = _with_row(_with_row(rotations, here, rotated[0]), there, rotated[1])
    column += here * (whole - diagonal)[:, None]
    column = tree.select(tf.range(basis.shape[0]) <= k, column, 0)
    triangle = _with_row(triangle, here[:-1], column[:, :-1])
    return _Cycle(k + 1, basis, rotations, triangle, tf.abs(size * rotated[1][:, 0]))


def _with_row(matrix, chosen, row):
    """Matrices `[R, n, n]` with a row replaced, which `chosen` points to."""
    return tree.select(chosen[None, :, None] > 0, row[:, None], matrix)


def _norm(vectors):
    return tf.sqrt(tf.reduce_sum(tf.square(vectors), axis=1))
