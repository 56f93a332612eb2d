"""Implicit methods: closed forms, stiff problems against SciPy, stages that do not converge, and gradients of steps."""

import functools

import numpy as np
import pytest
import scipy.integrate
import tensorflow as tf

import keras_ode
from keras_ode import Status
from keras_ode.solvers import SOLVERS
from keras_ode.solvers.base import Field, Interval, Stage
from keras_ode.solvers.linear import Linearization
from tests.marks import graded, nightly, slow
from tests.references import LIKE_OTHERS
from tests.stiff import PROBLEMS

IMPLICIT = [name for name in SOLVERS if SOLVERS[name].is_implicit]
# The order of the BDF varies and begins with one.
OF_ONE_ORDER = [name for name in IMPLICIT if name != "bdf"]
# Those whose stability function vanishes at infinity.
DAMPED = [name for name in OF_ONE_ORDER if name not in ("implicit_midpoint", "trapezoid", "auto")]
ACCURATE = [name for name in OF_ONE_ORDER if SOLVERS[name].order >= 5]


def every_kind(names):
    """Those names, of which the ones that are like others, or made of others, or have tests of their own, are slow."""
    return [slow(name) if name in (*LIKE_OTHERS, "auto", "bdf") else name for name in names]


def solve(dynamics, y0, t, **options):
    return keras_ode.solve(dynamics, tf.constant(y0, tf.float64), t, jit_compile=False, **options)


def bell_or_slow(t, y, weights):
    """Two equations in one, so that each method is traced once for both."""
    return -weights[0] * t * y**2 - weights[1] * (y - tf.cos(t)) - weights[2] * tf.sin(t)


# From y(0) = 1, the solution is 1 / (1 + t^2); Prothero and Robinson's equation, whose slow solution is cos t.
BELL, SLOW = (tf.constant([2.0, 0.0, 0.0], tf.float64),), (tf.constant([0.0, 1e6, 1.0], tf.float64),)


def parabola(t, y, rate):
    return -rate * y**2


def robertson(t, y, rates):
    a, b, c = tf.unstack(y, axis=-1)
    slow, fast, back = rates[..., 0] * a, rates[..., 1] * b**2, rates[..., 2] * b * c
    return tf.stack([back - slow, slow - back - fast, fast], axis=-1)


RATES = np.array([0.04, 3e7, 1e4])
# That of the test set; SciPy's Radau, at 1e-12, takes seconds to find it again.
ROBERTSON_AT_THE_END = PROBLEMS["robertson"].reference


def van_der_pol(t, y):
    x, v = tf.unstack(y, axis=-1)
    return tf.stack([v, 1000 * (1 - x**2) * v - x], axis=-1)


# Accuracy


@pytest.mark.parametrize("name", every_kind(OF_ONE_ORDER))
def test_error_at_constant_steps_falls_with_the_order_of_the_method(name):
    counts = (8, 16, 32)
    options = {"args": BELL, "solver": name, "controller": "constant"}
    steps = [solve(bell_or_slow, [1.0], [0.0, 1.5], step_size=1.5 / n, **options) for n in counts]
    errors = np.abs([float(s.ys[-1, 0]) - 1 / 3.25 for s in steps])
    assert np.all(np.log2(errors[:-1] / errors[1:]) > SOLVERS[name].order - 0.25)


@pytest.mark.parametrize(("name", "order"), [("rodas5p", 4), slow("kvaerno5", 3), slow("radau", 3)])
def test_interpolant_of_methods_of_order_five(name, order):
    """Saved states within steps of one size, and of half of it; the error of an interpolant is of one order more."""
    times = np.linspace(0, 1.5, 62)
    options = {"args": BELL, "solver": name, "controller": "constant"}
    ys = [solve(bell_or_slow, [1.0], times, step_size=1.5 / n, **options).ys[:, 0] for n in (16, 32)]
    errors = [np.abs(y - 1 / (1 + times**2)).max() for y in ys]
    assert np.log2(errors[0] / errors[1]) > order + 0.75


@pytest.mark.parametrize("name", every_kind(DAMPED))
def test_steps_a_million_times_the_time_scale_follow_the_slow_solution(name):
    """From far off the slow solution; order reduction leaves at least order one."""
    ys = solve(bell_or_slow, [1.5], [0.0, 10.0], args=SLOW, solver=name, controller="constant", step_size=0.1).ys
    np.testing.assert_allclose(ys[-1, 0], np.cos(10.0), atol=1e-3 if SOLVERS[name].order == 2 else 1e-7)


@pytest.mark.parametrize("tolerance", [1e-4, 1e-6, 1e-8])
@pytest.mark.parametrize("name", [name if name == "rodas5p" else slow(name) for name in ACCURATE])
def test_robertsons_reaction_is_that_of_scipy(name, tolerance):
    y0, options = [1.0, 0.0, 0.0], {"solver": name, "rtol": tolerance, "atol": 1e-6 * tolerance}
    solution = solve(robertson, y0, [0.0, 1e11], args=(tf.constant(RATES),), **options)
    np.testing.assert_allclose(solution.ys[-1], ROBERTSON_AT_THE_END, rtol=100 * tolerance, atol=1e-4 * tolerance)
    most = {1e-4: 150, 1e-6: 350, 1e-8: 800} if SOLVERS[name].error_order == 5 else {1e-4: 150, 1e-6: 420, 1e-8: 1260}
    assert int(solution.stats["num_steps"]) < most[tolerance]


@pytest.mark.parametrize("name", ["rosenbrock23", slow("kvaerno3")])
def test_methods_of_low_order_solve_robertsons_reaction_at_a_loose_tolerance(name):
    solution = solve(robertson, [1.0, 0.0, 0.0], [0.0, 1e11], args=(tf.constant(RATES),), solver=name, rtol=1e-4, atol=1e-10)
    np.testing.assert_allclose(solution.ys[-1], ROBERTSON_AT_THE_END, rtol=1e-2)


@functools.cache
def van_der_pol_by_scipy():
    field = lambda t, y: [y[1], 1000 * (1 - y[0] ** 2) * y[1] - y[0]]
    return scipy.integrate.solve_ivp(field, (0, 2000), [2.0, 0.0], "Radau", rtol=1e-10, atol=1e-12).y[:, -1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ACCURATE)
def test_stiff_van_der_pol_oscillation_is_that_of_scipy(name):
    """Over a period and more, with two jumps: steps shrink and grow by ten powers of ten."""
    solution = solve(van_der_pol, [2.0, 0.0], [0.0, 2000.0], solver=name, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(solution.ys[-1], van_der_pol_by_scipy(), rtol=1e-5)
    assert int(solution.stats["num_steps"]) < 600


@pytest.mark.slow
def test_single_precision_does_not_ask_stages_for_more_than_it_has():
    y0, t = [1.0, 0.0, 0.0], [0.0, 1e5]
    options = {"solver": "kvaerno5", "rtol": 1e-6, "atol": 1e-10, "jit_compile": False}
    single = keras_ode.solve(robertson, tf.constant(y0), t, args=(tf.constant(RATES, tf.float32),), **options)
    double = solve(robertson, y0, t, args=(tf.constant(RATES),), solver="kvaerno5", rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(single.ys[-1], double.ys[-1], rtol=1e-3)
    assert int(single.stats["num_steps"]) < 300


# Rows


# The rows of tests/test_per_sample.py, and those of which one does not converge, below, have systems of their own.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["rodas5p", nightly("kvaerno5"), "radau"])
def test_rows_with_rates_of_their_own_are_solved_as_if_alone(name):
    rates = RATES * np.exp(np.random.default_rng(0).normal(size=[64, 3]))
    y0, options = np.tile([1.0, 0.0, 0.0], [64, 1]), {"solver": name, "rtol": 1e-6, "atol": 1e-12}
    rows = solve(robertson, y0, [0.0, 1e6], args=(tf.constant(rates),), per_sample=True, **options)
    assert len(np.unique(rows.stats["num_evaluations"])) > 5
    for i in (0, 17, 63):
        alone = solve(robertson, y0[i], [0.0, 1e6], args=(tf.constant(rates[i]),), **options)
        np.testing.assert_allclose(rows.ys[-1, i], alone.ys[-1], rtol=1e-10)
        assert int(rows.stats["num_evaluations"][i]) == int(alone.stats["num_evaluations"])


# Stages that do not converge


def test_step_without_a_solution_ends_in_not_converged_and_its_neighbors_go_on():
    """`y = y0 + h y^2` has no real root where 4 h y0 > 1."""
    solution = solve(
        parabola, [[1.0], [0.1]], [0.0, 1.0], args=(-1.0,), solver="implicit_euler", step_size=1.0, per_sample=True, on_failure="nan"
    )
    assert list(solution.status.numpy()) == [Status.NOT_CONVERGED, Status.SUCCESS]
    np.testing.assert_allclose(solution.ys[-1], [[np.nan], [(1 - np.sqrt(0.6)) / 2]], rtol=1e-9)


@pytest.mark.slow
def test_step_whose_stages_do_not_converge_is_tried_again_with_a_smaller_size():
    """A Jacobian of zero: the iteration converges for steps below the time scale only."""
    field = lambda t, y: -1000 * (tf.stop_gradient(y) - 1)
    solution = solve(field, [1.5], [0.0, 1.0], solver="kvaerno3", step_size=0.1)
    assert int(solution.stats["num_rejected"]) > 0
    np.testing.assert_allclose(solution.ys[-1], [1.0], rtol=1e-3)


@pytest.mark.parametrize("name", every_kind(IMPLICIT))
def test_constant_steps_may_start_from_zero(name):
    """y' = cos(t) - y from zero; the bound is the error of Euler's implicit method, half of the step size times |y''|."""
    weights = (tf.constant([0.0, 1.0, 0.0], tf.float64),)
    ys = solve(bell_or_slow, [0.0], [0.0, 10.0], args=weights, solver=name, controller="constant", step_size=0.1).ys
    np.testing.assert_allclose(ys[-1, 0], (np.cos(10) + np.sin(10) - np.exp(-10)) / 2, atol=0.05)


@pytest.mark.parametrize(
    "name, start, expected",
    [
        ("implicit_euler", 100.0, (np.sqrt(401) - 1) / 2),  # y = 100 - y^2
        slow("implicit_midpoint", 100.0, 2 * (np.sqrt(201) - 1) - 100),  # y = 2 m - 100, m = 100 - m^2 / 2
        ("trapezoid", 1.5, np.sqrt(1.75) - 1),  # y = 1.5 - (1.5^2 + y^2) / 2
    ],
)
def test_constant_steps_take_new_jacobians_where_the_first_is_not_enough(name, start, expected):
    ys = solve(parabola, [start], [0.0, 1.0], args=(1.0,), solver=name, step_size=1.0).ys
    np.testing.assert_allclose(ys[-1, 0], expected, rtol=1e-9)


# Gradients


def root(rate, y0):
    """A step of size 1/2 of Euler's implicit method for `y' = -rate y^2`."""
    return (tf.sqrt(1 + 2 * rate * y0) - 1) / rate


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", ["checkpointed", nightly("direct")])
def test_gradient_of_an_implicit_step_is_that_of_the_implicit_function(adjoint):
    inputs = tf.constant(2.0, tf.float64), tf.constant([1.3], tf.float64)

    def step(rate, y0):
        return keras_ode.solve(
            parabola, y0, [0.0, 0.5], args=(rate,), solver="implicit_euler", step_size=0.5, adjoint=adjoint, max_steps=2, jit_compile=False
        ).ys[-1]

    for expected, found in zip(*(gradients(function, inputs, adjoint == "direct") for function in (root, step)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-8)


@pytest.mark.slow
def test_third_derivative_of_an_implicit_step_is_exact_and_a_fourth_one_is_refused():
    def step(rate):
        options = {"solver": "implicit_euler", "step_size": 0.5, "adjoint": "direct", "max_steps": 1, "jit_compile": False}
        return keras_ode.odeint(parabola, tf.constant([1.3], tf.float64), [0.0, 0.5], args=(rate,), **options)[-1, 0]

    def derivative(function):
        def differentiated(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                value = function(x)
            return tape.gradient(value, x)

        return differentiated

    exact, found, rate = lambda rate: root(rate, tf.constant(1.3, tf.float64)), step, tf.constant(2.0, tf.float64)
    for _ in range(3):
        exact, found = derivative(exact), derivative(found)
    np.testing.assert_allclose(found(rate), exact(rate), rtol=1e-8)
    with pytest.raises(NotImplementedError, match="three with adjoint='direct'"):
        derivative(found)(rate)


def gradients(function, inputs, twice):
    """The first and, if asked for, the second derivatives of the first component."""
    with tf.GradientTape() as outer:
        if twice:
            outer.watch(inputs)
        with tf.GradientTape() as inner:
            inner.watch(inputs)
            value = function(*inputs)
        first = inner.gradient(value, inputs)
        mixed = tf.reduce_sum(first[0]) + 3 * tf.reduce_sum(first[1])
    return [*first, *(outer.gradient(mixed, inputs) if twice else ())]


@pytest.mark.parametrize(
    "name, adjoint",
    [
        ("kvaerno3", "checkpointed"),
        nightly("kvaerno3", "direct"),
        ("rodas5p", "checkpointed"),
        nightly("kvaerno5", "checkpointed"),
        nightly("kvaerno5", "direct"),
        ("radau", "checkpointed"),
        nightly("radau", "direct"),
        nightly("radau", "interpolating"),
    ],
)
@pytest.mark.slow
def test_gradient_of_a_stiff_solve_is_that_of_the_closed_form(name, adjoint):
    """`y' = -k (y - cos t) - sin t` from cos 0 + c: the solution is cos t + c exp(-k t), and rows have k of their own."""
    rate, start = tf.constant([[2.0], [2000.0]], tf.float64), tf.constant([[1.5], [1.5]], tf.float64)
    field = lambda t, y, rate: -rate * (y - tf.cos(t)) - tf.sin(t)
    with tf.GradientTape() as tape:
        tape.watch((rate, start))
        options = {"rtol": 1e-6, "atol": 1e-6, "max_steps": 500, "per_sample": True, "jit_compile": False}
        ys = keras_ode.odeint(field, start, [0.0, 0.3, 1.0], args=(rate,), solver=name, adjoint=adjoint, **options)
        loss = tf.reduce_sum(ys[1:] * [[[1.0]], [[2.0]]])
    by_rate, by_start = tape.gradient(loss, (rate, start))
    early, late = np.exp(-0.3 * rate.numpy()), np.exp(-rate.numpy())
    np.testing.assert_allclose(by_start, early + 2 * late, atol=1e-4)
    np.testing.assert_allclose(by_rate, -0.5 * (0.3 * early + 2 * late), atol=1e-4)


# The integral of what only accumulates


class Decay(Field):
    """`y' = -y`, with the integrand `y^2`."""

    rows = False

    def __call__(self, t, y, with_integrand=True):
        return Stage((-y[0],), (y[0] ** 2,) if with_integrand else ())

    def linearize(self, t, y, exact=False):
        return Linearization(-tf.ones([1, 1, 1], tf.float64), None, 0)


@pytest.mark.parametrize("name", [name for name in IMPLICIT if name.startswith(("kv", "im", "tr"))])
def test_integral_over_a_step_has_the_order_of_the_method(name):
    solver, errors = SOLVERS[name](), []
    for size in (0.1, 0.05):
        y, (zero, end) = (tf.ones([1], tf.float64),), tf.constant([0.0, size], tf.float64)
        carry, _ = solver.start(Decay(), zero, y)
        step = solver.step(Decay(), Interval(zero, end, end, zero, end), y, carry)
        errors.append(abs(float(step.integral[0][0]) - (1 - np.exp(-2 * size)) / 2))
        np.testing.assert_allclose(step.carry.integrand[0], step.y[0] ** 2)
        assert bool(step.integral_error) == bool(solver.error_order)
    assert np.log2(errors[0] / errors[1]) > solver.order + 0.75


# Compiled


# One solver of each family with its gradient, whose program is twice as large.
@pytest.mark.parametrize("name", graded(OF_ONE_ORDER, quick=[], slow_ones=["rodas5p", "kvaerno5", "implicit_euler", "radau"]))
def test_compiled_solve_is_that_of_the_plain_graph(name):
    def run(y0, rate):
        with tf.GradientTape() as tape:
            tape.watch(rate)
            options = {"solver": name, "step_size": 0.25, "max_steps": 30, "adjoint": "checkpointed", "rtol": 1e-4}
            end = keras_ode.solve(parabola, y0, [0.0, 1.0], args=(rate,), **options).ys[-1]
        return end, tape.gradient(end, rate) if name in ("implicit_euler", "rodas5p", "kvaerno3", "radau", "auto") else ()

    inputs = tf.constant([[1.0], [2.0]], tf.float64), tf.constant(1.5, tf.float64)
    results = (tf.nest.flatten(tf.function(run, jit_compile=how)(*inputs)) for how in (True, None))
    for found, expected in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9)
