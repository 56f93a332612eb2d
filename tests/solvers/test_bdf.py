"""Backward differentiation formulas: the Bari test set beside SciPy's, their numbers, interpolant, rows, and gradients."""

import numpy as np
import pytest
import tensorflow as tf
from scipy.integrate import solve_ivp
from scipy.integrate._ivp import bdf as scipy_bdf

import keras_ode
from keras_ode import Status
from keras_ode.solvers import bdf
from keras_ode.solvers.base import Interval
from tests.marks import nightly
from tests.solvers.test_stiff import TOLERANCES, error, exact_rates, solver_of
from tests.stiff import PROBLEMS, robertson


def relaxation(t, y, rate):
    """From cos 0 + c, the solution is cos t + c exp(-rate t)."""
    return -rate * (y - tf.cos(t)) - tf.sin(t)


def test_differences_at_other_distances_are_those_of_scipy():
    """Those of all orders up to five of a state that was saved at equal steps, for steps 0.3 times as long."""
    known = np.random.default_rng(0).normal(size=[bdf._MOST + 2, 2])
    for order in range(1, bdf._MOST + 1):
        expected = np.vstack([np.zeros([1, 2]), known])
        scipy_bdf.change_D(expected, order, 0.3)
        number = lambda x: tf.constant(x, tf.float64)
        differences = tuple((tf.constant(row),) for row in known)
        carry = bdf.Carry(differences, differences[0], number(float(order)), number(9.0), number(1.0))
        interval = Interval(number(0.0), number(0.3), number(0.3), number(0.0), number(0.3))
        found = bdf._at_distance(interval, carry, tf.constant(False))
        np.testing.assert_allclose([leaves[0] for leaves in found[:order]], expected[1 : order + 1], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["hires", *(nightly(x) for x in PROBLEMS if x != "hires")])
@pytest.mark.slow
def test_end_is_that_of_the_test_set_in_about_as_many_steps_as_scipys(name):
    problem = PROBLEMS[name]
    for tolerance in TOLERANCES:
        solution = solver_of(name, "bdf")(tolerance)
        assert int(solution.status) == Status.SUCCESS
        assert error(name, solution.ys[-1], tolerance) < 100
        if tolerance == 1e-6:
            function = tf.function(lambda y: problem.dynamics(0.0, y), autograph=False)
            function = function.get_concrete_function(tf.TensorSpec([len(problem.y0)], tf.float64))
            found = solve_ivp(
                lambda t, y: function(tf.constant(y)).numpy(), [0, problem.end], np.array(problem.y0, float), "BDF",
                rtol=tolerance, atol=tolerance * problem.atol,
            )  # fmt: skip
            assert int(solution.stats["num_accepted"]) <= 1.25 * (len(found.t) - 1)


@pytest.mark.slow
def test_saved_states_and_rows_in_both_directions_of_time():
    """Each row has a rate of its own, and the second one goes back, along a growing solution."""
    rate, start = tf.constant([[1000.0], [-2.0]], tf.float64), tf.constant([[1.5], [np.cos(3.0)]], tf.float64)
    times = np.stack([np.linspace(0, 3, 41), np.linspace(3, 0, 41)])
    solution = keras_ode.solve(
        relaxation, start, times, args=(rate,), solver="bdf", rtol=1e-8, atol=1e-8, per_sample=True, jit_compile=False
    )
    np.testing.assert_allclose(solution.ys[:, 0, 0], np.cos(times[0]) + 0.5 * np.exp(-1000 * times[0]), atol=1e-6)
    np.testing.assert_allclose(solution.ys[:, 1, 0], np.cos(times[1]), atol=1e-6)
    alone = keras_ode.solve(
        relaxation, start[0], times[0], args=(rate[0],), solver="bdf", rtol=1e-8, atol=1e-8, jit_compile=False
    )
    np.testing.assert_allclose(solution.ys[:, 0], alone.ys, rtol=1e-10)
    assert int(solution.stats["num_steps"][0]) == int(alone.stats["num_steps"])


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", [nightly("interpolating"), "checkpointed"])
def test_gradient_by_robertsons_rates_is_that_of_finite_differences(adjoint):
    rates = tf.constant([0.04, 3e7, 1e4], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(rates)
        ys = keras_ode.odeint(
            robertson, tf.constant([1.0, 0, 0], tf.float64), [0.0, 1e3], args=(rates,), solver="bdf", rtol=1e-7, atol=1e-13,
            adjoint=adjoint, jit_compile=False,
        )  # fmt: skip
        total = ys[-1, 0] + 2 * ys[-1, 2]
    np.testing.assert_allclose(tape.gradient(total, rates) * rates, exact_rates(), rtol=1e-4)


@pytest.mark.slow
def test_compiled_solve_and_gradient_are_those_of_the_plain_graph():
    rate, start = tf.constant([[1.0], [1000.0]], tf.float64), tf.constant([[1.5], [1.5]], tf.float64)

    def run(rate, start):
        with tf.GradientTape() as tape:
            tape.watch((rate, start))
            options = {"solver": "bdf", "rtol": 1e-5, "atol": 1e-5, "adjoint": "checkpointed", "per_sample": True}
            ys = keras_ode.odeint(relaxation, start, [0.0, 0.2, 1.0], args=(rate,), **options)[1:]
        return ys, *tape.gradient(ys, (rate, start))

    plain, compiled = (tf.function(run, jit_compile=jit)(rate, start) for jit in (False, True))
    for found, expected in zip(compiled, plain, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-10)
    early, late = np.exp(-0.2 * rate), np.exp(-rate.numpy())
    np.testing.assert_allclose(plain[2], early + late, atol=1e-3)
    np.testing.assert_allclose(plain[1], -0.5 * (0.2 * early + late), atol=1e-3)
