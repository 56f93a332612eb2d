"""Plain automatic differentiation through the loop over steps."""

from keras_ode.adjoints.base import Adjoint, solve_forward


class Direct(Adjoint):
    """Automatic differentiation through the solver's own steps: second and higher derivatives work.

    Memory grows with the number of steps tried. Under XLA, which needs to know it in advance, it is that of `max_steps`
    steps: set that as low as the solve allows. The choice of the step sizes is not differentiated.
    """

    compiles_alone = False
    pays_to_compile = False
    differentiates_steps = True

    def solve(self, problem):
        return solve_forward(problem, bound=problem.method.max_steps)[0]
