"""The continuous adjoint along the forward solve's own steps."""

import functools
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_ode import dense, tree
from keras_ode.adjoints.base import ContinuousAdjoint, Cotangents
from keras_ode.adjoints.checkpoints import History
from keras_ode.adjoints.equation import AdjointEquation
from keras_ode.adjoints.forward import saved_times, solve_forward
from keras_ode.adjoints.impulses import Impulses
from keras_ode.adjoints.quadrature import ParameterQuadrature
from keras_ode.errors import Status
from keras_ode.integrate import integrate
from keras_ode.solvers.base import Stage
from keras_ode.solvers.linear import Linearization, scaled
from keras_ode.solvers.systems import is_large
from keras_ode.step_records import step_observers

# A backward step may be so many times as long as the steps that the errors of the forward solve allowed on its way.
_MOST_ALLOWED = 5
# From so many elements on, the time of an operation on a leaf is that of its arithmetic.
_LARGE = 4096


class Interpolating(ContinuousAdjoint):
    """The continuous adjoint, which interpolates the state from the forward steps.

    The backward solve integrates only the cotangent, `a' = -a^T df/dy`, with its own error control. So it is also correct for
    solutions that cannot be integrated backward. The cotangents of the parameters are integrals over the same steps, which are
    short enough for them too. Where the forward steps were short, so are the backward steps. The interpolants of the
    last `checkpoints` forward steps are stored, and the states of twice as many, from which earlier steps are recomputed. So
    memory does not grow with the number of steps. With the default, each step is recomputed at most once if there were at most
    2,048.

    Args:
        checkpoints: The number of steps whose interpolants are stored. Defaults to `32`.
        rtol, atol: The tolerances of the backward solve. Cotangents are scaled to the size of the states, separately for each row
            with `per_sample=True`. Default to those of the forward solve. Constant steps do not depend on them.
        solver: The solver of the backward solve. Defaults to that of the forward solve.

    Example:

    >>> adjoint = keras_ode.adjoints.Interpolating(checkpoints=64)
    >>> x = tf.Variable([1.0])
    >>> with tf.GradientTape() as tape:
    ...     end = keras_ode.odeint(lambda t, y: -y, x, [0.0, 1.0], adjoint=adjoint)[-1]
    >>> print(f"{float(tape.gradient(end, x)[0]):.3f}")
    0.368

    References:
        Serban, Hindmarsh (2005), CVODES: the sensitivity-enabled ODE solver in SUNDIALS, ASME IDETC.
        Rackauckas et al. (2020), Universal differential equations for scientific machine learning.
    """

    def forward(self, problem):
        return solve_forward(problem, _Polynomials(problem, self.checkpoints, dense=True), dense=True)

    def backward(self, problem, outcome, memory, cotangents):
        history = _Polynomials(problem, self.checkpoints, dense=True)
        method = self.backward_method(problem, outcome)
        recording = step_observers(problem.recorder, problem.times[0])
        start = _Progress(
            last=tf.where(outcome.status == int(Status.SUCCESS), memory.trajectory.num_steps, 0),
            polynomials=history.writable(memory.trajectory, memory.kept),
            a=tuple(leaf[-1] for leaf in cotangents),
            parameters=tree.zeros_like(problem.field.select(problem.parameters)),
            step_size=method.step_size,
            status=outcome.status,
            num_evaluations=tf.constant(0),
            record=tf.nest.map_structure(tf.convert_to_tensor, tuple(o.before for o in recording)),
        )

        def reverse_block(*progress):
            return tuple(_Block(problem, history, memory.trajectory, cotangents, method, _Progress(*progress)).reverse())

        end = _Progress(*tree.while_loop(lambda last, *_: tf.reduce_any(last > 0), reverse_block, tuple(start)))
        record = (steps.on_clock(problem.clock()) for steps in end.record)
        return Cotangents(end.a, end.parameters, end.status, end.num_evaluations, *record)


class _Progress(NamedTuple):
    """How far the backward pass is: before step `last`, a scalar or `[B]`; `polynomials` are those of the steps behind that."""

    last: tf.Tensor
    polynomials: tuple
    a: tuple
    parameters: tuple
    step_size: tf.Tensor
    status: tf.Tensor
    num_evaluations: tf.Tensor
    record: tuple


class _Polynomials(History):
    """Keeps the interpolants of steps as polynomials, the coefficients of large leaves one by one.

    XLA would compute the coefficients of a stack in one loop, with a branch for each number.
    """

    def keep(self, step, size, carry):
        return self._apart(self.problem.method.solver.polynomials(step, size))

    def like(self):
        return self._apart(dense.constant(self.problem.y, self.problem.method.solver.degree, self._axis))

    @property
    def are_apart(self):
        """Whether the coefficients of some leaf are kept one by one."""
        return any(map(_is_large, self.problem.y))

    def evaluate_each(self, kept, n, theta):
        """The states `[K, ...]` at `theta` in steps `n`, both `[K]` or `[K, B]`, of what is kept of the steps."""
        return dense.evaluate([tree.take_each(x, n % self.capacity) for x in kept], theta)

    def evaluate(self, kept, n, theta):
        """The state at `theta` in step `n`, of what is kept of the steps."""
        degree, slot, coefficients = self.problem.method.solver.degree, n % self.capacity, []
        taken = iter([tree.take(x, slot) for x in kept])
        for leaf in self.problem.y:
            apart = _is_large(leaf)
            coefficients.append([next(taken) for _ in range(degree + 1)] if apart else tf.unstack(next(taken), axis=self._axis))
        return dense.values(coefficients, theta)

    def _apart(self, polynomials):
        kept = []
        for leaf, polynomial in zip(self.problem.y, polynomials, strict=True):
            kept += tf.unstack(polynomial, axis=self._axis) if _is_large(leaf) else [polynomial]
        return tuple(kept)

    @property
    def _axis(self):
        return self.problem.times.shape.rank - 1


def _is_large(leaf):
    return leaf.shape.is_fully_defined() and leaf.shape.num_elements() >= _LARGE


def _least_from(x):
    """The least of each element of the first axis and all behind it, by looking twice as far each time."""
    distance = 1
    while distance < x.shape[0]:
        ahead = tf.pad(x[distance:], [[0, distance]] + [[0, 0]] * (x.shape.rank - 1), constant_values=np.inf)
        x, distance = tf.minimum(x, ahead), 2 * distance
    return x


class _Block:
    """The backward solve over at most `capacity` forward steps. Its time is the forward time since the start."""

    def __init__(self, problem, history, trajectory, cotangents, method, progress):
        self.problem, self.history, self.trajectory, self.progress = problem, history, trajectory, progress
        self.replay = history.replay(trajectory)
        self.first = history.first(trajectory, progress.last)
        self.polynomials, self.refilled = history.refill(trajectory, progress.polynomials, progress.last)
        steps = self.first + tree.expand(tf.range(history.capacity), trajectory.untils)
        self.window, self.allowed = (tree.take_each(x, steps) for x in (trajectory.untils, trajectory.allowed))
        self.early = self.replay.span(self.first)[0]
        self.begins = tf.concat([self.early[None], self.window[:-1]], axis=0)
        lengths = self.window - self.begins
        # What `evaluate` needs is computed once, and not in each of its many calls: every operation takes time to trace.
        self._lengths = tf.where(lengths > 0, lengths, 1)
        self._most = tf.maximum(progress.last - 1, 0) - self.first
        self.method = method._replace(step_size=progress.step_size)
        self.cotangents = cotangents

    def reverse(self):
        problem, progress = self.problem, self.progress
        early = self.early
        late = tf.where(progress.last > 0, self.replay.span(tf.maximum(progress.last - 1, 0))[1], early)
        equation = _Equation(problem, self)
        method, a, stops = self.method, progress.a, None
        if problem.times.shape[0] != 2:
            impulses, a = self._impulses(equation, early, late, a)
            method, stops = method._replace(solver=impulses), impulses.stops if method.controller.adaptive else None
        quadrature = None
        if method.per_sample:  # a step that only some samples accept adds to their parameters' cotangents alone
            quadrature = ParameterQuadrature(problem.field, problem.parameters, equation.locate)
        recording = [step_observers(problem.recorder, early, before=before)[0] for before in progress.record]
        result = integrate(
            equation,
            late,
            early,
            a,
            method,
            integral=progress.parameters,
            integral_weights=problem.field.integral_weights,
            quadrature=quadrature,
            stops=stops,
            limit=self._reach(late),
            observers=recording,
            dense=method.per_sample,
        )
        failed = progress.status != int(Status.SUCCESS)
        return progress._replace(
            last=self.first,
            polynomials=self.polynomials,
            a=result.y,
            parameters=result.integral,
            step_size=result.step_size,
            status=tf.where(failed, progress.status, result.status),
            num_evaluations=progress.num_evaluations + tf.reduce_max(result.num_evaluations) + self.refilled,
            record=tuple(o.record(seen, result.num_steps) for o, seen in zip(recording, result.observed, strict=True)),
        )

    def _reach(self, late):
        """How far a backward step may reach from a time since the backward start, if that is limited."""
        controller = self.method.controller
        if controller.has_times:  # backward steps are the forward ones
            return self._targets(late, late - self.begins)
        return self._limit(late) if controller.adaptive else None

    def _targets(self, late, targets):
        """The function that gives the target of the forward step in which a time since the backward start lies."""
        ends = late - self.window
        return lambda since: tree.take(targets, tf.reduce_sum(tf.cast(ends > since, tf.int32), axis=0))

    def _limit(self, late):
        """The limit where steps are controlled.

        A step may cross ends of forward steps where it is not much longer than the steps that the forward solve's errors
        allowed on the way: what made forward steps short must not be passed over unseen. It lands on such an end.
        """
        # Of step m (rows) from the end of step n (columns): the length of the way, and the least step allowed on it.
        length = self.window[None] - self.begins[:, None]
        m = np.arange(self.history.capacity).reshape([-1] + [1] * (self.window.shape.rank - 1))
        least = _least_from(tf.where(m[:, None] <= m[None], self.allowed[:, None], np.inf))
        # A step that begins behind the last step that is not reachable, ends there.
        too_far = (length > _MOST_ALLOWED * least) & (m[:, None] < m[None])
        return self._targets(late, late - tf.reduce_max(tf.where(too_far, self.window[:, None], self.early), axis=0))

    def _impulses(self, equation, early, late, a):
        """The impulses at the saved times of this block, and the cotangent with those at its end."""
        saved = saved_times(self.problem)
        inner = tuple(leaf[1:-1] for leaf in self.cotangents)
        at_end = tf.cast((saved == late) & (early < late), saved.dtype)
        within = (saved > early) & (saved < late)
        stops = tf.where(within, late - saved, -1)
        backward = tuple(tf.reverse(leaf, [0]) for leaf in inner)
        impulses = Impulses(self.method.solver, equation, tf.reverse(stops, [0]), (), backward)
        added = tuple(tf.reduce_sum(tree.expand(tf.cast(at_end, g.dtype), g) * g, axis=0) for g in inner)
        return impulses, tree.add(a, added)

    def evaluate(self, since):
        """The state at a time since the forward start."""
        n = tf.minimum(tf.reduce_sum(tf.cast(self.window < since, tf.int32), axis=0), self._most)
        theta = (since - tree.take(self.begins, n)) / tree.take(self._lengths, n)
        return self.history.evaluate(self.polynomials, self.first + n, theta)

    def points(self, times):
        """The time and the state at each of several times since the forward start.

        All at once, unless the arithmetic of the states takes longer than looking for them.
        """
        if self.history.are_apart:
            return [(self.time(since), self.evaluate(since)) for since in times]
        count, since = len(times), tf.stack(times)
        n = tf.minimum(tf.reduce_sum(tf.cast(self.window < since[:, None], tf.int32), axis=1), self._most)
        theta = (since - tree.take_each(self.begins, n)) / tree.take_each(self._lengths, n)
        states = self.history.evaluate_each(self.polynomials, self.first + n, theta)
        leaves = zip(*(tf.unstack(leaf, num=count) for leaf in states), strict=True)
        return list(zip(tf.unstack(self.time(since), num=count), leaves, strict=True))

    def time(self, since):
        return self.replay.clock.time(since)

    @property
    def direction(self):
        return self.replay.clock.direction


class _Equation(AdjointEquation):
    """The equation of the cotangent alone, along the stored states."""

    def __init__(self, problem, block):
        self._field, self._parameters, self._block = problem.field, problem.parameters, block
        self._integrates = not problem.method.per_sample
        self._rows, self.controlled = problem.method.rows, problem.controlled
        self.tolerance = block.method.tolerance if block.method.controller.adaptive else None

    def __call__(self, since, a, with_integrand=True):
        block = self._block
        return self._at((block.time(since), block.evaluate(since)), since, a, with_integrand)

    def at_each(self, times):
        return [functools.partial(self._at, point) for point in self._block.points(times)]

    def _at(self, point, since, a, with_integrand=True):
        """The same where the time and the state of the forward solve are known."""
        _, slope, integrand = self._field.vjp(*point, self._parameters, tree.scale(-self._block.direction, a))
        return Stage(slope, tuple(integrand) if with_integrand and self._integrates else ())

    @property
    def rows(self):
        return self._rows

    def linearize(self, since, a, exact=False):
        """That of the forward field, transposed; its derivative by time would be a second one."""
        block = self._block
        if is_large(a, self.rows):
            return Linearization(None, None, 1, (since, *a))
        matrix, _ = self._field.jacobian(block.time(since), block.evaluate(since), self._parameters, self.rows)
        count = self._field.evaluations_of_jacobian(matrix)
        return Linearization(scaled(-block.direction, tf.linalg.matrix_transpose(matrix)), None, count)

    def products(self, since, a, leaves, transposed=False):
        block = self._block
        point, leaves = (block.time(since), block.evaluate(since), self._parameters), tree.scale(-block.direction, leaves)
        return self._field.jvp(*point, leaves) if transposed else self._field.vjp(*point, leaves)[1]

    def locate(self, interval, step, theta):
        """Time, state and cotangent within a step, for the quadrature along forward time."""
        block = self._block
        fraction = tf.fill(tf.shape(interval.size), tf.constant(theta, interval.size.dtype))
        since = interval.start + fraction * interval.size
        a = block.method.solver.interpolate(step.stages, interval.size, step.start, fraction)
        if step.staircase is not None:
            a = tree.add(a, step.staircase(fraction))
        return block.time(since), block.evaluate(since), tree.scale(block.direction, a)
