"""The forward run of a problem, which all adjoints share."""

import tensorflow as tf

from keras_ode import tree
from keras_ode.adjoints.cotangents import nan_unless
from keras_ode.adjoints.fields import ForwardField
from keras_ode.adjoints.problem import Outcome
from keras_ode.errors import Status
from keras_ode.integrate import integrate
from keras_ode.observers import KeepDense, SaveAt, SaveSlopesAt, SaveTogether, Stiffness, status_of_stiff
from keras_ode.solvers.mass import derivative
from keras_ode.step_records import step_observers
from keras_ode.steps import KeepSteps

# How many derivatives of implicit steps, one of the other, are exact where the loop is differentiated.
_DERIVATIVES = 3


def solve_forward(problem, observer=None, dense=False, bound=None):
    """The `Outcome` of a problem, with the states at all its times, and what an observer kept of its steps.

    Args:
        problem: A `Problem`.
        observer: An observer, or `None`. Its `end(state, num_accepted)` is what is kept of it.
        dense: Whether the observer interpolates.
        bound: A number of iterations, for a loop that is differentiated.
    """
    times, y, method = problem.times, problem.y, problem.method
    saved = times.shape[0] != 2
    field = ForwardField(problem, derivatives=0 if bound is None else _DERIVATIVES)
    # Where a stiff field would multiply the errors of states.
    keeps_slopes = problem.times_vary and method.solver.is_implicit and bound is None
    observers = _observers(problem, field, saved, keeps_slopes, bound is not None)
    recording = step_observers(problem.recorder, times[0], clock=problem.clock(), differentiable=bound is not None)
    if recording:
        observers["record"] = recording[0]
    if observer is not None:
        observers["asked"] = observer
    result = integrate(
        field,
        times[0],
        times[-1],
        y,
        method,
        span=problem.since_start()[-1],
        observers=(*observers.values(), *problem.watchers),
        dense=dense or saved or problem.dense,
        bound=bound,
    )
    seen = dict(zip(observers, result.observed, strict=False))
    if keeps_slopes:  # the slope at the start is an evaluation, and with a mass matrix that at the end
        more = int(saved) + int(method.mass is not None)
        result = result._replace(num_evaluations=result.num_evaluations + more)
    stiffness, latest = seen["stiffness"]
    if problem.recorder is not None:
        problem.recorder.forward(result, recording[0].record(seen["record"], result.num_steps) if recording else ())
    last = nan_unless(result.status == int(Status.SUCCESS), result.y)
    if bound is not None:  # the state moves with the end even where there are no steps
        span = problem.since_start()[-1]
        slope = tuple(tree.select(tf.math.is_finite(x), x, 0) for x in _slope_at_end(problem, field, result))
        last = tree.where(span == 0, tree.add_scaled(last, span, slope), last)
    none = tuple(leaf[None][:0] for leaf in y)
    inner, inner_slopes = (observers[name].saved(seen[name]) if name in observers else none for name in ("saved", "slopes"))
    ys = tuple(tf.concat([a[None], b, c[None]], axis=0) for a, b, c in zip(y, inner, last, strict=True))
    *output, kept = tuple(seen.get("dense", ((),)))[:5]
    outcome = Outcome(
        ys=ys,
        dense=kept,
        status=status_of_stiff(result.status, latest, method.solver, method.controller),
        time=result.time,
        step_size=result.step_size,
        num_steps=result.num_steps,
        num_accepted=result.num_accepted,
        num_evaluations=result.num_evaluations,
        stiffness=stiffness,
        y=result.y,
        output=tuple(output),
        slopes=_appended(inner_slopes, _slope_at_end(problem, field, result)) if keeps_slopes else (),
        ended=result.status,
    )
    return outcome, () if observer is None else observer.end(seen["asked"], result.num_accepted)


def _observers(problem, field, saved, keeps_slopes, differentiable):
    """Those of what the outcome holds of the steps, by name."""
    times, y, method = problem.times, problem.y, problem.method
    observers = {"stiffness": Stiffness(field, times[0])}
    if saved:
        observers["saved"] = _saving(saved_times(problem), y, method.solver, differentiable)
    if saved and keeps_slopes:
        observers["slopes"] = SaveSlopesAt(saved_times(problem), derivative(field, times[0], y)[0].derivative, method.solver)
    if problem.dense:
        observers["dense"] = KeepDense(problem.clock(), y, method.solver, method.max_steps)
    elif problem.keeps_steps:
        observers["dense"] = KeepSteps(problem.clock(), y, method.solver, method.max_steps, differentiable)
    return observers


def _slope_at_end(problem, field, result):
    """The derivative of the state by the time where the solve ended, leaves."""
    if problem.method.mass is not None:
        return derivative(field, problem.times[-1], result.y)[0].derivative
    return problem.method.solver.first_derivative(result.carry)


def _appended(leaves, last):
    return tuple(tf.concat([a, b[None]], axis=0) for a, b in zip(leaves, last, strict=True))


def _saving(times, y, solver, differentiable):
    """The observer of the states at saved times."""
    # Under XLA an operation costs little, and copies of stages more.
    if differentiable or tree.is_compiled():
        return SaveAt(times, y, solver, differentiable)
    return SaveTogether(times, y, solver)


def saved_times(problem):
    """The times between the first and the last, as times since the first."""
    return tf.abs(problem.since_start()[1:-1])
