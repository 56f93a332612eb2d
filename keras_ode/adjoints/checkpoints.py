"""Checkpoints of a forward solve within a fixed memory, and the solve replayed from them."""

from typing import NamedTuple

import tensorflow as tf

from keras_ode import tree
from keras_ode.integrate import Clock


class Trajectory(NamedTuple):
    """What is kept of a forward solve.

    Attributes:
        num_steps: Accepted steps, a scalar or `[B]`.
        untils: Where each accepted step ended, since the start: `[more than max_steps]`, or `[..., B]`; later entries
            hold the duration, so that steps past the last have no length.
        stride: How many steps apart the states in `slots` are.
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
        window: How many entries more than there can be steps `untils` shall have.

    Reference: Stumm, Walther (2010), New algorithms for optimal online checkpointing, SIAM J. Sci. Comput. 32(2).
    """

    def __init__(self, problem, capacity, window=0):
        self.problem, self.capacity, self.window = problem, capacity, window

    def start(self):
        duration = tf.abs(self.problem.times[-1] - self.problem.times[0])
        return Trajectory(
            num_steps=tf.zeros_like(duration, dtype=tf.int32),
            untils=repeat(duration, self.problem.method.max_steps + self.window),
            stride=tf.constant(1),
            slots=tuple(repeat(leaf, self.capacity + 1) for leaf in self.problem.y),
        )

    def see(self, state, trial):
        n = state.num_steps
        full = tf.reduce_any(trial.accept & (n >= state.stride * self.capacity))
        stride, slots = tf.cond(full, lambda: self._thinned(state), lambda: (state.stride, state.slots))
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

    def _thinned(self, state):
        """Half the states, twice as far apart."""

        def thin(slots):
            kept = slots[: self.capacity : 2]
            return tf.concat([kept, slots[: self.capacity + 1 - kept.shape[0]]], axis=0)

        return 2 * state.stride, tuple(thin(slots) for slots in state.slots)


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
        carry, _ = self.solver.start(self.field, interval.start, y)
        return interval, self.solver.step(self.field, interval, y, carry, with_dense=self.dense)

    def states(self, first, last, capacity):
        """The states where the steps `first` to `last - 1` begin, leaves `[capacity, ...]`."""
        n, y = self.checkpoint(first)
        buffers = tuple(repeat(leaf, capacity) for leaf in y)

        def advance(n, y, buffers):
            index = tf.maximum(n - first, 0)  # the states before `first` are written over
            buffers = tuple(tree.put(b, index, leaf) for b, leaf in zip(buffers, y, strict=True))
            y = tf.cond(n + 1 < last, lambda: self.step(n, y)[1].y, lambda: y)
            return n + 1, y, buffers

        return tf.while_loop(lambda n, *_: n < last, advance, (n, y, buffers))[2]

    def checkpoint(self, n):
        """The last step not after `n` whose first state was kept, and that state."""
        index = n // self.trajectory.stride
        return index * self.trajectory.stride, tuple(tf.gather(leaf, index) for leaf in self.trajectory.slots)


def repeat(leaf, count):
    """`count` copies of a leaf along a new first axis."""
    return tf.tile(leaf[None], [count] + [1] * leaf.shape.rank)


def checked_checkpoints(checkpoints, least=1):
    """A number of checkpoints, at least `least`."""
    if not isinstance(checkpoints, int) or isinstance(checkpoints, bool) or checkpoints < least:
        raise ValueError(f"checkpoints must be a whole number from {least}. Received: checkpoints={checkpoints!r}")
    return checkpoints
