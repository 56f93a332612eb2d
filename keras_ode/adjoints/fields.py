"""The field of a problem, as the loop and its solvers take it."""

from keras_ode.solvers.base import Field, Stage
from keras_ode.solvers.linear import Linearization


class ForwardField(Field):
    """The field of the forward solve.

    Attributes:
        parameters: The differentiable ones.
    """

    def __init__(self, problem, inlined=False):
        self.problem = problem
        self._field = problem.field.inlined() if inlined else problem.field
        self.parameters = problem.field.select(problem.parameters)

    def __call__(self, t, y, with_integrand=True):
        return Stage(self._field(t, y, self.problem.parameters))

    def vjp(self, t, y, cotangent):
        """The products of a cotangent of the derivative with the Jacobians by the state and by the parameters."""
        return self._field.vjp(t, y, self.problem.parameters, cotangent)[1:]

    @property
    def rows(self):
        """Whether rows of a batch are independent."""
        return self.problem.method.rows

    def linearize(self, t, y):
        matrix, by_time = self._field.jacobian(t, y, self.problem.parameters, self.rows)
        return Linearization(matrix, by_time, matrix.shape[-1])

    def inlined(self):
        """The same field for a tape: each evaluation is a part of the graph around it."""
        return ForwardField(self.problem, inlined=True)
