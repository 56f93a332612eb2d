"""Consistent initial states of equations with algebraic parts."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from keras_ode import arguments, dynamics, mass_matrices, tree
from keras_ode.adjoints.cotangents import nan_unless
from keras_ode.adjoints.fields import ForwardField
from keras_ode.adjoints.problem import Problem
from keras_ode.signature import refuse_symbolic
from keras_ode.solvers.mass import correction
from keras_ode.typing import Dynamics, Number, TensorsLike, do_not_convert

_MOST_ITERATIONS = 50
# Corrections of so many rounding errors of the state are as small as they get.
_ROUNDING_ERRORS = 100


@do_not_convert
def consistent_state(
    f: Dynamics,
    y0: TensorsLike,
    t0: Number,
    mass_matrix: ArrayLike,
    *,
    args: Sequence[TensorsLike] = (),
    per_sample: bool = False,
) -> tf.Tensor:
    """Returns a state that fulfills the algebraic equations of `M y' = f(t, y)` at `t0`, found by Newton's method from `y0`.

    `M y` does not change: if M is diagonal, only those elements change whose row is zero. The state is differentiable with
    respect to `y0`, `t0`, `args`, and everything that the dynamics reads.

    Args:
        f: The dynamics, as in `keras_ode.solve`.
        y0: A state, `[..., D]`, close to a consistent one.
        t0: The time, a number or a scalar tensor.
        mass_matrix: M, a constant matrix `[D, D]`.
        args: A tuple of further arguments of the dynamics.
        per_sample: Whether the rows of `y0` are independent, as in `keras_ode.solve`.

    Returns:
        A tensor like `y0`. In a graph, it is NaN if Newton's method does not converge.

    Raises:
        ValueError: In eager code, if Newton's method does not converge.

    Example:

    >>> f = lambda t, y: tf.stack([-y[0], y[0] ** 2 + y[1] - 1])
    >>> y0 = keras_ode.consistent_state(f, tf.constant([0.5, 0.0]), 0.0, [[1.0, 0.0], [0.0, 0.0]])
    >>> print(y0.numpy())
    [0.5  0.75]

    Reference: Brown, Hindmarsh, Petzold (1998), Consistent initial condition calculation for differential-algebraic systems,
    SIAM J. Sci. Comput. 19(5), 1495-1512.
    """
    refuse_symbolic((y0, t0, args), "Call it in the call of a layer of your own.")
    y0 = arguments.checked_state(y0, per_sample)
    mass = mass_matrices.checked_matrix(mass_matrix)
    mass_matrices.check_size(mass, y0)
    (start,) = leaves = tuple(tf.nest.flatten(y0))
    t = tf.cast(tree.as_tensor(t0), start.dtype)
    t = tf.fill(tf.shape(start)[:1], t) if per_sample else t
    method = arguments.checked_method("rodas5p", 1e-3, 1e-6, None, None, 1, start.dtype)
    method = method._replace(mass=mass, per_sample=bool(per_sample), rows=bool(per_sample))
    field = dynamics.close(f, t, y0, tuple(args), None, None, None)
    field = ForwardField(Problem(field, t[None], leaves, field.parameters, method, False))
    y, ok = _iterate(field, tf.stop_gradient(t), tuple(map(tf.stop_gradient, leaves)))
    if tf.executing_eagerly() and not tf.reduce_all(ok):
        residual = mass.projected(field(t, y).derivative)[0].numpy()
        raise ValueError(
            f"Newton's method found no solution of the algebraic equations: after {_MOST_ITERATIONS} corrections their residual "
            f"is {np.abs(residual).max():.3g}. Pass a y0 that is closer to a solution, and check that these equations determine "
            f"the algebraic unknowns (index 1). Received: y0={start.numpy()!r}, t0={t0!r}"
        )
    y = nan_unless(ok, y)
    # One more, which is differentiated: by the implicit function theorem.
    y = tree.add(y, correction(field, t, y, leaves))
    return tf.nest.pack_sequence_as(y0, y)


def _iterate(field, t, start):
    """The state after the corrections, and whether they became as small as rounding errors: a boolean, or `[B]`."""
    epsilon = _ROUNDING_ERRORS * np.finfo(start[0].dtype.as_numpy_dtype).eps

    def correct(k, ok, y):
        change = correction(field, t, y, start)
        y_new = tree.where(ok, y, tree.add(y, change))
        return k + 1, ok | (tree.peak(change, t) <= epsilon * tree.peak(y_new, t)), y_new

    loop = (tf.constant(0), tf.zeros_like(t, tf.bool), start)
    _, ok, y = tree.while_loop(lambda k, ok, _: (k < _MOST_ITERATIONS) & ~tf.reduce_all(ok), correct, loop)
    return tuple(map(tf.stop_gradient, y)), ok
