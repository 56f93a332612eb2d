"""The adjoint contract: a solve whose outputs can be differentiated."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_ode import tree
from keras_ode.configurable import Configurable
from keras_ode.controllers import Tolerance
from keras_ode.dynamics import VectorField
from keras_ode.errors import Status
from keras_ode.integrate import Method, SaveAt, integrate
from keras_ode.solvers.base import Stage


class Problem(NamedTuple):
    """What is to be solved, and how: the inputs of a differentiable solve are `times`, `y` and `parameters`.

    Attributes:
        field: The vector field.
        times: `[T]`.
        y: The leaves of the state at `times[0]`.
        parameters: What `field` takes as parameters.
        method: How to integrate.
        times_vary: Whether the times may need a gradient.
    """

    field: VectorField
    times: tf.Tensor
    y: tuple
    parameters: tuple
    method: Method
    times_vary: bool

    def tensors(self):
        """All tensors of the problem, flat; `with_tensors` puts them back."""
        return tf.nest.flatten(self._structure())

    def with_tensors(self, tensors):
        times, y, parameters, tolerance, step_size = tf.nest.pack_sequence_as(self._structure(), tensors)
        method = self.method._replace(tolerance=Tolerance(*tolerance), step_size=step_size[0] if step_size else None)
        return self._replace(times=times, y=y, parameters=parameters, method=method)

    def _structure(self):
        method = self.method
        step_size = () if method.step_size is None else (method.step_size,)
        return self.times, self.y, self.parameters, tuple(method.tolerance), step_size


class Outcome(NamedTuple):
    """What a solve found: `ys` are the leaves at all times, `[T, ...]`; the rest are scalars or `[B]`."""

    ys: tuple
    status: tf.Tensor
    time: tf.Tensor
    step_size: tf.Tensor
    num_steps: tf.Tensor
    num_accepted: tf.Tensor
    num_evaluations: tf.Tensor


class Adjoint(Configurable):
    """How gradients go through a solve."""

    def solve(self, problem):
        """Solves a `Problem`; the `Outcome`'s `ys` are differentiable by its times, state and parameters."""
        raise NotImplementedError


def forward(problem, bound=None):
    """Solves the problem and saves the states at all its times."""
    field, times, y, parameters, method = problem[:5]

    def evaluate(t, y, with_integrand=True):
        return Stage(field(t, y, parameters))

    saved = times.shape[0] != 2
    observers = (SaveAt(tf.abs(times[1:-1] - times[0]), y, method.solver),) if saved else ()
    result = integrate(evaluate, times[0], times[-1], y, method, observers=observers, dense=saved, bound=bound)
    last = nan_unless(result.status == int(Status.SUCCESS), result.y)
    inner = result.observed[0][1] if saved else tuple(leaf[None][:0] for leaf in y)
    ys = tuple(tf.concat([a[None], b, c[None]], axis=0) for a, b, c in zip(y, inner, last, strict=True))
    return Outcome(
        ys,
        result.status,
        result.time,
        result.step_size,
        result.num_steps,
        result.num_accepted,
        result.num_evaluations,
    )


def nan_unless(condition, leaves):
    """NaN in place of what a failed solve would give."""
    return tree.where(condition, leaves, tuple(tf.fill(tf.shape(x), tf.constant(np.nan, x.dtype)) for x in leaves))


def time_cotangents(problem, ys, cotangents, first_cotangent):
    """The cotangents of the times: each saved state moves along the field, and so does the start.

    Args:
        ys, cotangents: Leaves `[T, ...]`.
        first_cotangent: The cotangent of the start from all later times, leaves.
    """
    field, times, _, parameters = problem[:4]

    def rate(t, y, cotangent):
        products = [tf.reduce_sum(a * b) for a, b in zip(cotangent, field(t, y, parameters), strict=True)]
        return tf.add_n([tf.cast(p, t.dtype) for p in products])

    first = -rate(times[0], tuple(y[0] for y in ys), first_cotangent)
    later = tf.map_fn(
        lambda i: rate(times[i], tuple(y[i] for y in ys), tuple(c[i] for c in cotangents)),
        tf.range(1, tf.shape(times)[0]),
        fn_output_signature=times.dtype,
    )
    return tf.concat([first[None], later], axis=0)


@tf.custom_gradient
def first_order_only(*tensors):
    """Refuses to be differentiated: the gradient that passes here would be wrong or missing in silence."""

    def refuse(*_):
        raise NotImplementedError(
            "This adjoint gives first derivatives only. For second derivatives (nested tapes, tape.jacobian of a "
            "gradient) use adjoint='direct'."
        )

    return tuple(tf.identity(tensor) for tensor in tensors), refuse
