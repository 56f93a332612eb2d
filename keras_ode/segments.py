"""Solves of several segments: from event to event, and between times where the dynamics jumps."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_ode import tree
from keras_ode.adjoints.fields import ForwardField
from keras_ode.adjoints.problem import Outcome
from keras_ode.errors import EventTrouble, Status
from keras_ode.event_time import EventFunction, EventOutcome, farthest, is_same_time
from keras_ode.events import RootFinder
from keras_ode.integrate import Clock, Result, first_step_size, integrate

# Each segment that is not in a loop is traced, and compiled, once more.
_MOST_UNROLLED = 4


class _Progress(NamedTuple):
    """Where the solve is after some segments: times are scalars, or `[B]`.

    Attributes:
        saved: The time since the start up to which states were saved, or less than zero.
        handled: Whether the last segment ended with an event.
        sides: On which side of zero the event functions are: see `RootFinder`.
        reached: The time that the steps reached.
    """

    time: tf.Tensor
    y: tuple
    ys: tuple
    saved: tf.Tensor
    status: tf.Tensor
    active: tf.Tensor
    handled: tf.Tensor
    sides: tf.Tensor
    counts: tuple
    num_events: tf.Tensor
    events: EventOutcome
    reached: tf.Tensor
    step_size: tf.Tensor
    stiffness: tf.Tensor


class _Root(NamedTuple):
    """Where a segment ends, as far as events are concerned: see `Found`; at `time` where there is a root, or where an event
    function is about to become NaN.

    Attributes:
        missed: Where the end is open and the solve had to stop before there was an event.
        result: How the search ended: a `Result`.
    """

    found: tf.Tensor
    broken: tf.Tensor
    time: tf.Tensor
    which: tf.Tensor
    side: tf.Tensor
    sides: tf.Tensor
    evaluations: tf.Tensor
    missed: tf.Tensor
    result: Result

    def stop(self):
        """Where the differentiable solve ends: NaN where there is nothing to solve, which makes its gradient NaN too."""
        return tree.select(self.missed, tf.constant(np.nan, self.time.dtype), self.time)

    def outcome(self, outcome):
        """That of the differentiable solve; of the search where the event was missed."""
        names = ("status", "time", "step_size", "num_steps", "num_accepted")
        ours = {name: tree.select(self.missed, getattr(self.result, name), getattr(outcome, name)) for name in names}
        return outcome._replace(**ours, y=tree.where(self.missed, self.result.y, outcome.y))


class _Ended(NamedTuple):
    """How a segment ended.

    Attributes:
        time, y: When it ended, and the state with which the solve goes on.
        handled: Whether an event happened there.
        last: Whether that ends the solve.
        status: `SUCCESS`, or why the solve cannot go on.
        evaluations: How many evaluations its event took.
        sides: On which side of zero the event functions are.
        events: The `EventOutcome` until now.
    """

    time: tf.Tensor
    y: tuple
    handled: tf.Tensor
    last: tf.Tensor
    status: tf.Tensor
    evaluations: tf.Tensor
    sides: tf.Tensor
    events: tuple


def solve_segments(adjoint, problem, event, event_parameters, jump_times, alone=False):
    """Solves a problem with an event, jumps, or both.

    Each segment ends at the next jump, at an event or at the end, and is one differentiable solve. An event is found
    first, without a gradient; then the solve up to it is differentiated, and the event's time is given the derivative that
    the implicit function theorem asks for.

    Args:
        adjoint: The `Adjoint` of each segment.
        problem: The whole `Problem`.
        event: A `ClosedEvent`, or `None`.
        event_parameters: Tensors like `event.tensors()`.
        jump_times: `[J]`, or `[J, B]`, or `None`.
        alone: Whether XLA compiles this without its gradient.

    Returns:
        The `Outcome`, and an `EventOutcome` or `None`.
    """
    run = _Segments(adjoint, problem, event, event_parameters, jump_times)
    bound, end = run.most_segments, run.first()
    if is_looped(event) or _pays_to_loop(bound, problem, alone):
        end = tree.while_loop(
            lambda i, progress: (i < bound) & tf.reduce_any(progress.active),
            lambda i, progress: (i + 1, run.advance(progress)),
            (tf.constant(0), end),
            bound=bound,
        )[1]
    else:
        for _ in range(bound):
            end = run.advance(end)
    status = tree.select(end.active, int(Status.MAX_STEPS), end.status)
    num_steps, num_accepted, num_evaluations = end.counts
    outcome = Outcome(
        ys=end.ys,
        dense=(),
        status=status,
        time=end.reached,
        step_size=end.step_size,
        num_steps=num_steps,
        num_accepted=num_accepted,
        num_evaluations=num_evaluations,
        stiffness=end.stiffness,
        y=end.y,
        output=(),
    )
    if event is None:
        return outcome, None
    if event.terminal:
        return outcome, end.events.first()
    return outcome, end.events


def is_looped(event):
    """Whether the segments are solved in a loop, which XLA compiles only together with its gradient."""
    return event is not None and not event.terminal


def _pays_to_loop(bound, problem, alone):
    """Whether to solve segments in a loop that may as well be solved one after the other."""
    # TensorFlow does not differentiate a loop that assigns to variables.
    assigns = any(parameter.dtype == tf.resource for parameter in problem.parameters)
    return bound > _MOST_UNROLLED and not alone and not assigns


class _Segments:
    """The segments of one solve."""

    def __init__(self, adjoint, problem, event, event_parameters, jump_times):
        self.adjoint, self.problem, self.event = adjoint, problem, event
        self.parameters = event_parameters
        self.clock = Clock(problem.times[0], problem.times[-1])
        self.jumps = jump_times
        num_jumps = 0 if jump_times is None else jump_times.shape[0]
        # A terminal event ends the last segment.
        num_events = 0 if event is None or event.terminal else event.max_events
        self.most_segments = num_jumps + num_events + 1

    def first(self):
        problem, start = self.problem, self.problem.times[0]
        ys = []
        for leaf in problem.y:
            rest = tf.fill(
                tf.concat([tf.shape(problem.times)[:1] - 1, tf.shape(leaf)], axis=0), tf.constant(np.nan, leaf.dtype)
            )
            ys.append(tf.concat([leaf[None], rest], axis=0))
        count = tf.zeros_like(start, dtype=tf.int32)
        derivative, step_size, evaluations = self._first_step()
        return _Progress(
            time=start,
            y=problem.y,
            ys=tuple(ys),
            saved=-tf.ones_like(start),
            status=count,
            active=tf.ones_like(start, dtype=tf.bool),
            handled=tf.zeros_like(start, dtype=tf.bool),
            sides=self._first_sides(derivative),
            counts=(count, count, count + evaluations),
            num_events=count,
            events=() if self.event is None else EventOutcome.none(start, problem.y, self.event.max_events),
            reached=start,
            step_size=step_size,
            stiffness=tf.zeros_like(start),
        )

    def _first_step(self):
        """The first derivative, the first step of the first segment (each later one goes on with the size of the last), and
        the evaluations for both."""
        problem = self.problem
        frozen = tf.nest.map_structure(tf.stop_gradient, (problem.y, problem.parameters))
        field = ForwardField(problem._replace(parameters=frozen[1]))
        derivative = field(self.clock.start, frozen[0]).derivative
        size, evaluations = first_step_size(field, self.clock, frozen[0], derivative, problem.method)
        return derivative, size, evaluations + 1

    def _first_sides(self, derivative):
        """Where an event function is zero at the start, an event that has a direction is still to come; otherwise the
        function is on the side to which it leads."""
        if self.event is None:
            return ()
        sides = []
        for function, direction in zip(self.event.bound(self.parameters[0]), self.event.directions, strict=True):
            point = self.clock.start, self.problem.y
            value = tf.stop_gradient(function(*point))
            if direction:
                side = tf.constant(-direction, value.dtype)
            else:
                side = EventFunction(function, (), self.clock).side(*point, derivative)
            sides.append(tree.select(value == 0, side, tf.sign(value)))
        return tf.stack(sides)

    def advance(self, progress):
        """Solves one segment."""
        target, from_jump, to_jump = self._next_target(progress.time)
        start = _shifted(progress.time, target, from_jump & progress.active)
        limit = _shifted(target, progress.time, to_jump & progress.active)
        limit = tree.select(progress.active, limit, progress.time)
        start = tree.select(progress.active, start, progress.time)
        root = None if self.event is None else self._find(progress, start, limit)
        stop = limit if root is None else root.stop()
        outcome = self.adjoint.solve(
            self.problem._replace(
                times=tf.concat([start[None], self._saved_times(progress, target, start, stop), stop[None]], axis=0),
                y=progress.y,
                method=self._method(progress),
                times_vary=True,
            )
        )
        target = tree.select(progress.active, target, stop)
        if root is None:
            never = tf.zeros_like(progress.active)
            ended = _Ended(target, _last(outcome), never, never, outcome.status, 0, (), ())
        else:
            outcome = root.outcome(outcome)
            ended = self._handle(progress, outcome, root, start, limit, target)
        return self._progress(progress, outcome, ended)

    def _progress(self, progress, outcome, ended):
        """The progress after a segment with this outcome, which ended so."""
        active, time = progress.active, ended.time
        failed, done = ended.status != int(Status.SUCCESS), self._since(time) >= self.clock.duration
        saved = self._since(self.problem.times)
        within = (saved > progress.saved) & (saved <= self._since(time)) & active
        status = tree.select(ended.last & ~failed, int(Status.EVENT), ended.status)
        counts = (outcome.num_steps, outcome.num_accepted, outcome.num_evaluations + ended.evaluations)
        return _Progress(
            time=time,
            y=tree.where(outcome.status != int(Status.SUCCESS), outcome.y, ended.y),
            ys=tuple(tree.select(tree.expand(within, a), b, a) for a, b in zip(progress.ys, outcome.ys, strict=True)),
            saved=tree.select(active, self._since(time), progress.saved),
            status=tree.select(active, status, progress.status),
            active=active & ~failed & ~ended.last & ~done,
            handled=tree.select(active, ended.handled, progress.handled),
            sides=ended.sides,
            counts=tuple(a + tree.select(active, b, 0) for a, b in zip(progress.counts, counts, strict=True)),
            num_events=progress.num_events + tf.cast(ended.handled, tf.int32),
            events=ended.events,
            reached=tree.select(active, outcome.time, progress.reached),
            step_size=tree.select(active, outcome.step_size, progress.step_size),
            stiffness=tf.maximum(progress.stiffness, outcome.stiffness),
        )

    def _method(self, progress):
        """The method of a segment: steps go on in the size in which the last segment's ended."""
        return self.problem.method._replace(step_size=tf.stop_gradient(progress.step_size))

    def _since(self, time):
        return self.clock.direction * (time - self.clock.start)

    def _next_target(self, time):
        """Where the segment from `time` ends unless an event ends it, and whether it starts or ends at a jump, at the end too."""
        end, never = self.clock.end, tf.zeros_like(self.clock.end, dtype=tf.bool)
        if self.jumps is None:
            return end, never, never
        jumps = self.jumps if self.jumps.shape.rank == 2 else tf.reshape(self.jumps, [-1] + [1] * time.shape.rank)
        since = self._since(jumps)
        ahead = (since > self._since(time)) & (since < self.clock.duration)
        nearest = ahead & (since == tf.reduce_min(tree.select(ahead, since, np.inf), axis=0))
        to_jump = tf.reduce_any(ahead, axis=0)
        target = tree.select(to_jump, tf.reduce_max(tree.select(nearest, jumps, -np.inf), axis=0), end)
        at_end = tf.reduce_any((since == self.clock.duration) & tf.math.is_finite(since), axis=0)
        return target, tf.reduce_any(jumps == time, axis=0), to_jump | at_end

    def _saved_times(self, progress, target, start, stop):
        """The times between the first and the last, cut to a segment; those that fall into it keep their derivative, also
        where one is an end of the segment."""
        times = self.problem.times[1:-1]
        since = self._since(times)
        within = (since > progress.saved) & (since <= self._since(target)) & progress.active
        return tf.stop_gradient(_clip(times, start, stop)) + tree.select(within, times - tf.stop_gradient(times), 0)

    def _find(self, progress, start, limit):
        """The `_Root` between two times, without a gradient."""
        problem = self.problem
        detect = progress.active & ~self._has_all(progress.num_events)
        start, stop, y = tf.nest.map_structure(tf.stop_gradient, (start, limit, progress.y))
        parameters, event_parameters = tf.nest.map_structure(tf.stop_gradient, (problem.parameters, self.parameters))
        clock = Clock(start, stop)
        finder = RootFinder(
            self.event.bound(event_parameters[0]),
            self.event.directions,
            self.event.probes,
            problem.method.solver,
            clock,
            y,
            tf.stop_gradient(progress.sides),
            progress.handled,
        )
        result = integrate(
            ForwardField(problem._replace(parameters=parameters)),
            start,
            tree.select(detect, stop, start),
            y,
            self._method(progress),
            observers=(finder,),
            dense=True,
            halts=lambda state: state.found | state.broken,
        )
        state = tf.nest.map_structure(tf.stop_gradient, result.observed[-1])
        found, broken = state.found & detect, state.broken & detect
        time = clock.time(state.since)
        # An event at the very end leaves the end its derivative.
        time = tree.select((found | broken) & (time != stop), time, limit)
        evaluations = tree.select(detect, result.num_evaluations, 0)
        missed = tf.math.is_inf(time)
        # Over a time without end, steps can grow until they are infinite.
        endless = (result.status == int(Status.SUCCESS)) | tf.math.is_inf(result.step_size)
        status = tree.select(endless, int(Status.MAX_STEPS), result.status)
        result = tf.nest.map_structure(tf.stop_gradient, result._replace(status=status, observed=()))
        time = tree.select(missed, result.time, time)
        return _Root(found, broken, time, state.which, state.side, state.sides, evaluations, missed, result)

    def _handle(self, progress, outcome, root, start, limit, target):
        """What becomes of a segment that ended at a root, or at its `target` without one."""
        problem, event = self.problem, self.event
        y, failed = _last(outcome), outcome.status != int(Status.SUCCESS)
        function = EventFunction(
            lambda t, y: tree.take(event.values(t, y, self.parameters[0]), root.which),
            self.parameters[0],
            self.clock.closed(tf.stop_gradient(root.time)),
        )
        stop, reach = tf.stop_gradient(root.time), farthest(outcome.step_size)
        reaches = (tf.minimum(tf.abs(stop - tf.stop_gradient(x)), reach) for x in (start, limit))
        # Where nothing happened, a derivative that is infinite at the end must not matter: there, the start serves as well.
        begin = tf.nest.map_structure(tf.stop_gradient, (progress.time, progress.y))
        time, event_y = tree.select(root.found, root.time, begin[0]), tree.where(root.found, y, begin[1])
        slope = problem.field(time, event_y, problem.parameters)
        happened = function.happened(root.found, root.side, time, event_y, slope, *reaches)
        again = root.found & progress.handled & is_same_time(happened.time, progress.time)
        handled = root.found & ~again & ~failed
        trouble = tree.select(again, int(EventTrouble.AGAIN), tree.select(root.broken, int(EventTrouble.NOT_A_NUMBER), 0))
        late = root.missed & (outcome.status == int(Status.MAX_STEPS))
        trouble = tree.select(late, int(EventTrouble.MISSED), tree.select(failed, 0, trouble))
        status = tree.select(again, int(Status.STEP_TOO_SMALL), tree.select(root.broken, int(Status.NON_FINITE), outcome.status))
        time, y = tree.select(root.found, happened.time, root.time), tree.where(root.found, happened.y, y)
        side, evaluations = root.side, root.evaluations + 1
        if event.reset is not None:
            time = tree.select(root.found, happened.event_time, root.time)
            reset = event.reset(tree.expand(time, y[0]), happened.event_y, self.parameters[1])
            y = tree.where(handled, reset, y)
            slope = problem.field(time, y, problem.parameters)
            side, evaluations = function.side_after(happened, side, time, y, slope), evaluations + 1
        return _Ended(
            time=tree.select(root.found | root.broken, time, target),
            y=y,
            handled=handled,
            last=self._is_last(handled, progress.num_events),
            status=tree.select(failed, outcome.status, status),
            evaluations=evaluations,
            sides=tree.select(root.found, side, root.sides),
            events=progress.events.noted(
                handled, progress.num_events, happened, root.which, tree.select(progress.active, trouble, 0)
            ),
        )

    def _has_all(self, num_events):
        return num_events >= self.event.max_events

    def _is_last(self, handled, num_events):
        """Whether the event ends the solve: a terminal one, and the last that may reset the state."""
        if not (self.event.terminal or self.event.reset is not None):
            return tf.zeros_like(handled)
        return handled & self._has_all(num_events + 1)


def _last(outcome):
    """The state at the end of a segment."""
    return tuple(leaf[-1] for leaf in outcome.ys)


def _shifted(time, toward, shift):
    """The next float toward another time, where asked for: on this side of a jump."""
    moved = tf.math.nextafter(tf.stop_gradient(time), tf.stop_gradient(toward))
    return time + tree.select(shift, moved - tf.stop_gradient(time), 0)


def _clip(times, start, stop):
    """Times cut to the segment between two, in either order."""
    return tf.maximum(tf.minimum(times, tf.maximum(start, stop)), tf.minimum(start, stop))
