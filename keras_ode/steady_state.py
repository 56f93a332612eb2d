"""Solves that end where the state is steady, and how that state depends on the parameters."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_ode import internals, tree
from keras_ode.adjoints.cotangents import nan_unless
from keras_ode.adjoints.fields import ForwardField
from keras_ode.adjoints.problem import Outcome
from keras_ode.controllers import Tolerance
from keras_ode.custom_gradient import custom_gradient, first_order_only
from keras_ode.errors import EventTrouble, Status
from keras_ode.event_time import EventOutcome
from keras_ode.integrate import integrate
from keras_ode.observers import Stiffness
from keras_ode.solvers.base import Field, Solver, Stage, WrappedSolver
from keras_ode.solvers.krylov import exact, gmres
from keras_ode.solvers.linear import inverse, product
from keras_ode.solvers.mass import derivative
from keras_ode.solvers.systems import is_large

# Steps times the spectral radius stay below this, so that every step comes closer to the equilibrium. At the limit of
# stability, where the error estimate would let them be, the state stays as far from it as the tolerance allows.
_LARGEST_STEP = 1.0
# Differences of states below so many rounding errors say nothing of the spectral radius.
_ROUNDING_ERRORS = 100
# A residual of so many rounding errors is as small as it gets.
_SMALLEST_RESIDUAL = 10
# Where a Jacobian is singular, elimination leaves the part of the cotangents that it does not reach. Rounding leaves less than
# the resolution to this power, unless the Jacobian is close to singular.
_OF_RESIDUAL = 0.25

_HIGHER = "solve over a finite time without it and use adjoint='direct'"


def solve_steady_state(problem, steady):
    """Solves a problem with an open end until its state is steady.

    The steady state `y*` solves `f(t, y*, p) = 0`, so that `dy*/dp = -(df/dy)^-1 df/dp` (the implicit function theorem). The
    steps to it need not be differentiated.

    Args:
        problem: The `Problem`, of two times.
        steady: A `SteadyState`.

    Returns:
        The `Outcome`, whose last state is the steady state, and an `EventOutcome`.
    """
    tolerance = problem.method.tolerance.changed(steady.rtol, steady.atol)._replace(norm=tree.rms)
    frozen = problem.with_tensors([tf.stop_gradient(tensor) for tensor in problem.tensors()])
    method = _damped(frozen.method)
    field = ForwardField(frozen)
    watch = _IsSteady(field, method.solver, tolerance, frozen.times[0])
    result = integrate(
        field,
        frozen.times[0],
        frozen.times[-1],
        frozen.y,
        method,
        observers=(Stiffness(field, frozen.times[0]), *frozen.watchers, watch),
        halts=lambda is_steady: is_steady,
    )
    found = result.observed[-1] & (result.status == int(Status.EVENT))
    endless = (result.status == int(Status.SUCCESS)) | tf.math.is_inf(result.step_size)
    status = tree.select(found, int(Status.EVENT), tree.select(endless, int(Status.MAX_STEPS), result.status))
    last = _implicit(problem, tolerance.rtol, found, result.time, nan_unless(found, result.y))
    outcome = Outcome(
        ys=tuple(tf.stack([first, end]) for first, end in zip(problem.y, last, strict=True)),
        dense=(),
        status=status,
        time=result.time,
        step_size=result.step_size,
        num_steps=result.num_steps,
        num_accepted=result.num_accepted,
        num_evaluations=result.num_evaluations,
        stiffness=result.observed[0][0],
        y=result.y,
        output=(),
    )
    trouble = tree.select(status == int(Status.MAX_STEPS), int(EventTrouble.NOT_STEADY), 0)
    time = tree.select(found, result.time, tf.constant(np.nan, result.time.dtype))
    return outcome, EventOutcome(time, last, tree.select(found, 0, -1), trouble)


class _IsSteady(NamedTuple):
    """Observes whether the derivative at the end of an accepted step is small on the scale of a tolerance."""

    field: Field
    solver: Solver
    tolerance: Tolerance
    like: tf.Tensor

    def start(self):
        return tf.zeros_like(self.like, dtype=tf.bool)

    def see(self, state, trial):
        y, slope = trial.step.y, self.solver.first_derivative(trial.step.carry)
        if self.field.mass is not None:  # some solvers carry `M y'`
            slope = derivative(self.field, trial.interval.end, y)[0].derivative
        size = self.tolerance.scaled(slope, y, y, self.like)
        return tree.select(trial.accept, size <= 1, state)


def _damped(method):
    """The method, with steps that are short enough to approach an equilibrium."""
    if not method.controller.adaptive or method.solver.is_implicit:
        return method
    return method._replace(solver=_Damped(method.solver, method.tolerance))


class _Damped(WrappedSolver):
    """Steps of another solver whose error is as large as the tolerance where they are long for the dynamics' Jacobian."""

    def __init__(self, solver, tolerance):
        super().__init__(solver)
        self.tolerance = tolerance

    def step(self, field, interval, y, carry, with_dense=False):
        step = super().step(field, interval, y, carry, with_dense)
        (near, near_slope), (end, end_slope) = step.neighbors
        like = interval.size
        unit = tree.peak(end, like) * _ROUNDING_ERRORS * np.finfo(like.dtype.as_numpy_dtype).eps
        change, distance = (tree.mean_square(tree.subtract(a, b), like) for a, b in ((end_slope, near_slope), (end, near)))
        radius = tf.sqrt(tf.math.divide_no_nan(change, distance + tf.square(unit)))
        excess = (tf.abs(interval.size) * radius / _LARGEST_STEP) ** self.error_order
        allowed = tree.scale(excess, self.tolerance.scale(step.start, step.y))
        return step._replace(error=tuple(tf.sqrt(a**2 + b**2) for a, b in zip(step.error, allowed, strict=True)))


def _implicit(problem, rtol, found, time, y):
    """The steady state with its derivatives by the parameters of the field: zero by all else, NaN where it was not found."""
    num_leaves = len(y)

    @custom_gradient
    def pass_on(rtol, found, time, *tensors):
        y, tensors = tensors[:num_leaves], tensors[num_leaves:]
        inner = problem.with_tensors([tf.stop_gradient(tensor) for tensor in tensors])
        kept = tf.nest.map_structure(tf.stop_gradient, (rtol, found, time, y))
        compiled = tree.is_compiled()

        def gradient(*cotangents):
            with internals.xla_context(compiled):
                of_y, of_parameters = _cotangents(inner, *kept, cotangents)
                of_times = (nan_unless(found, (tf.zeros_like(time),))[0] + tf.zeros_like(inner.times),)
                flat = first_order_only((*of_times, *of_y, *of_parameters), tensors, "SteadyState", _HIGHER)
                (of_times, *of_y), of_parameters = flat[: 1 + num_leaves], iter(flat[1 + num_leaves :])
                gradients = [of_times, *of_y, *(next(of_parameters) if d else None for d in inner.field.differentiable)]
                return [None] * (3 + num_leaves) + gradients + [None] * (len(tensors) - len(gradients))

        return tuple(tf.identity(leaf) for leaf in y), gradient

    return tuple(pass_on(rtol, found, tf.stop_gradient(time), *y, *(tf.identity(tensor) for tensor in problem.tensors())))


def _cotangents(problem, rtol, found, time, y, cotangents):
    """Those of the first state, which are zero, and of the parameters.

    They need the solution of the linear equation `(df/dy)^T a = -g`. As the steady state attracts the forward solve, that
    solution attracts the solve of `da/ds = (df/dy)^T a + g`.
    """
    field, dtype = problem.field, time.dtype
    y = tree.where(found, y, problem.y)

    def transposed(a):
        return field.vjp(time, y, problem.parameters, a)[1]

    if problem.method.solver.is_implicit:
        a = _solved(problem, time, y, cotangents)
        most = np.finfo(dtype.as_numpy_dtype).eps ** _OF_RESIDUAL * tree.rms(cotangents, time)
        ok = found & (tree.rms(tree.add(transposed(a), cotangents), time) <= most)
        a = nan_unless(ok, a)
        return nan_unless(ok, tree.zeros_like(y)), field.vjp(time, y, problem.parameters, a)[2]

    # In the unit of the cotangents, and of the time in which they change: then tolerances do not depend on units.
    size = _or_one(tree.rms(cotangents, time))
    g = tree.scale(1 / size, cotangents)
    unit = _or_one(tf.math.divide_no_nan(tree.rms(g, time), tree.rms(transposed(g), time)))

    # What attracts the solve as it goes back in time attracts the other there, too.
    direction = tree.select(problem.clock().direction < 0, -tf.ones_like(unit), 1)

    field_of_a = _Autonomous(lambda a: tree.scale(direction, tree.add(tree.scale(unit, transposed(a)), g)))
    method = problem.method
    step_size = None if method.controller.adaptive else method.step_size / unit
    # The limits of the user's are in another time.
    method = _damped(method._replace(step_size=step_size, max_step=None, min_step=None, solver=method.solver.backward))
    smallest = tf.constant(_SMALLEST_RESIDUAL * np.finfo(dtype.as_numpy_dtype).eps, dtype)
    residual = Tolerance(tf.zeros_like(rtol), tf.maximum(rtol, smallest))
    zero = tf.zeros_like(time)
    end = tree.select(found, tf.constant(np.inf, dtype), zero)
    watch = _IsSteady(field_of_a, method.solver, residual, time)
    result = integrate(field_of_a, zero, end, tree.zeros_like(g), method, observers=(watch,), halts=lambda is_steady: is_steady)
    ok = found & result.observed[-1]
    a = nan_unless(ok, tree.scale(size * unit, result.y))
    return nan_unless(ok, tree.zeros_like(y)), field.vjp(time, y, problem.parameters, a)[2]


class _Autonomous(Field):
    """The field of an equation `a' = rate(a)`."""

    def __init__(self, rate):
        self._rate = rate

    def __call__(self, t, a, with_integrand=True):
        return Stage(self._rate(a))


def _solved(problem, time, y, cotangents):
    """The solution of `(df/dy)^T a = -g`, by the Jacobian that an implicit solver needs anyway, or by GMRES."""
    rows = problem.method.rows
    if is_large(y, rows):

        def transposed(vectors):
            a = tree.unpacked(vectors, y, rows)
            return tree.packed(problem.field.vjp(time, y, problem.parameters, a)[1], rows)

        found = gmres(transposed, tree.packed(cotangents, rows), exact(cotangents[0].dtype))
        return tree.scale(-1, tree.unpacked(found, cotangents, rows))
    matrix = tf.linalg.matrix_transpose(problem.field.jacobian(time, y, problem.parameters, rows, automatic=True)[0])
    return tree.scale(-1, tree.unpacked(product(inverse(matrix), tree.packed(cotangents, rows)), cotangents, rows))


def _or_one(size):
    """A size to divide by: one where it is zero, or not finite."""
    return tree.select((size > 0) & tf.math.is_finite(size), size, tf.ones_like(size))
