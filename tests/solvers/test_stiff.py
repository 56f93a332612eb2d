"""Stiff solvers on the problems of the Bari test set, beside SciPy's; their gradients against finite differences of SciPy."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.integrate import solve_ivp

import keras_ode
from keras_ode import Status
from tests import stiff
from tests.marks import graded, nightly
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


@functools.cache
def functions(name):
    """The right-hand side of a problem and its exact Jacobian, of arrays. They are traced once for all tolerances."""
    problem = PROBLEMS[name]
    function = tf.function(lambda y: problem.dynamics(0.0, y), autograph=False)
    function = function.get_concrete_function(tf.TensorSpec([len(problem.y0)], tf.float64))

    @tf.function(autograph=False)
    def jacobian(y):
        with tf.GradientTape() as tape:
            tape.watch(y)
            derivative = function(y)
        return tape.jacobian(derivative, y)

    return lambda t, y: function(tf.constant(y)).numpy(), lambda t, y: jacobian(tf.constant(y)).numpy()


@functools.cache
def by_scipy(name, tolerance):
    """How many steps SciPy's Radau takes with the exact Jacobian, and where it ends."""
    problem, (function, jacobian) = PROBLEMS[name], functions(name)
    found = solve_ivp(
        function, [0, problem.end], np.array(problem.y0, float), method="Radau", rtol=tolerance, atol=tolerance * problem.atol,
        jac=jacobian,
    )  # fmt: skip
    return len(found.t) - 1, found.y[:, -1]


@pytest.mark.parametrize("name", ["robertson", "hires", *(nightly(x) for x in list(PROBLEMS)[2:])])
@pytest.mark.slow
def test_end_is_that_of_the_test_set_in_no_more_steps_than_scipys_implicit_ones(name):
    """Steps at the same tolerance: SciPy's are those of a method of order five, too."""
    for tolerance in TOLERANCES:
        solution = solver_of(name, "rodas5p")(tolerance)
        assert int(solution.status) == Status.SUCCESS
        assert error(name, solution.ys[-1], tolerance) < 100
        if tolerance > 1e-8:
            assert int(solution.stats["num_steps"]) <= 1.2 * by_scipy(name, tolerance)[0]


@pytest.mark.parametrize("name", graded(PROBLEMS, quick=[], slow_ones=["robertson"]))
def test_radau_takes_no_more_steps_than_scipys_radau_for_the_same_error(name):
    """By straight lines through the logarithms of steps and errors at six tolerances; `pytest -s` shows the numbers."""
    tolerances = 10 ** -np.array([3.5, 4, 5, 6, 7, 8])
    least = 1e-9 if name == "robertson" else 1e-16  # below, rounding errors
    found = []
    for tolerance in tolerances:
        solution, (count, end) = solver_of(name, "radau")(tolerance), by_scipy(name, tolerance)
        assert int(solution.status) == Status.SUCCESS and error(name, solution.ys[-1], tolerance) < 100
        found.append((int(solution.stats["num_steps"]), error(name, solution.ys[-1], 1), count, error(name, end, 1)))
    steps, ours, of_scipy, theirs = np.log10(found).T
    our_line, their_line = (
        np.polyfit(x[e > np.log10(least)], e[e > np.log10(least)], 1) for x, e in ((steps, ours), (of_scipy, theirs))
    )
    for tolerance, (count, our_error, their_count, their_error) in zip(tolerances[1::2], found[1::2], strict=True):
        same = 10 ** ((np.polyval(our_line, np.log10(count)) - their_line[1]) / their_line[0])
        print(
            f"{name:12} {tolerance:.0e}: {count} steps, error {our_error:.1e}; SciPy {their_count} steps, error {their_error:.1e}; "
            f"steps at the same error {count / same:.2f} times SciPy's"
        )
        # Whatever the lines say beyond their points. Errors below the least one are rounding errors, which differ between machines.
        is_better = count <= their_count and our_error <= max(their_error, least)
        assert is_better or count <= 1.2 * same


def rates_by_scipy(rates, end):
    """The derivatives of `y_0 + 2 y_2` of Robertson's problem by the logarithms of its rates."""

    def total(logarithms):
        slow, fast, back = np.exp(logarithms)

        def dynamics(t, y):
            first, second, third = slow * y[0], fast * y[1] ** 2, back * y[1] * y[2]
            return [third - first, first - second - third, second]

        y = solve_ivp(dynamics, [0, end], [1, 0, 0], method="Radau", rtol=1e-12, atol=1e-16).y[:, -1]
        return y[0] + 2 * y[2]

    steps = 1e-4 * np.eye(3)
    return np.array([(total(np.log(rates) + h) - total(np.log(rates) - h)) / 2e-4 for h in steps])


@functools.cache
def exact_rates():
    return rates_by_scipy([0.04, 3e7, 1e4], 1e3)


@pytest.mark.parametrize("adjoint", [nightly("interpolating"), "checkpointed"])
@pytest.mark.slow
def test_gradient_by_robertsons_rates_is_that_of_finite_differences(adjoint):
    rates = tf.constant([0.04, 3e7, 1e4], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(rates)
        ys = keras_ode.odeint(
            stiff.robertson, tf.constant([1.0, 0, 0], tf.float64), [0.0, 1e3], args=(rates,), solver="rodas5p", rtol=1e-6,
            atol=1e-12, adjoint=adjoint, jit_compile=False,
        )  # fmt: skip
        total = ys[-1, 0] + 2 * ys[-1, 2]
    np.testing.assert_allclose(tape.gradient(total, rates) * rates, exact_rates(), rtol=1e-4)


@pytest.mark.slow
def test_batch_with_rates_of_its_own_is_solved_row_by_row_under_xla():
    random = np.random.default_rng(0)
    rates = np.array([0.04, 3e7, 1e4]) * np.exp(random.normal(scale=0.5, size=(64, 3)))
    y0 = tf.constant(np.tile([1.0, 0, 0], (64, 1)))

    @tf.function(autograph=False, jit_compile=True)
    def solve(rates):
        solution = keras_ode.solve(
            stiff.robertson, y0, [0.0, 1e5], args=(rates,), solver="rodas5p", rtol=1e-6, atol=1e-12, per_sample=True
        )
        return solution.ys[-1], solution.status, solution.stats["num_steps"]

    ys, status, steps = solve(tf.constant(rates))
    assert set(np.asarray(status)) == {Status.SUCCESS} and len(set(np.asarray(steps))) > 1
    for row in (0, 17, 63):
        alone = keras_ode.odeint(
            stiff.robertson, y0[row], [0.0, 1e5], args=(tf.constant(rates[row]),), solver="rodas5p", rtol=1e-9, atol=1e-15,
            jit_compile=False,
        )[-1]  # fmt: skip
        np.testing.assert_allclose(ys[row], alone, rtol=1e-5)


def test_explicit_solver_says_that_the_equation_is_stiff_and_what_to_use():
    options = {"rtol": 1e-6, "atol": 1e-12, "max_steps": 500, "jit_compile": False}
    y0 = tf.constant([1.0, 0, 0], tf.float64)
    solution = keras_ode.solve(stiff.robertson, y0, [0.0, 1e4], on_failure="nan", **options)
    assert int(solution.status) == Status.STIFF and np.isnan(solution.ys[-1]).all()
    with pytest.raises(keras_ode.SolveError, match="stiff.*solver='rodas5p'") as raised:
        keras_ode.solve(stiff.robertson, y0, [0.0, 1e4], **options)
    assert raised.value.status == Status.STIFF


def test_adjoint_that_goes_back_in_time_is_refused():
    with pytest.raises(ValueError, match="unstable: use 'interpolating' or 'checkpointed'. Received: solver=Rodas5P"):
        keras_ode.solve(lambda t, y: -y, tf.ones([2]), [0.0, 1.0], solver="rodas5p", adjoint="backsolve")


class Fast(keras.Layer):
    """A network, and a linear part that brings one direction to rest a thousand times as fast."""

    def build(self, shape):
        self.hidden, self.out = keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(2)
        self.hidden.build(shape)
        self.out.build((*shape[:-1], 8))

    def call(self, t, y):
        return self.out(self.hidden(y)) - y * tf.constant([2000.0, 1.0], y.dtype)


@pytest.mark.slow
def test_network_with_a_stiff_linear_part_trains():
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(64, 2)).astype("float32")
    evaluations = {}
    for solver in ("tsit5", "rodas5p"):
        layer = keras_ode.ODELayer(Fast(), t=(0.0, 4.0), solver=solver, rtol=1e-4, atol=1e-4, max_steps=10**6)
        evaluations[solver] = int(layer.solve(tf.constant(x[:8])).stats["num_evaluations"])
    assert evaluations["tsit5"] >= 10 * evaluations["rodas5p"]
    model = keras.Sequential([layer])
    model.compile("adam", "mse", jit_compile=False)
    history = model.fit(x, x * [[0.0, 0.5]], epochs=8, batch_size=32, verbose=0).history["loss"]
    assert np.isfinite(history).all() and history[-1] < history[0]
