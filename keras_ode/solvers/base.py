"""The step contract: what every solver offers the loop."""

from typing import Any, NamedTuple

import tensorflow as tf

from keras_ode.configurable import Configurable


class Stage(NamedTuple):
    """One evaluation of a field: the derivative's leaves, and the integrand of what only accumulates."""

    derivative: tuple
    integrand: tuple = ()


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


class Step(NamedTuple):
    """One tried step.

    Attributes:
        start: The leaves where it started: those that the solver was given, unless it moved them.
        y: The leaves at the end of the interval.
        error: Their estimated error, or `None`.
        integral: What the integrand adds up to over the step.
        stages: The derivatives of all stages, from which the interpolant is made, in the order of their evaluation; the
            first is that of the carry.
        carry: What the next step starts from.
        evaluations: How often the field was evaluated: a number, or an int32 tensor.
        neighbors: Two points close to each other, leaves, each with the derivative there: the last two stages.
        extra: What a solver has to tell besides.
        integral_error: The estimated error of `integral`; empty where the method estimates none.
    """

    start: tuple
    y: tuple
    error: tuple | None
    integral: tuple
    stages: tuple
    carry: Any
    evaluations: Any
    neighbors: tuple
    extra: Any = ()
    integral_error: tuple = ()

    def select(self, choose):
        """The step of those leaves that `choose` takes of all; stages and carry stay whole."""
        return self._replace(
            start=choose(self.start),
            y=choose(self.y),
            error=None if self.error is None else choose(self.error),
            neighbors=tuple(tuple(map(choose, point)) for point in self.neighbors),
        )


class Solver(Configurable):
    """A method of integration. Stateless: what it remembers between steps is the `carry` of its last step.

    A field is a function `field(t, y, with_integrand=True) -> Stage`.

    Attributes:
        order: The order of convergence.
        error_order: The power of the step size that the error estimate follows, or `None` without an estimate.
        degree: The degree of its interpolant.
    """

    order: int
    error_order: int | None = None
    degree: int

    def start(self, field, t, y):
        """The carry at the first point `(t, y)`, and how many evaluations it took."""
        raise NotImplementedError

    def first_derivative(self, carry):
        """The derivative's leaves at the point of `carry`."""
        raise NotImplementedError

    def step(self, field, interval, y, carry, with_dense=False):
        """Tries one step from `y`; `with_dense`, also what its interpolant needs."""
        raise NotImplementedError

    def interpolate(self, stages, size, y, theta):
        """The leaves at `start + theta * size` within a step from `y`.

        Args:
            stages: Those of the `Step`.
            size: The size of its interval.
            y: The leaves at its start.
            theta: Of the shape of `size`, which leads those of all leaves: a scalar, `[B]`, or `[K]` or `[K, B]` for steps of
                different times. Or with an axis more before it, `[K]` or `[K, B]`, for leaves `[K, ...]` of one step.
        """
        raise NotImplementedError

    def assemble(self, interval, y, stages):
        """The step from `y` whose stages, their derivatives' leaves, are known: no evaluation, and neither carry nor
        integral."""
        raise NotImplementedError

    def transposed_step(self, push, interval, y, stages, of_stages, of_y, of_parameters):
        """Carries the cotangents of a step's stages back to where it starts.

        Args:
            push: A function of a time, a state and a cotangent of the derivative there, which gives those of the state and
                of the parameters: the field's vector-Jacobian products.
            interval, y, stages: As in `assemble`.
            of_stages: The cotangent of each stage, leaves, or `None` where nothing depends on it but other stages.
            of_y, of_parameters: The cotangents of `y` and of the parameters from all else.

        Returns:
            Those of `y` and of the parameters, and how often `push` was called.
        """
        raise NotImplementedError

    def transposed_interpolate(self, size, theta, among, cotangents):
        """The cotangents of `y` and of each stage from those of interpolated leaves.

        Args:
            size: The size of the step's interval.
            theta: Where, `[K]` or `[K, B]`.
            among: Which of them count, booleans like `theta`.
            cotangents: Leaves `[K, ...]`.
        """
        raise NotImplementedError

    def num_stages(self, dense):
        """How many stages a step has; `dense`, with those that only its interpolant needs."""
        raise NotImplementedError

    def polynomials(self, step, size):
        """The interpolant of a dense step as polynomials: see `keras_ode.dense`."""
        raise NotImplementedError


class WrappedSolver(Solver):
    """A solver that does what another one does, but for what a subclass changes."""

    def __init__(self, solver):
        self.solver = solver
        self.order, self.error_order, self.degree = solver.order, solver.error_order, solver.degree

    def start(self, field, t, y):
        return self.solver.start(field, t, y)

    def first_derivative(self, carry):
        return self.solver.first_derivative(carry)

    def step(self, field, interval, y, carry, with_dense=False):
        return self.solver.step(field, interval, y, carry, with_dense)

    def interpolate(self, stages, size, y, theta):
        return self.solver.interpolate(stages, size, y, theta)

    def assemble(self, interval, y, stages):
        return self.solver.assemble(interval, y, stages)

    def transposed_step(self, *arguments):
        return self.solver.transposed_step(*arguments)

    def transposed_interpolate(self, size, theta, among, cotangents):
        return self.solver.transposed_interpolate(size, theta, among, cotangents)

    def num_stages(self, dense):
        return self.solver.num_stages(dense)

    def polynomials(self, step, size):
        return self.solver.polynomials(step, size)
