"""The adjoint of Chen et al.: the state is integrated backward together with its cotangent."""

import tensorflow as tf

from keras_ode import tree
from keras_ode.adjoints.base import Adjoint, Outcome, first_order_only, forward, nan_unless, time_cotangents
from keras_ode.adjoints.impulses import Impulses
from keras_ode.errors import Status
from keras_ode.integrate import integrate
from keras_ode.solvers.base import Stage


class Backsolve(Adjoint):
    """The continuous adjoint, with the state re-integrated backward: memory does not grow with the number of steps.

    Backward, `y` and its cotangent `a` solve `y' = f(t, y)`, `a' = -a^T df/dy` from the last time to the first, with
    `y` reset to the stored state at every saved time that a step ends on. Parameters are no part of that state: their
    cotangents `a^T df/dp` are summed by the method's weights, outside error control.

    Args:
        rtol, atol: Tolerances of the backward solve. Default to those of the forward solve.
        solver: Solver of the backward solve. Defaults to that of the forward solve.

    References:
        Chen, Rubanova, Bettencourt, Duvenaud (2018), Neural Ordinary Differential Equations, NeurIPS.
        Kidger, Chen, Lyons (2021), "Hey, that's not an ODE": Faster ODE adjoints via seminorms, ICML.
    """

    def __init__(self, rtol=None, atol=None, solver=None):
        self.rtol, self.atol, self.solver = rtol, atol, solver

    def solve(self, problem):
        @tf.custom_gradient
        def solve(*tensors):
            inner = problem.with_tensors([tf.stop_gradient(tensor) for tensor in tensors])
            outcome = forward(inner)

            def gradient(*cotangents):
                return self._gradient(inner, outcome, cotangents[: len(outcome.ys)], len(tensors))

            return tf.nest.flatten(outcome), gradient

        flat = solve(*(tf.identity(tensor) for tensor in problem.tensors()))
        num_leaves = len(problem.y)
        return Outcome(tuple(flat[:num_leaves]), *flat[num_leaves:])

    def _gradient(self, problem, outcome, cotangents, num_tensors):
        """One cotangent, or `None`, for each of the problem's tensors."""
        times, y, parameters = self._backward(problem, outcome.ys, cotangents)
        found = first_order_only(*times, *y, *parameters)
        times, y, parameters = found[: len(times)], found[len(times) : len(times) + len(y)], iter(found[len(times) + len(y) :])
        times = times or (None,)
        parameters = [next(parameters) if d else None for d in problem.field.differentiable]
        gradients = [*times, *y, *parameters]
        return gradients + [None] * (num_tensors - len(gradients))

    def _backward(self, problem, ys, cotangents):
        """The cotangents of times, state and differentiable parameters, each a tuple."""
        times, parameters, num_leaves = problem.times, problem.parameters, len(ys)
        field = _AdjointField(problem.field, parameters)
        method = self._method(problem)
        z = tuple(leaf[-1] for leaf in (*ys, *cotangents))
        integral = tree.zeros_like(problem.field.select(parameters))
        impulses = stops = None
        if times.shape[0] != 2:
            stops = tf.abs(tf.reverse(times[:-1], [0]) - times[-1])
            impulses = Impulses(
                method.solver,
                stops,
                tuple(tf.reverse(leaf[:-1], [0]) for leaf in ys),
                tuple(tf.reverse(leaf[:-1], [0]) for leaf in cotangents),
            )
            method = method._replace(solver=impulses)
        result = integrate(field, times[-1], times[0], z, method, integral=integral, stops=stops)
        a, integral = result.y[num_leaves:], result.integral
        if impulses is not None:
            z = (*(leaf[0] for leaf in ys), *a)
            a, extra = impulses.finish(field, times[0], z, result.carry)
            integral = tree.add(integral, extra)
        ok = result.status == int(Status.SUCCESS)
        a, integral = nan_unless(ok, a), nan_unless(ok, integral)
        time_gradient = (time_cotangents(problem, ys, cotangents, a),) if problem.times_vary else ()
        return time_gradient, tree.add(a, tuple(g[0] for g in cotangents)), integral

    def _method(self, problem):
        method = problem.method
        tolerance = method.tolerance
        if self.rtol is not None:
            tolerance = tolerance._replace(rtol=tf.constant(self.rtol, tolerance.rtol.dtype))
        if self.atol is not None:
            tolerance = tolerance._replace(atol=tf.constant(self.atol, tolerance.atol.dtype))
        return method._replace(tolerance=tolerance, solver=self.solver or method.solver)


class _AdjointField:
    """The augmented field of state and cotangent; the integrand is that of the parameters' cotangents."""

    def __init__(self, field, parameters):
        self._field, self._parameters = field, parameters

    def __call__(self, t, z, with_integrand=True):
        num_leaves = len(z) // 2
        y, a = z[:num_leaves], z[num_leaves:]
        derivative, a_derivative, integrand = self._field.vjp(t, y, self._parameters, tree.scale(-1, a))
        return Stage((*derivative, *a_derivative), tuple(integrand) if with_integrand else ())
