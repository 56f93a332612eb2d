"""Whether an adjoint's gradients can be trusted on a user's own dynamics."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_ode import adjoints
from keras_ode.complex_states import is_complex, leaves_of_nest
from keras_ode.errors import SolveError
from keras_ode.solve import solve
from keras_ode.typing import Dynamics, Tensors, TensorsLike, Times, do_not_convert

# A reference is this much tighter than what it judges, as far as the dtype resolves it.
_TIGHTER = 1e-4
# Tolerances under this many units of resolution are all rounding.
_RESOLVED = 8
_LADDER = 10.0


class GradientReport(NamedTuple):
    """The result of `check_gradients`. `print` shows it as a table.

    Attributes:
        errors: The relative error of each gradient, by name: `y0`, `t`, `args`, and the names of the variables, numbered where
            they are equal. NaN if the backward solve failed.
        reference_errors: The relative differences of the two references, by name. Errors below these mean nothing.
        tolerance: The loosest pair `(rtol, atol)`, not looser than the given one, with which every error is at most
            `target`, or `None` if there is no such pair.
        target: The relative error for which tolerances were sought.
        given: The pair `(rtol, atol)` with which `errors` were measured.
        adjoint: The adjoint.
    """

    errors: dict[str, float]
    reference_errors: dict[str, float]
    tolerance: tuple[float, float] | None
    target: float
    given: tuple[float, float]
    adjoint: adjoints.Adjoint

    def __str__(self):
        width = max(len(name) for name in ("gradient by", *self.errors))
        lines = [f"{'gradient by':{width}}  relative error  known to within"]
        for name, error in self.errors.items():
            lines.append(f"{name:{width}}  {error:14.1e}  {self.reference_errors[name]:15.1e}")
        rtol, atol = self.given
        lines.append(f"with adjoint={self.adjoint!r}, rtol={rtol:g}, atol={atol:g}")
        if self.tolerance is None:
            lines.append(f"No tolerance gives all gradients to within {self.target:g}: {self._remedy()}")
        else:
            rtol, atol = self.tolerance
            lines.append(f"For errors of at most {self.target:g}: rtol={rtol:g}, atol={atol:g}")
        return "\n".join(lines)

    def _remedy(self):
        if max(self.reference_errors.values()) > self.target:
            return "they are not known so well either. Shorten the time, or use float64."
        return "try another adjoint, such as 'interpolating', or float64."


@do_not_convert
def check_gradients(
    dynamics: Dynamics,
    y0: TensorsLike,
    t: Times,
    *,
    args: Sequence[TensorsLike] = (),
    loss: Callable[[Tensors], tf.Tensor] | None = None,
    target: float = 1e-2,
    adjoint: str | adjoints.Adjoint | None = None,
    rtol: float = 1e-3,
    atol: float = 1e-6,
    max_steps: int = 4096,
    **options: Any,
) -> GradientReport:
    """Compares the gradients of an adjoint with accurate references on your dynamics, and finds the tolerances to use.

    There are two references: the continuous adjoint (`"interpolating"`), and the derivative of the steps
    (`"checkpointed"`), both with `"dopri8"` at tolerances that are ten thousand times tighter, as far as the dtype resolves
    them. The difference of the two tells how accurately the gradients are known. Call it in eager code, with a batch of
    your data.

    Args:
        dynamics, y0, t, args: As in `keras_ode.solve`.
        loss: A function of the states that returns a scalar. Defaults to their sum with random weights, from a fixed seed.
        target: The relative error to find tolerances for. Defaults to `1e-2`, small beside the noise of a mini-batch.
        adjoint, rtol, atol, max_steps: The options to check. Default to those of `keras_ode.solve`.
        **options: Further options of `keras_ode.solve`.

    Returns:
        A `GradientReport`. The error of a gradient is the norm of its difference from the reference, divided by
        the norm of the reference; if this is zero, it is the norm of the gradient.

    Raises:
        RuntimeError: If it is called in a graph.
        ValueError: If `target` does not lie between 0 and 1.
        SolveError: If the forward solve fails with the given tolerances, or with those of the references.

    Example:

    >>> rate = tf.Variable(2.0)
    >>> report = keras_ode.check_gradients(lambda t, y: -rate * y, tf.constant([1.0]), [0.0, 1.0])
    >>> sorted(report.errors)
    ['Variable:0', 't', 'y0']
    >>> report.errors["Variable:0"] < 1e-2
    True
    """
    if not tf.executing_eagerly():
        raise RuntimeError("check_gradients runs in eager code only. Call it outside tf.function.")
    if not 0 < target < 1:
        raise ValueError(f"target must lie between 0 and 1. Received: target={target!r}")
    check = _Check(dynamics, y0, t, args, loss, {"jit_compile": False, **options})
    adjoint = adjoints.get("interpolating" if adjoint is None else adjoint)
    tightest = check.tightest()
    reference_tolerance = tuple(max(_TIGHTER * tolerance, tightest) for tolerance in (rtol, atol))
    tight = {"solver": "dopri8", "controller": None, "step_size": None, "max_steps": 16 * max_steps}
    reference, other = (check.gradients(kind, *reference_tolerance, **tight) for kind in ("interpolating", "checkpointed"))

    def errors(rtol, atol):
        return _relative_errors(check.gradients(adjoint, rtol, atol, max_steps=max_steps), reference)

    given = errors(rtol, atol)
    tolerance, found = (rtol, atol), given
    while not _all_within(found, target):
        tolerance = tolerance[0] / _LADDER, tolerance[1] / _LADDER
        if tolerance[0] < tightest:
            tolerance = None
            break
        try:
            found = errors(*tolerance)
        except SolveError:  # too many steps: no tighter tolerance does with fewer
            tolerance = None
            break
    return GradientReport(given, _relative_errors(other, reference), tolerance, target, (rtol, atol), adjoint)


class _Check:
    """The gradients of one loss by everything that it depends on."""

    def __init__(self, dynamics, y0, t, args, loss, options):
        self.dynamics, self.options = dynamics, options
        self.y0 = tf.nest.map_structure(tf.convert_to_tensor, y0)
        self.dtype = max((leaf.dtype.real_dtype for leaf in tf.nest.flatten(self.y0)), key=lambda d: d.size)
        # Float64 is kept, because times are subtracted before they are rounded.
        times = tf.convert_to_tensor(np.asarray(t))
        self.t = times if times.dtype == tf.float64 else tf.cast(times, self.dtype)
        self.args = tf.nest.map_structure(self._as_tensor, tuple(args))
        self.loss = loss or _weighted_sum

    def tightest(self):
        """The tightest tolerance that the dtype resolves."""
        return float(_RESOLVED * np.finfo(self.dtype.as_numpy_dtype).eps)

    def gradients(self, adjoint, rtol, atol, **options):
        """The gradients as NumPy arrays, by name; those that the loss does not depend on are left out."""
        sources = {**_named("y0", self.y0), "t": self.t, **_named("args", self.args)}
        sources = {name: x for name, x in sources.items() if x.dtype.is_floating or is_complex(x)}
        with tf.GradientTape() as tape:
            tape.watch(list(sources.values()))
            options = {**self.options, **options}
            solution = solve(self.dynamics, self.y0, self.t, args=self.args, adjoint=adjoint, rtol=rtol, atol=atol, **options)
            value = self.loss(solution.ys)
        for variable in tape.watched_variables():
            sources[_new_name(variable.name, sources)] = variable
        found = tape.gradient(value, sources)
        return {name: tf.convert_to_tensor(g).numpy() for name, g in found.items() if g is not None}

    def _as_tensor(self, value):
        return tf.constant(value, self.dtype) if isinstance(value, float) else tf.convert_to_tensor(value)


def _named(name, nest):
    """The leaves of a nest by `name`, or `name[0]`, `name[1]` and so on where there are several."""
    leaves = tf.nest.flatten(nest)
    return {name: leaves[0]} if len(leaves) == 1 else {f"{name}[{i}]": leaf for i, leaf in enumerate(leaves)}


def _new_name(name, names):
    """The name, or where it is among the names already, as that of every `tf.Variable` without one is, a numbered one."""
    numbered = (f"{name} ({number})" for number in itertools.count(2))
    return name if name not in names else next(other for other in numbered if other not in names)


def _weighted_sum(ys):
    """A loss that every state counts in."""
    random = np.random.default_rng(0)
    return tf.add_n([tf.cast(tf.reduce_sum(y * random.normal(size=y.shape).astype(y.dtype.as_numpy_dtype)), tf.float64)
                     for y in leaves_of_nest(ys)])


def _relative_errors(found, reference):
    def error(value, expected):
        return float(np.linalg.norm(value - expected) / (np.linalg.norm(expected) or 1.0))

    return {name: error(found[name], expected) for name, expected in reference.items()}


def _all_within(errors, target):
    return all(error <= target for error in errors.values())
