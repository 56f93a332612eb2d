"""Gradients of solves by every adjoint, and by complex steps through SciPy's solver."""

import numpy as np
import scipy.integrate
import tensorflow as tf

import keras_ode

ADJOINTS = ["backsolve", "interpolating", "checkpointed", "direct"]


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


def gradients_by_complex_step(f, start, times, parameters, loss):
    """The same, of a function `f(t, y, *parameters)` and a loss that are analytic and take NumPy arrays.

    All perturbed copies are solved as one system, by DOP853 at 1e-13: copy i has an imaginary part in scalar i. `f`
    takes arrays whose first axis counts the copies. The times' gradients come from `f` itself.
    """
    inputs = [np.asarray(x, "float64") for x in (start, *parameters)]
    sizes = [x.size for x in inputs]
    copies = np.concatenate([x.ravel() for x in inputs]) + 1e-30j * np.eye(sum(sizes))
    parts = np.split(copies, np.cumsum(sizes)[:-1], axis=1)
    y0, *others = (part.reshape(-1, *x.shape) for part, x in zip(parts, inputs, strict=True))
    times = np.asarray(times, "float64")
    solution = scipy.integrate.solve_ivp(
        lambda t, y: f(t, y.reshape(y0.shape), *others).ravel(),
        (times[0], times[-1]),
        y0.ravel(),
        method="DOP853",
        rtol=1e-13,
        atol=1e-13,
        t_eval=times,
    )
    assert solution.success
    ys = solution.y.T.reshape(len(times), *y0.shape)
    flat = np.array([loss(ys[:, i]).imag for i in range(sum(sizes))]) / 1e-30
    by_start, *by_parameters = (
        g.reshape(x.shape) for g, x in zip(np.split(flat, np.cumsum(sizes)[:-1]), inputs, strict=True)
    )
    rates = np.array([f(t, y, *others)[0].real for t, y in zip(times, ys, strict=True)])
    # A saved state moves along the field with its time; the start moves against it with the first.
    by_times = np.array([_moved(loss, ys[:, 0].real, rates, i) for i in range(len(times))])
    by_times[0] -= np.sum(by_start * rates[0])
    return [by_start, by_times, *by_parameters]


def _moved(loss, ys, rates, i):
    """The derivative of the loss where state `i` moves at its rate."""
    ys = ys.astype(complex)
    ys[i] += 1e-30j * rates[i]
    return loss(ys).imag / 1e-30
