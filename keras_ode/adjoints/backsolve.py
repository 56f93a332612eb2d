"""The adjoint of Chen et al.: the state is integrated backward together with its cotangent."""

import numpy as np
import tensorflow as tf

from keras_ode import tree
from keras_ode.adjoints.base import ContinuousAdjoint, Cotangents
from keras_ode.adjoints.checkpoints import Checkpoints
from keras_ode.adjoints.drift import distance
from keras_ode.adjoints.equation import AdjointEquation
from keras_ode.adjoints.forward import solve_forward
from keras_ode.adjoints.impulses import Impulses
from keras_ode.adjoints.quadrature import ParameterQuadrature
from keras_ode.errors import Status
from keras_ode.integrate import Clock, integrate
from keras_ode.solvers.base import Stage
from keras_ode.step_records import step_observers


class Backsolve(ContinuousAdjoint):
    """The continuous adjoint, which integrates the state backward: memory does not grow with the number of steps.

    The backward solve integrates the state `y` and its cotangent `a`, `y' = f(t, y)` and `a' = -a^T df/dy`, from the last
    time to the first. The parameters are not a part of this state: their cotangents, the integrals of `a^T df/dp`, are
    computed by quadrature over the same steps, which are short enough for them too.

    If a solution forgets where it started, it cannot be integrated backward: `y` drifts away from the forward solution. So
    `y` is reset to the forward solution wherever a step ends at a stored state: a saved one, or one of the `checkpoints`. If
    `y` is nevertheless further away than the square root of the tolerance, relative to the largest size that each element has
    had, and the cotangent is not negligible there, the gradient would be wrong by about as much, so it is NaN.

    Args:
        checkpoints: The number of states to store in addition to the saved ones; `0` is the method of Chen et al. as published.
            Defaults to `32`.
        rtol, atol: The tolerances of the backward solve. Cotangents are scaled to the size of the states, separately for each
            row with `per_sample=True`. Default to those of the forward solve. Constant steps do not depend on them, but they still
            say how far `y` may drift.
        solver: The solver of the backward solve. Defaults to that of the forward solve.

    Example:

    >>> adjoint = keras_ode.adjoints.Backsolve(checkpoints=0, rtol=1e-5)
    >>> x = tf.Variable([1.0])
    >>> with tf.GradientTape() as tape:
    ...     end = keras_ode.odeint(lambda t, y: -y, x, [0.0, 1.0], adjoint=adjoint)[-1]
    >>> print(f"{float(tape.gradient(end, x)[0]):.3f}")
    0.368

    References:
        Chen, Rubanova, Bettencourt, Duvenaud (2018), Neural Ordinary Differential Equations, NeurIPS.
        Kidger, Chen, Lyons (2021), "Hey, that's not an ODE": Faster ODE adjoints via seminorms, ICML.
    """

    solves_back = True
    least_checkpoints = 0

    def forward(self, problem):
        return solve_forward(problem, self._checkpoints(problem))

    def _checkpoints(self, problem):
        return Checkpoints(problem, self.checkpoints) if self.checkpoints else None

    def backward(self, problem, outcome, memory, cotangents):
        times, ys = problem.times, outcome.ys
        equation = _Equation(problem)
        method = self.backward_method(problem, outcome)
        stops, stored, impulses = _stored(problem.since_start(), ys, cotangents, self._checkpoints(problem), memory)
        solver = Impulses(method.solver, equation, stops, stored, impulses)
        drift = _Drift(equation, method, stops, stored)
        quadrature = None
        if method.per_sample:  # a step that only some samples accept adds to their parameters' cotangents alone
            quadrature = ParameterQuadrature(problem.field, problem.parameters, equation.locator(method.solver))
        clock = Clock(times[-1], times[0], -problem.since_start()[-1])
        recording = step_observers(problem.recorder, times[0], clock=clock)
        result = integrate(
            equation,
            clock.start,
            clock.end,
            tuple(leaf[-1] for leaf in (*ys, *cotangents)),
            method._replace(solver=solver),
            span=clock.span,
            integral=tree.zeros_like(problem.field.select(problem.parameters)),
            integral_weights=problem.field.integral_weights,
            quadrature=quadrature,
            stops=stops,
            worth=_worth_landing(stops, tf.shape(impulses[0])[0]),
            observers=(drift, *recording),
            dense=method.per_sample,
        )
        return Cotangents(
            y=equation.cotangent(result.y),
            parameters=result.integral,
            status=tf.where(drift.is_large(result.observed[0]), int(Status.NOT_CONVERGED), result.status),
            num_evaluations=result.num_evaluations,
            record=recording[0].record(result.observed[-1], result.num_steps) if recording else (),
        )


def _stored(times, ys, cotangents, checkpoints, trajectory):
    """The times, since the backward start, at which states are stored, the states, and the cotangents of the first.

    First come the saved times within the interval, then its forward start, then those of the checkpoints.
    """
    stops = tf.abs(tf.concat([times[1:-1], times[:1]], axis=0) - times[-1])
    ys = tuple(tf.concat([leaf[1:-1], leaf[:1]], axis=0) for leaf in ys)
    cotangents = tuple(leaf[1:-1] for leaf in cotangents)
    if checkpoints is None:
        return stops, ys, cotangents
    kept = checkpoints.stops(trajectory)
    stops = tf.concat([stops, tf.where(kept < 0, kept, tf.abs(times[0] - times[-1]) - kept)], axis=0)
    slots = tuple(leaf[:-1] for leaf in trajectory.slots[: len(ys)])
    return stops, tuple(tf.concat(pair, axis=0) for pair in zip(ys, slots, strict=True)), cotangents


def _worth_landing(stops, count):
    """The least part of a step that must be left for it to end on a stop, of which the first `count` are saved times.

    A step that ends on a saved time is as accurate as without it, one that passes it is not.
    """
    worth = tf.where(tf.range(tf.shape(stops)[0]) < count, tf.constant(0.1, stops.dtype), tf.constant(0.5, stops.dtype))
    return tree.expand(worth, stops)


class _Drift:
    """Observes how far the state is from a stored one where a step ends on it, while the cotangent matters.

    Distances are measured as error control does, but on the largest size of each element so far: one that passes through
    zero, or starts there, is not compared with zero.
    """

    def __init__(self, equation, method, stops, ys):
        self.equation, self.tolerance = equation, method.tolerance
        self.stops, self.ys = stops, ys

    def start(self):
        zero = tf.zeros_like(self.stops[0])
        return zero, zero, tuple(tf.zeros_like(leaf[0]) for leaf in self.equation.choose(self.ys))

    def see(self, state, trial):
        largest, worst, peak = state
        z = trial.step.y
        choose = self.equation.choose
        size = tree.rms(choose(self.equation.cotangent(z)), worst)
        largest = tf.where(trial.accept, tf.maximum(largest, size), largest)
        here = self.stops == trial.interval.until
        y, stored = (choose(self.equation.state(x)) for x in (z, self.equation.reset(z, here, self.ys)))
        start = choose(self.equation.state(trial.step.start))
        seen = tuple(tf.maximum(p, tf.maximum(tf.abs(a), tf.abs(b))) for p, a, b in zip(peak, start, stored, strict=True))
        peak = tree.where(trial.accept, seen, peak)
        away = distance(y, stored, peak, self.tolerance, worst)
        weight = tf.where(size < largest, tf.math.divide_no_nan(size, largest), tf.cast(size > 0, size.dtype))
        drift = away * weight
        return largest, tf.where(trial.accept, tf.maximum(worst, drift), worst), peak

    def is_large(self, state):
        """Whether fewer than half of the digits that the tolerance asks for are left; the gradient's error follows it."""
        rtol, atol, _ = self.tolerance
        epsilon = tf.constant(np.finfo(rtol.dtype.as_numpy_dtype).eps, rtol.dtype)
        return ~(state[1] <= tf.minimum(tf.sqrt(tf.reduce_max([rtol, atol, epsilon])), 0.1))


class _Equation(AdjointEquation):
    """The augmented equation of state and cotangent; the integrand is that of the parameters' cotangents."""

    def __init__(self, problem):
        self._field, self._parameters, self._num_leaves = problem.field, problem.parameters, len(problem.y)
        self._integrates = not problem.method.per_sample
        self.choose = problem.controlled

    def __call__(self, t, z, with_integrand=True):
        y, a = z[: self._num_leaves], self.cotangent(z)
        derivative, a_derivative, integrand = self._field.vjp(t, y, self._parameters, tree.scale(-1, a))
        return Stage((*derivative, *a_derivative), tuple(integrand) if with_integrand and self._integrates else ())

    def cotangent(self, z):
        return z[self._num_leaves :]

    def controlled(self, z):
        return (*self.choose(z[: self._num_leaves]), *self.choose(self.cotangent(z)))

    def with_cotangent(self, z, a):
        return (*z[: self._num_leaves], *a)

    def locator(self, solver):
        """How the quadrature finds time, state and cotangent within a step."""

        def locate(interval, step, theta):
            theta = tf.fill(tf.shape(interval.size), tf.constant(theta, interval.size.dtype))
            z = solver.interpolate(step.stages, interval.size, step.start, theta)
            # Along backward time: `interval.size` is negative where the forward solve goes on in time.
            t = interval.start + theta * interval.size
            return t, z[: self._num_leaves], tree.add(self.cotangent(z), step.staircase(theta))

        return locate

    def reset(self, z, here, ys):
        """The stored state where the time is a saved one."""
        y, a = z[: self._num_leaves], self.cotangent(z)
        index = tf.argmax(here, axis=0, output_type=tf.int32)
        stored = tuple(tree.take(saved, index) for saved in ys)
        return (*tree.where(tf.reduce_any(here, axis=0), stored, y), *a)

    def state(self, z):
        return z[: self._num_leaves]
