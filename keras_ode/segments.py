"""Solves of several segments: from event to event, and between times where the dynamics jumps."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_ode import tree
from keras_ode.adjoints.base import Outcome, stage_field
from keras_ode.errors import Status
from keras_ode.events import RootFinder
from keras_ode.integrate import Clock, first_step_size, integrate


class EventOutcome(NamedTuple):
    """When and where events happened: `[E]` or `[E, B]`, leaves `[E, ...]`; NaN where there were fewer.

    Of a terminal event, without the first axis.
    """

    times: tf.Tensor
    states: tuple


class _Progress(NamedTuple):
    """Where the solve is after some segments: times are scalars, or `[B]`."""

    time: tf.Tensor
    y: tuple
    ys: tuple
    status: tf.Tensor
    active: tf.Tensor
    reset: tf.Tensor
    counts: tuple
    num_events: tf.Tensor
    events: EventOutcome
    reached: tf.Tensor
    step_size: tf.Tensor
    stiffness: tf.Tensor


def solve_segments(adjoint, problem, event, event_parameters, jump_times):
    """Solves a problem with an event, jumps, or both.

    Each segment ends at the next jump, at an event or at the end, and is one differentiable solve. An event is found
    first, without a gradient; then the solve up to it is differentiated, and one step of Newton's method at the root
    gives the event's time the derivative that the implicit function theorem asks for.

    Args:
        adjoint: The `Adjoint` of each segment.
        problem: The whole `Problem`.
        event: A `ClosedEvent`, or `None`.
        event_parameters: Tensors like `event.tensors()`.
        jump_times: `[J]`, or `None`.

    Returns:
        The `Outcome`, and an `EventOutcome` or `None`.
    """
    run = _Segments(adjoint, problem, event, event_parameters, jump_times)
    bound, end = run.most_segments, run.first()
    if is_looped(event):
        end = tree.while_loop(
            lambda i, progress: (i < bound) & tf.reduce_any(progress.active),
            lambda i, progress: (i + 1, run.advance(progress)),
            (tf.constant(0), end),
            bound=bound,
        )[1]
    else:
        for _ in range(bound):
            end = run.advance(end)
    status = tf.where(end.active, int(Status.MAX_STEPS), end.status)
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
        return outcome, tf.nest.map_structure(lambda x: x[0], end.events)
    return outcome, end.events


def is_looped(event):
    """Whether the segments are solved in a loop, which XLA compiles only together with its gradient."""
    return event is not None and not event.terminal


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
        step_size, evaluations = self._first_step_size()
        return _Progress(
            time=start,
            y=problem.y,
            ys=tuple(ys),
            status=count,
            active=self.clock.duration > 0,
            reset=tf.zeros_like(start, dtype=tf.bool),
            counts=(count, count, count + evaluations),
            num_events=count,
            events=self._no_events(),
            reached=start,
            step_size=step_size,
            stiffness=tf.zeros_like(start),
        )

    def _first_step_size(self):
        """The first step of the first segment, each later one goes on with the size of the last; and its evaluations."""
        problem = self.problem
        frozen = tf.nest.map_structure(tf.stop_gradient, (problem.y, problem.parameters))
        field = stage_field(problem._replace(parameters=frozen[1]))
        derivative = field(self.clock.start, frozen[0]).derivative
        size, evaluations = first_step_size(field, self.clock, frozen[0], derivative, problem.method, problem.controlled)
        return size, evaluations + 1

    def advance(self, progress):
        """Solves one segment."""
        target, from_jump, to_jump = self._next_target(progress.time)
        start = _shifted(progress.time, target, from_jump & progress.active)
        stop = _shifted(target, progress.time, to_jump & progress.active)
        stop = tf.where(progress.active, stop, progress.time)
        start = tf.where(progress.active, start, progress.time)
        found, evaluations = tf.zeros_like(progress.active), 0
        if self.event is not None:
            found, which, stop, evaluations = self._find(progress, start, stop)
        times = self.problem.times
        segment = self.problem._replace(
            times=tf.concat([start[None], _clip(times[1:-1], start, stop), stop[None]], axis=0),
            y=progress.y,
            method=self._method(progress),
            times_vary=True,
        )
        outcome = self.adjoint.solve(segment)
        outcome = outcome._replace(num_evaluations=outcome.num_evaluations + evaluations)
        y = tuple(leaf[-1] for leaf in outcome.ys)
        time = tf.where(found | ~progress.active, stop, target)
        events = progress.events
        if self.event is not None:
            time, before = self._differentiable(found, which, time, y)
            events = self._note(found, progress, time, before)
            y = self._after(found, time, before)
        return self._progress(progress, outcome, found, time, y, events)

    def _progress(self, progress, outcome, found, time, y, events):
        """The progress after a segment with this outcome, which ended at `time`; the solve goes on with `y`."""
        failed = outcome.status != int(Status.SUCCESS)
        last = self._is_last(found, progress.num_events)
        done = self._since(time) >= self.clock.duration
        saved = self._since(self.problem.times)
        within = (saved > self._since(progress.time)) & (saved <= self._since(time)) & progress.active
        status = tf.where(failed, outcome.status, tf.where(last, int(Status.EVENT), int(Status.SUCCESS)))
        counts = (outcome.num_steps, outcome.num_accepted, outcome.num_evaluations)
        return _Progress(
            time=time,
            y=tree.where(failed, outcome.y, y),
            ys=tuple(tf.where(tree.expand(within, a), b, a) for a, b in zip(progress.ys, outcome.ys, strict=True)),
            status=tf.where(progress.active, status, progress.status),
            active=progress.active & ~failed & ~last & ~done,
            reset=tf.where(progress.active, found, progress.reset),
            counts=tuple(a + tf.where(progress.active, b, 0) for a, b in zip(progress.counts, counts, strict=True)),
            num_events=progress.num_events + tf.cast(found, tf.int32),
            events=events,
            reached=tf.where(progress.active, outcome.time, progress.reached),
            step_size=tf.where(progress.active, outcome.step_size, progress.step_size),
            stiffness=tf.maximum(progress.stiffness, outcome.stiffness),
        )

    def _method(self, progress):
        """The method of a segment: steps go on in the size in which the last segment's ended."""
        return self.problem.method._replace(step_size=tf.stop_gradient(progress.step_size))

    def _since(self, time):
        return self.clock.direction * (time - self.clock.start)

    def _next_target(self, time):
        """Where the segment from `time` ends unless an event ends it, and whether it starts or ends at a jump."""
        end, never = self.clock.end, tf.zeros_like(self.clock.end, dtype=tf.bool)
        if self.jumps is None:
            return end, never, never
        jumps = tf.reshape(self.jumps, [-1] + [1] * time.shape.rank)
        since = self._since(jumps)
        ahead = (since > self._since(time)) & (since < self.clock.duration)
        nearest = ahead & (since == tf.reduce_min(tf.where(ahead, since, np.inf), axis=0))
        to_jump = tf.reduce_any(ahead, axis=0)
        target = tf.where(to_jump, tf.reduce_max(tf.where(nearest, jumps, -np.inf), axis=0), end)
        return target, tf.reduce_any(jumps == time, axis=0), to_jump

    def _find(self, progress, start, stop):
        """Whether, which and where an event happens between two times, and the evaluations; without a gradient."""
        problem = self.problem
        detect = progress.active & ~self._has_all(progress.num_events)
        start, stop, y = tf.nest.map_structure(tf.stop_gradient, (start, stop, progress.y))
        parameters, event_parameters = tf.nest.map_structure(tf.stop_gradient, (problem.parameters, self.parameters))
        frozen = problem._replace(parameters=parameters)

        finder = RootFinder(
            lambda t, y: self.event.values(t, y, event_parameters[0]),
            self.event.directions,
            problem.method.solver,
            Clock(start, stop),
            y,
            progress.reset,
        )
        target = tf.where(detect, stop, start)
        result = integrate(
            stage_field(frozen),
            start,
            target,
            y,
            self._method(progress),
            observers=(finder,),
            dense=True,
            halts=lambda state: state.found,
        )
        state = tf.nest.map_structure(tf.stop_gradient, result.observed[-1])
        found = state.found & detect
        # The derivative at the event is one more.
        evaluations = tf.where(detect, result.num_evaluations, 0) + 1
        return found, state.which, tf.where(found, start + self.clock.direction * state.since, stop), evaluations

    def _differentiable(self, found, which, time, y):
        """The event's time and state with their derivatives, by one step of Newton's method at the root."""
        problem = self.problem

        def event_value():
            return tree.take(self.event.values(time, y, self.parameters[0]), which)

        slope = problem.field(time, y, problem.parameters)
        with tf.GradientTape() as tape:
            tape.watch((time, y))
            value = event_value()
        by_time, by_y = tape.gradient(value, (time, y), unconnected_gradients="zero")
        rate = by_time + tree.dot(by_y, slope, problem.method.per_sample, time.dtype)
        rate = tf.stop_gradient(tf.where(found & (rate != 0), rate, 1))
        shift = tf.where(found, -event_value() / rate, 0)
        return time + shift, tree.add_scaled(y, shift, [tf.stop_gradient(leaf) for leaf in slope])

    def _no_events(self):
        if self.event is None:
            return ()
        start, count = self.clock.start, self.event.max_events

        def none(leaf):
            return tf.fill(tf.concat([[count], tf.shape(leaf)], axis=0), tf.constant(np.nan, leaf.dtype))

        return EventOutcome(none(start), tuple(none(leaf) for leaf in self.problem.y))

    def _note(self, found, progress, time, y):
        """The events with the one just found."""
        here = tf.reshape(tf.range(self.event.max_events), [-1] + [1] * time.shape.rank) == progress.num_events
        here &= found

        def put(old, new):
            return tf.where(tree.expand(here, old), new[None], old)

        events = progress.events
        return EventOutcome(
            put(events.times, time), tuple(put(a, b) for a, b in zip(events.states, y, strict=True))
        )

    def _after(self, found, time, y):
        """The state with which the solve goes on."""
        if self.event.reset is None:
            return y
        return tree.where(found, self.event.reset(tree.expand(time, y[0]), y, self.parameters[1]), y)

    def _has_all(self, num_events):
        return num_events >= self.event.max_events

    def _is_last(self, found, num_events):
        """Whether the event ends the solve: a terminal one, and the last that may reset the state."""
        if self.event is None or not (self.event.terminal or self.event.reset is not None):
            return tf.zeros_like(found)
        return found & self._has_all(num_events + 1)


def _shifted(time, toward, shift):
    """The next float toward another time, where asked for: on this side of a jump."""
    moved = tf.math.nextafter(tf.stop_gradient(time), tf.stop_gradient(toward))
    return time + tf.where(shift, moved - tf.stop_gradient(time), 0)


def _clip(times, start, stop):
    """Times cut to the segment between two, in either order."""
    return tf.maximum(tf.minimum(times, tf.maximum(start, stop)), tf.minimum(start, stop))
