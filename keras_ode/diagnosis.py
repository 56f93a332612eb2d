"""Why a solve failed, found by trying its last step again."""

import numpy as np
import tensorflow as tf

from keras_ode import errors
from keras_ode.adjoints.base import stage_field
from keras_ode.errors import SolveError, Status
from keras_ode.integrate import Interval
from keras_ode.observers import spectral_radius

# Explicit methods are stable while the step size times the spectral radius is below about this.
_STABILITY_LIMIT = 2.0


def raise_on_failure(problem, outcome):
    """Raises `SolveError` for the first failed sample of a solve in eager code."""
    statuses = outcome.status.numpy()
    failed = np.flatnonzero((statuses != Status.SUCCESS) & (statuses != Status.EVENT))
    if not failed.size:
        return
    sample = int(failed[0]) if statuses.ndim else None

    def value(x):
        return (x.numpy() if sample is None else x.numpy()[sample]).item()

    status, time, step_size = Status(value(outcome.status)), value(outcome.time), value(outcome.step_size)
    message = errors.failure_message(
        status=status,
        time=time,
        step_size=step_size,
        num_steps=value(outcome.num_steps),
        max_steps=problem.method.max_steps,
        sample=sample,
        details=_details(problem, outcome, sample),
    )
    raise SolveError(message, status, time, step_size, sample)


def _details(problem, outcome, sample):
    """The component to blame, and whether stability limits the step, from one more try of the last step."""
    method = problem.method
    direction = tf.sign(problem.times[-1] - problem.times[0])
    size = direction * outcome.step_size
    end = outcome.time + size
    interval = Interval(outcome.time, end, size, tf.zeros_like(size), tf.abs(size))
    field = stage_field(problem)
    carry, _ = method.solver.start(field, outcome.time, outcome.y)
    step = method.solver.step(field, interval, outcome.y, carry).select(problem.controlled)
    parts = []
    if step.error is not None:
        scales = method.tolerance.scale(step.start, step.y)
        ratios = [(e / s).numpy() for e, s in zip(step.error, scales, strict=True)]
        parts.append(_component(ratios, sample))
    radius = spectral_radius(step, method.per_sample, outcome.time.dtype) * outcome.step_size
    radius = radius.numpy() if sample is None else radius.numpy()[sample]
    if np.isfinite(radius) and radius > _STABILITY_LIMIT:
        parts.append(
            f"The step size times the spectral radius of the Jacobian is about {radius:.2g}, at the limit of explicit "
            "methods: the equation is stiff there."
        )
    return " ".join(["", *parts])


def _component(ratios, sample):
    """Which element of which leaf has the largest error on the tolerance's scale."""
    ratios = [r if sample is None else r[sample] for r in ratios]
    broken = [~np.isfinite(r) for r in ratios]
    if any(b.any() for b in broken):
        ratios, what = broken, "The first element that is not finite"
    else:
        ratios, what = [np.abs(r) for r in ratios], "The largest error"
    leaf = int(np.argmax([np.max(r, initial=0) for r in ratios]))
    index = tuple(int(i) for i in np.unravel_index(np.argmax(ratios[leaf]), ratios[leaf].shape))
    index = index if sample is None else (sample, *index)
    of_leaf = f" of leaf {leaf}" if len(ratios) > 1 else ""
    return f"{what} is at index {list(index)}{of_leaf} of the state."
