"""The linear equations of implicit methods: by the inverse of a matrix where there are few unknowns, else by GMRES."""

import numpy as np

from keras_ode import tree
from keras_ode.solvers import krylov
from keras_ode.solvers.linear import inverse, mass_less, product

# Up to so many unknowns, of a row where rows are independent, matrices are formed.
MOST_DENSE = 128


class System:
    """Equations `(M - factor J) x = b` with the Jacobians of a field at points, and the identity for M without a mass matrix.

    Args:
        field: A `Field`.
        factor: A scalar, or `[B]`.
        tolerance: How large the residual may be, measured by `b`, where the equations are solved by GMRES: `None` for one near
            rounding errors.
    """

    def __init__(self, field, factor, tolerance=None):
        self._field, self._factor, self._tolerance = field, factor, tolerance

    def at(self, near):
        """What `solve` needs of a `Linearization`: a tuple of tensors."""
        if near.matrix is None:
            return near.point
        return (inverse(mass_less(self._field.mass, self._factor, near.matrix)),)

    def solve(self, prepared, leaves, derivatives=0):
        """The solutions, leaves like those given: not finite where they were not found.

        Args:
            prepared: What `at` gave.
            leaves: Right-hand sides.
            derivatives: How many derivatives by the point and the parameters are asked for; GMRES needs to know.
        """
        rows, vectors = self._field.rows, tree.packed(leaves, self._field.rows)
        if len(prepared) == 1:
            found = product(prepared[0], vectors)
        else:
            found = krylov.solved(self._operator(prepared), vectors, self._accuracy(vectors), derivatives)
        return tree.unpacked(found, leaves, rows)

    def apply(self, prepared, leaves):
        """The solutions, differentiable by the right-hand sides alone."""
        rows, vectors = self._field.rows, tree.packed(leaves, self._field.rows)
        if len(prepared) == 1:
            found = product(prepared[0], vectors)
        else:
            found = krylov.applied(self._operator(prepared).constant(), vectors, self._accuracy(vectors))
        return tree.unpacked(found, leaves, rows)

    def _operator(self, prepared):
        t, *y = prepared
        return krylov.Operator(self._field, t, tuple(y), self._factor)

    def _accuracy(self, vectors):
        exact = krylov.exact(vectors.dtype)
        return exact if self._tolerance is None else max(self._tolerance, exact)


def is_large(y, rows):
    """Whether there are too many unknowns for a matrix of them."""
    return sum(leaf.shape[1 if rows else 0 :].num_elements() or np.nan for leaf in y) > MOST_DENSE
