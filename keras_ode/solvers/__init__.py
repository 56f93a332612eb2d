"""Methods of integration."""

from typing import Any

from keras_ode import configurable
from keras_ode.solvers.adams import AB2, AB3, AB4, AB5, ABM2, ABM3, ABM4, ABM5
from keras_ode.solvers.auto import Auto
from keras_ode.solvers.base import Solver
from keras_ode.solvers.bdf import BDF
from keras_ode.solvers.esdirk import ImplicitEuler, ImplicitMidpoint, KenCarp4, Kvaerno3, Kvaerno5, Trapezoid
from keras_ode.solvers.explicit import RK4, Bosh3, Dopri5, Dopri8, Euler, Heun, Heun3, Midpoint, Ralston, Tsit5, Vern7, Vern9
from keras_ode.solvers.radau import Radau5
from keras_ode.solvers.reversible import AsynchronousLeapfrog, Reversible, ReversibleHeun
from keras_ode.solvers.rosenbrock import Rodas5P, Rosenbrock23
from keras_ode.solvers.symplectic import Leapfrog, SemiImplicitEuler, Yoshida4

__all__ = [
    "AB2",
    "AB3",
    "AB4",
    "AB5",
    "ABM2",
    "ABM3",
    "ABM4",
    "ABM5",
    "AsynchronousLeapfrog",
    "Auto",
    "BDF",
    "Bosh3",
    "Dopri5",
    "Dopri8",
    "Euler",
    "Heun",
    "Heun3",
    "ImplicitEuler",
    "ImplicitMidpoint",
    "KenCarp4",
    "Kvaerno3",
    "Kvaerno5",
    "Leapfrog",
    "Midpoint",
    "RK4",
    "Radau5",
    "Ralston",
    "Reversible",
    "ReversibleHeun",
    "Rodas5P",
    "Rosenbrock23",
    "SOLVERS",
    "SemiImplicitEuler",
    "Solver",
    "Trapezoid",
    "Tsit5",
    "Vern7",
    "Vern9",
    "Yoshida4",
    "get",
]

SOLVERS = {
    "euler": Euler,
    "midpoint": Midpoint,
    "heun": Heun,
    "ralston": Ralston,
    "heun3": Heun3,
    "rk4": RK4,
    "bosh3": Bosh3,
    "dopri5": Dopri5,
    "tsit5": Tsit5,
    "dopri8": Dopri8,
    "vern7": Vern7,
    "vern9": Vern9,
    "rodas5p": Rodas5P,
    "rosenbrock23": Rosenbrock23,
    "radau": Radau5,
    "kvaerno3": Kvaerno3,
    "kvaerno5": Kvaerno5,
    "kencarp4": KenCarp4,
    "bdf": BDF,
    "implicit_euler": ImplicitEuler,
    "implicit_midpoint": ImplicitMidpoint,
    "trapezoid": Trapezoid,
    "ab2": AB2,
    "ab3": AB3,
    "ab4": AB4,
    "ab5": AB5,
    "abm2": ABM2,
    "abm3": ABM3,
    "abm4": ABM4,
    "abm5": ABM5,
    "semi_implicit_euler": SemiImplicitEuler,
    "leapfrog": Leapfrog,
    "yoshida4": Yoshida4,
    "asynchronous_leapfrog": AsynchronousLeapfrog,
    "reversible_heun": ReversibleHeun,
    "reversible": Reversible,
    "auto": Auto,
}


def get(identifier: str | dict[str, Any] | Solver) -> Solver:
    """Returns a solver from its name, its configuration or a `Solver` object.

    Args:
        identifier: A name such as `"tsit5"`, a dictionary with the entries `"name"` and `"config"`, or a `Solver`, which is
            returned as it is.

    Returns:
        A `Solver`.

    Raises:
        ValueError: If there is no solver of that name, or if its class needs arguments.

    Example:

    >>> keras_ode.solvers.get("tsit5").order
    5
    """
    return configurable.get(identifier, "solver", Solver, SOLVERS)
