"""Observers of the loop over steps: what is kept of a solve besides its end.

An observer has `start()`, its first state, and `see(state, trial)`, its state after a tried step.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_ode import internals, tree
from keras_ode.dense import DenseOutput, constant
from keras_ode.errors import Status

# Explicit methods are stable while the step size times the spectral radius is below about this.
STABILITY_LIMIT = 2.0
# How many states that a step passes are interpolated together.
_SAVED_AT_ONCE = 8
# Of how many numbers in all, where the loop is differentiated.
_SAVED_AT_EACH_STEP = 2**15
# How many numbers of steps may wait until the states saved within them are interpolated together.
_WAITING = 2**20
# What an axis of unknown length is taken for.
_UNKNOWN = 128


class SaveAt:
    """Observes the states at given times, read from the interpolants of the steps that pass them.

    Args:
        times: Times since the start, not decreasing: `[K]`, or `[K, B]` with a grid for every sample.
        y: The leaves at the start.
        solver: The solver, which interpolates its own steps.
        differentiable: Whether the loop is differentiated, and so must be bounded.
    """

    def __init__(self, times, y, solver, differentiable=False):
        self.times, self.y, self.solver, self.differentiable = times, y, solver, differentiable
        # Where it is known it must be a number: XLA loses a constant tensor on its way into a loop's second derivative.
        self.count = tf.shape(times)[0] if times.shape[0] is None else times.shape[0]
        known = times.shape[0]
        # A loop within a loop that is differentiated costs more than a few states at times that the step does not pass.
        self.each_step = differentiable and known is not None and known * _size(y) <= _SAVED_AT_EACH_STEP
        # Samples that have their own steps pass their times one by one; and so is the loop least that is differentiated.
        one_by_one = times.shape.rank == 2 or differentiable
        self.chunk = 0 if self.each_step else 1 if one_by_one else _SAVED_AT_ONCE
        # More times, never reached, follow the last.
        never = tf.fill(tf.concat([[self.chunk], tf.shape(times)[1:]], axis=0), tf.constant(np.inf, times.dtype))
        self.queue = tf.concat([times, never], axis=0)

    def start(self):
        """The number of times passed, scalar or `[B]`, and buffers whose last entries are never read."""
        room = tree.repeat if self.differentiable else tree.room
        return self._at_start(), tuple(room(leaf, self.count + self.chunk) for leaf in self.y)

    def see(self, state, trial):
        if self.each_step:
            return self._see_all(state, trial)
        one_by_one = self.chunk == 1
        put = tree.put_in_place if one_by_one else tree.put_rows_in_place
        put = tree.put if self.differentiable else put

        def pending(index):
            """The next time, or times, and whether the step passes them."""
            time = tree.take(self.queue, index) if one_by_one else tf.gather(self.queue, index + tf.range(self.chunk))
            return time, trial.accept & (time <= trial.interval.until)

        def save(index, buffers):
            time, wanted = pending(index)
            states = self._interpolated(trial, time, wanted)
            if one_by_one:
                slot, passed = tree.select(wanted, index, self.count), tf.cast(wanted, tf.int32)
            else:  # What is not wanted is written over later.
                slot, passed = index, tf.reduce_sum(tf.cast(wanted, tf.int32))
            return index + passed, tuple(put(b, slot, leaf) for b, leaf in zip(buffers, states, strict=True))

        bound = self.count if self.differentiable else None
        # The loop around this one is what tapes see: were they to see this one, TensorFlow would make it a call of a
        # function, and its second derivative none that XLA can compile.
        with internals.not_recorded():
            return tree.while_loop(lambda index, _: tf.reduce_any(pending(index)[1]), save, state, bound=bound)

    def _see_all(self, state, trial):
        """`see` for all times at once, whether the step passes them or not."""
        interval, step = trial.interval, trial.step
        wanted = trial.accept & (self.times > interval.since) & (self.times <= interval.until)
        weights = self._weights(interval, len(step.stages), wanted)
        passed, saved = state
        states = tuple(
            _contracted(weights, leaves, trial.accept) for leaves in zip(step.start, *step.stages, step.y, strict=True)
        )
        return passed + tf.reduce_sum(tf.cast(wanted, tf.int32), axis=0), tree.where_rows(wanted, states, saved)

    def _weights(self, interval, count, wanted):
        """How much the start of a step, its `count` stages, and what the interpolant misses its end by, count in the states at
        all times, and behind them in the interpolant's end: `[K + 1, ...]`, or `[K + 1, B, ...]`."""
        theta = self._fraction(interval, self.times, wanted)
        start, *stages = tf.unstack(tf.eye(1 + count, dtype=theta.dtype))
        if interval.size.shape.rank:
            start, *stages = (tree.repeat(x, tf.shape(interval.size)[0]) for x in (start, *stages))
        theta = tf.concat([theta, tf.ones_like(theta[:1])], axis=0)
        weights = self.solver.interpolate([(x,) for x in stages], interval.size, (start,), theta)[0]
        at_end = tf.cast(self.times >= interval.until, theta.dtype)[..., None]
        return tf.concat([weights, tf.concat([at_end, tf.zeros_like(at_end[:1])], axis=0)], axis=-1)

    def _interpolated(self, trial, time, wanted):
        """The states at one time, scalar or `[B]`, or at several, `[C]` or `[C, B]`."""
        interval, step = trial.interval, trial.step
        states = self.solver.interpolate(step.stages, interval.size, step.start, self._fraction(interval, time, wanted))
        ends = step.y if time.shape.rank == interval.until.shape.rank else tuple(leaf[None] for leaf in step.y)
        if self.differentiable:
            # At the end of a step, too, the state moves with its time.
            ends = tuple(x + tf.stop_gradient(end - x) for x, end in zip(states, ends, strict=True))
        return tuple(tree.select(tree.expand(time >= interval.until, x), end, x) for x, end in zip(states, ends, strict=True))

    def _fraction(self, interval, time, wanted):
        """The part of a step at a time; zero where it is not wanted, which must stay finite too: its gradient is zero times it."""
        length = tree.select(interval.until > interval.since, interval.until - interval.since, 1)
        return tree.select(wanted, time - interval.since, 0) / length

    def saved(self, state):
        """The states, leaves `[K, ...]`: NaN at times that were not reached."""
        reached, buffers = state
        return _only_reached(reached, self._at_start(), self.count, self.y, buffers)

    def _at_start(self):
        return tf.reduce_sum(tf.cast(self.times <= 0, tf.int32), axis=0)


class SaveSlopesAt(SaveAt):
    """Observes as `SaveAt` does, but the derivatives of the interpolants by time; `y` is that at the start."""

    def _interpolated(self, trial, time, wanted):
        interval, step = trial.interval, trial.step
        return self.solver.interpolated_slope(step.stages, interval.size, self._fraction(interval, time, wanted))


class _Waiting(NamedTuple):
    """Steps that wait until the states saved within them are interpolated.

    Attributes:
        passed: How many of the times the solve has passed, a scalar or `[B]`.
        saved: At how many of them the states are in the buffers; empty where there are none.
        number: How many steps wait.
        spans: Their `since`, `until` and signed size: `[capacity + 1, 3]`, or `[capacity + 1, B, 3]`.
        steps: For each leaf their start, their end and their stages: `[capacity + 1, S, ...]`, or `[capacity + 1, B, S, ...]`.
        buffers: The states, leaves `[K + capacity, ...]`; none where all steps can wait until the end.
    """

    passed: tf.Tensor
    saved: tf.Tensor
    number: tf.Tensor
    spans: tf.Tensor
    steps: tuple
    buffers: tuple


class SaveTogether:
    """Observes the states at given times as `SaveAt` does, and interpolates those of many steps together.

    Steps wait until there is no room for more, or until the end: then the states within all of them are found at once. So
    a step that passes saved times costs a copy of its stages, and a saved time no operation of its own.

    Args:
        times: Times since the start, not decreasing: `[K]`, or `[K, B]` with a grid for every sample.
        y: The leaves at the start.
        solver: The solver, which interpolates its own steps and says how many stages they have.
        capacity: How many steps may wait. Defaults to as many as there are times, where they are small.
    """

    def __init__(self, times, y, solver, capacity=None):
        self.times, self.y, self.solver = times, y, solver
        self.num_points = 2 + solver.num_stages(True)
        known = times.shape[0]
        self.count = tf.shape(times)[0] if known is None else known
        room = max(1, int(_WAITING / (_size(y) * self.num_points)))
        self.capacity = capacity or min(room, _UNKNOWN if known is None else known)
        self.all_wait = known is not None and known <= self.capacity
        never = tf.fill(tf.concat([[self.capacity], tf.shape(times)[1:]], axis=0), tf.constant(np.inf, times.dtype))
        self.queue = tf.concat([times, never], axis=0)

    def start(self):
        at_start, time = self._at_start(), self.times[0]
        return _Waiting(
            passed=at_start,
            saved=() if self.all_wait else at_start,
            number=tf.zeros_like(at_start),
            spans=tree.room(self._stacked([time] * 3), self.capacity + 1),
            steps=tuple(tree.room(self._stacked([leaf] * self.num_points), self.capacity + 1) for leaf in self.y),
            buffers=() if self.all_wait else tuple(tree.room(leaf, self.count + self.capacity) for leaf in self.y),
        )

    def see(self, state, trial):
        interval, step = trial.interval, trial.step
        now = tree.select(trial.accept, interval.until, interval.since)
        passed = tf.reduce_sum(tf.cast(self.times <= now, tf.int32), axis=0)
        slot = state.number  # What is not kept is written over by the next.
        span = self._stacked([interval.since, interval.until, interval.size])
        points = zip(step.start, step.y, *step.stages, strict=True)
        state = state._replace(
            passed=passed,
            number=slot + tf.cast(passed > state.passed, tf.int32),
            spans=tree.put_in_place(state.spans, slot, span),
            steps=tuple(
                tree.put_in_place(kept, slot, self._stacked(leaves)) for kept, leaves in zip(state.steps, points, strict=True)
            ),
        )
        return state if self.all_wait else self._save(state, tf.reduce_any(state.number >= self.capacity))

    def saved(self, state):
        """The states, leaves `[K, ...]`: NaN at times that were not reached."""
        states = self._interpolated(state, self.times) if self.all_wait else self._save(state, True).buffers
        return _only_reached(state.passed, self._at_start(), self.count, self.y, states)

    def _save(self, state, when):
        """Interpolates all states within the steps that wait, if `when`, and lets these steps go."""

        def save(first, buffers):
            time = tf.gather(self.queue, first + tf.range(self.capacity))
            states = self._interpolated(state, time)
            if time.shape.rank == 2:  # rows are not all as far
                number = tree.expand(first + tf.range(self.capacity), time)
                new = (number >= state.saved) & (number < state.passed)
                old = (tf.gather(buffer, first + tf.range(self.capacity)) for buffer in buffers)
                states = tree.where(new, states, tuple(old))
            return first + self.capacity, tuple(
                tree.put_rows_in_place(buffer, first, leaf) for buffer, leaf in zip(buffers, states, strict=True)
            )

        last = tf.reduce_max(tree.select(when, state.passed, 0))
        start = tf.reduce_min(state.saved), state.buffers
        buffers = tree.while_loop(lambda first, _: first < last, save, start)[1]
        saved, number = tree.select(when, state.passed, state.saved), tree.select(when, 0, state.number)
        return state._replace(saved=saved, number=number, buffers=buffers)

    def _interpolated(self, state, time):
        """The states at times `[C]` or `[C, B]`; anything at those that lie in none of the steps."""
        slots = tree.expand(tf.range(self.capacity), state.spans[: self.capacity, ..., 1])
        untils = tree.select(slots < state.number, state.spans[: self.capacity, ..., 1], tf.constant(np.inf, time.dtype))
        slot = tf.reduce_sum(tf.cast(untils[None] < time[:, None], tf.int32), axis=1)
        slot = tf.minimum(slot, tf.maximum(state.number - 1, 0))
        since, until, size = tf.unstack(tree.take_each(state.spans, slot), num=3, axis=-1)
        theta = (tf.minimum(time, until) - since) / tree.select(until > since, until - since, 1)
        axis = time.shape.rank
        points = (tf.unstack(tree.take_each(kept, slot), num=self.num_points, axis=axis) for kept in state.steps)
        start, end, *stages = zip(*points, strict=True)
        states = self.solver.interpolate(stages, size, start, theta)
        return tree.where_rows(time >= until, end, states)

    def _stacked(self, leaves):
        """Stacked behind the axis of the samples, where they have their own steps."""
        return tf.stack(list(leaves), axis=self.times.shape.rank - 1)

    def _at_start(self):
        return tf.reduce_sum(tf.cast(self.times <= 0, tf.int32), axis=0)


def _contracted(weights, leaves, accept):
    """The states that `SaveAt._weights` make of the leaves of a step: its start, its stages and its end."""
    # A step that is rejected may hold what is not finite, and the gradient of a product with zero is one with it.
    leaves = tf.stack(leaves)
    leaves = tree.select(tree.expand(accept[None], leaves) if accept.shape.rank else accept, leaves, 0)
    points = tf.unstack(leaves, num=weights.shape[-1])
    at_end = tf.unstack(weights[-1], num=len(points), axis=-1)
    (end,) = tree.tensor_weighted_sum(at_end[:-1], [(x,) for x in points[:-1]])
    # At the end of a step, too, the state moves with its time.
    points[-1] = tf.stop_gradient(points[-1] - end)
    weights = weights[:-1]
    if weights.shape.rank == 2 and not tree.is_compiled():
        return tree.tensordot(tf.cast(weights, leaves.dtype), tf.stack(points))
    weights = tf.unstack(weights, num=len(points), axis=-1)
    return tree.tensor_weighted_sum(weights, [(x[None],) for x in points])[0]


def _size(y):
    """How many numbers a state has."""
    return sum(float(np.prod([_UNKNOWN if n is None else max(n, 1) for n in leaf.shape])) for leaf in y)


def _only_reached(reached, at_start, count, y, buffers):
    """The states `[K, ...]`: NaN at times that were not reached, and the start where there is nothing to integrate."""
    number = tf.range(count)[:, None] if reached.shape.rank else tf.range(count)
    states = tuple(buffer[:count] for buffer in buffers)
    nan = tuple(tf.fill(tf.shape(x), tf.constant(np.nan, x.dtype)) for x in states)
    starts = tuple(tree.repeat(leaf, count) for leaf in y)
    return tree.where_rows(number < at_start, starts, tree.where_rows(number < reached, states, nan))


class Stiffness:
    """Observes the largest spectral radius of the Jacobian that accepted steps show, per unit of time; and the latest one times
    the size of the step.

    It is the ratio of the differences of derivative and state between the last two stages.

    Reference: Hairer, Wanner (1996), Solving Ordinary Differential Equations II, section IV.2.
    """

    def __init__(self, field, like):
        self.field, self.like = field, like

    def start(self):
        return tf.zeros_like(self.like), tf.zeros_like(self.like)

    def see(self, state, trial):
        largest, latest = state
        # Where the loop is differentiated: the root of zero has no derivative.
        step = trial.step.select(self.field.controlled)
        step = step._replace(neighbors=tf.nest.map_structure(tf.stop_gradient, step.neighbors))
        radius = spectral_radius(step, self.like)
        relative = tf.abs(tf.stop_gradient(trial.interval.size)) * radius
        return tree.select(trial.accept, tf.maximum(largest, radius), largest), tree.select(trial.accept, relative, latest)


def status_of_stiff(status, latest, solver, controller):
    """The status, which is `STIFF` where an explicit solver needed too many steps since longer ones would be unstable.

    Args:
        latest: The spectral radius times the size of the last step.
    """
    if solver.is_implicit or not controller.adaptive:
        return status
    stiff = (status == int(Status.MAX_STEPS)) & (latest > STABILITY_LIMIT)
    return tree.select(stiff, int(Status.STIFF), status)


def spectral_radius(step, like):
    """The radius that one step shows, a number like `like`."""
    return tf.sqrt(squared_spectral_radius(step, like))


def squared_spectral_radius(step, like):
    """Its square."""
    (near, near_slope), (end, end_slope) = step.neighbors
    change, distance = (tree.mean_square(tree.subtract(a, b), like) for a, b in ((end_slope, near_slope), (end, near)))
    return tf.math.divide_no_nan(change, distance)


class KeepDense:
    """Observes accepted steps and keeps their interpolants: a `DenseOutput` of at most `capacity` steps."""

    def __init__(self, clock, y, solver, capacity):
        self.clock, self.y, self.solver, self.capacity = clock, y, solver, capacity

    def start(self):
        duration = self.clock.duration

        return DenseOutput(
            start=self.clock.start,
            end=self.clock.end,
            num_steps=tf.zeros_like(duration, dtype=tf.int32),
            untils=tree.repeat(duration, self.capacity + 1),
            polynomials=tuple(
                tree.repeat(leaf, self.capacity + 1) for leaf in constant(self.y, self.solver.degree, duration.shape.rank)
            ),
        )

    def see(self, state, trial):
        slot = tree.select(trial.accept, state.num_steps, self.capacity)
        new = self.solver.polynomials(trial.step, trial.interval.size)
        # The last entry is where writes go that are not wanted.
        until = tree.select(trial.accept, trial.interval.until, self.clock.duration)
        return state._replace(
            num_steps=state.num_steps + tf.cast(trial.accept, tf.int32),
            untils=tree.put(state.untils, slot, until),
            polynomials=tuple(tree.put(old, slot, leaf) for old, leaf in zip(state.polynomials, new, strict=True)),
        )
