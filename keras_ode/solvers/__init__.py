"""Methods of integration."""

from keras_ode import configurable
from keras_ode.solvers.base import Solver
from keras_ode.solvers.explicit import RK4, Bosh3, Dopri5, Dopri8, Euler, Heun, Midpoint, Ralston, Tsit5

SOLVERS = {
    "euler": Euler,
    "midpoint": Midpoint,
    "heun": Heun,
    "ralston": Ralston,
    "rk4": RK4,
    "bosh3": Bosh3,
    "dopri5": Dopri5,
    "tsit5": Tsit5,
    "dopri8": Dopri8,
}


def get(identifier):
    """The solver of a name (`"tsit5"`), a configuration or a `Solver` object."""
    return configurable.get(identifier, "solver", Solver, SOLVERS)
