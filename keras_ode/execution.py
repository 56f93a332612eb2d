"""Runs a problem: in eager code as a function that is kept for the next one of its kind, in a graph as a part of that."""

import contextlib
from typing import NamedTuple

import tensorflow as tf

from keras_ode import arguments, internals, tree
from keras_ode.adjoints.fields import from_consistent
from keras_ode.custom_gradient import refuse_forward_mode
from keras_ode.events import ClosedEvent, SteadyState
from keras_ode.exports import check_format, is_exported
from keras_ode.graphs import traced
from keras_ode.micro_batches import InMicroBatches
from keras_ode.on_step import OnStep
from keras_ode.programs import programs_of
from keras_ode.progress import progress_bar
from keras_ode.recent import Recent
from keras_ode.segments import is_looped, solve_segments
from keras_ode.steady_state import solve_steady_state
from keras_ode.xla import is_compile_error

_compiled = Recent(256)  # functions of solves in eager code, by what they compute


class Segments(NamedTuple):
    """The event and the jumps of a solve; `tensors` are what they read."""

    event: ClosedEvent | SteadyState | None
    tensors: tuple

    def key(self):
        return None if self.event is None else self.event.key()


def run_watched(adjoint, problem, segments, jit_compile, y0, on_step, progress):
    """Runs the solve, with who looks on: a function of the user, a progress bar."""
    times, jit_compile = problem.times, arguments.checked_jit_compile(jit_compile)
    with progress_bar(times, jit_compile) if progress else contextlib.nullcontext() as bar:
        functions = [f for f in (on_step, bar and bar.on_step) if f is not None]
        problem = problem._replace(watchers=tuple(OnStep(f, times[0], y0) for f in functions))
        outcome, events = _run(adjoint, problem, segments, jit_compile)
        if bar:
            bar.show(outcome.time.numpy(), outcome.step_size.numpy())
    return outcome, events


def _run(adjoint, problem, segments, jit_compile):
    """Runs the solve: in eager code as a compiled function, in a graph as a part of it."""
    for watcher in problem.watchers:
        watcher.check_compiles(jit_compile is True)
    is_compiled, field = jit_compile is True, problem.field
    if is_compiled:
        _check_compiles(adjoint, problem, segments)
    in_parts, serves = not (is_compiled or segments is not None or problem.watchers), is_exported()
    if serves:
        check_format(field, problem.method.solver, segments is not None and isinstance(segments.event, ClosedEvent))
    may_compile = in_parts and not serves and jit_compile == "auto" and not (field.is_convolutional or field.why_not_compiled)
    if may_compile:
        problem = adjoint.with_compiled_parts(problem)
    tensors = (problem.tensors(), () if segments is None else segments.tensors)
    may_be_recorded = not (may_compile or serves or problem.method.has_dense_stages) or internals.may_be_recorded()
    key = _key(adjoint, problem, segments, (in_parts, is_compiled, may_compile), tensors)
    problem = problem._replace(may_be_recorded=may_be_recorded)
    if in_parts and not serves and adjoint.pays_to_compile and not tree.is_compiled():
        programs = programs_of(key if problem.recorder is None else None)
        problem = problem._replace(programs=programs, may_compile=may_compile)
    if not adjoint.has_forward_mode:
        refuse_forward_mode(tf.nest.flatten(tensors))
    if not tf.executing_eagerly():
        if not is_compiled:
            return _solve(adjoint, problem, segments, tensors)
        return _function(adjoint, problem, segments, tensors, True)(tensors)
    key = (key, may_be_recorded, problem.reports)
    function = _compiled.get(key, lambda: _function(adjoint, problem, segments, tensors, is_compiled))
    try:
        return function(tensors)
    except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError, tf.errors.InternalError) as error:
        if not (is_compile_error(error) and (is_compiled or may_compile)):
            raise
        if is_compiled:
            _refuse_to_compile(f"this: {str(error).strip().splitlines()[0]}", error)
        function = _function(adjoint, problem._replace(may_compile=False), segments, tensors, False)
        _compiled.replace(key, function)  # from now on
        return function(tensors)


def _key(adjoint, problem, segments, how, tensors):
    """A hashable value, equal for two solves of which one compiled function does both."""
    return (
        problem.field.fingerprint,
        () if segments is None else (segments.key(),),  # without an event too, segments are no plain solve
        adjoint,
        problem.method.key(),
        (problem.times_vary, problem.dense, problem.keeps_steps, problem.num_penalties, problem.recorder),
        tuple(watcher.fingerprint for watcher in problem.watchers),
        (*how, tf.config.experimental.tensor_float_32_execution_enabled()),  # XLA compiles for this setting
        tuple((tensor.dtype, tuple(tensor.shape)) for tensor in tf.nest.flatten(tensors)),
    )


def _check_compiles(adjoint, problem, segments):
    """Refuses what XLA cannot compile."""
    looped = segments is not None and is_looped(segments.event)
    if looped or not adjoint.compiles_alone:
        what = "events that are not terminal" if looped else f"adjoint={adjoint!r}"
        raise ValueError(
            f"XLA cannot compile a solve with {what} alone, only together with its gradient: put both in a "
            "tf.function(jit_compile=True) and leave jit_compile='auto' here. Received: jit_compile=True"
        )
    _refuse_to_compile(problem.field.why_not_compiled)


def _refuse_to_compile(reason, cause=None):
    if reason:
        raise ValueError(
            f"XLA cannot compile this solve because of {reason}. Use jit_compile='auto' or False, or write the dynamics with "
            "operations that XLA has. Received: jit_compile=True"
        ) from cause


def _solve(adjoint, problem, segments, tensors, alone=False):
    """The `Outcome`, and the `EventOutcome` or `None`; `alone`: whether XLA compiles this without its gradient."""
    problem = problem.with_tensors(tensors[0])
    if not isinstance(adjoint, InMicroBatches):  # whose parts begin each for itself
        problem = from_consistent(problem)
    if segments is None:
        return adjoint.solve(problem), None
    if isinstance(segments.event, SteadyState):
        return solve_steady_state(problem, segments.event)
    event_parameters, jumps = tensors[1]
    return solve_segments(adjoint, problem, segments.event, event_parameters, jumps[0] if jumps else None, alone)


def _function(adjoint, problem, segments, tensors, jit_compile):
    # Only the shapes stay with the function, not the tensors of its first call.
    problem = problem.with_tensors([tf.TensorSpec(x.shape, x.dtype) for x in tensors[0]])
    return traced(lambda tensors: _solve(adjoint, problem, segments, tensors, jit_compile), jit_compile)
