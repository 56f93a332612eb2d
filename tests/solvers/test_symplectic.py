"""Symplectic methods: orders, conserved energy, reversibility and gradients against closed forms."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import ellipk

import keras_ode
from keras_ode import solvers
from tests.marks import nightly
from tests.references import SYMPLECTIC

START = (tf.constant([1.0], tf.float64), tf.constant([0.5], tf.float64))


def turning(t, y):
    """Turns `(q, p)` by the angle `t^2`: both derivatives depend on the time."""
    q, p = y
    return 2 * t * p, -2 * t * q


def turned(t):
    return np.cos(t**2) + 0.5 * np.sin(t**2), 0.5 * np.cos(t**2) - np.sin(t**2)


def pendulum(t, y):
    q, p = y
    return p, -tf.sin(q)


def solve(dynamics, y0, t, name, step_size, **options):
    options = {"jit_compile": False, "max_steps": 1000, **options}
    return keras_ode.solve(dynamics, y0, t, solver=name, step_size=step_size, **options)


@pytest.mark.parametrize("name", SYMPLECTIC)
def test_error_falls_with_the_order_of_the_method_as_steps_are_halved(name):
    errors = []
    for h in (0.025, 0.0125, 0.00625):
        ys = solve(turning, START, [0.0, 1.5], name, h).ys
        errors.append(np.hypot(*(float(leaf[-1, 0]) - exact for leaf, exact in zip(ys, turned(1.5), strict=True))))
    slopes = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.all(slopes >= solvers.get(name).order - 0.25), slopes


@pytest.mark.parametrize("name, each", [("semi_implicit_euler", 2), ("leapfrog", 3), ("yoshida4", 7)])
def test_evaluations_are_counted(name, each):
    stats = solve(turning, START, [0.0, 1.5], name, 0.025).stats
    assert int(stats["num_evaluations"]) == 1 + 60 * each


@pytest.mark.parametrize("name", ["leapfrog", nightly("yoshida4")])
@pytest.mark.slow
def test_error_of_the_energy_stays_bounded_over_ten_thousand_periods(name):
    first, last = energy_errors(name)
    assert last.max() < 1.01 * first.max() < 0.01


@pytest.mark.slow
def test_error_of_the_energy_of_a_method_that_is_not_symplectic_grows():
    first, last = energy_errors("rk4")
    assert last.min() > 50 * first.max()


def energy_errors(name, periods=10_000, steps=30):
    """Magnitudes of the errors of a pendulum's energy, in the first and in the last hundred periods."""
    size, within = 4 * ellipk(np.sin(0.5) ** 2) / steps, np.arange(0, 100 * steps + 1, 7)
    number = periods * steps
    times = size * np.concatenate([within, number - within[::-1]])
    start = (tf.constant(1.0, tf.float64), tf.constant(0.0, tf.float64))
    # XLA compiles it, since hundreds of thousands of steps would take a minute in a graph.
    q, p = solve(pendulum, start, times, name, size, max_steps=number + 1, jit_compile=True, adjoint="checkpointed").ys
    energy = p**2 / 2 - tf.cos(q)
    return np.split(np.abs(energy - energy[0]), 2)


@pytest.mark.parametrize("name", ["leapfrog", "yoshida4"])
def test_solve_is_reversible_in_time(name):
    there = solve(pendulum, START, [0.0, 10.0], name, 0.25).ys
    back = solve(pendulum, tuple(leaf[-1] for leaf in there), [10.0, 0.0], name, 0.25).ys
    for leaf, start in zip(back, START, strict=True):
        np.testing.assert_allclose(leaf[-1], start, rtol=1e-13)


@pytest.mark.parametrize("name", SYMPLECTIC)
def test_interpolant_is_as_accurate_as_the_steps(name):
    times, h, order = [0.0, 0.333, 0.777, 1.5], 0.01, solvers.get(name).order
    ys = solve(turning, START, times, name, h).ys
    for leaf, exact in zip(ys, turned(np.array(times)), strict=True):
        np.testing.assert_allclose(leaf[:, 0], exact, atol=10 * h**order)


def test_positions_and_momenta_of_a_dict_are_found_by_their_names():
    """Leaves of a dict come in the order of the names, momenta first."""
    of_tuple = solve(pendulum, START, [0.0, 1.0], "leapfrog", 0.1).ys

    def named(t, y):
        dq, dp = pendulum(t, (y["q"][0], y["p"]["all"]))
        return {"q": [dq], "p": {"all": dp}}

    of_dict = solve(named, {"q": [START[0]], "p": {"all": START[1]}}, [0.0, 1.0], "leapfrog", 0.1).ys
    np.testing.assert_array_equal(of_dict["q"][0], of_tuple[0])
    np.testing.assert_array_equal(of_dict["p"]["all"], of_tuple[1])


@pytest.mark.parametrize(
    "y0", [START[0], START + START, {"x": START[0], "v": START[1]}, (START[0], ())], ids=["tensor", "three", "names", "empty"]
)
def test_state_that_is_not_of_two_parts_is_refused(y0):
    with pytest.raises(ValueError, match=r"Leapfrog needs a state of two parts.*Received: y0 of the shapes"):
        solve(lambda t, y: y, y0, [0.0, 1.0], "leapfrog", 0.1)


def of_an_energy(t, y):
    """The pendulum's by automatic differentiation of its energy."""
    q, p = y
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(y)
        energy = tf.reduce_sum(p**2 / 2) - tf.reduce_sum(tf.cos(q))
    by_q, by_p = tape.gradient(energy, y)
    return by_p, -by_q


@tf.function
def traced(q, p):
    return p + tf.zeros_like(q), -tf.sin(q)


@pytest.mark.parametrize("dynamics", [pendulum, turning, of_an_energy, lambda t, y: traced(*y)])
def test_dynamics_of_the_right_form_raises_no_warning(dynamics):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solve(dynamics, START, [0.0, 0.1], "leapfrog", 0.1)


@pytest.mark.parametrize(
    "dynamics, part",
    [
        (lambda t, y: (y[1], -y[0] - 0.1 * y[1]), "p"),
        (lambda t, y: (y[0] * y[1], -y[0]), "q"),
        (lambda t, y: traced(y[0] + y[1], y[1]), "p"),
    ],
)
def test_dynamics_of_another_form_raises_a_warning(dynamics, part):
    with pytest.warns(UserWarning, match=f"Leapfrog is for dynamics where the derivative of {part} depends on"):
        solve(dynamics, START, [0.0, 0.1], "leapfrog", 0.1)


def test_solver_that_was_not_bound_says_so():
    with pytest.raises(ValueError, match=r"Leapfrog does not know which leaves.*solver.bind"):
        solvers.get("leapfrog").step(None, None, START, None)


def test_solvers_for_states_of_other_parts_are_not_equal():
    solver = solvers.get("leapfrog")
    bound = [solver, solver.bind(START), solver.bind((START, START[0])), solver.bind({"q": START[0], "p": START[1]})]
    assert len(set(bound)) == 4
    assert solver.bind(START) == bound[1]
    assert solver.from_config(bound[1].get_config()) == bound[1]


def test_rows_are_those_of_solving_them_alone():
    y0, times = tuple(tf.constant([[1.0], [-0.5]], tf.float64) * x for x in START), [[0.0, 1.5], [1.0, 0.2]]
    both = solve(turning, y0, times, "yoshida4", 0.1, per_sample=True)
    for i, row in enumerate(times):
        alone = solve(turning, tuple(leaf[i] for leaf in y0), row, "yoshida4", 0.1)
        for leaf, expected in zip(both.ys, alone.ys, strict=True):
            np.testing.assert_allclose(leaf[:, i], expected, rtol=1e-14)


def gradients(adjoint, name="leapfrog", jit_compile=False):
    """By the start and the frequency of `q' = p`, `p' = -w^2 q`, of a sum of states."""
    frequency, (q, p) = tf.constant(1.3, tf.float64), START

    def run(q, p, frequency):
        with tf.GradientTape() as tape:
            tape.watch((q, p, frequency))
            qs, ps = keras_ode.odeint(
                lambda t, y: (y[1], -(frequency**2) * y[0]),
                (q, p),
                [0.0, 0.505, 2.0],
                solver=name,
                step_size=0.02,
                max_steps=110,
                adjoint=adjoint,
                jit_compile="auto" if jit_compile else False,
            )
            loss = tf.reduce_sum(qs[1:] + 2 * ps[1:])
        return tape.gradient(loss, (q, p, frequency))

    run = tf.function(run, jit_compile=True) if jit_compile else run
    return [g.numpy() for g in run(q, p, frequency)]


def exact_gradients():
    """By the propagator `[[cos, sin / w], [-w sin, cos]]` of `w t`; by the frequency with a complex step."""
    t, weights = np.array([0.505, 2.0]), np.array([1.0, 2.0])

    def loss(q, p, w):
        return weights[0] * (np.cos(w * t) * q + np.sin(w * t) / w * p) + weights[1] * (np.cos(w * t) * p - w * np.sin(w * t) * q)

    return [[loss(1, 0, 1.3).sum()], [loss(0, 1, 1.3).sum()], loss(1.0, 0.5, 1.3 + 1e-30j).sum().imag / 1e-30]


@pytest.mark.parametrize("name", ["semi_implicit_euler", nightly("yoshida4")])
@pytest.mark.slow
def test_gradient_of_the_steps_is_that_of_plain_differentiation(name):
    expected = gradients("direct", name)
    for adjoint in ("checkpointed", "reversible"):
        for a, b in zip(gradients(adjoint, name), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(
    "adjoint, jit_compile",
    [nightly("checkpointed", True), ("interpolating", False), nightly("backsolve", False)],
    ids=lambda x: str(x),
)
def test_gradient_is_that_of_the_closed_form(adjoint, jit_compile):
    for a, b in zip(gradients(adjoint, "yoshida4", jit_compile), exact_gradients(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_penalty_is_integrated_along():
    """The kinetic penalty of the turning state is the integral of `4 t^2 (q^2 + p^2)`."""
    layer = keras_ode.ODELayer(
        turning, t=(0.0, 1.5), solver="leapfrog", step_size=0.01, regularizer=keras_ode.regularizers.Kinetic(weight=1.0),
        jit_compile=False, dtype="float64",
    )  # fmt: skip
    layer(tuple(leaf[None] for leaf in START), training=True)
    np.testing.assert_allclose(keras.ops.sum(layer.losses), 4 / 3 * 1.5**3 * 1.25, rtol=1e-4)
