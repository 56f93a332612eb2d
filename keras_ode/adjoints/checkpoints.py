"""What is kept of a forward solve within a fixed memory, and the rest of it replayed from there."""

import functools
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_ode import tree
from keras_ode.adjoints.fields import ForwardField
from keras_ode.step_records import StepRecord, length

# A state takes a fraction of the room of a whole step, and saves taking steps again.
_STATES_A_STEP = 2
# How much larger a step than one that was taken its error may be trusted to allow.
_MOST_GROWTH = 10


class Trajectory(NamedTuple):
    """What is kept of a forward solve.

    Attributes:
        num_steps: Accepted steps, a scalar or `[B]`; empty until the solve has ended.
        untils: Where each accepted step ended, since the start: `[more than max_steps]`, or `[..., B]`; later entries
            hold the duration, so that steps past the last have no length.
        allowed: How large a step the error of each accepted step would have allowed, like `untils`.
        slots: The states where some of the steps began, by a `Plan`: leaves `[capacity + 1, ...]`; the last slot is where
            writes go that are not wanted. Behind them the carries, where the solver remembers.
    """

    num_steps: tf.Tensor | tuple
    untils: tf.Tensor
    allowed: tf.Tensor
    slots: tuple


class Plan(NamedTuple):
    """Which states to keep in how many slots: every `stride`-th, where the stride doubles when all slots are full.

    A state that is kept takes the slot of one that is not any more, so nothing moves, and all is known in advance.

    Attributes:
        slots: The slot of the state where step `n` begins; of one that is not kept, that behind the last.
        strides: The stride when that step has begun.

    Reference: Stumm, Walther (2010), New algorithms for optimal online checkpointing, SIAM J. Sci. Comput. 32(2).
    """

    slots: np.ndarray
    strides: np.ndarray

    def slot(self, n):
        return tf.gather(tf.constant(self.slots, tf.int32), n)

    def stride(self, num_steps):
        """That at the end of a solve."""
        return tf.gather(tf.constant(self.strides, tf.int32), tf.maximum(num_steps - 1, 0))


@functools.cache
def plan(capacity, max_steps):
    """The `Plan` for `capacity` slots."""
    slots, strides, stride, kept = np.full(max_steps + 1, capacity), np.empty(max_steps + 1, int), 1, {}
    for n in range(max_steps + 1):
        while n >= stride * capacity:
            stride *= 2
            kept = {step: slot for step, slot in kept.items() if step % stride == 0}
        strides[n] = stride
        if n % stride == 0:
            slots[n] = kept[n] = min(set(range(capacity)) - set(kept.values()))
    return Plan(slots, strides)


class Checkpoints:
    """Observes accepted steps and keeps some of the states where they begin: a `Trajectory`.

    Args:
        problem: The `Problem` that is solved.
        capacity: How many states to keep.
        window: How many entries more than there can be steps `untils` shall have, at least one.
    """

    def __init__(self, problem, capacity, window=1):
        self.problem, self.capacity, self.window = problem, capacity, window
        self.plan = plan(capacity, problem.method.max_steps)

    def start(self):
        duration = self.problem.clock().duration
        return Trajectory(
            num_steps=(),
            untils=tree.repeat(duration, self.problem.method.max_steps + self.window),
            allowed=tree.repeat(duration, self.problem.method.max_steps + self.window),
            slots=rooms(self.problem, (*self.problem.y, *remembered(self.problem)), self.capacity),
        )

    def see(self, state, trial):
        n = trial.num_accepted
        last = tf.minimum(n, self.problem.method.max_steps - 1)
        until = tf.where(trial.accept, trial.interval.until, tree.take(state.untils, last))
        slot = tf.where(trial.accept, self.plan.slot(n), self.capacity)
        allowed = tf.where(trial.accept, self._allowed(trial), tree.take(state.allowed, last))
        return state._replace(
            untils=tree.put(state.untils, last, until),
            allowed=tree.put(state.allowed, last, allowed),
            slots=put_each(state.slots, slot, (*trial.step.start, *remembered(self.problem, trial.carry))),
        )

    def end(self, state, num_accepted):
        """The `Trajectory` of what `see` returned last."""
        return state._replace(num_steps=num_accepted)

    def _allowed(self, trial):
        size, method = tf.abs(trial.interval.size), self.problem.method
        if not method.controller.adaptive:
            return size
        factor = tf.maximum(trial.error, 1e-10) ** (-1 / method.solver.error_order)
        return size * tf.clip_by_value(factor, 1, _MOST_GROWTH)

    def stops(self, trajectory):
        """Where the steps began whose states are in the slots, since the start: `[capacity]`, or `[capacity, B]`; -1 where
        there is none, and for the start itself."""
        stride = self.plan.stride(trajectory.num_steps)
        n = tree.expand(tf.range(self.capacity), trajectory.untils) * stride
        inner = (n > 0) & (n < trajectory.num_steps)
        reached = tree.take_each(trajectory.untils, tf.where(inner, n - 1, 0))
        slot = self.plan.slot(tf.minimum(n, self.problem.method.max_steps))
        here = tf.range(self.capacity) == slot[..., None]
        stops = tf.reduce_max(tf.where(here & inner[..., None], reached[..., None], tf.constant(-1, reached.dtype)), axis=0)
        return tf.transpose(stops) if stops.shape.rank == 2 else stops


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

    def keep(self, step, size, carry):
        """What to keep of a step of a signed size that began with a carry: a tuple of tensors."""
        raise NotImplementedError

    def like(self):
        """Finite tensors of the shapes of what is kept."""
        raise NotImplementedError

    def start(self):
        return Memory(self.checkpoints.start(), rooms(self.problem, self.like(), self.capacity))

    def see(self, state, trial):
        slot = tf.where(trial.accept, trial.num_accepted % self.capacity, self.capacity)
        kept = put_each(state.kept, slot, self.keep(trial.step, trial.interval.size, trial.carry))
        return Memory(self.checkpoints.see(state.trajectory, trial), kept)

    def end(self, state, num_accepted):
        """The `Memory` of what `see` returned last."""
        return state._replace(trajectory=self.checkpoints.end(state.trajectory, num_accepted))

    def replay(self, trajectory):
        """The `Replay` of its steps."""
        return Replay(self.problem, trajectory, self.checkpoints.plan, self.dense)

    def first(self, trajectory, last):
        """The first of as many steps before `last` as there is room for."""
        # Where a block of steps begins on a checkpoint, no step before it is taken again.
        grain = tf.minimum(self.checkpoints.plan.stride(trajectory.num_steps), 1 << (self.capacity.bit_length() - 1))
        return (tf.maximum(last - self.capacity, 0) + grain - 1) // grain * grain

    def writable(self, trajectory, kept):
        """What was kept, to refill: a copy, since it may be asked for again, but for solves that fit and are never refilled."""
        return tree.copied_where(tf.reduce_any(trajectory.num_steps > self.capacity), kept)

    def refill(self, trajectory, kept, last):
        """What is kept of the block of steps before `last`, which are taken again, and the evaluations that this took.

        The last steps of the solve are there from the beginning. A loop over blocks refills first, and then reads: so no one
        still reads what is written over, and nothing is copied.
        """
        replay, first = self.replay(trajectory), self.first(trajectory, last)

        def advance(n, y, carry, kept, evaluations):
            interval, step = replay.step(n, y, carry)
            slot = tf.where((n >= first) & (n < last), n % self.capacity, self.capacity)
            kept = put_each(kept, slot, self.keep(step, interval.size, carry))
            y, carry = tree.where_nest(n < last, (step.y, step.carry), (y, carry))
            return tf.where(n < last, n + 1, n), y, carry, kept, evaluations + tf.reduce_max(step.evaluations)

        n, y, carry = replay.checkpoint(first)
        n = tf.where(last < trajectory.num_steps, n, last)
        carry, evaluations = replay.begin(n, y, carry, tf.reduce_any(n < last))
        return tree.while_loop(lambda n, *_: tf.reduce_any(n < last), advance, (n, y, carry, kept, evaluations))[3:]


class Replay:
    """The accepted steps of a forward solve, taken again from its checkpoints.

    Args:
        problem: The `Problem` that was solved.
        trajectory: The `Trajectory` that `Checkpoints` kept.
        plan: Their `Plan`.
        dense: Whether to take the steps with what their interpolants need.
    """

    def __init__(self, problem, trajectory, plan, dense):
        self.problem, self.method, self.field, self.trajectory = problem, problem.method, ForwardField(problem), trajectory
        self.plan, self.dense = plan, dense
        self.clock = problem.clock()

    def span(self, n):
        """Where step `n` begins and ends, since the start."""
        untils = self.trajectory.untils
        # Gathered: XLA would compile a slice anew for every value of its bounds.
        return tf.where(n > 0, tree.take(untils, tf.maximum(n - 1, 0)), 0), tree.take(untils, n)

    def interval(self, n):
        """The interval of step `n`."""
        return self.clock.interval(*self.span(n))

    def begin(self, n, y, carry, wanted=True):
        """The carry with which step `n` begins from `y`, and the evaluations that this took; anything if it is not `wanted`.

        Args:
            carry: What `checkpoint` gave.
        """
        solver = self.method.solver
        if solver.remembers:
            return carry, tf.constant(0)

        def start():
            carry, evaluations = solver.start(self.field, self.interval(n).start, y)
            return carry, tf.convert_to_tensor(evaluations)

        return tf.cond(wanted, start, lambda: (solver.carry_like(self.clock.start, y), tf.constant(0)))

    def step(self, n, y, carry):
        """Takes step `n` from its start `y`."""
        interval = self.interval(n)
        return interval, self.method.step(self.field, interval, y, carry, with_dense=self.dense)

    def record(self, recorder):
        """The `StepRecord` of the steps taken again from the last to the first, all accepted, and no error estimated; empty where
        nobody asks for it."""
        if recorder is None or not recorder.capacity:
            return ()
        count, untils = self.trajectory.num_steps, self.trajectory.untils
        n = count - 1 - tree.expand(tf.range(length(recorder.capacity)), untils)
        until = tree.take_each(untils, tf.maximum(n, 0))
        since = tf.where(n > 0, tree.take_each(untils, tf.maximum(n - 1, 0)), 0)
        outcome = tf.cast(tf.where(n >= 0, 1, -1), until.dtype)
        columns = (self.clock.time(until), self.clock.direction * (since - until), np.nan, outcome)
        rows = tf.stack([tf.zeros_like(until) + column for column in columns], axis=-1)
        if not count.shape.rank:
            return StepRecord((), count, rows)
        return StepRecord(count[: recorder.samples], tf.reduce_max(count), rows[:, : recorder.samples])

    def checkpoint(self, n):
        """The last step not after `n` whose first state was kept, that state, and the carry if the solver remembers."""
        n -= n % self.plan.stride(self.trajectory.num_steps)
        kept = tuple(tree.take(leaf, self.plan.slot(n)) for leaf in self.trajectory.slots)
        y, carry = kept[: len(self.problem.y)], kept[len(self.problem.y) :]
        return n, y, packed(self.problem, carry)


def remembered(problem, carry=None):
    """The tensors of a carry that have to be kept with a state, by default such as have their shapes."""
    solver = problem.method.solver
    if not solver.remembers:
        return ()
    return tuple(tf.nest.flatten(_carry_like(problem) if carry is None else carry))


def packed(problem, tensors):
    """The carry of what `remembered` gave, or `()`."""
    return tf.nest.pack_sequence_as(_carry_like(problem), tensors) if problem.method.solver.remembers else ()


def _carry_like(problem):
    return problem.method.solver.carry_like(problem.times[0], problem.y)


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
