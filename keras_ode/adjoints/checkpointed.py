"""The discrete adjoint: the exact gradient of the steps that were taken."""

import tensorflow as tf

from keras_ode import tree
from keras_ode.adjoints.base import Cotangents, FirstOrderAdjoint, saved_times, solve_forward, stage_field
from keras_ode.adjoints.checkpoints import Checkpoints, Replay, checked_checkpoints
from keras_ode.solvers.base import Stage


class Checkpointed(FirstOrderAdjoint):
    """The exact derivative of the accepted steps with respect to the state and the parameters.

    Forward, the times of all accepted steps and the states of at most `checkpoints` of them are kept. Backward, steps
    are taken again from the checkpoints, and one tape over each whole step gives its derivative. With `C` checkpoints,
    no step is taken again where there were at most `C`, and each at most once where there were fewer than
    `(C + 1) (C + 2) / 2`. The backward pass needs room for as many states again.

    It is the derivative of what the solver computed, not an approximation to that of the solution: where the solver's
    steps are wrong for neighboring solutions, so is their derivative. With `u' = a u - u v`, `v' = -a v + u v` and
    `u = v = a = 1` the solution is constant, the steps grow without limit, and the derivative by `a` of the sum over
    101 points of [0, 10] is far from 212.7104: use `"interpolating"` or `"backsolve"` near equilibria.

    Args:
        checkpoints: The number of states to keep. Defaults to `32`.

    References:
        Griewank, Walther (2000), Algorithm 799: revolve, ACM TOMS 26(1).
        Stumm, Walther (2010), New algorithms for optimal online checkpointing, SIAM J. Sci. Comput. 32(2).
    """

    differentiates_steps = True

    def __init__(self, checkpoints=32):
        self.checkpoints = checked_checkpoints(checkpoints)

    def forward(self, problem):
        return solve_forward(problem, Checkpoints(problem, self.checkpoints))

    def backward(self, problem, outcome, memory, cotangents, of_dense=()):
        dense = problem.times.shape[0] != 2 or problem.dense
        replay = Replay(problem, stage_field(problem), memory, dense)
        reverse = _ReverseStep(problem, Replay(problem, _recomputing_field(problem), memory, dense), cotangents, of_dense)
        capacity = block_capacity(self.checkpoints)
        block = tf.minimum(memory.stride, capacity)
        num_steps = memory.num_steps

        def reverse_block(index, a, parameters, evaluations):
            first = tf.where(index >= 0, index * block, num_steps)
            last = tf.where(index >= 0, tf.minimum((index + 1) * block, num_steps), num_steps)
            states, replayed = replay.states(first, last, capacity)

            def reverse_one(n, a, parameters, evaluations):
                # Samples that are done wait in the step after their last, which has no length.
                left = n >= first
                y = tuple(tree.take(leaf, tf.where(left, n - first, 0)) for leaf in states)
                a, change, count = reverse(tf.where(left, n, num_steps), y, a)
                return n - 1, a, tree.add(parameters, change), evaluations + count

            return index - 1, *tree.while_loop(
                lambda n, *_: tf.reduce_any(n >= first), reverse_one, (last - 1, a, parameters, evaluations + replayed)
            )[1:]

        a = tuple(leaf[-1] for leaf in cotangents)
        parameters = tree.zeros_like(problem.field.select(problem.parameters))
        last_block = (num_steps + block - 1) // block - 1
        _, a, parameters, evaluations = tree.while_loop(
            lambda index, *_: tf.reduce_any(index >= 0), reverse_block, (last_block, a, parameters, tf.constant(0))
        )
        records = problem.recorder is not None and problem.recorder.capacity
        return Cotangents(a, parameters, outcome.status, evaluations, replay.record(problem.recorder) if records else ())


class _ReverseStep:
    """The transposed derivative of one step, with the states saved within it."""

    def __init__(self, problem, replay, cotangents, of_dense):
        self.problem, self.replay, self.solver = problem, replay, problem.method.solver
        self.of_dense = of_dense
        self.saved = saved_times(problem)
        self.cotangents = tuple(leaf[1:-1] for leaf in cotangents)

    def __call__(self, n, y, a):
        """The cotangent where step `n` begins, at `y`, what the step adds to those of the parameters, and evaluations."""
        problem = self.problem
        parameters = problem.field.select(problem.parameters)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch((y, parameters))
            interval, step = self.replay.step(n, y)
            targets, weights = [*step.y], [*a]
            if self.of_dense:
                targets += self.solver.polynomials(step, interval.size)
                weights += [tree.take(leaf, n) for leaf in self.of_dense]
            if self.problem.times.shape[0] != 2:
                targets.append(self._saved_product(interval, step, y))
                weights.append(tf.ones_like(targets[-1]))
        gradients = tape.gradient(targets, (y, parameters), output_gradients=weights, unconnected_gradients="zero")
        # Derivatives evaluate the field again, except at the new point where nothing depends on it.
        return *gradients, 2 * step.evaluations - (0 if self.replay.dense else 1)

    def _saved_product(self, interval, step, y):
        """The product of the states saved within the step with their cotangents."""
        within = (self.saved > interval.since) & (self.saved <= interval.until)
        theta = tf.where(within, self.saved - interval.since, 0) / tf.where(
            interval.until > interval.since, interval.until - interval.since, 1
        )
        states = self.solver.interpolate(step.stages, interval.size, y, theta)
        products = [
            tf.reduce_sum(tree.expand(tf.cast(within, leaf.dtype), leaf) * leaf * g)
            for leaf, g in zip(states, self.cotangents, strict=True)
        ]
        return tf.add_n([tf.cast(p, interval.size.dtype) for p in products])


def _recomputing_field(problem):
    """The problem's field for steps that are differentiated."""
    return lambda t, y, with_integrand=True: Stage(problem.field.recomputing(t, y, problem.parameters))


def block_capacity(checkpoints):
    """How many states a backward pass replays at once: a power of two, as strides are, and no fewer than the slots."""
    return max(4, 1 << (checkpoints - 1).bit_length())
