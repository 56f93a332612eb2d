"""What is to be solved, and what a solve found."""

from typing import Any, NamedTuple

import tensorflow as tf

from keras_ode.integrate import Clock, Method
from keras_ode.vector_field import VectorField


class Problem(NamedTuple):
    """What is to be solved, and how: the inputs of a differentiable solve are `times`, `y` and `parameters`.

    Attributes:
        field: The vector field.
        times: `[T]`, or `[T, B]` with `method.per_sample`.
        y: The leaves of the state at `times[0]`.
        parameters: What `field` takes as parameters.
        method: How to integrate.
        times_vary: Whether the times may need a gradient.
        dense: Whether to keep all interpolants.
        watchers: Observers of the forward steps, of which nothing is kept.
        num_penalties: How many of the last leaves only add up, unseen by error control.
        recorder: Who is told of the solve, or `None`. It has `capacity` and `samples` (see `RecordSteps`; without capacity
            no step is recorded), a method `forward(result, record)`, which is called where the forward solve has ended, and
            `backward()`, called there too, which returns a function `(outcome, cotangents)` for the end of the backward
            pass: this may use only what `backward` made, and returns the operations that must run.
        elapsed: The times since the first, signed, where rounding the times would have changed that: a tensor like
            `times`, or empty.
        programs: The `Programs` that hold the parts of the solve, or `None`, where these are built into the graph around it.
        may_compile: Whether these programs may be compiled.
        may_be_recorded: Whether a tape may record the solve, as far as one can tell.
        keeps_steps: Whether to keep the states at all accepted steps.
        reports: Whether more is wanted of the outcome than the states and the status.
    """

    field: VectorField
    times: tf.Tensor
    y: tuple
    parameters: tuple
    method: Method
    times_vary: bool
    dense: bool = False
    watchers: tuple = ()
    num_penalties: int = 0
    recorder: Any = None
    elapsed: Any = ()
    programs: Any = None
    may_compile: bool = False
    may_be_recorded: bool = True
    keeps_steps: bool = False
    reports: bool = True

    def clock(self):
        """The `Clock` from the first time to the last."""
        return Clock(self.times[0], self.times[-1], self.since_start()[-1])

    def since_start(self):
        """The times since the first, negative where the solve goes back in time."""
        return self.times - self.times[0] if isinstance(self.elapsed, tuple) else self.elapsed

    def controlled(self, leaves):
        """Of leaves like those of the state, the ones that error control sees."""
        return tuple(leaves[: len(leaves) - self.num_penalties])

    def tensors(self):
        """All tensors of the problem, flat; `with_tensors` puts them back."""
        return tf.nest.flatten(self._structure())

    def with_tensors(self, tensors):
        times, y, parameters, of_method, elapsed = tf.nest.pack_sequence_as(self._structure(), tensors)
        method = self.method.with_tensors(of_method)
        return self._replace(times=times, y=y, parameters=parameters, method=method, elapsed=elapsed)

    def _structure(self):
        return self.times, self.y, self.parameters, self.method.tensors(), self.elapsed


# What of an outcome is for reports alone.
_ONLY_REPORTED = ("num_steps", "num_accepted", "num_evaluations", "stiffness", "y", "output", "ended")


class Outcome(NamedTuple):
    """What a solve found: scalars or `[B]`, but for leaves.

    Attributes:
        ys: The leaves at all times, `[T, ...]`.
        dense: The polynomials of a `DenseOutput`, its only part that has gradients; or the states that `KeepSteps` kept.
        status, time, step_size: How the solve ended, when, and with which step size to go on.
        num_steps, num_accepted, num_evaluations: What it took.
        stiffness: The largest spectral radius seen.
        y: The leaves that it reached.
        output: The rest of the `DenseOutput`; or the times that `KeepSteps` kept.
        slopes: The derivatives by time of the states at all times but the first, leaves `[T - 1, ...]`, if the gradient by the
            times needs them.
        ended: The status where it says nothing of stiffness, so that nobody has to look for it; empty
            outside of adjoints.
    """

    ys: tuple
    dense: tuple
    status: tf.Tensor
    time: tf.Tensor
    step_size: tf.Tensor
    num_steps: tf.Tensor
    num_accepted: tf.Tensor
    num_evaluations: tf.Tensor
    stiffness: tf.Tensor
    y: tuple
    output: tuple
    slopes: tuple = ()
    ended: tf.Tensor | tuple = ()

    def for_gradients(self):
        """The same without what no gradient depends on: XLA computes only what is kept."""
        status = self.status if isinstance(self.ended, tuple) else self.ended
        return self._replace(status=status, **dict.fromkeys(_ONLY_REPORTED, ()))

    def differentiable(self):
        """The leaves that have gradients."""
        return (*self.ys, *self.dense)
