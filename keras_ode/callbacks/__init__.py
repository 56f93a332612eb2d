"""Keras callbacks that record what the solvers do."""

from keras_ode.callbacks.recorder import SolveRecord, SolverStepRecorder
