"""The solver that switches between explicit and implicit steps: on stiff problems, on others, and where that changes."""

import numpy as np
import pytest
import tensorflow as tf
from scipy.integrate import solve_ivp

import keras_ode
from keras_ode import Status
from keras_ode.solvers.linear import radius_of
from tests.gradients import compiled
from tests.marks import nightly
from tests.solvers.test_stiff import error, solver_of
from tests.stiff import PROBLEMS

OPTIONS = {"solver": "auto", "rtol": 1e-6, "atol": 1e-8, "jit_compile": False}


def pulled(t, y, rate, height):
    """Pulled towards `height cos t`."""
    return -rate * (y - height * tf.cos(t))


def pulled_exactly(times, y0, rate, height):
    start, *_ = times = tf.unstack(times)

    def settled(t):
        return height * (rate**2 * tf.cos(t) + rate * tf.sin(t)) / (1 + rate**2)

    return tf.stack([settled(t) + (y0 - settled(start)) * tf.exp(-rate * (t - start)) for t in times])


RATES, START, HEIGHTS = ([[x], [y]] for x, y in ((2000.0, 1.0), (0.3, 0.3), (1.5, 0.7)))  # a stiff row and one that is not


@pytest.mark.parametrize("name", ["robertson", *(nightly(x) for x in ("van_der_pol", "oregonator"))])
@pytest.mark.slow
def test_stiff_problem_ends_right_in_about_the_evaluations_of_the_implicit_method(name):
    for tolerance in (1e-4, 1e-6, 1e-8):
        auto, implicit = (solver_of(name, solver)(tolerance) for solver in ("auto", "rodas5p"))
        assert int(auto.status) == Status.SUCCESS
        assert error(name, auto.ys[-1], tolerance) < 100
        assert int(auto.stats["num_evaluations"]) <= 1.2 * int(implicit.stats["num_evaluations"])


def test_explicit_method_gives_up_on_the_stiff_problem():
    problem = PROBLEMS["robertson"]
    solution = keras_ode.solve(
        problem.dynamics, tf.constant(problem.y0, tf.float64), [0.0, problem.end], max_steps=2000, on_failure="nan",
        **{**OPTIONS, "solver": "tsit5"},
    )  # fmt: skip
    assert int(solution.status) == Status.STIFF


@pytest.mark.slow
def test_steps_are_those_of_the_explicit_method_where_nothing_is_stiff():
    def lotka_volterra(t, y):
        return tf.stack([1.5 * y[0] - y[0] * y[1], y[0] * y[1] - 3 * y[1]])

    for options in ({"rtol": 1e-3, "atol": 1e-3}, {"rtol": 1e-9, "atol": 1e-9}):
        auto, explicit = (
            keras_ode.solve(
                lotka_volterra, tf.constant([1.0, 1.0], tf.float64), [10.0, 0.0], save="steps", max_steps=512,
                **{**OPTIONS, **options, "solver": solver},
            )  # fmt: skip
            for solver in ("auto", "tsit5")
        )
        assert int(auto.stats["num_evaluations"]) == int(explicit.stats["num_evaluations"])
        np.testing.assert_allclose(auto.ts, explicit.ts, rtol=1e-9)
        np.testing.assert_allclose(auto.ys, explicit.ys, rtol=1e-8)


@pytest.mark.slow
def test_method_changes_where_the_problem_becomes_stiff_and_back():
    """The rate rises to 20,000 and falls again. An explicit step takes six evaluations, an implicit one eight and a Jacobian."""

    def rate(t, xp):
        return 1 + 2e4 * xp.exp(-(((t - 4) / 0.7) ** 8))

    times, y0 = np.linspace(0, 10, 21), [0.5]
    solution = keras_ode.solve(
        lambda t, y: -rate(t, tf) * (y - tf.cos(3 * t)), tf.constant(y0, tf.float64), times, dense=True, max_steps=1024, **OPTIONS
    )
    reference = solve_ivp(
        lambda t, y: -rate(t, np) * (y - np.cos(3 * t)), [0, 10], y0, method="Radau", rtol=1e-10, atol=1e-12, dense_output=True
    )
    np.testing.assert_allclose(solution.ys[:, 0], reference.sol(times)[0], atol=2e-5)
    others = np.linspace(0.01, 9.99, 97)
    np.testing.assert_allclose(solution.evaluate(others)[:, 0], reference.sol(others)[0], atol=5e-5)
    steps, ends = int(solution.stats["num_steps"]), solution.dense.untils.numpy()[: int(solution.stats["num_accepted"])]
    implicit = (int(solution.stats["num_evaluations"]) - 2 - 6 * steps) / 3
    assert implicit == int(implicit) and 4 < implicit < np.sum((ends > 3) & (ends < 6)) + int(solution.stats["num_rejected"])
    longest = np.max(np.diff(ends)[(ends[1:] > 3.5) & (ends[1:] < 4.5)])
    assert longest * rate(4, np) > 100


@pytest.mark.parametrize("how", [lambda f: tf.function(f, autograph=False), nightly(compiled)])
@pytest.mark.slow
def test_each_row_has_the_method_and_the_gradient_that_it_has_alone(how):
    """The gradient of the steps, against the closed form too."""
    times = tf.constant([0.0, 0.5, 2.0, 5.0], tf.float64)

    @how
    def gradients(*inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            solution = keras_ode.solve(
                pulled, inputs[0], times, args=inputs[1:], per_sample=True, adjoint="checkpointed", max_steps=400, **OPTIONS
            )
            total = tf.reduce_sum(solution.ys * tf.reshape(times, [-1, 1, 1]))
        return solution.ys, solution.stats["num_evaluations"], tape.gradient(total, inputs)

    inputs = [tf.constant(x, tf.float64) for x in (START, RATES, HEIGHTS)]
    found = gradients(*inputs)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        exact = pulled_exactly(times, *inputs)
        total = tf.reduce_sum(exact * tf.reshape(times, [-1, 1, 1]))
    np.testing.assert_allclose(found[0], exact, atol=1e-5)
    for gradient, expected in zip(found[2], tape.gradient(total, inputs), strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-9)
    for row in range(2):
        # Twice, because a call with one row would be traced anew.
        alone = gradients(*(tf.repeat(x[row : row + 1], 2, axis=0) for x in inputs))
        for both, one in zip(tf.nest.flatten(found), tf.nest.flatten(alone), strict=True):
            axis = int(both.shape.rank == 3)
            np.testing.assert_allclose(tf.gather(both, row, axis=axis), tf.gather(one, 0, axis=axis), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("adjoint", "per_sample"), [("interpolating", False), nightly("direct", True)])
@pytest.mark.slow
def test_gradient_of_a_solve_that_changes_its_method_is_that_of_the_closed_form(adjoint, per_sample):
    inputs = [tf.constant(x if per_sample else x[:1], tf.float64) for x in (START, RATES, HEIGHTS)]
    times = tf.constant([0.0, 0.5, 2.0, 5.0], tf.float64)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch((inputs, times))
        ys = keras_ode.odeint(
            pulled, inputs[0], times, args=tuple(inputs[1:]), per_sample=per_sample, adjoint=adjoint, max_steps=400, **OPTIONS
        )
        exact = pulled_exactly(times, *inputs)
        # The weight of the start is zero.
        found, expected = (tf.reduce_sum(x * [[[0.0]], [[1.0]], [[2.0]], [[3.0]]]) for x in (ys, exact))
    by_times, expected_by_times = tape.gradient(found, times), tape.gradient(expected, times)
    for a, b in zip(tape.gradient(found, inputs), tape.gradient(expected, inputs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-2 if adjoint == "interpolating" else 1e-3, atol=1e-9)
    np.testing.assert_allclose(by_times, expected_by_times, atol=1e-2)  # the error of the state times the rate


def test_solve_back_in_time_is_refused_as_an_adjoint():
    with pytest.raises(ValueError, match="unstable: use 'interpolating' or 'checkpointed'. Received: solver=Auto"):
        keras_ode.solve(lambda t, y: -y, tf.ones([2]), [0.0, 1.0], solver="auto", adjoint="backsolve")


def test_spectral_radius_is_bounded_by_that_of_the_fourth_power():
    matrices = np.random.default_rng(0).normal(size=(5, 4, 4)) * [1, 1e4, 1e-3, 1]
    radii = np.max(np.abs(np.linalg.eigvals(matrices)), axis=1)
    ratios = radius_of(tf.constant(matrices)).numpy() / radii
    assert np.all(ratios >= 1) and np.all(ratios < 8)
    oscillator = tf.constant([[[0.0, 1.0], [-1e6, 0.0]], [[0.0, 0.0], [0.0, 0.0]]], tf.float64)
    np.testing.assert_allclose(radius_of(oscillator), [1000, 0])
