"""Gradients of solves by every adjoint."""

import tensorflow as tf

import keras_ode
from tests.marks import graded

ADJOINTS = ["backsolve", "interpolating", "checkpointed", "direct"]


def quick(*names, slow_ones=None):
    """All adjoints, of which only those named are tested where there is little time: the others have nothing of their own here."""
    return graded(ADJOINTS, quick=names, slow_ones=slow_ones)


def eager(function):
    return function


def compiled(function):
    return tf.function(function, jit_compile=True)


def gradients(dynamics, start, times, parameters, loss, how=eager, **options):
    """The gradients of `loss(ys)` by the start, the times and each of `parameters`, as NumPy arrays.

    Args:
        dynamics: A function `f(t, y, *parameters)`.
        start, times, parameters: Arrays.
        loss: A function of the states.
        how: What wraps the function that computes the gradients, such as `tf.function`.
        **options: Those of `keras_ode.solve`.
    """
    start = tf.convert_to_tensor(start)

    @how
    def compute(start, times, parameters):
        with tf.GradientTape() as tape:
            tape.watch((start, times, parameters))
            value = loss(
                keras_ode.odeint(
                    lambda t, y: dynamics(t, y, *parameters), start, times, **{"jit_compile": False, **options}
                )
            )
        return tape.gradient(value, (start, times, parameters))

    by_start, by_times, by_parameters = compute(
        start, tf.constant(times, start.dtype), tuple(tf.convert_to_tensor(p) for p in parameters)
    )
    return [x.numpy() for x in (by_start, by_times, *by_parameters)]
