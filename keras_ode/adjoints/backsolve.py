"""The adjoint of Chen et al.: the state is integrated backward together with its cotangent."""

import tensorflow as tf

from keras_ode import tree
from keras_ode.adjoints.base import Cotangents, FirstOrderAdjoint, solve_forward
from keras_ode.adjoints.impulses import Impulses
from keras_ode.integrate import integrate
from keras_ode.solvers.base import Stage


class Backsolve(FirstOrderAdjoint):
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

    def forward(self, problem):
        return solve_forward(problem)

    def backward(self, problem, outcome, memory, cotangents):
        times, ys, parameters = problem.times, outcome.ys, problem.parameters
        field = _AdjointField(problem.field, parameters)
        method = self._method(problem)
        z = tuple(leaf[-1] for leaf in (*ys, *cotangents))
        integral = tree.zeros_like(problem.field.select(parameters))
        if times.shape[0] == 2:
            result = integrate(field, times[-1], times[0], z, method, integral=integral)
            return Cotangents(result.y[len(ys) :], result.integral, result.status, result.num_evaluations)
        stops = tf.abs(tf.reverse(times[:-1], [0]) - times[-1])
        reverse = [tuple(tf.reverse(leaf[1:-1], [0]) for leaf in leaves) for leaves in (ys, cotangents)]
        impulses = Impulses(method.solver, stops[:-1], *reverse)
        method = method._replace(solver=impulses)
        result = integrate(field, times[-1], times[0], z, method, integral=integral, stops=stops)
        z = (*(leaf[0] for leaf in ys), *result.y[len(ys) :])
        a, extra = impulses.finish(field, times[0], z, result.carry)
        return Cotangents(a, tree.add(result.integral, extra), result.status, result.num_evaluations + 1)

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
