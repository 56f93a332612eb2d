"""The discrete adjoint of reversible solvers: steps are taken back, and no state is stored."""

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_ode import tree
from keras_ode.adjoints.base import Cotangents, FirstOrderAdjoint
from keras_ode.adjoints.checkpointed import ReverseStep, is_dense
from keras_ode.adjoints.checkpoints import Replay, remembered
from keras_ode.adjoints.drift import distance
from keras_ode.adjoints.forward import solve_forward
from keras_ode.errors import Status

# A start that is missed by this part of the state is missed, whatever the tolerance.
_MOST_MISSED = 0.1


class Reversible(FirstOrderAdjoint):
    """The exact derivative of the accepted steps, whose states are recomputed by reversing the steps from the end.

    It needs a reversible solver. The forward solve stores only the times of the accepted steps, and the state of the solver
    at the end. The backward pass reverses each step, which gives the start of the step, and transposes it. So it needs the
    memory of a few states, however many steps there are, and each step is computed three times: forward, in reverse, and
    for its derivative.

    Reversing a step is exact up to rounding errors, which grow over many steps if the solution forgets where it started. If
    the reversed solution misses the start by more than the tolerance (or by more than half of the digits of the dtype, if
    that is larger), relative to the largest value of each element, the gradient is NaN.

    Example:

    >>> x = tf.Variable([1.0])
    >>> with tf.GradientTape() as tape:
    ...     end = keras_ode.odeint(lambda t, y: -y, x, [0.0, 1.0], adjoint="reversible", solver="reversible")[-1]
    >>> print(f"{float(tape.gradient(end, x)[0]):.3f}")
    0.368

    References:
        Zhuang, Dvornek, Tatikonda, Duncan (2021), MALI: A memory efficient and reverse accurate integrator for Neural ODEs, ICLR.
        McCallum, Foster (2024), Efficient, accurate and stable gradients for neural ODEs, arXiv:2410.11648.
    """

    differentiates_steps = True
    takes_steps_back = True

    def forward(self, problem):
        return solve_forward(problem, _Ends(problem))

    def backward(self, problem, outcome, memory, cotangents, of_dense=()):
        replay = Replay(problem, memory, None, is_dense(problem))
        reverse, unstep = ReverseStep(problem, replay, cotangents, of_dense), problem.method.solver.unstep

        def reverse_one(n, at):
            # Samples that are done wait in the step after their last, which has no length.
            left = n >= 0
            step = tf.where(left, n, memory.num_steps)
            y, carry, count = unstep(reverse.field, replay.interval(step), at.y, at.carry)
            y, carry = tree.where(left, y, at.y), tree.where_nest(left, carry, at.carry)
            # That step leaves a state as it is, but not what a solver remembers.
            given = tree.where(left, at.of_carry, tree.zeros_like(at.of_carry))
            kept = (*y, *remembered(problem, carry))
            a, found, parameters, used = reverse(step, kept, at.a, given, at.parameters)
            largest = tuple(tf.maximum(p, tf.abs(x)) for p, x in zip(at.largest, y, strict=True))
            of_carry, evaluations = tree.where(left, found, at.of_carry), at.evaluations + count + used
            return n - 1, _Progress(y, carry, largest, a, of_carry, parameters, evaluations)

        start = _Progress(
            y=memory.y,
            carry=memory.carry,
            largest=tuple(map(tf.abs, memory.y)),
            a=tuple(leaf[-1] for leaf in cotangents),
            of_carry=tree.zeros_like(remembered(problem)),
            parameters=tree.zeros_like(problem.field.select(problem.parameters)),
            evaluations=tf.constant(0),
        )
        _, end = tree.while_loop(lambda n, _: tf.reduce_any(n >= 0), reverse_one, (memory.num_steps - 1, start))
        a, parameters = end.a, end.parameters
        if end.of_carry:
            of_start, change = reverse.begin(problem.y, end.of_carry)
            a, parameters = tree.add(a, of_start), tree.add(parameters, change)
        missed = (outcome.status == int(Status.SUCCESS)) & ~_is_near(problem, end, outcome.time)
        status = tf.where(missed, int(Status.NOT_CONVERGED), outcome.status)
        return Cotangents(a, parameters, status, end.evaluations, replay.record(problem.recorder))


class _Progress(NamedTuple):
    """How far the backward pass is: the state and carry where a step begins, their cotangents, and what was found until there.

    Attributes:
        largest: The largest magnitude that each element of the state had on the way.
        of_carry: The cotangents of what the solver remembers, tensors.
    """

    y: tuple
    carry: Any
    largest: tuple
    a: tuple
    of_carry: tuple
    parameters: tuple
    evaluations: tf.Tensor


class _End(NamedTuple):
    """What is kept of a forward solve.

    Attributes:
        num_steps: Accepted steps, a scalar or `[B]`; empty until the solve has ended.
        untils: Where each accepted step ended, since the start: `[max_steps + 2]`, or `[max_steps + 2, B]`; later entries hold the
            duration, so that steps past the last have no length. The last entry is where writes go that are not wanted.
        y, carry: The state and the carry that were reached.
    """

    num_steps: tf.Tensor | tuple
    untils: tf.Tensor
    y: tuple
    carry: Any


class _Ends:
    """Observes where accepted steps end, and with what the last one does: an `_End`."""

    def __init__(self, problem):
        self.problem = problem

    def start(self):
        problem, duration = self.problem, self.problem.clock().duration
        return _End(
            num_steps=(),
            untils=tree.repeat(duration, problem.method.max_steps + 2),
            y=problem.y,
            carry=problem.method.solver.carry_like(problem.times[0], problem.y),
        )

    def see(self, state, trial):
        slot = tf.where(trial.accept, trial.num_accepted, self.problem.method.max_steps + 1)
        return state._replace(
            untils=tree.put(state.untils, slot, trial.interval.until),
            y=tree.where(trial.accept, trial.step.y, state.y),
            carry=tree.where_nest(trial.accept, trial.step.carry, state.carry),
        )

    def end(self, state, num_accepted):
        """The `_End` of what `see` returned last."""
        return state._replace(num_steps=num_accepted)


def _is_near(problem, end, like):
    """Whether the steps back led to where the solve started."""
    tolerance, (y, start, largest) = problem.method.tolerance, map(problem.controlled, (end.y, problem.y, end.largest))
    rtol, atol, _ = tolerance
    half = np.sqrt(np.finfo(rtol.dtype.as_numpy_dtype).eps)
    away = distance(y, start, largest, tolerance, like)
    return away <= tf.minimum(tf.reduce_max([rtol, atol, half]), _MOST_MISSED)
