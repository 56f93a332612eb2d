"""Differential equations as Keras layers."""

from typing import TYPE_CHECKING

import keras

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        f"keras_ode runs on TensorFlow, but Keras runs on '{keras.backend.backend()}'. Set the environment variable "
        "KERAS_BACKEND=tensorflow before importing keras."
    )

from keras_ode import adjoints, callbacks, controllers, datasets, layers, models, paths, plotting, regularizers, solvers
from keras_ode.collocation import Collocation, collocate
from keras_ode.consistency import consistent_state
from keras_ode.errors import SolveError, Status
from keras_ode.estimation import Estimate, estimate, multiple_shooting
from keras_ode.events import Event, SteadyState
from keras_ode.gradient_check import check_gradients
from keras_ode.layers import ODELayer
from keras_ode.on_step import StepInfo
from keras_ode.solution import Solution
from keras_ode.solve import odeint, solve
from keras_ode.split import Split
from keras_ode.versions import show_versions

__version__ = "0.1.0"
__all__ = [
    "Collocation",
    "Estimate",
    "Event",
    "ODELayer",
    "Solution",
    "SolveError",
    "Split",
    "Status",
    "SteadyState",
    "StepInfo",
    "adjoints",
    "callbacks",
    "check_gradients",
    "collocate",
    "consistent_state",
    "controllers",
    "datasets",
    "estimate",
    "layers",
    "models",
    "multiple_shooting",
    "odeint",
    "paths",
    "plotting",
    "regularizers",
    "show_versions",
    "solve",
    "solvers",
]


def __dir__():
    return [*__all__, "__version__", "probability"]


if TYPE_CHECKING:
    from keras_ode import probability as probability
else:  # A type checker that sees `__getattr__` accepts every name.

    def __getattr__(name):
        if name == "probability":  # TensorFlow Probability takes seconds to import, and not everybody needs it
            import importlib

            return importlib.import_module("keras_ode.probability")
        raise AttributeError(f"module 'keras_ode' has no attribute '{name}'. Public names: {', '.join(__dir__())}")
