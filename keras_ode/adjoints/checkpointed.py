"""The discrete adjoint: the exact gradient of the steps that were taken."""

import tensorflow as tf

from keras_ode import tree
from keras_ode.adjoints.base import Cotangents, FirstOrderAdjoint, saved_times, solve_forward
from keras_ode.adjoints.checkpoints import History, checked_checkpoints


class Checkpointed(FirstOrderAdjoint):
    """The exact derivative of the accepted steps with respect to the state and the parameters.

    Forward, the times of all accepted steps are kept, the stages of the last `checkpoints` of them, and the states of twice
    as many. Backward, each whole step is transposed, with one vector-Jacobian product a stage: its stages are those that
    were kept, or found by taking the step again. So no step is taken again where there were at most `C = checkpoints`, and
    each at most once where there were fewer than `(C + 1) (C + 2) / 2`; with the default, up to 2,048.

    It is the derivative of what the solver computed, not an approximation to that of the solution: where the solver's
    steps are wrong for neighboring solutions, so is their derivative. With `u' = a u - u v`, `v' = -a v + u v` and
    `u = v = a = 1` the solution is constant, the steps grow without limit, and the derivative by `a` of the sum over
    101 points of [0, 10] is far from 212.7104: use `"interpolating"` or `"backsolve"` near equilibria.

    Args:
        checkpoints: The number of steps whose stages to keep. Defaults to `32`.

    References:
        Griewank, Walther (2000), Algorithm 799: revolve, ACM TOMS 26(1).
        Stumm, Walther (2010), New algorithms for optimal online checkpointing, SIAM J. Sci. Comput. 32(2).
    """

    differentiates_steps = True

    def __init__(self, checkpoints=32):
        self.checkpoints = checked_checkpoints(checkpoints)

    def forward(self, problem):
        return solve_forward(problem, _Stages(problem, self.checkpoints, _is_dense(problem)))

    def backward(self, problem, outcome, memory, cotangents, of_dense=()):
        history = _Stages(problem, self.checkpoints, _is_dense(problem))
        trajectory, num_steps = memory.trajectory, memory.trajectory.num_steps
        replay = history.replay(trajectory)
        reverse = _ReverseStep(problem, replay, cotangents, of_dense)

        def reverse_block(last, kept, a, parameters, evaluations):
            first = history.first(trajectory, last)
            kept, count = history.refill(trajectory, kept, last)
            evaluations += count

            def reverse_one(n, a, parameters, evaluations):
                # Samples that are done wait in the step after their last, which has no length.
                left = n >= first
                step = tuple(tree.take(leaf, tf.where(left, n, 0) % history.capacity) for leaf in kept)
                a, parameters, count = reverse(tf.where(left, n, num_steps), step, a, parameters)
                return n - 1, a, parameters, evaluations + count

            _, a, parameters, evaluations = tree.while_loop(
                lambda n, *_: tf.reduce_any(n >= first), reverse_one, (last - 1, a, parameters, evaluations)
            )
            return first, kept, a, parameters, evaluations

        a = tuple(leaf[-1] for leaf in cotangents)
        parameters = tree.zeros_like(problem.field.select(problem.parameters))
        start = (num_steps, history.writable(memory.kept), a, parameters, tf.constant(0))
        _, _, a, parameters, evaluations = tree.while_loop(
            lambda last, *_: tf.reduce_any(last > 0), reverse_block, start
        )
        records = problem.recorder is not None and problem.recorder.capacity
        return Cotangents(a, parameters, outcome.status, evaluations, replay.record(problem.recorder) if records else ())


def _is_dense(problem):
    """Whether gradients go through interpolants."""
    return problem.dense or problem.times.shape[0] != 2


class _Stages(History):
    """Keeps the state where a step starts, and the derivatives of its stages: all leaves in a row."""

    def keep(self, step, size):
        return (*step.start, *(leaf for stage in step.stages for leaf in stage))

    def like(self):
        return self.problem.y * (1 + self.problem.method.solver.num_stages(self.dense))


class _ReverseStep:
    """The transposed derivative of one step, with the states saved within it."""

    def __init__(self, problem, replay, cotangents, of_dense):
        self.problem, self.replay, self.solver = problem, replay, problem.method.solver
        self.of_dense = of_dense
        self.saved = saved_times(problem)
        self.cotangents = tuple(leaf[1:-1] for leaf in cotangents)

    def __call__(self, n, kept, a, of_parameters):
        """The cotangents where step `n` begins and of the parameters, from those where it ends; and evaluations."""
        problem, interval, count = self.problem, self.replay.interval(n), len(self.problem.y)
        y, *stages = (kept[i : i + count] for i in range(0, len(kept), count))

        def push(t, point, cotangent):
            return problem.field.vjp(t, point, problem.parameters, cotangent)[1:]

        of_y, of_stages = self._of_outputs(n, interval, y, stages, a)
        return self.solver.transposed_step(push, interval, y, stages, of_stages, of_y, of_parameters)

    def _of_outputs(self, n, interval, y, stages, a):
        """The cotangents of the step's start and of its stages (`None` where nothing depends on one) from those of all
        that the step gives, which is algebra."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch((y, stages))
            step = self.solver.assemble(interval, y, stages)
            targets, weights = step.y, tuple(a)
            if self.of_dense and self.problem.keeps_steps:
                weights = tree.add(weights, tuple(tree.take(leaf, n) for leaf in self.of_dense))
            elif self.of_dense:
                targets += tuple(self.solver.polynomials(step, interval.size))
                weights += tuple(tree.take(leaf, n) for leaf in self.of_dense)
        of_y, of_stages = tape.gradient(targets, (y, stages), weights)
        of_y, of_stages = _filled(of_y, y), [_filled(*pair) for pair in zip(of_stages, stages, strict=True)]
        if self.problem.times.shape[0] != 2:
            saved_y, saved_stages = self._of_saved(interval)
            of_y = tree.add(of_y, saved_y)
            of_stages = [b if a is None else tree.add(a, b) for a, b in zip(of_stages, saved_stages, strict=True)]
        return of_y, of_stages

    def _of_saved(self, interval):
        """The cotangents of the step's start and of its stages from those of the states saved within it."""
        within = (self.saved > interval.since) & (self.saved <= interval.until)
        length = tf.where(interval.until > interval.since, interval.until - interval.since, 1)
        theta = tf.where(within, self.saved - interval.since, 0) / length
        return self.solver.transposed_interpolate(interval.size, theta, within, self.cotangents)


def _filled(cotangents, leaves):
    """Zeros for leaves that nothing depends on; `None` if there are no others."""
    if all(cotangent is None for cotangent in cotangents):
        return None
    return tuple(tf.zeros_like(x) if g is None else g for g, x in zip(cotangents, leaves, strict=True))
