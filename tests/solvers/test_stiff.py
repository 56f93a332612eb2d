"""Stiff solvers on the problems of the Bari test set, beside SciPy's; their gradients against finite differences of SciPy."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from scipy.integrate import solve_ivp

import keras_ode
from keras_ode import Status
from tests.stiff import PROBLEMS

TOLERANCES = [1e-4, 1e-6, 1e-8]


@functools.cache
def solver_of(name, solver):
    """A function that solves a problem: it is traced once for all tolerances."""
    problem = PROBLEMS[name]

    def solve(rtol):
        return keras_ode.solve(
            problem.dynamics, tf.constant(problem.y0, tf.float64), [0.0, problem.end], solver=solver, rtol=rtol,
            atol=rtol * problem.atol, max_steps=20_000, jit_compile=False, on_failure="nan",
        )  # fmt: skip

    return solve


def error(name, y, tolerance):
    """The largest error of the end in units of the tolerance."""
    problem = PROBLEMS[name]
    reference = np.array(problem.reference)
    return np.max(np.abs(np.asarray(y) - reference) / (tolerance * (np.abs(reference) + problem.atol)))


def scipy_steps(name, tolerance):
    """How many steps SciPy's Radau takes, and its error in units of the tolerance asked of ours."""
    problem = PROBLEMS[name]
    function = tf.function(lambda y: problem.dynamics(0.0, y), autograph=False)
    function = function.get_concrete_function(tf.TensorSpec([len(problem.y0)], tf.float64))
    found = solve_ivp(
        lambda t, y: function(tf.constant(y)).numpy(), [0, problem.end], np.array(problem.y0, float),
        method="Radau", rtol=tolerance, atol=tolerance * problem.atol,
    )  # fmt: skip
    return len(found.t) - 1, error(name, found.y[:, -1], tolerance)


@pytest.mark.parametrize("name", PROBLEMS)
def test_end_is_that_of_the_test_set(name):
    for tolerance in TOLERANCES:
        solution = solver_of(name, "rodas5p")(tolerance)
        assert int(solution.status) == Status.SUCCESS
        assert error(name, solution.ys[-1], tolerance) < 100


@pytest.mark.parametrize("name", PROBLEMS)
def test_steps_are_no_more_than_scipys_implicit_ones(name):
    """At the same tolerance."""
    for tolerance in TOLERANCES[:2]:
        solution = solver_of(name, "rodas5p")(tolerance)
        steps, _ = scipy_steps(name, tolerance)
        assert int(solution.stats["num_steps"]) <= 1.2 * steps
