"""Keras callbacks that record the steps of solvers, or change the tolerances during training."""

from keras_ode.callbacks.recorder import SolveRecord, SolverStepRecorder
from keras_ode.callbacks.tolerances import ToleranceSchedule

__all__ = [
    "SolveRecord",
    "SolverStepRecorder",
    "ToleranceSchedule",
]
