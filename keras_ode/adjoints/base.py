"""The adjoint contract: a solve whose outputs can be differentiated."""

import numbers
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_ode import internals, solvers, tree
from keras_ode.adjoints.checkpoints import checked_checkpoints
from keras_ode.adjoints.cotangents import integral_weights, nan_unless, size_of, time_cotangents, without_padding
from keras_ode.adjoints.forward import solve_forward
from keras_ode.adjoints.problem import Outcome
from keras_ode.configurable import Configurable
from keras_ode.custom_gradient import custom_gradient, first_order_only
from keras_ode.errors import Status
from keras_ode.solvers import Solver
from keras_ode.vector_field import ScaledField

# The first backward step, in steps of the size with which the forward solve would go on: to try all of that often fails, and a
# step that fails takes as much time as one more that does not.
_FIRST_STEP = 0.75


class Adjoint(Configurable):
    """A method that computes the gradients of a solve.

    Attributes:
        compiles_alone: Whether XLA can compile the solve where the program around it is not compiled.
        pays_to_compile: Whether compilation by XLA pays there. It does not if XLA compiles again when the weights change.
        differentiates_steps: Whether the gradient is that of the steps, so that dense output and sums over steps have
            gradients.
        has_forward_mode: Whether it supports forward accumulators.
        solves_back: Whether the state is integrated backward in time.
        takes_steps_back: Whether the steps are reversed, which only reversible solvers allow.
        solver: The solver of the backward solve, if the user chose one.

    Example:

    >>> adjoint = keras_ode.adjoints.get("checkpointed")
    >>> isinstance(adjoint, keras_ode.adjoints.Adjoint), adjoint.differentiates_steps
    (True, True)
    """

    compiles_alone = True
    pays_to_compile = True
    differentiates_steps = False
    has_forward_mode = False
    solves_back = False
    takes_steps_back = False
    solver: Solver | None = None

    def with_compiled_parts(self, problem):
        """Returns the problem with those parts compiled for which it pays if the surrounding program is not compiled."""
        return problem

    def solve(self, problem):
        """Solves a `Problem`. The `ys` of the `Outcome` are differentiable with respect to times, state and parameters."""
        raise NotImplementedError


class Cotangents(NamedTuple):
    """What a backward pass found.

    Attributes:
        y: That of the state at the first time, from all later times: leaves.
        parameters: Those of the field's differentiable parameters.
        status: How the backward pass ended.
        num_evaluations: How often it evaluated the field.
        record: The `StepRecord` of its steps, where a recorder asks for them; else empty.
    """

    y: tuple
    parameters: tuple
    status: tf.Tensor
    num_evaluations: tf.Tensor
    record: tuple = ()


class FirstOrderAdjoint(Adjoint):
    """An adjoint with a backward pass of its own, which is not differentiated again."""

    def forward(self, problem):
        """The `Outcome`, and a nest of tensors to keep for the backward pass."""
        raise NotImplementedError

    def backward(self, problem, outcome, memory, cotangents):
        """The `Cotangents` from those of the states at all times, leaves `[T, ...]`.

        An adjoint that differentiates steps is given the cotangents of `outcome.dense` too, where there are any.
        """
        raise NotImplementedError

    def solve(self, problem):
        num_tensors = len(problem.tensors())

        def forward(*tensors):
            return self.forward(problem.with_tensors(tensors))

        def alone(*tensors):
            return (solve_forward(problem.with_tensors(tensors))[0],)

        # A solve that no tape records needs no memory. Should its function be differentiated afterwards, it runs once more.
        dear = problem.method.has_dense_stages
        remembers = problem.may_be_recorded or problem.recorder is not None
        first = ("alone", alone) if (dear or problem.programs is None) and not remembers else ("forward", forward)

        def for_gradients(outcome, *memory):
            return (outcome.for_gradients(), *memory)

        def wanted(outcome, *memory):
            outcome = outcome if problem.reports else outcome.for_gradients()
            return (outcome, *memory) if remembers else (outcome,)

        @custom_gradient
        def solve(*tensors):
            # The gradient function may use only what is made in here: then it works inside a differentiated loop.
            stopped = [tf.stop_gradient(tensor) for tensor in tensors]
            run = _runner(problem, stopped)
            found = run(*first, stopped, used=lambda found: wanted(*found))
            # A persistent tape asks for derivatives of all that the gradient uses: stopped, there are none.
            kept = tf.nest.map_structure(tf.stop_gradient, found)
            outcome = found[0]
            structure.append(outcome)
            report = problem.recorder.backward() if problem.recorder is not None else None
            compiled = tree.is_compiled()

            def gradient(*cotangents):
                seen = tuple(_like(x, y) for x, y in zip(cotangents, outcome.differentiable(), strict=False))
                # XLA compiles the gradient with the solve, but TensorFlow does not say so where it is traced.
                with internals.xla_context(compiled):
                    found = kept if remembers else run("forward", forward, stopped, used=lambda found: for_gradients(*found))
                    given = (*for_gradients(*found), seen)

                    def backward(*inputs):
                        inner, inputs = problem.with_tensors(inputs[:num_tensors]), inputs[num_tensors:]
                        return self._backward(inner, *tf.nest.pack_sequence_as(given, inputs), report)

                    y, parameters = run("backward", backward, [*stopped, *tf.nest.flatten(given)])
                    times = _of_times(problem, run, stopped, given[0], seen, y)
                    y = tree.add(y, tuple(g[0] for g in seen[: len(y)]))
                    return self._gradients(problem, (times, y, parameters), tensors)

            return tf.nest.flatten(outcome), gradient

        structure = []
        flat = solve(*(tf.identity(tensor) for tensor in problem.tensors()))
        outcome = tf.nest.pack_sequence_as(structure[-1], flat)
        rest = {name: tf.nest.map_structure(tf.stop_gradient, x) for name, x in outcome._asdict().items()}
        return Outcome(**{**rest, "ys": outcome.ys, "dense": outcome.dense, "slopes": (), "ended": ()})

    def _backward(self, problem, outcome, memory, cotangents, report):
        """The gradients by the state, from all times but the first, and by the differentiable parameters; what was found is
        reported."""
        num_leaves = len(outcome.ys)
        cotangents, of_dense = cotangents[:num_leaves], cotangents[num_leaves:]
        padded = without_padding(problem, cotangents)
        if not self.differentiates_steps:
            # The backward pass is linear in the cotangents, but absolute tolerances are not: those of a mean over a batch
            # can all be below them, and error control would see nothing.
            size, of_cotangents = size_of(problem, outcome.ys, padded)
            padded = tuple(leaf / tree.expand(tf.cast(size[None], leaf.dtype), leaf) for leaf in padded)
            problem = problem._replace(field=ScaledField(problem.field, size, integral_weights(problem, of_cotangents)))
        found = self.backward(problem, outcome, memory, padded, *((of_dense,) if of_dense else ()))
        if not self.differentiates_steps:
            found = found._replace(y=tree.scale(size, found.y))
        if problem.times_vary:  # the field is evaluated at each of them, see `_of_times`
            count = 1 if outcome.slopes else tf.shape(problem.times)[0]
            found = found._replace(num_evaluations=found.num_evaluations + count)
        if report is not None:
            # Graphs of gradients may leave out what nothing depends on.
            with tf.control_dependencies(report(outcome, found)):
                y, parameters = tf.nest.map_structure(tf.identity, (found.y, found.parameters))
                found = found._replace(y=y, parameters=parameters)
        ok = found.status == int(Status.SUCCESS)
        return nan_unless(ok, found.y), nan_unless(tf.reduce_all(ok), found.parameters)

    def _gradients(self, problem, found, tensors):
        """One gradient, or `None`, for each of the problem's tensors."""
        times, *rest = found
        times = first_order_only(times, tensors) if times else (None,)  # apart: an identity of all would need all
        y, parameters = tf.nest.pack_sequence_as(rest, first_order_only(tf.nest.flatten(rest), tensors))
        parameters = iter(parameters)
        gradients = [*times, *y, *(next(parameters) if d else None for d in problem.field.differentiable)]
        return gradients + [None] * (len(tensors) - len(gradients))


class ContinuousAdjoint(FirstOrderAdjoint):
    """An adjoint that solves the adjoint equation backward, by its own solver and tolerances where it has some.

    Args:
        checkpoints: The number of states of the forward solve that are kept.
        rtol, atol: Tolerances of the backward solve, or `None` for those of the forward solve.
        solver: The solver of the backward solve, or `None` for that which the forward solver names.

    Attributes:
        least_checkpoints: How many it needs.
    """

    least_checkpoints = 1

    def __init__(
        self,
        checkpoints: int = 32,
        rtol: float | None = None,
        atol: float | None = None,
        solver: str | Solver | None = None,
    ) -> None:
        self.checkpoints = checked_checkpoints(checkpoints, self.least_checkpoints)
        for name, value in (("rtol", rtol), ("atol", atol)):
            if value is not None and (not isinstance(value, numbers.Real) or not 0 < value < np.inf):
                raise ValueError(f"{name} must be a positive number, or None. Received: {name}={value!r}")
        self.rtol, self.atol = rtol, atol
        self.solver = None if solver is None else solvers.get(solver)

    def backward_method(self, problem, outcome):
        """The `Method` of the backward solve."""
        method, part = problem.method, _FIRST_STEP if problem.method.controller.adaptive else 1
        return method._replace(
            tolerance=method.tolerance.changed(self.rtol, self.atol),
            solver=self.solver or method.solver.backward,
            step_size=part * outcome.step_size,
        )


def _runner(problem, tensors):
    """What runs the parts of a solve, `run(name, function, inputs, used)`: in the graph around it, or as programs."""
    programs = problem.programs
    if programs is None:
        return lambda name, function, inputs, used=lambda found: found: used(function(*inputs))
    if not problem.may_compile:
        return programs.run
    unknown = [tf.size(x, tf.int64) for x in tensors if not x.shape.is_fully_defined()]
    size = tf.add_n(unknown) if unknown else tf.zeros([], tf.int64)
    compiled = programs.is_worth_compiling(size)
    counts = dict.fromkeys(("forward", "alone"), lambda found: programs.count(size, tf.reduce_max(found[0].num_steps)))
    return lambda name, function, inputs, **used: programs.run(name, function, inputs, compiled, counts.get(name), **used)


def _of_times(problem, run, tensors, outcome, cotangents, first_cotangent):
    """The gradient by the times, if they vary: a program of its own, which graphs leave out where nobody asks for it."""
    if not problem.times_vary:
        return ()
    given = outcome.ys, outcome.slopes, cotangents[: len(outcome.ys)], first_cotangent

    def of_times(*inputs):
        inner, inputs = problem.with_tensors(inputs[: len(tensors)]), inputs[len(tensors) :]
        return time_cotangents(inner, *tf.nest.pack_sequence_as(given, inputs))

    return (run("times", of_times, [*tensors, *tf.nest.flatten(given)]),)


def _like(cotangent, leaf):
    cotangent = tf.convert_to_tensor(cotangent)
    cotangent.set_shape(leaf.shape)
    return cotangent
