"""The states at every accepted step."""

import tensorflow as tf

from keras_ode import tree
from keras_ode.errors import Status


class KeepSteps:
    """Observes accepted steps and keeps where each ended: their number, the times since the start, and the states.

    The buffers have room for `capacity` steps; writes that are not wanted go to one more entry behind.

    Args:
        clock: The `Clock` of the solve.
        y: The leaves at the start.
        solver: The solver, which knows the derivative at the end of a step.
        capacity: The most steps to keep.
        differentiable: Whether the loop is differentiated.
    """

    def __init__(self, clock, y, solver, capacity, differentiable=False):
        self.clock, self.y, self.solver = clock, y, solver
        self.capacity, self.differentiable = capacity, differentiable

    def start(self):
        count = tf.zeros_like(self.clock.duration, dtype=tf.int32)
        untils, *kept = (self._room(leaf) for leaf in (self.clock.duration, *self.y))
        return count, untils, tuple(kept)

    def see(self, state, trial):
        count, untils, kept = state
        put = tree.put if self.differentiable else tree.put_in_place
        slot = tree.select(trial.accept, count, self.capacity)
        ends = self._at_fixed_time(trial)
        return (
            count + tf.cast(trial.accept, tf.int32),
            put(untils, slot, trial.interval.until),
            tuple(put(old, slot, end) for old, end in zip(kept, ends, strict=True)),
        )

    def _room(self, leaf):
        return (tree.repeat if self.differentiable else tree.room)(leaf, self.capacity + 1)

    def _at_fixed_time(self, trial):
        """The state where the step ends, without the derivative by which its time moves with the start of the solve."""
        if not self.differentiable:
            return trial.step.y
        start = self.clock.start
        return tree.add_scaled(trial.step.y, tf.stop_gradient(start) - start, self.solver.first_derivative(trial.step.carry))


def at_steps(problem, outcome):
    """The times `[S + 1]`, or `[B, S + 1]`, and the states, leaves `[S + 1, ...]`, of the start and of all accepted steps.

    Behind the last step, the end is repeated: NaN where the solve failed. Times between the two ends have no derivative, and
    states are differentiated at fixed times.
    """
    clock, (_, untils) = problem.clock(), outcome.output
    numbers = tf.reshape(tf.range(1, untils.shape[0]), [-1] + [1] * outcome.num_accepted.shape.rank)
    # The end itself moves with its time.
    within = numbers <= outcome.num_accepted - tf.cast(outcome.status == int(Status.SUCCESS), tf.int32)
    times = tree.select(within, tf.stop_gradient(clock.time(untils[:-1])), clock.end)
    times = tf.concat([clock.start[None], times], axis=0)
    ys = tuple(
        tf.concat([ends[:1], tree.select(tree.expand(within, kept), kept[:-1], ends[-1:])], axis=0)
        for ends, kept in zip(outcome.ys, outcome.dense, strict=True)
    )
    return (tf.transpose(times) if times.shape.rank == 2 else times), ys
