"""The step contract: what every solver offers the loop."""

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_ode import dense, tree
from keras_ode.configurable import Configurable

# Sizes of steps that differ by so many rounding errors of the time are the same.
_ROUNDING_OF_SIZES = 4


class Stage(NamedTuple):
    """One evaluation of a field: the derivative's leaves, and the integrand of what only accumulates."""

    derivative: tuple
    integrand: tuple = ()


class Field:
    """What a solver integrates: a function `field(t, y, with_integrand=True)` that gives a `Stage`."""

    def __call__(self, t, y, with_integrand=True):
        raise NotImplementedError

    # The `Tolerance` of the steps, where one that fails is tried again with a smaller size; else `None`.
    tolerance = None
    # The `MassMatrix` of an equation `M y' = f(t, y)`, of which the field is `f`; `None` where there is none.
    mass = None
    # How many derivatives of a step, one of the other, are asked for.
    derivatives = 0

    @property
    def rows(self):
        """Whether rows of a batch are independent, so that each has a Jacobian of its own."""
        raise NotImplementedError

    def controlled(self, leaves):
        """Of leaves like those of the state, the ones that error control sees."""
        return tuple(leaves)

    def linearize(self, t, y, exact=False):
        """The `Linearization` at a point, for implicit methods; `exact`, not by a Jacobian of the user's."""
        raise NotImplementedError

    def products(self, t, y, leaves, transposed=False):
        """The products of the Jacobian at a point, or of its transpose, with leaves: for states of many unknowns."""
        raise NotImplementedError

    def parts(self):
        """The two fields whose sum it is, the stiff one first, each with what a `Field` has; `None` where it was given as one."""
        return None

    def constant(self):
        """The same field, of which no derivative is asked for."""
        return self

    def at_each(self, times):
        """The same field for each of several times, at which it is evaluated once: what depends on the time alone can be
        computed for all of them together."""
        return [self] * len(times)

    # These follow from the attributes and methods above.

    @property
    def adaptive(self):
        """Whether a step that fails is tried again with a smaller size."""
        return self.tolerance is not None

    def scales(self, y):
        """The errors of a state that are acceptable, leaves, or `None` where nothing says so."""
        return None if self.tolerance is None else self.tolerance.scale(y, y)

    def scaled(self, change, y, like, end=None):
        """How large a change of the state `y` is in units of the tolerance, a number like `like`: of a tight tolerance, where the
        field has none. Then the state `end`, if given, counts where it is larger than `y`, which may be zero."""
        if self.tolerance is not None:
            change, y = map(self.controlled, (change, y))
            return self.tolerance.scaled(change, y, y, like)
        y = y if end is None else tuple(tf.maximum(tf.abs(a), tf.abs(b)) for a, b in zip(y, end, strict=True))
        size = tree.rms(y, like)
        ratios = []
        for a, b in zip(change, y, strict=True):
            least = tf.cast(size + np.finfo(like.dtype.as_numpy_dtype).tiny, b.dtype)
            ratios.append(a / (_tight(b.dtype) * (tf.abs(b) + tree.expand(least, b))))
        return tree.rms(ratios, like)


class WrappedField(Field):
    """A field that does what another one does, but for what a subclass changes."""

    def __init__(self, field):
        self._field = field
        self.tolerance, self.mass, self.derivatives = field.tolerance, field.mass, field.derivatives

    def __call__(self, t, y, with_integrand=True):
        return self._field(t, y, with_integrand=with_integrand)

    @property
    def rows(self):
        return self._field.rows

    def controlled(self, leaves):
        return self._field.controlled(leaves)

    def linearize(self, t, y, exact=False):
        return self._field.linearize(t, y, exact)

    def products(self, t, y, leaves, transposed=False):
        return self._field.products(t, y, leaves, transposed)


def _tight(dtype):
    """A relative tolerance near what a floating-point type can resolve."""
    return 1e-11 if dtype == tf.float64 else 1e-5


class Interval(NamedTuple):
    """The time span of one step, scalars or `[B]`.

    Attributes:
        start, end: Its times, `size` apart.
        size: Signed: negative where the solve goes back in time.
        since, until: The same ends as times since the start of the solve: never negative, and exactly a stop where the
            step lands on one.
    """

    start: tf.Tensor
    end: tf.Tensor
    size: tf.Tensor
    since: tf.Tensor
    until: tf.Tensor

    def at(self, fraction):
        """The time at a fraction of the step, a number: exactly the end at one."""
        return self.end if fraction == 1 else self.start + tf.constant(fraction, self.size.dtype) * self.size

    def turned(self):
        """The same interval from its end to its start."""
        return Interval(self.end, self.start, -self.size, self.since, self.until)

    def is_as_long_as(self, size):
        """Whether it has this signed size, but for rounding of the times."""
        return tf.abs(self.size - size) <= _ROUNDING_OF_SIZES * np.finfo(self.size.dtype.as_numpy_dtype).eps * self.until

    def reciprocal(self):
        """One over its size; one where it has none."""
        return 1 / tree.select(self.size == 0, tf.ones_like(self.size), self.size)


class Step(NamedTuple):
    """One tried step.

    Attributes:
        start: The leaves where it started: those that the solver was given, unless it moved them.
        y: The leaves at the end of the interval.
        error: Their estimated error, or `None`.
        integral: What the integrand adds up to over the step.
        stages: Slopes from which the interpolant is made, leaves like those of the state: see `Solver.weights`.
        carry: What the next step starts from.
        evaluations: How often the field was evaluated: a number, or an int32 tensor, `[]` or `[B]`.
        neighbors: Two points close to each other, leaves, each with the derivative there.
        memory: What `pullback` shall be given of the step, besides what a solver finds in the rest: a tuple of tensors.
        staircase: Of a step of an adjoint equation that passes saved times, a function of the fraction of the step: what the
            cotangent is besides the interpolant. Else `None`.
        integral_error: The estimated error of `integral`; empty where the method estimates none.
        converged: Whether the equations of implicit stages were solved, a boolean, or `[B]`; `None` where there are none.
        growth: By which factor the next step should be longer, `[]` or `[B]`, where the solver itself chooses that; else `None`.
    """

    start: tuple
    y: tuple
    error: tuple | None
    integral: tuple
    stages: tuple
    carry: Any
    evaluations: Any
    neighbors: tuple
    memory: tuple = ()
    staircase: Any = None
    integral_error: tuple = ()
    converged: Any = None
    growth: Any = None

    def select(self, choose):
        """The step of those leaves that `choose` takes of all; stages and carry stay whole."""
        return self._replace(
            start=choose(self.start),
            y=choose(self.y),
            error=None if self.error is None else choose(self.error),
            neighbors=tuple(tuple(map(choose, point)) for point in self.neighbors),
        )


class Solver(Configurable):
    """A method of integration. It has no state: everything that it needs from earlier steps is in the `carry` of the last step.

    A subclass defines `start`, `step` and its order. By default, its interpolant and its gradient follow from these.

    Attributes:
        order: The order of convergence.
        error_order: The power of the step size to which the error estimate is proportional, or `None` without an estimate.
        weights: How the interpolant is made of the `S` stages of a step with dense output: a NumPy matrix `[S, degree]`. The
            state at `start + theta size` is `y + size * sum_ij weights[i, j] theta^(j + 1) stages[i]`. Defaults to Hermite's
            cubic, for the stages that `hermite_stages` gives.
        is_implicit: Whether it uses the Jacobian of the field, `field.linearize`.
        takes_mass_matrix: Whether it solves `M y' = f(t, y)`, with the `MassMatrix` that a field has.
        takes_algebraic_equations: Whether the mass matrix may be singular.
        has_complex_numbers: Whether it computes with complex numbers, which some runtimes lack.
        has_branches: Whether its step has branches, which some converters lack.
        remembers: Whether its carry holds more than `start` returns at the same point. Then carries are kept for gradients.
        is_reversible: Whether it has `unstep`, which reverses a step.
        controller: The name of the default controller of its steps.

    Example:

    >>> solver = keras_ode.solvers.get("tsit5")
    >>> isinstance(solver, keras_ode.solvers.Solver), solver.order
    (True, 5)
    """

    order: int
    error_order: int | None = None
    is_implicit = False
    takes_mass_matrix = False
    takes_algebraic_equations = False
    has_complex_numbers = False
    has_branches = False
    remembers = False
    is_reversible = False
    controller = "pid"

    @property
    def weights(self):
        return _HERMITE

    @property
    def degree(self):
        """Returns the degree of the interpolant."""
        return self.weights.shape[1]

    @property
    def backward(self):
        """Returns the solver for adjoint equations, which are linear, and whose fields have no derivative with respect to time."""
        return self

    def bind(self, structure):
        """Returns the solver for states of a nested structure, whose leaves are the first leaves that `step` receives."""
        return self

    def check(self, field):
        """Warns if the solver does not suit this `VectorField`."""

    def start(self, field, t, y):
        """Returns the carry at the first point `(t, y)`, and the number of evaluations that it took."""
        raise NotImplementedError

    def carry_like(self, t, y):
        """Returns a carry of the right shapes, with finite numbers, for a time `t` (a scalar or `[B]`) and leaves `y`."""
        return Stage(tree.zeros_like(y))

    def first_derivative(self, carry):
        """Returns the leaves of the derivative at the point of `carry`, which by default is a `Stage`."""
        return carry.derivative

    def step(self, field, interval, y, carry, with_dense=False):
        """Tries one step from `y` and returns a `Step`, which `with_dense` also has what its interpolant needs.

        Args:
            field: A `Field`.
            interval: An `Interval`.
            y: The leaves at the start of the interval.
            carry: The carry that `start` or the previous step returned.
        """
        raise NotImplementedError

    def unstep(self, field, interval, y, carry):
        """Reverses a step, exactly up to rounding errors.

        Args:
            field, interval: As in `step`.
            y, carry: The state and the carry at the end of the step.

        Returns:
            The state and the carry at the start of the step, and the number of evaluations. Over an interval without length the
            state does not change, but the carry does.
        """
        raise NotImplementedError

    def num_stages(self, dense):
        """Returns the number of stages of a step. With `dense`, it includes the stages that only the interpolant needs."""
        return len(self.weights)

    # These follow from the attributes and methods above.

    def interpolate(self, stages, size, y, theta):
        """Returns the leaves at `start + theta * size` within a step from `y`.

        Args:
            stages: The stages of the `Step`.
            size: The size of its interval.
            y: The leaves at its start.
            theta: Either in the shape of `size`, with which the shapes of all leaves begin: a scalar, `[B]`, or `[K]` or
                `[K, B]` for steps of different times. Or with one more axis in front, `[K]` or `[K, B]`, which gives leaves
                `[K, ...]` of one step.
        """
        rows = self.weights
        weights = theta * _polynomial(rows, theta)
        if theta.shape.rank == size.shape.rank:
            return tree.add_scaled(y, size, tree.tensor_weighted_sum(tf.unstack(weights, num=len(rows)), stages))
        # `tf.transpose` does not work here: in a second derivative, XLA would not know the permutation.
        weights = tf.stack(tf.unstack(size * weights, num=len(rows)), axis=1)
        increments = contract(weights, map(tf.stack, zip(*stages, strict=True)))
        return tree.add(tuple(leaf[None] for leaf in y), increments)

    def interpolated_slope(self, stages, size, theta):
        """Returns the derivative of `interpolate` by the time, with arguments as there."""
        weights = tf.unstack(_polynomial(self.weights * np.arange(1, 1 + self.degree), theta), num=len(self.weights))
        if theta.shape.rank == size.shape.rank:
            return tree.tensor_weighted_sum(weights, stages)
        return contract(tf.stack(weights, axis=1), map(tf.stack, zip(*stages, strict=True)))

    def transposed_interpolate(self, size, theta, among, cotangents):
        """Returns the cotangents of `y` and of each stage from the cotangents of interpolated leaves.

        Args:
            size: The size of the step's interval.
            theta: The points of interpolation, `[K]` or `[K, B]`.
            among: Which of the points count, booleans in the shape of `theta`.
            cotangents: Leaves `[K, ...]`.
        """
        rows = self.weights
        weights = size * theta * _polynomial(np.vstack([np.zeros_like(rows[:1]), rows]), theta)
        # The weight of the start is one.
        weights += tf.reshape(tf.one_hot(0, 1 + len(rows), dtype=theta.dtype), [-1] + [1] * theta.shape.rank)
        products = contract(weights * tf.cast(among, theta.dtype), cotangents)
        of_start, *of_stages = zip(*map(tf.unstack, products), strict=True)
        return of_start, of_stages

    def polynomials(self, step, size):
        """Returns the interpolant of a dense step as polynomials: see `keras_ode.dense`."""
        return dense.polynomials(self.weights, step.start, step.stages, size)

    def memory(self, step):
        """Returns what `pullback` needs of a step: a tuple of tensors like leaves of the state, as many as in `memory_like`."""
        return step.memory

    def memory_like(self, y, dense):
        """Returns finite tensors of the shapes that `memory` returns. `dense` asks for those of steps with dense output."""
        return ()

    def pullback(self, field, interval, y, carry, memory, outputs, dense, of_y, of_parameters):
        """Carries the cotangents of a step back to its start, by the transposed derivative of `step`.

        This default differentiates the step itself, for any method.

        Args:
            field: A `Field` with `parameters`, the differentiable ones; `vjp(t, y, cotangent)`, the products with its Jacobians by
                the state and by these; and `inlined()`, the same field for a tape.
            interval, y: As in `step`.
            carry: That with which the step began if the solver remembers; else empty: it follows from `y`.
            memory: What `memory` gave.
            outputs: A function of the `Step` that gives tensors made of it and the cotangent of each.
            dense: Whether to take the step with dense output.
            of_y, of_parameters: The cotangents of `y` and of the parameters from all else.

        Returns:
            The cotangents of `y`, of the tensors of `carry` and of the parameters; and the number of evaluations.
        """
        field, flat = field.inlined(), tf.nest.flatten(carry)
        parameters = tuple(field.parameters)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch((y, flat, parameters))
            count = 0
            if not self.remembers:
                carry, count = self.start(field, interval.start, y)
            step = self.step(field, interval, y, carry, with_dense=dense)
            targets, weights = outputs(step)
        of_start, of_carry, change = tape.gradient(
            targets, (y, flat, parameters), weights, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        count += tf.reduce_max(step.evaluations)
        return tree.add(of_y, of_start), tuple(of_carry), tree.add(of_parameters, change), count


def hermite_stages(interval, y, slope, end, end_slope):
    """The stages from which Hermite's cubic is made: the slopes at both ends, and the mean one."""
    return slope, end_slope, tree.scale(interval.reciprocal(), tree.subtract(end, y))


# Of theta, theta^2 and theta^3 for the slopes at the start and at the end and for the mean slope.
_HERMITE = np.array([[1.0, -2.0, 1.0], [0.0, -1.0, 1.0], [0.0, 3.0, -2.0]])


class WrappedSolver(Solver):
    """A solver that does what another one does, but for what a subclass changes."""

    def __init__(self, solver):
        self.solver = solver
        self.order, self.error_order = solver.order, solver.error_order
        self.is_implicit, self.remembers = solver.is_implicit, solver.remembers

    @property
    def weights(self):
        return self.solver.weights

    def start(self, field, t, y):
        return self.solver.start(field, t, y)

    def carry_like(self, t, y):
        return self.solver.carry_like(t, y)

    def first_derivative(self, carry):
        return self.solver.first_derivative(carry)

    def step(self, field, interval, y, carry, with_dense=False):
        return self.solver.step(field, interval, y, carry, with_dense)

    def num_stages(self, dense):
        return self.solver.num_stages(dense)


def contract(weights, leaves):
    """Sums of leaves `[N, ...]` with weights `[M, N]`, or `[M, N, B]` for rows of their own: leaves `[M, ...]`."""
    if weights.shape.rank == 2:
        return tuple(tree.tensordot(tf.cast(weights, leaf.dtype), leaf) for leaf in leaves)
    return tuple(tf.reduce_sum(tree.expand(tf.cast(weights, leaf.dtype), leaf[None]) * leaf[None], axis=1) for leaf in leaves)


def _polynomial(rows, theta):
    """Horner's rule for all rows at once: `sum_j rows[:, j] theta^j`."""
    shape = (-1,) + (1,) * theta.shape.rank
    columns = [tf.constant(column.reshape(shape), theta.dtype) for column in rows.T]
    value = columns[-1] + tf.zeros_like(theta)
    for column in columns[-2::-1]:
        value = value * theta + column
    return value
