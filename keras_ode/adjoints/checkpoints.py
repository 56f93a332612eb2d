"""What is kept of a forward solve within a fixed memory, and the rest of it replayed from there."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_ode import tree
from keras_ode.adjoints.base import stage_field
from keras_ode.integrate import Clock
from keras_ode.observers import StepRecord

# A state takes a fraction of the room of a whole step, and saves taking steps again.
_STATES_A_STEP = 4


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
            untils=tree.repeat(duration, self.problem.method.max_steps + self.window),
            stride=tf.ones_like(duration, dtype=tf.int32),
            slots=rooms(self.problem, self.problem.y, self.capacity),
        )

    def see(self, state, trial):
        n = state.num_steps
        full = trial.accept & (n >= state.stride * self.capacity)
        stride = tf.where(full, 2, 1) * state.stride
        kept = trial.accept & (n % stride == 0)
        slot = tf.where(kept, n // stride, self.capacity)

        def put(slots):
            return put_each(slots, slot, trial.step.start)

        # Each branch puts: XLA would copy slots that went through a branch unchanged.
        slots = tf.cond(tf.reduce_any(full), lambda: put(self._thinned(state.slots, full)), lambda: put(state.slots))
        last = tf.minimum(n, self.problem.method.max_steps - 1)
        until = tf.where(trial.accept, trial.interval.until, tree.take(state.untils, last))
        return Trajectory(
            num_steps=n + tf.cast(trial.accept, tf.int32),
            untils=tree.put(state.untils, last, until),
            stride=stride,
            slots=slots,
        )

    def _thinned(self, slots, full):
        """Every second state, where the slots are full."""

        def thin(leaf):
            kept = leaf[: self.capacity : 2]
            thinned = tf.concat([kept, leaf[: self.capacity + 1 - kept.shape[0]]], axis=0)
            return tf.where(tree.expand(full[None], leaf), thinned, leaf) if full.shape.rank else thinned

        return tuple(thin(leaf) for leaf in slots)


class Memory(NamedTuple):
    """What a `History` keeps.

    Attributes:
        trajectory: Times of all steps, states of some.
        kept: Of the last steps what `History.keep` makes of them, tensors `[capacity + 1, ...]`: step `n` is at
            `n % capacity`, and the last entry is never read.
    """

    trajectory: Trajectory
    kept: tuple


class History:
    """Observes accepted steps: keeps something of each of the last ones, and checkpoints to take the others again from.

    A subclass says what to keep of a step.

    Args:
        problem: The `Problem` that is solved.
        capacity: Of how many steps.
        dense: Whether to take the steps with what their interpolants need.
    """

    def __init__(self, problem, capacity, dense):
        self.problem, self.capacity, self.dense = problem, capacity, dense
        self.checkpoints = Checkpoints(problem, _STATES_A_STEP * capacity, window=capacity)

    def keep(self, step, size):
        """What to keep of a step of a signed size: a tuple of tensors."""
        raise NotImplementedError

    def like(self):
        """Finite tensors of the shapes of what is kept."""
        raise NotImplementedError

    def start(self):
        return Memory(self.checkpoints.start(), rooms(self.problem, self.like(), self.capacity))

    def see(self, state, trial):
        slot = tf.where(trial.accept, state.trajectory.num_steps % self.capacity, self.capacity)
        kept = put_each(state.kept, slot, self.keep(trial.step, trial.interval.size))
        return Memory(self.checkpoints.see(state.trajectory, trial), kept)

    def replay(self, trajectory):
        """The `Replay` of its steps."""
        return Replay(self.problem, trajectory, self.dense)

    def block(self, memory, last):
        """As many steps before `last` as there is room for: the first of them, what is kept of them, and the evaluations that
        taking them again took."""
        trajectory = memory.trajectory
        # Where a block begins on a checkpoint, no step before it is taken again.
        grain = tf.minimum(trajectory.stride, 1 << (self.capacity.bit_length() - 1))
        first = (tf.maximum(last - self.capacity, 0) + grain - 1) // grain * grain
        kept, evaluations = tf.cond(
            tf.reduce_all(last == trajectory.num_steps),
            lambda: (memory.kept, tf.constant(0)),
            lambda: self._taken_again(trajectory, first, last),
        )
        return first, kept, evaluations

    def _taken_again(self, trajectory, first, last):
        replay = self.replay(trajectory)

        def advance(n, y, kept, evaluations):
            interval, step = replay.step(n, y)
            slot = tf.where((n >= first) & (n < last), n % self.capacity, self.capacity)
            kept = put_each(kept, slot, self.keep(step, interval.size))
            return tf.where(n < last, n + 1, n), tree.where(n < last, step.y, y), kept, evaluations + step.evaluations

        start = (*replay.checkpoint(first), rooms(self.problem, self.like(), self.capacity), tf.constant(0))
        return tree.while_loop(lambda n, *_: tf.reduce_any(n < last), advance, start)[2:]


class Replay:
    """The accepted steps of a forward solve, taken again from its checkpoints.

    Args:
        problem: The `Problem` that was solved.
        trajectory: The `Trajectory` that `Checkpoints` kept.
        dense: Whether to take the steps with what their interpolants need.
    """

    def __init__(self, problem, trajectory, dense):
        self.solver, self.field, self.trajectory = problem.method.solver, stage_field(problem), trajectory
        self.dense = dense
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


def rooms(problem, like, capacity):
    """Buffers of `capacity` entries like these tensors, and of one more for what is not wanted."""
    # A sample that is done still looks into them, so they have to be finite.
    return tuple(tree.room(x, capacity + 1, filled=problem.method.per_sample) for x in like)


def put_each(buffers, slot, values):
    """The buffers with a value put into each."""
    return tuple(tree.put_in_place(b, slot, value) for b, value in zip(buffers, values, strict=True))


def checked_checkpoints(checkpoints, least=1):
    """A number of checkpoints, at least `least`."""
    if not isinstance(checkpoints, int) or isinstance(checkpoints, bool) or checkpoints < least:
        raise ValueError(f"checkpoints must be a whole number from {least}. Received: checkpoints={checkpoints!r}")
    return checkpoints
