"""Keras callbacks that tell what the solvers do."""

from keras_ode.callbacks.recorder import SolveRecord, SolverStepRecorder
