"""Checkpoints of a forward solve within a fixed memory, and the solve replayed from them."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_ode import tree
from keras_ode.integrate import Clock
from keras_ode.observers import StepRecord


class Trajectory(NamedTuple):
    """What is kept of a forward solve.

    Attributes:
        num_steps: Accepted steps, a scalar or `[B]`.
        untils: Where each accepted step ended, since the start: `[more than max_steps]`, or `[..., B]`; later entries
            hold the duration, so that steps past the last have no length.
        stride: How many steps apart the states in `slots` are, a scalar or `[B]`.
        slots: The states where steps `0, stride, 2 stride, ...` began, leaves `[capacity + 1, ...]`; the last slot is
            where writes go that are not wanted.
    """

    num_steps: tf.Tensor
    untils: tf.Tensor
    stride: tf.Tensor
    slots: tuple


class Checkpoints:
    """Observes accepted steps and keeps every `stride`-th state; when the slots are full, every second one is dropped.

    Args:
        problem: The `Problem` that is solved.
        capacity: How many states to keep.
        window: How many entries more than there can be steps `untils` shall have, at least one.

    Reference: Stumm, Walther (2010), New algorithms for optimal online checkpointing, SIAM J. Sci. Comput. 32(2).
    """

    def __init__(self, problem, capacity, window=1):
        self.problem, self.capacity, self.window = problem, capacity, window

    def start(self):
        duration = tf.abs(self.problem.times[-1] - self.problem.times[0])
        return Trajectory(
            num_steps=tf.zeros_like(duration, dtype=tf.int32),
            untils=repeat(duration, self.problem.method.max_steps + self.window),
            stride=tf.ones_like(duration, dtype=tf.int32),
            slots=tuple(repeat(leaf, self.capacity + 1) for leaf in self.problem.y),
        )

    def see(self, state, trial):
        n = state.num_steps
        full = trial.accept & (n >= state.stride * self.capacity)
        stride, slots = tf.cond(
            tf.reduce_any(full), lambda: self._thinned(state, full), lambda: (state.stride, state.slots)
        )
        kept = trial.accept & (n % stride == 0)
        slot = tf.where(kept, n // stride, self.capacity)
        last = tf.minimum(n, self.problem.method.max_steps - 1)
        until = tf.where(trial.accept, trial.interval.until, tree.take(state.untils, last))
        return Trajectory(
            num_steps=n + tf.cast(trial.accept, tf.int32),
            untils=tree.put(state.untils, last, until),
            stride=stride,
            slots=tuple(tree.put(s, slot, leaf) for s, leaf in zip(slots, trial.step.start, strict=True)),
        )

    def _thinned(self, state, full):
        """Half the states, twice as far apart, where the slots are full."""

        def thin(slots):
            kept = slots[: self.capacity : 2]
            thinned = tf.concat([kept, slots[: self.capacity + 1 - kept.shape[0]]], axis=0)
            return tf.where(tree.expand(full[None], slots) if full.shape.rank else full, thinned, slots)

        return tf.where(full, 2, 1) * state.stride, tuple(thin(slots) for slots in state.slots)


class Replay:
    """The accepted steps of a forward solve, taken again from its checkpoints.

    Args:
        problem: The `Problem` that was solved.
        field: Its field, as the loop takes it.
        trajectory: The `Trajectory` that `Checkpoints` kept.
        dense: Whether to take the steps with what their interpolants need.
    """

    def __init__(self, problem, field, trajectory, dense):
        self.solver, self.field, self.trajectory, self.dense = problem.method.solver, field, trajectory, dense
        self.clock = Clock(problem.times[0], problem.times[-1])

    def interval(self, n):
        """The interval of step `n`."""
        untils = self.trajectory.untils
        # Gathered: XLA would compile a slice anew for every value of its bounds.
        since = tf.where(n > 0, tree.take(untils, tf.maximum(n - 1, 0)), 0)
        return self.clock.interval(since, tree.take(untils, n))

    def step(self, n, y):
        """Takes step `n` from its start `y`."""
        interval = self.interval(n)
        carry, evaluations = self.solver.start(self.field, interval.start, y)
        step = self.solver.step(self.field, interval, y, carry, with_dense=self.dense)
        return interval, step._replace(evaluations=step.evaluations + evaluations)

    def states(self, first, last, capacity):
        """The states where the steps `first` to `last - 1` begin: leaves `[capacity + 1, ...]`, the last never read;
        and the evaluations that this took."""

        def put(buffers, slot, y, *_):
            return tuple(tree.put(b, slot, leaf) for b, leaf in zip(buffers, y, strict=True))

        empty = tuple(repeat(leaf, capacity + 1) for leaf in self.checkpoint(first)[1])
        # The states before `first` are written over, and the last step need not be taken.
        return self.collect(first, last, empty, put, lambda n: tf.where(n < last, tf.maximum(n - first, 0), capacity), 1)

    def collect(self, first, last, buffers, put, slot_of, skipped=0):
        """Takes the steps up to `last - 1` from the last checkpoint before `first`.

        Args:
            first, last: Scalars or `[B]`; a sample that has come to its last waits for the others.
            buffers: Where `put` puts.
            put: A function of the buffers, a slot, the state where a step begins, its interval, and the step.
            slot_of: A function from the number of a step to its slot.
            skipped: How many of the last steps are not needed.

        Returns:
            The buffers, and the number of evaluations that this took.
        """

        def advance(n, y, buffers, evaluations):
            interval, step = self.step(n, y)
            buffers = put(buffers, slot_of(n), y, interval, step)
            return tf.where(n < last, n + 1, n), tree.where(n < last, step.y, y), buffers, evaluations + step.evaluations

        n, y, buffers, evaluations = tree.while_loop(
            lambda n, *_: tf.reduce_any(n < last - skipped), advance, (*self.checkpoint(first), buffers, tf.constant(0))
        )
        return put(buffers, slot_of(n), y, None, None) if skipped else buffers, evaluations

    def record(self, recorder):
        """The `StepRecord` of the steps taken again from the last to the first: all accepted, and no error estimated."""
        count, untils = self.trajectory.num_steps, self.trajectory.untils
        n = count - 1 - tree.expand(tf.range(recorder.capacity + 1), untils)
        until = tree.take_each(untils, tf.maximum(n, 0))
        since = tf.where(n > 0, tree.take_each(untils, tf.maximum(n - 1, 0)), 0)
        columns = (self.clock.time(until), self.clock.direction * (since - until), np.nan, 1.0)
        rows = tf.stack([tf.zeros_like(until) + column for column in columns], axis=-1)
        return StepRecord(count[: recorder.samples], rows[:, : recorder.samples]) if count.shape.rank else StepRecord(count, rows)

    def checkpoint(self, n):
        """The last step not after `n` whose first state was kept, and that state."""
        index = n // self.trajectory.stride
        return index * self.trajectory.stride, tuple(tree.take(leaf, index) for leaf in self.trajectory.slots)


def repeat(leaf, count):
    """`count` copies of a leaf along a new first axis."""
    return tf.tile(leaf[None], [count] + [1] * leaf.shape.rank)


def checked_checkpoints(checkpoints, least=1):
    """A number of checkpoints, at least `least`."""
    if not isinstance(checkpoints, int) or isinstance(checkpoints, bool) or checkpoints < least:
        raise ValueError(f"checkpoints must be a whole number from {least}. Received: checkpoints={checkpoints!r}")
    return checkpoints
