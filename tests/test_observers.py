"""States at saved times that are interpolated together, against the exponential function."""

import numpy as np
import pytest
import tensorflow as tf

from keras_ode import solvers
from keras_ode.controllers import PID, Tolerance
from keras_ode.integrate import Method, integrate
from keras_ode.observers import SaveTogether
from keras_ode.solvers.base import Stage
from tests.marks import nightly, slow
from tests.references import FieldOf

RATES = np.array([[1.0], [-3.0], [0.5]])


def saved_states(times, end, capacity, jit_compile=False, max_steps=200):
    """Those of `y' = rate y` from one, at times `[K]`, or `[K, B]` where the end is one for each row."""
    solver, end = solvers.Tsit5(), tf.constant(end, tf.float64)
    method = Method(solver, PID(), Tolerance(*[tf.constant(1e-9, tf.float64)] * 2), max_steps=max_steps, per_sample=end.shape.rank == 1)
    y = (tf.ones([3, 1], tf.float64),)

    @tf.function(jit_compile=jit_compile)
    def solve(times, end):
        observer = SaveTogether(times, y, solver, capacity)
        result = integrate(
            FieldOf(lambda t, y: Stage((RATES * y[0],))),
            tf.zeros_like(end), end, y, method, observers=(observer,), dense=True,
        )  # fmt: skip
        return observer.saved(result.observed[0])[0], result.num_accepted

    return solve(tf.constant(times, tf.float64), end)


# Room for all steps, for some, and for one.
@pytest.mark.parametrize("capacity", [nightly(None), slow(3), 1])
def test_states_of_steps_that_waited_are_those_of_the_exponential(capacity):
    times = np.concatenate([[0.001], np.linspace(0.5, 0.9, 30), [1.7, 1.99]])
    states, accepted = saved_states(times, 2.0, capacity)
    assert accepted > 5
    np.testing.assert_allclose(states, np.exp(RATES * times[:, None, None]), rtol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("capacity", [nightly(None), 2])
def test_rows_with_steps_and_times_of_their_own_wait_apart(capacity):
    ends = np.array([2.0, -1.0, 0.5])
    times = np.linspace(0.1, 0.9, 7)[:, None] * np.abs(ends)
    states, _ = saved_states(times, ends, capacity)
    np.testing.assert_allclose(states, np.exp(RATES * (np.sign(ends) * times)[..., None]), rtol=1e-7)


@pytest.mark.slow
def test_states_that_waited_under_xla():
    times = np.linspace(0.1, 1.9, 7)
    states, _ = saved_states(times, 2.0, 2, jit_compile=True)
    np.testing.assert_allclose(states, np.exp(RATES * times[:, None, None]), rtol=1e-7)


@pytest.mark.parametrize("capacity", [None, 2])
def test_states_that_were_not_reached_are_nan(capacity):
    times = np.array([1e-6, 1.0, 1.9])
    states, _ = saved_states(times, 2.0, capacity, max_steps=3)
    np.testing.assert_array_equal(np.isnan(states[:, 0, 0]), [False, True, True])
    np.testing.assert_allclose(states[0], np.exp(RATES * 1e-6), rtol=1e-9)


def test_a_solve_over_no_time_saves_its_start():
    states, _ = saved_states([0.0, 0.0], 0.0, None)
    np.testing.assert_array_equal(states, np.ones([2, 3, 1]))
