"""Differential equations as Keras layers."""

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

__version__ = "0.1.0"
