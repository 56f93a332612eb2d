"""The field of a problem, as the loop and its solvers take it."""

import tensorflow as tf

from keras_ode.solvers.base import Field, Stage
from keras_ode.solvers.linear import Linearization
from keras_ode.solvers.mass import consistent
from keras_ode.solvers.systems import is_large


class ForwardField(Field):
    """The field of the forward solve.

    Args:
        problem: A `Problem`.
        inlined: Whether each evaluation is a part of the graph around it.
        derivatives: See `Field`.

    Attributes:
        parameters: The differentiable ones.
    """

    def __init__(self, problem, inlined=False, derivatives=0):
        method = problem.method
        self.problem, self.derivatives, self.mass = problem, derivatives, method.mass
        self.tolerance = method.tolerance if method.controller.adaptive else None
        self._field = problem.field.inlined() if inlined else problem.field
        self.parameters = problem.field.select(problem.parameters)

    def __call__(self, t, y, with_integrand=True):
        return Stage(self._field(t, y, self.problem.parameters))

    def vjp(self, t, y, cotangent):
        """The products of a cotangent of the derivative with the Jacobians by the state and by the parameters."""
        return self._field.vjp(t, y, self.problem.parameters, cotangent)[1:]

    @property
    def rows(self):
        return self.problem.method.rows

    def controlled(self, leaves):
        return self.problem.controlled(leaves)

    def linearize(self, t, y, exact=False):
        field, parameters = self._field, self.problem.parameters
        if is_large(y, self.rows) and (exact or not field.has_jacobian):
            return Linearization(None, field.by_time(t, y, parameters), 1, (t, *y))
        matrix, by_time = field.jacobian(t, y, parameters, self.rows, automatic=exact)
        return Linearization(matrix, by_time, field.evaluations_of_jacobian(matrix, automatic=exact))

    def parts(self):
        found = self.problem.field.parts()
        if found is None:
            return None
        inlined, derivatives = self._field is not self.problem.field, self.derivatives
        return tuple(ForwardField(self.problem._replace(field=part), inlined, derivatives) for part in found)

    def products(self, t, y, leaves, transposed=False):
        if transposed:
            return self._field.vjp(t, y, self.problem.parameters, leaves)[1]
        return self._field.jvp(t, y, self.problem.parameters, leaves)

    def inlined(self):
        """The same field for a tape: each evaluation is a part of the graph around it."""
        return ForwardField(self.problem, inlined=True, derivatives=max(self.derivatives, 1))

    def constant(self):
        if not self.derivatives:
            return self
        problem = self.problem
        return ForwardField(
            problem._replace(field=problem.field.shared(), parameters=tuple(map(tf.stop_gradient, problem.parameters)))
        )


def from_consistent(problem):
    """The problem, where some equations are algebraic, from a state whose derivatives are those of a consistent one."""
    if problem.method.mass is None or not problem.method.mass.is_singular:
        return problem
    return problem._replace(y=consistent(ForwardField(problem), problem.times[0], problem.y))
