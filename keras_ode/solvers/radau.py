"""The Radau IIA method of order 5: three stages that are solved together."""

import functools
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_ode import tree
from keras_ode.custom_gradient import differentiable
from keras_ode.solvers.base import Solver, Step
from keras_ode.solvers.esdirk import KenCarp4
from keras_ode.solvers.implicit import HIGHER, Newton
from keras_ode.solvers.linear import identity_less, inverse, product
from keras_ode.solvers.systems import MOST_DENSE


class Carry(NamedTuple):
    """What the next step starts from.

    Attributes:
        derivative: That at the last point, leaves.
        increments: How far the three stages of the last step were from its start, a tuple of leaves for each.
        size: Its signed size; zero where there was none.
    """

    derivative: tuple
    increments: tuple
    size: tf.Tensor


class Radau5(Solver):
    """The Radau IIA method for stiff equations: order 5, 3 stages, L-stable, with a collocation polynomial as interpolant.

    Its stages are the increments of the collocation polynomial at its nodes, divided by the size of the step. Newton's method
    solves one real and one complex system of the size of the state, and starts from the polynomial of the previous step.

    Example:

    >>> stiff = lambda t, y: -1000.0 * (y - tf.cos(t))
    >>> solution = keras_ode.solve(stiff, tf.constant([0.0]), [0.0, 1.0], solver="radau")
    >>> print(f"{float(solution.ys[-1, 0]):.3f}", int(solution.stats["num_steps"]) < 100)
    0.541 True

    Reference: Hairer, Wanner (1996), Solving Ordinary Differential Equations II, section IV.8.
    """

    order, error_order = 5, 4
    is_implicit = True
    remembers = has_complex_numbers = True
    controller = "predictive"
    backward = KenCarp4()

    @property
    def weights(self):
        return _numbers().dense

    def start(self, field, t, y):
        return Carry(field(t, y).derivative, (tree.zeros_like(y),) * 3, tf.zeros_like(t)), 1

    def carry_like(self, t, y):
        return Carry(tree.zeros_like(y), (tree.zeros_like(y),) * 3, tf.zeros_like(t))

    def step(self, field, interval, y, carry, with_dense=False):
        numbers, size = _numbers(), interval.size
        newton = _Collocation(field, interval, y)
        z = newton.solve(self._guess(field, size, y, carry))
        reciprocal = interval.reciprocal()
        near, last = (tree.scale(reciprocal, tree.weighted_sum(numbers.inverse[i], z)) for i in (1, 2))
        end, derivative = tree.add(y, z[2]), tree.where(size == 0, carry.derivative, last)
        increments = tuple(tuple(map(tf.stop_gradient, leaves)) for leaves in z)
        return Step(
            start=y,
            y=end,
            error=newton.filtered(tree.add_scaled(tree.weighted_sum(numbers.error, z), size, carry.derivative)),
            integral=(),
            stages=tuple(tree.scale(reciprocal, leaves) for leaves in z),
            carry=Carry(derivative, increments, tf.stop_gradient(size)),
            evaluations=newton.evaluations,
            neighbors=((tree.add(y, z[1]), near), (end, derivative)),
            converged=newton.converged,
        )

    def _guess(self, field, size, y, carry):
        """Returns a guess of the increments of the stages, from the polynomial of the previous step."""
        if not field.adaptive:
            # From far away, a step that cannot be made smaller could find another root.
            return (tree.zeros_like(y),) * 3
        ratio = size / tree.select(carry.size == 0, tf.ones_like(size), carry.size)
        guess = []
        for node in _numbers().nodes:
            theta = 1 + tf.constant(node, size.dtype) * ratio
            powers = [theta, theta**2, theta**3]
            weights = [sum(float(w) * power for w, power in zip(row, powers, strict=True)) for row in self.weights]
            ahead = tree.tensor_weighted_sum(weights, carry.increments)
            guess.append(tree.subtract(ahead, carry.increments[2]))
        return tuple(guess)


class _Collocation(Newton):
    """Solves the three stages together: `A^-1 z = size * f(t, y + z)`, where `z` has the leaves of all stages in a row.

    In the basis of the eigenvectors of A^-1, an iteration solves a real and a complex system of the size of the state.
    """

    evaluations_each = 3
    # The stages' error adds up with that of the step.
    kappa = 0.003

    def __init__(self, field, interval, y):
        self._start, self._count = y, len(y)
        self._times = [interval.at(c) for c in _numbers().nodes]
        super().__init__(field, interval, y, 1.0)

    def solve(self, guess):
        """The increments of the stages, a tuple of leaves for each; starts from `guess`."""
        field, size, times = self._field, self._factor, tuple(map(tf.stop_gradient, self._times))
        z = self._iterate(times, self._y, tuple(tf.stop_gradient(leaf) for leaves in guess for leaf in leaves))
        if not field.derivatives:
            return self._stages(z)
        z = tuple(map(tf.stop_gradient, z))
        exact, count = self._exactly_inverted(times, z)
        for _ in range(field.derivatives):
            residual = self._residual(field, size, self._times, self._start, z)
            vectors = tf.concat([tree.packed(x, field.rows) for x in self._stages(residual)], axis=-1)
            change = tf.split(product(exact, vectors), 3, axis=-1)
            z = tree.add(z, tuple(leaf for x in change for leaf in tree.unpacked(x, self._y, field.rows)))
        self.evaluations += 3 * field.derivatives + count
        return self._stages(differentiable(z, field.derivatives, HIGHER))

    def filtered(self, error):
        """An error without its stiff components: `(gamma - size * J)^-1` times leaves."""
        return self._system.filtered(self._prepared, error)

    def _stages(self, z):
        return tuple(z[i * self._count : (i + 1) * self._count] for i in range(3))

    def _systems(self, factor):
        return _Pair(self._constant, factor, self._count), None

    def _exactly_inverted(self, times, z):
        """The inverse for all stages with a Jacobian at each, `[R, 3 D, 3 D]`, and the evaluations that this took."""
        points = [tree.add(self._y, x) for x in self._stages(z)]
        near = [self._constant.linearize(t, y, exact=True) for t, y in zip(times, points, strict=True)]
        first = _matrix_of(near[0])
        unit = tf.eye(first.shape[-1], dtype=first.dtype)
        rows = []
        for i, at_stage in enumerate(near):
            own = identity_less(tf.stop_gradient(self._factor), at_stage.matrix) - unit
            blocks = [tf.constant(x, unit.dtype) * unit + tf.zeros_like(own) for x in _numbers().inverse[i]]
            blocks[i] += own
            rows.append(tf.concat(blocks, axis=-1))
        return tf.stop_gradient(inverse(tf.concat(rows, axis=-2))), sum(x.evaluations for x in near)

    def _residual(self, field, size, times, base, z):
        """What the equations of the stages leave, the leaves of all stages in a row."""
        stages, residuals = self._stages(z), ()
        for i, t in enumerate(times):
            slope = field(t, tree.add(base, stages[i]), with_integrand=False).derivative
            residuals += tree.subtract(tree.scale(size, slope), tree.weighted_sum(_numbers().inverse[i], stages))
        return residuals

    def _linearized(self, t, base, z):
        return self._constant.linearize(t[2], tree.add(base, self._stages(z)[2]))

    def _size(self, change, z):
        size, count = super()._size, self._count
        parts = [tf.square(size(change[i : i + count], z[i : i + count])) for i in range(0, len(change), count)]
        return tf.sqrt(tf.reduce_mean(tf.stack(parts), axis=0))


class _Pair:
    """The linear equations of an iteration: a real and a complex system, whose inverses are one complex tensor `[R, 2, D, D]`.

    Args:
        field: A `Field`.
        size: The size of the step.
        count: The number of leaves of a stage.
    """

    def __init__(self, field, size, count):
        self._field, self._size, self._count = field, size, count

    def at(self, near):
        """What `solve` needs of a `Linearization`: a tuple of tensors."""
        numbers, size, matrix = _numbers(), self._size, tf.stop_gradient(_matrix_of(near))
        kind = tf.complex128 if matrix.dtype == tf.float64 else tf.complex64
        eigenvalue = tf.constant(numbers.pair, kind)
        real = inverse(identity_less(size / numbers.gamma, matrix)) / tf.constant(numbers.gamma, matrix.dtype)
        pair = inverse(identity_less(tf.cast(size, kind) / eigenvalue, tf.cast(matrix, kind))) / eigenvalue
        return (tf.stop_gradient(tf.stack([tf.cast(real, kind), pair], axis=1)),)

    def solve(self, prepared, residual):
        """The changes of the leaves of all stages in a row."""
        (inverses,), rows, count = prepared, self._field.rows, self._count
        stages = [residual[i : i + count] for i in range(0, len(residual), count)]
        vectors = [(tree.packed(x, rows),) for x in stages]
        single, real, imaginary = (tree.weighted_sum(row, vectors)[0] for row in _numbers().to_basis)
        single = product(tf.math.real(inverses[:, 0]), single)
        pair = product(inverses[:, 1], tf.complex(real, imaginary))
        parts = [(single,), (tf.math.real(pair),), (tf.math.imag(pair),)]
        changes = (tree.weighted_sum(row, parts)[0] for row in _numbers().from_basis)
        return tuple(leaf for x in changes for leaf in tree.unpacked(x, stages[0], rows))

    def filtered(self, prepared, error):
        """`(gamma - size * J)^-1` times leaves."""
        found = product(tf.math.real(prepared[0][:, 0]), tree.packed(error, self._field.rows))
        return tree.unpacked(found, error, self._field.rows)


def _matrix_of(near):
    if near.matrix is None:
        raise ValueError(
            f"'radau' forms matrices, so it takes at most {MOST_DENSE} unknowns: in each row if rows are independent, otherwise in "
            "the whole state. Use solver='kvaerno5' or 'kencarp4', which need no matrices, or per_sample=True if rows are "
            f"independent. Received: a state of shape {', '.join(str(tuple(leaf.shape)) for leaf in near.point[1:])}"
        )
    return near.matrix


class _Numbers:
    """The coefficients, from the nodes of Radau's quadrature alone.

    Attributes:
        nodes: The nodes c.
        inverse: A^-1, with the collocation method's matrix A.
        gamma, pair: The real eigenvalue of A^-1 and the complex one with a positive imaginary part.
        to_basis: Rows: a real one, the real and the imaginary part of the complex one of the inverse of its eigenvectors.
        from_basis: The columns that go back.
        dense: The `weights` of a `Solver`.
        error: How increments of the stages make, with the derivative at the start, an error of order 4: that of the formula
            of order 3 with the weight 1 / gamma for the derivative at the start.
    """

    def __init__(self):
        # The zeros of the second derivative of x^2 (x - 1)^3.
        self.nodes = np.array([(4 - np.sqrt(6)) / 10, (4 + np.sqrt(6)) / 10, 1.0])
        powers = np.arange(3)
        basis = np.linalg.inv(self.nodes[:, None] ** powers)  # by rising powers, of Lagrange's polynomials
        matrix = (self.nodes[:, None] ** (powers + 1) / (powers + 1)) @ basis
        self.inverse = np.linalg.inv(matrix)
        values, vectors = np.linalg.eig(self.inverse)
        single, pair = np.argmin(np.abs(values.imag)), np.argmax(values.imag)
        self.gamma, self.pair = float(values[single].real), complex(values[pair])
        left = np.linalg.inv(np.stack([vectors[:, single], vectors[:, pair], vectors[:, pair].conj()], axis=1))
        self.to_basis = np.stack([left[0].real, left[1].real, left[1].imag])
        self.from_basis = np.stack([vectors[:, single].real, 2 * vectors[:, pair].real, -2 * vectors[:, pair].imag], axis=1)
        self.dense = np.linalg.inv(self.nodes[:, None] ** (powers + 1)).T
        self.error = -basis[0] @ self.inverse


@functools.cache
def _numbers():
    return _Numbers()
