"""The discrete adjoint: the exact gradient of the steps that were taken."""

import tensorflow as tf

from keras_ode import tree
from keras_ode.adjoints.base import Cotangents, FirstOrderAdjoint
from keras_ode.adjoints.checkpoints import History, checked_checkpoints, packed, remembered
from keras_ode.adjoints.fields import ForwardField
from keras_ode.adjoints.forward import saved_times, solve_forward


class Checkpointed(FirstOrderAdjoint):
    """The exact derivative of the accepted steps with respect to the state and the parameters.

    The forward solve stores the times of all accepted steps, the stages of the last `checkpoints` of them, and the states
    of twice as many. The backward pass transposes each step, with one vector-Jacobian product for each stage. The stages
    are the stored ones, or they are recomputed. So with `C = checkpoints`, no step is recomputed if there were at most `C`
    of them, and each is recomputed at most once if there were fewer than `(C + 1) (C + 2) / 2`; with the default, up to
    2,048.

    This is the exact derivative of what the solver computed, and not an approximation of the derivative of the solution. If
    the steps of the solver are wrong for neighboring solutions, so is their derivative. With `u' = a u - u v`, `v' = -a v +
    u v` and `u = v = a = 1` the solution is constant, and the steps grow without limit. The derivative with respect to `a` of
    the sum over 101 points of [0, 10] is then far from the exact value, 212.7104: use `"interpolating"` or `"backsolve"` near
    equilibria.

    Args:
        checkpoints: The number of steps whose stages are stored. Defaults to `32`.

    Example:

    >>> x = tf.Variable([1.0])
    >>> with tf.GradientTape() as tape:
    ...     end = keras_ode.odeint(lambda t, y: -y, x, [0.0, 1.0], adjoint="checkpointed", solver="rk4", step_size=0.1)[-1]
    >>> print(f"{float(tape.gradient(end, x)[0]):.3f}")
    0.368

    References:
        Griewank, Walther (2000), Algorithm 799: revolve, ACM TOMS 26(1).
        Stumm, Walther (2010), New algorithms for optimal online checkpointing, SIAM J. Sci. Comput. 32(2).
    """

    differentiates_steps = True

    def __init__(self, checkpoints: int = 32) -> None:
        self.checkpoints = checked_checkpoints(checkpoints)

    def forward(self, problem):
        return solve_forward(problem, _Stages(problem, self.checkpoints, is_dense(problem)))

    def backward(self, problem, outcome, memory, cotangents, of_dense=()):
        history = _Stages(problem, self.checkpoints, is_dense(problem))
        trajectory, num_steps = memory.trajectory, memory.trajectory.num_steps
        replay = history.replay(trajectory)
        reverse = ReverseStep(problem, replay, cotangents, of_dense)

        def reverse_block(last, kept, a, of_carry, parameters, evaluations):
            first = history.first(trajectory, last)
            kept, count = history.refill(trajectory, kept, last)
            evaluations += count

            def reverse_one(n, a, of_carry, parameters, evaluations):
                # Samples that are done wait in the step after their last, which has no length.
                left = n >= first
                step = tuple(tree.take(leaf, tf.where(left, n, 0) % history.capacity) for leaf in kept)
                # That step leaves a state as it is, but not what a solver remembers.
                given = tree.where(left, of_carry, tree.zeros_like(of_carry))
                a, found, parameters, count = reverse(tf.where(left, n, num_steps), step, a, given, parameters)
                return n - 1, a, tree.where(left, found, of_carry), parameters, evaluations + count

            _, *found = tree.while_loop(
                lambda n, *_: tf.reduce_any(n >= first), reverse_one, (last - 1, a, of_carry, parameters, evaluations)
            )
            return first, kept, *found

        a = tuple(leaf[-1] for leaf in cotangents)
        parameters = tree.zeros_like(problem.field.select(problem.parameters))
        of_carry = tree.zeros_like(remembered(problem))
        start = (num_steps, history.writable(memory.trajectory, memory.kept), a, of_carry, parameters, tf.constant(0))
        _, _, a, of_carry, parameters, evaluations = tree.while_loop(
            lambda last, *_: tf.reduce_any(last > 0), reverse_block, start
        )
        if of_carry:
            of_start, change = reverse.begin(problem.y, of_carry)
            a, parameters = tree.add(a, of_start), tree.add(parameters, change)
        return Cotangents(a, parameters, outcome.status, evaluations, replay.record(problem.recorder))


def is_dense(problem):
    """Whether gradients go through interpolants."""
    return problem.dense or problem.times.shape[0] != 2


class _Stages(History):
    """Keeps the state where a step starts, and what its solver needs of it besides: all leaves in a row."""

    def keep(self, step, size, carry):
        return (*step.start, *remembered(self.problem, carry), *self.problem.method.solver.memory(step))

    def like(self):
        y = self.problem.y
        return (*y, *remembered(self.problem), *self.problem.method.solver.memory_like(y, self.dense))


class ReverseStep:
    """The transposed derivative of one step, with the states saved within it."""

    def __init__(self, problem, replay, cotangents, of_dense):
        self.problem, self.replay, self.solver = problem, replay, problem.method.solver
        self.of_dense = of_dense
        self.saved = saved_times(problem)
        self.cotangents = tuple(leaf[1:-1] for leaf in cotangents)
        self.field = ForwardField(problem)

    def __call__(self, n, kept, a, of_carry, of_parameters):
        """The cotangents where step `n` begins and of the parameters, from those where it ends; and evaluations."""
        interval, count = self.replay.interval(n), len(self.problem.y)
        with_carry = count + len(of_carry)
        y, carry, memory = kept[:count], packed(self.problem, kept[count:with_carry]), kept[with_carry:]
        of_y, of_stages = tree.zeros_like(y), None
        if self.problem.times.shape[0] != 2:
            of_y, of_stages = self._of_saved(interval)

        def outputs(step):
            targets, weights = self._outputs(n, interval, step, a, of_stages)
            return targets + remembered(self.problem, step.carry), weights + tuple(of_carry)

        dense = is_dense(self.problem)
        return self.problem.method.pullback(self.field, interval, y, carry, memory, outputs, dense, of_y, of_parameters)

    def begin(self, y, of_carry):
        """The cotangents of the start and of the parameters from those of the first carry."""
        field = self.field.inlined()
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch((y, field.parameters))
            carry, _ = self.solver.start(field, self.problem.times[0], y)
        targets = remembered(self.problem, carry)
        return tape.gradient(targets, (y, field.parameters), of_carry, tf.UnconnectedGradients.ZERO)

    def _outputs(self, n, interval, step, a, of_stages):
        """What the solve makes of a step, and the cotangents of that."""
        targets, weights = step.y, tuple(a)
        if self.of_dense and self.problem.keeps_steps:
            weights = tree.add(weights, tuple(tree.take(leaf, n) for leaf in self.of_dense))
        elif self.of_dense:
            targets += self.solver.polynomials(step, interval.size)
            weights += tuple(tree.take(leaf, n) for leaf in self.of_dense)
        if of_stages is not None:
            targets += tuple(leaf for stage in step.stages for leaf in stage)
            weights += tuple(leaf for stage in of_stages for leaf in stage)
        return targets, weights

    def _of_saved(self, interval):
        """The cotangents of the step's start and of its stages from those of the states saved within it."""
        within = (self.saved > interval.since) & (self.saved <= interval.until)
        length = tf.where(interval.until > interval.since, interval.until - interval.since, 1)
        theta = tf.where(within, self.saved - interval.since, 0) / length
        return self.solver.transposed_interpolate(interval.size, theta, within, self.cotangents)
