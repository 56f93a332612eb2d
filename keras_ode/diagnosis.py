"""Why a solve failed, found by trying its last step again."""

import numpy as np
import tensorflow as tf

from keras_ode import errors
from keras_ode.adjoints.fields import ForwardField
from keras_ode.errors import EventTrouble, SolveError, Status
from keras_ode.integrate import Interval
from keras_ode.observers import STABILITY_LIMIT, spectral_radius
from keras_ode.solvers.mass import correction, inconsistency

# How often the last step is tried again, each time ten times as large, until it is not finite.
_MOST_TRIES = 16
# What may belong to one row alone, as labels begin.
_OF_ROWS = ("A tensor in args", "The state")


def raise_on_failure(problem, outcome, events=None, offset=0):
    """Raises `SolveError` for the first failed sample of a solve in eager code; `events` is its `EventOutcome`.

    The message counts samples from `offset`, where the problem is a part of another.
    """
    statuses = outcome.status.numpy()
    failed = np.flatnonzero((statuses != Status.SUCCESS) & (statuses != Status.EVENT))
    if not failed.size:
        return
    sample = int(failed[0]) if statuses.ndim else None
    status, time, step_size, num_steps = (
        _of_sample(x, sample).item() for x in (outcome.status, outcome.time, outcome.step_size, outcome.num_steps)
    )
    if status == Status.INCONSISTENT:
        raise ValueError(_inconsistent(problem, sample))
    trouble = EventTrouble.NONE if events is None else EventTrouble(int(_of_sample(events.trouble, sample)))
    step = None if trouble else _step_again(problem, outcome, sample, finite=status != Status.NON_FINITE)
    message = errors.failure_message(
        status=status,
        time=time,
        step_size=step_size,
        num_steps=num_steps,
        max_steps=problem.method.max_steps,
        sample=None if sample is None else sample + offset,
        cause=None if trouble else _cause(problem, outcome, step, sample),
        details="" if trouble else _component(problem.method, step, sample),
        trouble=trouble,
        **({"least": f"min_step={float(problem.method.min_step):g}"} if _is_smallest(problem.method, step_size) else {}),
    )
    raise SolveError(message, Status(status), time, step_size, None if sample is None else sample + offset)


def _inconsistent(problem, sample):
    """Why the algebraic equations of a problem cannot be solved along from its first state."""
    method, field, t = problem.method, ForwardField(problem), problem.times[0]
    change = _of_sample(correction(field, t, problem.y)[0], sample)
    residual = _of_sample(method.mass.projected(field(t, problem.y).derivative)[0], sample)
    who = "The mass matrix is singular, and y0" if sample is None else f"The mass matrix is singular, and sample {sample} of y0"
    if not np.isfinite(change).all():
        return (
            f"{who} with the equations P f(t, y) = 0, where P projects onto the left null space of the matrix, does not determine "
            "all unknowns: the equation is of index 2 or higher. Differentiate its algebraic equations by time until they can be "
            "solved for the algebraic unknowns, and use these. Received: mass_matrix="
            f"{method.mass.matrix.tolist()}"
        )
    scaled = inconsistency(field, t, problem.y, method.tolerance)
    return (
        f"{who} does not fulfill the algebraic equations at t[0]: their residual is {np.abs(residual).max():.3g}. The nearest "
        f"state that does is {_of_sample(scaled, sample):.3g} tolerances away, and one is allowed. Start from "
        "keras_ode.consistent_state(f, y0, t0, mass_matrix), which solves them. Received: y0="
        f"{_of_sample(problem.y[0], sample)!r}"
    )


def _of_sample(x, sample):
    return x.numpy() if sample is None else x.numpy()[sample]


def _step_again(problem, outcome, sample, finite):
    """The last step once more; where it is not to be `finite`, as large as it takes."""
    method, field = problem.method, ForwardField(problem)
    carry, _ = method.solver.start(field, outcome.time, outcome.y)
    size = problem.clock().direction * outcome.step_size
    for _ in range(1 if finite else _MOST_TRIES):
        interval = Interval(outcome.time, outcome.time + size, size, tf.zeros_like(size), tf.abs(size))
        step = method.step(field, interval, outcome.y, carry).select(problem.controlled)
        if not all(np.isfinite(_of_sample(leaf, sample)).all() for leaf in (*step.y, *step.stages[-1])):
            break
        size *= 10
    return step


def _cause(problem, outcome, step, sample):
    """The likely cause and what to change, where more can be said than the status does."""
    method, dtype = problem.method, outcome.time.dtype
    # What fails before its first step may have had no chance: later, NaN among the inputs did no harm until then.
    at_once = _of_sample(outcome.status, sample) == Status.NON_FINITE and _of_sample(outcome.num_accepted, sample) == 0
    if at_once and (broken := _broken_input(problem, sample)):
        return broken
    size = _of_sample(outcome.step_size, sample)
    radius = _of_sample(spectral_radius(step, outcome.time), sample)
    if not np.isfinite(radius):
        radius = _of_sample(outcome.stiffness, sample)
    stiff = size * radius
    status = _of_sample(outcome.status, sample)
    if not method.controller.adaptive:
        return _cause_in_given_steps(method, status, size, stiff)
    if status == Status.NON_FINITE:
        return _cause_in_norm(method, step, outcome.time)
    limited = _cause_in_limits(method, status, size, _of_sample(problem.clock().duration, sample))
    if limited:
        return limited
    y = problem.controlled(outcome.y)
    rounding = [np.finfo(leaf.dtype.as_numpy_dtype).eps * tf.abs(leaf) for leaf in y]
    if _of_sample(method.tolerance.scaled(rounding, y, y, outcome.time), sample) > 1:
        rtol, atol = float(method.tolerance.rtol), float(method.tolerance.atol)
        return (
            f"The tolerances rtol={rtol:g} and atol={atol:g} are finer than {dtype.name} can represent the state, to about "
            f"{np.finfo(dtype.as_numpy_dtype).eps:.1g} of its size: loosen them, or solve in float64."
        )
    if stiff > STABILITY_LIMIT and not method.solver.is_implicit:
        return (
            f"The step size times the spectral radius of the Jacobian is about {stiff:.2g}, the limit of explicit methods, so "
            "stability, and not the tolerances, keeps the steps small: the equation is stiff. Use an implicit "
            "solver, solver='rodas5p', or 'auto', which switches to it where that is needed; or slow down the fast "
            "components of the dynamics."
        )
    return None


def _broken_input(problem, sample):
    """The first of the weights and of what else goes into a solve that was NaN before it began, as a sentence, or `None`."""
    batch = None if sample is None else problem.y[0].shape[0]
    sources = [*zip(problem.field.labels(), problem.parameters, strict=True), *(("The state y0", leaf) for leaf in problem.y)]
    found = []
    for label, tensor in sources:
        if not tensor.dtype.is_floating:
            continue
        # Arguments and states of other rows are not to blame.
        has_rows = batch is not None and tensor.shape.rank and tensor.shape[0] == batch
        values = (tensor[sample] if has_rows and label.startswith(_OF_ROWS) else tensor).numpy()
        # What is infinite in a tensor can be meant, as in a mask.
        broken = np.isnan(values) if label.startswith("A ") else ~np.isfinite(values)
        if broken.any():
            kind = "NaN" if np.isnan(values).any() else "infinite"
            count = f"in {broken.sum()} of {broken.size} elements"
            found.append(f"{label} of shape {values.shape} was {kind} before the solve, {count}")
    if not found:
        return None
    others = f" The same holds for {len(found) - 1} more of the weights and inputs." if len(found) > 1 else ""
    return (
        f"{found[0]}.{others} Check the data and the checkpoint. If a step of the optimizer caused it, use a lower learning_rate, "
        "clipnorm, or keras.callbacks.TerminateOnNaN."
    )


def _cause_in_given_steps(method, status, size, stiff):
    """What is wrong with steps that the user chose."""
    if method.solver.is_implicit and status != Status.MAX_STEPS:
        return None
    if status == Status.MAX_STEPS:
        return "Steps of the size that you chose need more than that: raise max_steps, or use longer steps."
    if stiff <= STABILITY_LIMIT:
        return None
    step, remedy = f"constant step_size={size:.3g}", "Use a smaller step_size"
    if method.controller.has_times:
        step, remedy = f"step of {size:.3g} to the next of the times", "Pass more times"
    return (
        f"The {step} is too large for the dynamics: multiplied by the spectral radius of its Jacobian it is about "
        f"{stiff:.2g}, and an explicit method is unstable above about {STABILITY_LIMIT:g}. {remedy}, a solver that controls "
        "its steps, such as 'tsit5', or an implicit one, 'rodas5p'."
    )


def _cause_in_limits(method, status, size, duration):
    """Whether `min_step` or `max_step` is why the solve failed."""
    if status == Status.STEP_TOO_SMALL and _is_smallest(method, size):
        return "Steps of that size are not accurate enough there: use a smaller min_step, or loosen rtol and atol."
    least = 0 if method.max_step is None else duration / float(method.max_step)
    if status != Status.MAX_STEPS or least <= method.max_steps:
        return None
    return (
        f"With max_step={float(method.max_step):g} the whole solve takes {np.ceil(least):.0f} steps or more: raise max_steps, or "
        "use a larger max_step."
    )


def _cause_in_norm(method, step, like):
    """What is wrong with a norm of the user's that gives no size for a step that is finite."""
    if step.error is None or not all(np.isfinite(x).all() for x in (*step.y, *step.stages[-1], *step.error)):
        return None
    if np.isfinite(method.tolerance.scaled(step.error, step.start, step.y, like)).all():
        return None
    return "The norm of the step's error is negative or not a number: norm must return a number that is zero or more."


def _is_smallest(method, step_size):
    """Whether `min_step` is what keeps steps from being smaller."""
    return method.min_step is not None and step_size <= float(method.min_step)


def _component(method, step, sample):
    """The element with the largest error on the tolerance's scale, or that is not finite; empty where there is only one."""
    leaves = [_of_sample(leaf, sample) for leaf in step.y]
    if sample is None and sum(np.size(leaf) for leaf in leaves) == 1:
        return ""
    slopes = [_of_sample(leaf, sample) for leaf in step.stages[-1][: len(leaves)]]
    broken = [~np.isfinite(a) | ~np.isfinite(b) for a, b in zip(leaves, slopes, strict=True)]
    if any(b.any() for b in broken):
        ratios, what = broken, "The first element that is not finite"
    elif step.error is not None:
        scales = method.tolerance.scale(step.start, step.y)
        ratios = [np.abs(_of_sample(e / s, sample)) for e, s in zip(step.error, scales, strict=True)]
        what = "The largest error"
    else:
        return ""
    leaf = int(np.argmax([np.max(r, initial=0) for r in ratios]))
    index = tuple(int(i) for i in np.unravel_index(np.argmax(ratios[leaf]), ratios[leaf].shape))
    index = index if sample is None else (sample, *index)
    of_leaf = f" of leaf {leaf}" if len(ratios) > 1 else ""
    return f"{what} is at index {list(index)}{of_leaf} of the state."
