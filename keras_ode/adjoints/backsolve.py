"""The adjoint of Chen et al.: the state is integrated backward together with its cotangent."""

import tensorflow as tf

from keras_ode import solvers, tree
from keras_ode.adjoints.base import Cotangents, FirstOrderAdjoint, backward_method, solve_forward
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
        self.rtol, self.atol = rtol, atol
        self.solver = None if solver is None else solvers.get(solver)

    def forward(self, problem):
        return solve_forward(problem)

    def backward(self, problem, outcome, memory, cotangents):
        times, ys = problem.times, outcome.ys
        equation = _Equation(problem)
        method = backward_method(self, problem)
        z = tuple(leaf[-1] for leaf in (*ys, *cotangents))
        if times.shape[0] == 2:
            result = integrate(equation, times[-1], times[0], z, method, integral=equation.no_integral())
            return Cotangents(equation.cotangent(result.y), result.integral, result.status, result.num_evaluations)
        stops = tf.abs(tf.reverse(times[:-1], [0]) - times[-1])
        reverse = [tuple(tf.reverse(leaf[1:-1], [0]) for leaf in leaves) for leaves in (ys, cotangents)]
        impulses = Impulses(method.solver, equation, stops[:-1], *reverse)
        method = method._replace(solver=impulses)
        result = integrate(equation, times[-1], times[0], z, method, integral=equation.no_integral(), stops=stops)
        z = (*(leaf[0] for leaf in ys), *equation.cotangent(result.y))
        a, extra = impulses.finish(times[0], z, result.carry)
        return Cotangents(a, tree.add(result.integral, extra), result.status, result.num_evaluations + 1)


class _Equation:
    """The augmented equation of state and cotangent; the integrand is that of the parameters' cotangents."""

    orientation = 1

    def __init__(self, problem):
        self._field, self._parameters, self._num_leaves = problem.field, problem.parameters, len(problem.y)

    def __call__(self, t, z, with_integrand=True):
        y, a = z[: self._num_leaves], self.cotangent(z)
        derivative, a_derivative, integrand = self._field.vjp(t, y, self._parameters, tree.scale(-1, a))
        return Stage((*derivative, *a_derivative), tuple(integrand) if with_integrand else ())

    def cotangent(self, z):
        return z[self._num_leaves :]

    def with_cotangent(self, z, a):
        return (*z[: self._num_leaves], *a)

    def no_integral(self):
        return tree.zeros_like(self._field.select(self._parameters))

    def push(self, t, z, slope):
        """What a cotangent of the derivative at a point means for the state there and for the parameters."""
        y = z[: self._num_leaves]
        return self._field.vjp(t, y, self._parameters, slope)[1:]

    def reset(self, z, here, ys):
        """The stored state where the time is a saved one."""
        y, a = z[: self._num_leaves], self.cotangent(z)
        index = tf.argmax(here, axis=0, output_type=tf.int32)
        stored = tuple(tree.take(saved, index) for saved in ys)
        return (*tree.where(tf.reduce_any(here, axis=0), stored, y), *a)

    def state(self, t, z, derivative):
        """The state and its derivative at a point."""
        return z[: self._num_leaves], derivative[: self._num_leaves]

    def raise_error(self, step, missed, y):
        """The step's error, as large as interpolation misses saved states near `y`."""
        raised = tuple(tf.maximum(tf.abs(error), leaf) for error, leaf in zip(step.error, missed, strict=False))
        return (*raised, *step.error[self._num_leaves :])
