"""The loop over steps. Every solve of the package, forward and backward, is this one `tf.while_loop`."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_ode import tree
from keras_ode.controllers import Controller, Tolerance, first_step
from keras_ode.errors import Status
from keras_ode.solvers.base import Interval, Solver, Step
from keras_ode.solvers.mass import MassMatrix, Solved, inconsistency

RUNNING = -1
# A step that would leave less than this part of itself before a stop is stretched to land on it.
_STRETCH = 1e-3
# A step is cut to land on a stop before the end if at least this part of it remains, if nothing else is asked for.
_WORTH_LANDING = 0.5
# By how much at least the size of a rejected step shrinks where the solver chooses it.
_OF_REJECTED = 0.9
# A step of fewer units in the last place of the time than this is too small to go on.
SMALLEST_STEP_ULPS = 4


class Method(NamedTuple):
    """How to integrate: what does not depend on the equation."""

    solver: Solver
    controller: Controller
    tolerance: Tolerance
    step_size: tf.Tensor | None = None
    max_steps: tf.Tensor | int = 4096
    per_sample: bool = False
    max_step: tf.Tensor | None = None
    min_step: tf.Tensor | None = None
    rows: bool = False  # whether rows of a batch are known to be independent, so that each has a Jacobian of its own
    mass: MassMatrix | None = None  # that of `M y' = f(t, y)`
    sums: Callable | None = None  # `sums(step, interval)` is the step with what it adds to leaves that only sum up steps

    @property
    def has_dense_stages(self):
        """Whether dense output takes more evaluations."""
        return self.solver.num_stages(True) > self.solver.num_stages(False)

    def step(self, field, interval, y, carry, with_dense=False):
        """Tries one step: see `Solver.step`."""
        return self._summed(self.solver.step(field, interval, y, carry, with_dense), interval)

    def pullback(self, field, interval, y, carry, memory, outputs, *rest):
        """The transposed derivative of `step`: see `Solver.pullback`."""
        return self.solver.pullback(
            field, interval, y, carry, memory, lambda step: outputs(self._summed(step, interval)), *rest
        )

    def _summed(self, step, interval):
        return step if self.sums is None else self.sums(step, interval)

    def tensors(self):
        """What of it are tensors, a nest that `with_tensors` takes."""
        options = {name: getattr(self, name) for name in ("step_size", "max_step", "min_step")}
        return self.tolerance.tensors(), {name: x for name, x in options.items() if x is not None}

    def with_tensors(self, tensors):
        of_tolerance, options = tensors
        return self._replace(tolerance=self.tolerance.with_tensors(of_tolerance), **options)

    def key(self):
        """A hashable value, equal for methods that do the same with their tensors."""
        tolerance, options = self.tolerance.key(), tuple(self.tensors()[1])
        return self.solver, self.controller, self.max_steps, self.per_sample, tolerance, options, self.rows, self.sums, self.mass

    def limited(self, size):
        """A step size, not above the largest nor below the smallest that are allowed; NaN stays."""
        if self.max_step is not None:
            size = tree.select(size > self.max_step, self.max_step, size)
        return size if self.min_step is None else tree.select(size < self.min_step, self.min_step, size)


class Trial(NamedTuple):
    """One tried step, as observers see it: times are scalars, or `[B]` with `per_sample`.

    Attributes:
        interval: Where it was tried.
        step: What the solver made of it.
        error: Its scaled error; at most one is accepted, unless the step size is constant.
        accept: Whether it was accepted.
        running: Whether the sample was still being solved.
        carry: That with which the step began.
        number, num_accepted: How many steps were tried before, and accepted, scalars or `[B]`.
    """

    interval: Interval
    step: Step
    error: tf.Tensor
    accept: tf.Tensor
    running: tf.Tensor
    carry: Any = ()
    number: Any = 0
    num_accepted: Any = 0


class Result(NamedTuple):
    """Where the loop ended: all scalars or `[B]`."""

    y: tuple
    integral: tuple
    status: tf.Tensor
    time: tf.Tensor
    step_size: tf.Tensor
    carry: Any
    num_steps: tf.Tensor
    num_accepted: tf.Tensor
    num_evaluations: tf.Tensor
    observed: tuple


class Clock:
    """Time since the start of a solve, never negative, and the time itself.

    Args:
        start, end: The first and the last time, scalars or `[B]`.
        span: The last less the first, where rounding both would have changed that.
    """

    def __init__(self, start, end, span=None):
        self.start = start
        self.span = end - start if span is None else span
        self.duration = tf.abs(self.span)
        self.direction = tf.sign(self.span)
        self._set_end(end)

    def _set_end(self, end):
        # What `time` needs is computed once, and not in each of its many calls: every operation takes time to trace.
        self.end = end
        self._earliest, self._latest = tf.minimum(self.start, end), tf.maximum(self.start, end)

    def time(self, since):
        """Never beyond the end by rounding; and where the end is reached, exactly that."""
        time = tf.maximum(tf.minimum(self.start + self.direction * since, self._latest), self._earliest)
        return tree.select(since >= self.duration, self.end, time)

    def closed(self, time):
        """The same clock, which ends at `time` where its end is open."""
        is_open, clock = ~tf.math.is_finite(self.end), Clock(self.start, self.end)
        clock._set_end(tree.select(is_open, time, self.end))
        clock.duration = tree.select(is_open, tf.abs(time - self.start), self.duration)
        return clock

    def interval(self, since, until):
        begin, end = tf.unstack(self.time(tf.stack([since, until])), num=2)
        return Interval(begin, end, self.direction * (until - since), since, until)


class _Loop(NamedTuple):
    """What goes round the loop. `lost` is what rounding took from `since` (compensated summation)."""

    since: tf.Tensor
    lost: tf.Tensor
    y: tuple
    integral: tuple
    carry: Any
    step_size: tf.Tensor
    control: tuple
    status: tf.Tensor
    num_steps: tf.Tensor
    num_accepted: tf.Tensor
    num_evaluations: tf.Tensor
    observed: tuple


def integrate(
    field,
    start,
    end,
    y,
    method,
    *,
    span=None,
    integral=(),
    integral_weights=(),
    quadrature=None,
    stops=None,
    worth=_WORTH_LANDING,
    limit=None,
    observers=(),
    dense=False,
    bound=None,
    halts=None,
):
    """Integrates a field from `start` to `end`.

    Args:
        field: A `Field`.
        start, end: Scalars, or `[B]` with `method.per_sample`; in either order.
        y: The leaves at `start`.
        method: A `Method`.
        span: `end` less `start`, where that is known better: see `Clock`.
        integral: The leaves to which the integral of the field's integrand is added.
        integral_weights: Scalars, one for each leaf of the integral, as `Tolerance.scaled_integral` takes them: the steps are
            then short enough for the integral too. Empty: its error does not count.
        quadrature: What finds the integral for the rows that accept a step, where rows have steps of their own: an object
            with `over(interval, step, accept)`, which returns the integral, its error, and the evaluations.
        stops: Times since the start: a step that would pass some of them, but not reach its limit, ends on the last of those,
            unless that would make it much shorter.
        worth: The least part of a step that must be left where it is cut to land on a stop: a number, or one for each stop.
        limit: A function of a time since the start: how far a step that starts there may reach. `None`: to the end.
        observers: Objects with `start()` and `see(state, trial)`, called with each `Trial`.
        dense: Whether the observers interpolate.
        bound: A number of iterations, for a loop that is differentiated.
        halts: A function of what the last observer saw: where the solve ends as by an event. With it, `end` may be infinite.

    Returns:
        A `Result`.
    """
    clock = Clock(start, end, span)
    integrator = _Integrator(method, integral_weights, quadrature)
    run = _Run(field, clock, method, stops, worth, limit, observers, dense, halts, integrator)
    loop = run.first(y, integral)
    loop = tree.while_loop(
        lambda *loop: tf.reduce_any(_Loop(*loop).status == RUNNING),
        lambda *loop: tuple(run.advance(_Loop(*loop))),
        tuple(loop),
        bound=bound,
    )
    return run.result(_Loop(*loop))


class _Run:
    """One integration: the body of the loop and what stays the same in it."""

    def __init__(self, field, clock, method, stops, worth, limit, observers, dense, halts, integrator):
        self.field, self.method, self.observers, self.dense, self.halts = field, method, observers, dense, halts
        self.integrator, self.clock, self.duration = integrator, clock, clock.duration
        # How many evaluations each step takes, if that is known; others are counted on the way round.
        self.evaluations = 0
        if limit is None and method.controller.has_times:
            stops, limit = None, method.controller.limit(clock, stops)
        self.stops, self.worth, self.limit = stops, worth, limit or (lambda since: self.duration)
        self.epsilon = np.finfo(clock.start.dtype.as_numpy_dtype).eps

    def first(self, y, integral):
        method, zero = self.method, tf.zeros_like(self.duration)
        carry, evaluations = method.solver.start(self.field, self.clock.start, y)
        derivative = method.solver.first_derivative(carry)
        step_size, extra = first_step_size(self.field, self.clock, y, derivative, method)
        # How long the solve is, or would be, for steps to be too small for it.
        self.scale = self.duration
        if self.halts is not None:
            self.scale = tree.select(tf.math.is_inf(self.duration), step_size, self.duration)
        count = tf.zeros_like(self.duration, dtype=tf.int32)
        return _Loop(
            since=zero,
            lost=zero,
            y=y,
            integral=integral,
            carry=carry,
            step_size=step_size,
            control=method.controller.start(step_size),
            status=self._first_status(y),
            num_steps=count,
            num_accepted=count,
            num_evaluations=count + evaluations + extra,
            observed=tuple(observer.start() for observer in self.observers),
        )

    def advance(self, loop):
        """Propose, judge, accept, observe."""
        method = self.method
        running = loop.status == RUNNING
        interval, lost, lands = self._reach(loop, running)
        until = interval.until
        step = method.step(self.field, interval, loop.y, loop.carry, with_dense=self.dense)
        error = tf.stop_gradient(self._scaled_error(step))
        error, increment, evaluations = self.integrator.judge(loop.integral, interval, step, error, running)
        tried = tf.stop_gradient(until - loop.since)
        verdict = method.controller.judge(error, method.solver.error_order, tried, loop.control)
        if step.growth is not None and method.controller.adaptive:
            verdict = _grown(verdict, error, tried, tf.stop_gradient(step.growth))
        accept = verdict.accept & running
        # A step that was cut short to land on a stop does not shorten the next one.
        kept = verdict.accept & lands
        step_size = method.limited(tree.select(kept, tf.maximum(verdict.step_size, loop.step_size), verdict.step_size))
        trial = Trial(interval, step, error, accept, running, loop.carry, loop.num_steps, loop.num_accepted)
        num_steps = loop.num_steps + tf.cast(running, tf.int32)
        num_evaluations, evaluations = loop.num_evaluations, step.evaluations + evaluations
        if isinstance(evaluations, int):
            self.evaluations = evaluations
        else:
            num_evaluations += tree.select(running, evaluations, 0)
        observed = tuple(o.see(state, trial) for o, state in zip(self.observers, loop.observed, strict=True))
        # A rejected step whose successor rounds to the same one cannot be made smaller.
        stuck = ~accept & (loop.since + (step_size - loop.lost) >= until)
        status = self._status(until, step_size, error, accept, num_steps, stuck, step.converged)
        if self.halts is not None:
            status = tree.select(self.halts(observed[-1]), int(Status.EVENT), status)
        return _Loop(
            since=tree.select(accept, until, loop.since),
            lost=tree.select(accept, lost, loop.lost),
            y=tree.where(accept, step.y, loop.y),
            integral=self.integrator.add(accept, loop.integral, increment),
            carry=tree.where_nest(accept, step.carry, loop.carry),
            step_size=tree.select(running, step_size, loop.step_size),
            control=tree.where_nest(running, verdict.state, loop.control),
            status=tree.select(running, status, loop.status),
            num_steps=num_steps,
            num_accepted=loop.num_accepted + tf.cast(accept, tf.int32),
            num_evaluations=num_evaluations,
            observed=observed,
        )

    def result(self, loop):
        return Result(
            y=loop.y,
            integral=loop.integral,
            status=tree.select(loop.status == RUNNING, int(Status.MAX_STEPS), loop.status),
            time=self.clock.time(loop.since),
            step_size=loop.step_size,
            carry=loop.carry,
            num_steps=loop.num_steps,
            num_accepted=loop.num_accepted,
            num_evaluations=loop.num_evaluations + self.evaluations * loop.num_steps,
            observed=loop.observed,
        )

    def _first_status(self, y):
        """Nothing to do over no time; a time that is not finite cannot be reached; and algebraic equations must hold."""
        known = tf.math.is_finite(self.duration) if self.halts is None else ~tf.math.is_nan(self.duration)
        idle = tree.select(known, int(Status.SUCCESS), int(Status.NON_FINITE))
        status, method = tree.select(known & (self.duration > 0), RUNNING, idle), self.method
        if method.mass is None or not method.mass.is_singular:
            return status
        finite = tree.is_finite((*y, *self.field(self.clock.start, y).derivative), self.duration)
        # Not the opposite, negated, which TensorFlow makes that: what is NaN is wrong.
        is_right = tf.stop_gradient(inconsistency(self.field, self.clock.start, y, method.tolerance)) <= 1
        return tree.select(is_right | ~finite | (status != RUNNING), status, int(Status.INCONSISTENT))

    def _reach(self, loop, running):
        """Where the step ends: the proposed size further, or on the stop that this reaches."""
        proposal = loop.since + self._longest(loop)
        stop = self.limit(loop.since)
        lands = proposal >= stop
        if self.stops is not None:
            worth = (self.stops <= proposal) & (self.stops - loop.since >= self.worth * loop.step_size)
            last = tf.reduce_max(tree.select(worth, self.stops, 0), axis=0)
            nearer = ~lands & (last > loop.since)
            stop, lands = tree.select(nearer, last, stop), lands | nearer
        increment = loop.step_size - loop.lost
        summed = loop.since + increment
        until = tree.select(lands, stop, summed)
        lost = tree.select(lands, tf.zeros_like(summed), (summed - loop.since) - increment)
        until = tree.select(running, until, loop.since)
        return self.clock.interval(loop.since, until), lost, lands

    def _longest(self, loop):
        """How long a step may be to land on a stop: stretched, but beyond the largest that is allowed by rounding only."""
        longest, largest = loop.step_size * (1 + _STRETCH), self.method.max_step
        if largest is None:
            return longest
        largest += SMALLEST_STEP_ULPS * self.epsilon * (loop.since + largest)
        return tree.select(longest > largest, largest, longest)

    def _scaled_error(self, step):
        """The error on the tolerance's scale; infinite where the step is not finite."""
        tolerance, like = self.method.tolerance, self.duration
        found, seen = (*step.y, *step.stages[-1]), step.select(self.field.controlled)
        if step.error is None:
            error, finite = tf.zeros_like(like), tree.is_finite(found, like)
        elif tolerance.norm is tree.rms and len(seen.y) == len(step.y) and not tree.is_standard():
            # A root mean square is not finite where an element is not: so one reduction finds both. LiteRT loses this infinity.
            error = tuple(map(_infinite_unless_finite, seen.error, step.y, step.stages[-1]))
            error = tolerance.scaled(error, seen.start, seen.y, like)
            finite = tf.math.is_finite(error)
        else:  # Other norms may not see what is not finite.
            unseen = () if tolerance.norm is tree.rms else step.error
            error = tolerance.scaled(seen.error, seen.start, seen.y, like)
            finite = tree.is_finite((*found, *unseen), like)
        if step.converged is not None:
            finite &= step.converged
        return tree.select(finite, error, tf.constant(np.inf, like.dtype))

    def _status(self, until, step_size, error, accept, num_steps, stuck, converged):
        smallest = SMALLEST_STEP_ULPS * self.epsilon * tf.maximum(until, self.epsilon * self.scale)
        if not self.method.controller.adaptive:
            stuck |= ~accept
        cause = tree.select(tf.math.is_finite(error), int(Status.STEP_TOO_SMALL), int(Status.NON_FINITE))
        if converged is not None:
            cause = tree.select(converged, cause, int(Status.NOT_CONVERGED))
        status = tree.select(num_steps >= self.method.max_steps, int(Status.MAX_STEPS), RUNNING)
        status = tree.select(stuck, cause, status)
        # Not by `step_size < smallest`, nor by its opposite negated, which TensorFlow makes that: a size may be NaN.
        status = tree.select(step_size >= smallest, status, cause)
        return tree.select(accept & (until >= self.duration), int(Status.SUCCESS), status)


class _Integrator(NamedTuple):
    """How the integral of a solve goes on, and how its error counts: see `integrate`."""

    method: Method
    weights: tuple
    quadrature: Any

    def judge(self, integral, interval, step, error, running):
        """The step's error with that of the integral, what the step adds to it, and the evaluations that this took."""
        increment, integral_error, evaluations, judged = step.integral, step.integral_error, 0, running
        adaptive = self.method.controller.adaptive
        if self.quadrature is not None:
            judged &= error <= 1 if adaptive else tf.math.is_finite(error)
            increment, integral_error, evaluations = self.quadrature.over(interval, step, judged)
        if adaptive and self.weights and integral_error:
            of_integral = self.method.tolerance.scaled_integral(integral_error, integral, increment, self.weights)
            error = tree.select(judged, tf.maximum(error, of_integral), error)
        return error, increment, evaluations

    def add(self, accept, integral, increment):
        if not integral:
            return ()
        return tree.where(tf.reduce_any(accept), tree.add(integral, increment), integral)


def _infinite_unless_finite(error, *values):
    finite = functools.reduce(tf.logical_and, map(tf.math.is_finite, values))
    return tree.select(finite, error, tf.constant(np.inf, error.dtype))


def _grown(verdict, error, tried, growth):
    """The verdict, with the size that the solver asks for; a step that was not finite tells it nothing."""
    asked = tried * tree.select(verdict.accept, growth, tf.minimum(growth, _OF_REJECTED))
    return verdict._replace(step_size=tree.select(tf.math.is_finite(error), asked, verdict.step_size))


def first_step_size(field, clock, y, derivative, method):
    """The step size to start with, and the evaluations that finding it took."""
    if method.controller.has_times:  # how far a step may reach is its size
        return clock.duration, 0
    if method.step_size is not None:
        return method.limited(tf.cast(method.step_size, clock.duration.dtype) + tf.zeros_like(clock.duration)), 0
    if method.mass is not None:
        field = Solved(field)
        derivative = field(clock.start, y).derivative
    size = first_step(field, clock, y, derivative, method.solver.error_order, method.tolerance)
    return tf.stop_gradient(method.limited(size)), 1
