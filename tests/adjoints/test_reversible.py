"""The reversible adjoint: the gradient of the steps, as plain differentiation and closed forms have it, and what it refuses."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import keras_ode
from keras_ode.solvers import Reversible

SOLVERS = ["asynchronous_leapfrog", "reversible_heun", Reversible("midpoint", coupling=0.99)]
CONSTANT = {"controller": "constant", "step_size": 0.03, "max_steps": 60}
ADAPTIVE = {"step_size": 0.02, "rtol": 1e-3, "atol": 1e-3, "max_steps": 60}
START, RATE, FORCE = np.array([[1.2], [-0.7], [0.4]]), 1.5, 0.3
TIMES = np.array([0.0, 0.333, 0.5, 1.1055])
ROWS = np.array([TIMES, [1.0, 0.5, 0.2, -0.1], [0.0, 0.3, 0.6, 0.6]])


def gradients(solver, adjoint, times=TIMES, how=lambda f: f, dtype="float64", **options):
    """Of a sum of squares of `y' = k y cos t + u`, by the start, the rate `k`, the argument `u` and the times."""
    start, rate, force, times = (tf.constant(x, dtype) for x in (START, RATE, FORCE, times))

    @how
    def run(start, rate, force, times):
        with tf.GradientTape() as tape:
            tape.watch((start, rate, force, times))
            ys = keras_ode.odeint(
                lambda t, y, u: rate * y * tf.cos(t) + u, start, times, args=(force,), solver=solver, adjoint=adjoint,
                **{"jit_compile": False, **options},
            )  # fmt: skip
            loss = tf.reduce_sum(ys[1:] ** 2)
        return tape.gradient(loss, (start, rate, force, times))

    return [g.numpy() for g in run(start, rate, force, times)]


@pytest.mark.parametrize("times, options", [(TIMES, CONSTANT), (TIMES[::-1], ADAPTIVE), (ROWS, {**ADAPTIVE, "per_sample": True})])
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_gradient_is_that_of_plain_differentiation(solver, times, options):
    """Saved times, either direction; rows with steps of their own, of which one ends at a repeated time."""
    found = gradients(solver, "reversible", times, **options)
    expected = gradients(solver, "direct", times, **options)
    for a, b in zip(found[:3], expected, strict=False):
        np.testing.assert_allclose(a, b, rtol=1e-10)


@pytest.mark.parametrize("how", [tf.function, tf.function(jit_compile=True)], ids=["graph", "xla"])
@pytest.mark.parametrize("dtype, rtol", [("float64", 1e-10), ("float32", 1e-4)])
def test_gradient_in_a_graph_and_under_xla_is_that_of_eager_code(how, dtype, rtol):
    options = {"jit_compile": "auto", "per_sample": True, **ADAPTIVE}
    expected = gradients(SOLVERS[2], "checkpointed", ROWS, **options)
    for a, b in zip(gradients(SOLVERS[2], "reversible", ROWS, how, dtype, **options), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol)
