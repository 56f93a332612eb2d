"""Keras callbacks that record what the solvers do, and that change their tolerances."""

from keras_ode.callbacks.recorder import SolveRecord, SolverStepRecorder
from keras_ode.callbacks.tolerances import ToleranceSchedule

__all__ = [
    "SolveRecord",
    "SolverStepRecorder",
    "ToleranceSchedule",
]
