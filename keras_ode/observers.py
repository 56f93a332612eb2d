"""Observers of the loop over steps: what is kept of a solve besides its end.

An observer has `start()`, its first state, and `see(state, trial)`, its state after a tried step.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_ode import internals, tree
from keras_ode.dense import DenseOutput, constant

# How many states that a step passes are interpolated together.
_SAVED_AT_ONCE = 8


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
        # Samples that have their own steps pass their times one by one; and so is the loop least that is differentiated.
        self.chunk = 1 if times.shape.rank == 2 or differentiable else _SAVED_AT_ONCE
        # More times, never reached, follow the last.
        never = tf.fill(tf.concat([[self.chunk], tf.shape(times)[1:]], axis=0), tf.constant(np.inf, times.dtype))
        self.queue = tf.concat([times, never], axis=0)

    def start(self):
        """The number of times passed, scalar or `[B]`, and buffers whose last entries are never read."""
        room = tree.repeat if self.differentiable else tree.room
        return self._at_start(), tuple(room(leaf, self.count + self.chunk) for leaf in self.y)

    def see(self, state, trial):
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
                slot, passed = tf.where(wanted, index, self.count), tf.cast(wanted, tf.int32)
            else:  # What is not wanted is written over later.
                slot, passed = index, tf.reduce_sum(tf.cast(wanted, tf.int32))
            return index + passed, tuple(put(b, slot, leaf) for b, leaf in zip(buffers, states, strict=True))

        bound = self.count if self.differentiable else None
        # The loop around this one is what tapes see: were they to see this one, TensorFlow would make it a call of a
        # function, and its second derivative none that XLA can compile.
        with internals.not_recorded():
            return tree.while_loop(lambda index, _: tf.reduce_any(pending(index)[1]), save, state, bound=bound)

    def _interpolated(self, trial, time, wanted):
        """The states at one time, scalar or `[B]`, or at several, `[C]`."""
        interval, step = trial.interval, trial.step
        length = tf.where(interval.until > interval.since, interval.until - interval.since, 1)
        # What is not wanted must stay finite too: its gradient is zero times its value.
        theta = tf.where(wanted, time - interval.since, 0) / length
        states = self.solver.interpolate(step.stages, interval.size, step.start, theta)
        ends = step.y if self.chunk == 1 else tuple(leaf[None] for leaf in step.y)
        if self.differentiable:
            # At the end of a step, too, the state moves with its time.
            ends = tuple(x + tf.stop_gradient(end - x) for x, end in zip(states, ends, strict=True))
        return tuple(tf.where(tree.expand(time >= interval.until, x), end, x) for x, end in zip(states, ends, strict=True))

    def saved(self, state):
        """The states, leaves `[K, ...]`: NaN at times that were not reached."""
        reached, buffers = state
        number = tree.expand(tf.range(self.count), self.times)
        leaves = []
        for leaf, buffer in zip(self.y, buffers, strict=True):
            states = tf.where(tree.expand(number < reached, buffer), buffer[: self.count], tf.constant(np.nan, leaf.dtype))
            # Where there is nothing to integrate, that is the start.
            leaves.append(tf.where(tree.expand(number < self._at_start(), buffer), leaf[None], states))
        return tuple(leaves)

    def _at_start(self):
        return tf.reduce_sum(tf.cast(self.times <= 0, tf.int32), axis=0)


class Stiffness:
    """Observes the largest spectral radius of the Jacobian that accepted steps show, per unit of time.

    It is the ratio of the differences of derivative and state between the last two stages.

    Reference: Hairer, Wanner (1996), Solving Ordinary Differential Equations II, section IV.2.
    """

    def __init__(self, like, controlled):
        self.like, self.controlled = like, controlled

    def start(self):
        return tf.zeros_like(self.like)

    def see(self, state, trial):
        # Where the loop is differentiated: the root of zero has no derivative.
        step = trial.step.select(self.controlled)
        step = step._replace(neighbors=tf.nest.map_structure(tf.stop_gradient, step.neighbors))
        radius = spectral_radius(step, self.like.shape.rank == 1, self.like.dtype)
        return tf.where(trial.accept, tf.maximum(state, radius), state)


def spectral_radius(step, per_sample, dtype):
    """The radius that one step shows, a scalar or `[B]`."""
    return tf.sqrt(squared_spectral_radius(step, per_sample, dtype))


def squared_spectral_radius(step, per_sample, dtype):
    """Its square."""
    (near, near_slope), (end, end_slope) = step.neighbors
    change = tree.mean_square([a - b for a, b in zip(end_slope, near_slope, strict=True)], per_sample, dtype)
    distance = tree.mean_square([a - b for a, b in zip(end, near, strict=True)], per_sample, dtype)
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
        slot = tf.where(trial.accept, state.num_steps, self.capacity)
        new = self.solver.polynomials(trial.step, trial.interval.size)
        # The last entry is where writes go that are not wanted.
        until = tf.where(trial.accept, trial.interval.until, self.clock.duration)
        return state._replace(
            num_steps=state.num_steps + tf.cast(trial.accept, tf.int32),
            untils=tree.put(state.untils, slot, until),
            polynomials=tuple(tree.put(old, slot, leaf) for old, leaf in zip(state.polynomials, new, strict=True)),
        )


class StepRecord(NamedTuple):
    """The steps that were tried.

    Attributes:
        num_steps: How many, a scalar, or `[S]` for the samples that are kept.
        rows: `[capacity + 1, 4]` or `[capacity + 1, S, 4]`: where each step starts, its signed size, its scaled error (NaN
            where the method estimates none), and 1 where it was accepted, else 0. The last row is never read.
    """

    num_steps: tf.Tensor
    rows: tf.Tensor


class RecordSteps:
    """Observes the steps that are tried: a `StepRecord` of the first `capacity`, and the number of all.

    Args:
        recorder: What asks for them: of the first `recorder.samples` samples the first `recorder.capacity` steps.
        like: A scalar of the solve, or `[B]`.
        clock: What turns the loop's time into that of the problem, where they differ: the forward solve's `Clock`.
        before: A `StepRecord` to go on from.
        differentiable: Whether the loop is differentiated.
    """

    def __init__(self, recorder, like, clock=None, before=(), differentiable=False):
        self.capacity, self.samples = recorder.capacity, recorder.samples
        self.clock, self.before, self.like = clock, before, self._kept(like)
        self.differentiable = differentiable

    def start(self):
        if self.before:
            return self.before
        row = tf.zeros_like(self.like)[..., None] + tf.zeros([4], self.like.dtype)
        room = tree.repeat if self.differentiable else tree.room
        return StepRecord(tf.zeros_like(self.like, dtype=tf.int32), room(row, self.capacity + 1))

    def see(self, state, trial):
        time, size, error = trial.interval.start, trial.interval.size, trial.error
        if self.clock is not None:
            time, size = self.clock.time(time), self.clock.direction * size
        if trial.step.error is None:
            error = tf.fill(tf.shape(error), tf.constant(np.nan, error.dtype))
        row = tf.stack([self._kept(x) for x in (time, size, error, tf.cast(trial.accept, error.dtype))], axis=-1)
        running = self._kept(trial.running)
        put = tree.put if self.differentiable else tree.put_in_place
        slot = tf.where(running, tf.minimum(state.num_steps, self.capacity), self.capacity)
        return StepRecord(state.num_steps + tf.cast(running, tf.int32), put(state.rows, slot, row))

    def _kept(self, scalar):
        return scalar[: self.samples] if scalar.shape.rank else scalar


def step_observers(recorder, like, **options):
    """`RecordSteps` where a recorder asks for steps: a tuple of one or none."""
    return (RecordSteps(recorder, like, **options),) if recorder is not None and recorder.capacity else ()
