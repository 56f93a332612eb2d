"""Adams' multistep methods: their coefficients, orders, evaluations and gradients against closed forms."""

from fractions import Fraction

import numpy as np
import pytest
import tensorflow as tf

import keras_ode
from keras_ode.solvers.adams import coefficients
from tests.marks import graded, nightly
from tests.references import ADAMS, cosine

# One of each kind: with an even and an odd order, each with its own method for the first steps.
SOME = ("ab3", "abm5")


def solve(name, t, step_size, start=1.0, **options):
    options = {"dynamics": cosine, "jit_compile": False, "max_steps": 1000, **options}
    return keras_ode.solve(y0=tf.constant([start], tf.float64), t=t, solver=name, step_size=step_size, **options)


@pytest.mark.parametrize(
    "nodes, numerators, denominator",
    [
        ([0, -1], [3, -1], 2),
        ([0, -1, -2, -3], [55, -59, 37, -9], 24),
        ([0, -1, -2, -3, -4], [1901, -2774, 2616, -1274, 251], 720),
        ([1, 0], [1, 1], 2),
        ([1, 0, -1, -2], [9, 19, -5, 1], 24),
        ([1, 0, -1, -2, -3], [251, 646, -264, 106, -19], 720),
    ],
)
def test_coefficients_are_the_published_ones(nodes, numerators, denominator):
    assert list(coefficients(nodes)) == [Fraction(n, denominator) for n in numerators]


# The coefficients of all are checked in exact arithmetic.
@pytest.mark.parametrize("name", graded(ADAMS, quick=["ab3", "ab5", "abm4"]))
def test_error_falls_with_the_order_of_the_method_as_steps_are_halved(name):
    sizes = [0.05, 0.025, 0.0125]
    errors = [abs(float(solve(name, [0.0, 2.0], h).ys[-1, 0]) - np.exp(np.sin(2))) for h in sizes]
    slopes = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.all(slopes >= keras_ode.solvers.get(name).order - 0.25), slopes


@pytest.mark.parametrize("name, first, other", [("ab2", 4, 1), ("ab4", 4, 1), ("abm4", 4, 2), ("ab5", 6, 1)])
def test_step_takes_one_evaluation_or_two_after_the_start(name, first, other):
    solution, before = solve(name, [0.0, 2.0], 0.125), keras_ode.solvers.get(name).order - 1
    assert int(solution.stats["num_steps"]) == 16
    assert int(solution.stats["num_evaluations"]) == 1 + first * before + other * (16 - before)


@pytest.mark.parametrize("name", SOME)
def test_last_step_that_is_shorter_keeps_the_accuracy(name):
    """The interval is two thirds of a step longer than whole steps."""
    h, order = 0.01, keras_ode.solvers.get(name).order
    end = 2 + h * 2 / 3
    solution = solve(name, [0.0, end], h)
    assert int(solution.stats["num_accepted"]) == 201
    np.testing.assert_allclose(solution.ys[-1, 0], np.exp(np.sin(end)), rtol=10 * h**order)


@pytest.mark.parametrize("name", SOME)
def test_solve_goes_backward_in_time(name):
    h, order = 0.01, keras_ode.solvers.get(name).order
    back = solve(name, [2.0, 0.005], h, start=np.exp(np.sin(2.0)))
    np.testing.assert_allclose(back.ys[-1, 0], np.exp(np.sin(0.005)), rtol=10 * h**order)


@pytest.mark.parametrize("far", [0.0, 1e4])
def test_times_far_from_zero_do_not_break_up_the_history(far):
    """Rounding of the times in single precision must not make every step one of the first kind."""
    y0, dynamics = tf.constant([1.0]), lambda t, y: -y
    solution = keras_ode.solve(dynamics, y0, [far, far + 8.0], solver="ab4", step_size=0.01, jit_compile=False)
    assert int(solution.stats["num_steps"]) == 800
    assert int(solution.stats["num_evaluations"]) <= 1 + 4 * 4 + 796
    np.testing.assert_allclose(solution.ys[-1], [np.exp(-8.0)], rtol=1e-3)


@pytest.mark.slow
def test_rows_have_histories_of_their_own():
    """Rows of other sizes, directions and numbers of steps are as if they were solved alone, with their gradients."""
    start, times = np.array([[1.0], [-2.0], [0.5]]), [[0.0, 1.0], [1.0, 0.2], [0.0, 0.55]]
    sizes, rate = [0.1, 0.15, 0.05], tf.constant(1.5, tf.float64)

    def run(y0, t, step_size, **options):
        options |= {"solver": "abm4", "adjoint": "checkpointed", "max_steps": 20, "jit_compile": False}
        with tf.GradientTape() as tape:
            tape.watch((y0, rate))
            solution = keras_ode.solve(lambda t, y: rate * y * tf.cos(t), y0, t, step_size=step_size, **options)
            loss = tf.reduce_sum(solution.ys[-1])
        return solution, *tape.gradient(loss, (y0, rate))

    together, by_start, by_rate = run(tf.constant(start), times, sizes, per_sample=True)
    alone = [run(tf.constant(y), t, h) for y, t, h in zip(start, times, sizes, strict=True)]
    np.testing.assert_allclose(together.ys[-1], [solution.ys[-1] for solution, *_ in alone], rtol=1e-14)
    np.testing.assert_allclose(by_start, [y for _, y, _ in alone], rtol=1e-12)
    np.testing.assert_allclose(by_rate, sum(k for *_, k in alone), rtol=1e-12)
    counts = [int(solution.stats["num_evaluations"]) for solution, *_ in alone]
    assert together.stats["num_evaluations"].numpy().tolist() == counts


def gradients(name, adjoint, times, step_size=0.01, jit_compile=False, **options):
    """By the start, the rate and the times, of the sum of the states of `y' = k y cos t` at all times but the first."""
    start, rate, times = tf.constant([1.2], tf.float64), tf.constant(1.5, tf.float64), tf.constant(times, tf.float64)

    def run(start, rate, times):
        with tf.GradientTape() as tape:
            tape.watch((start, rate, times))
            ys = keras_ode.odeint(
                lambda t, y: rate * y * tf.cos(t), start, times, solver=name, step_size=step_size, adjoint=adjoint, **options
            )
            loss = tf.reduce_sum(ys[1:])
        return tape.gradient(loss, (start, rate, times))

    run = tf.function(run, jit_compile=True) if jit_compile else run
    return [g.numpy() for g in run(start, rate, times)]


def exact_gradients(times):
    """Those in closed form: the solution is `1.2 exp(1.5 (sin t - sin t0))`."""
    t = np.array(times)
    phase = np.sin(t) - np.sin(t[0])
    y = 1.2 * np.exp(1.5 * phase)
    by_times = 1.5 * y * np.cos(t)
    by_times[0] = -1.5 * np.cos(t[0]) * y[1:].sum()
    return [[y[1:].sum() / 1.2], (phase * y)[1:].sum(), by_times]


TIMES = [0.0, 0.333, 0.5, 1.1055]


@pytest.mark.parametrize("name", [SOME[0], nightly(SOME[1])])
@pytest.mark.slow
def test_gradient_of_the_steps_is_that_of_plain_differentiation(name):
    """With so few checkpoints that steps are taken again in the middle of a history, and a last step that is shorter."""
    few = keras_ode.adjoints.Checkpointed(checkpoints=8)
    found = gradients(name, few, TIMES, max_steps=200)
    for a, b in zip(found[:2], gradients(name, "direct", TIMES, max_steps=200), strict=False):
        np.testing.assert_allclose(a, b, rtol=1e-10)
    for a, b in zip(found, exact_gradients(TIMES), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)


@pytest.mark.parametrize("adjoint", ["interpolating", "backsolve"])
@pytest.mark.slow
def test_gradient_of_the_equation_is_that_of_the_closed_form(adjoint):
    for a, b in zip(gradients("abm4", adjoint, TIMES, max_steps=200), exact_gradients(TIMES), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.slow
def test_gradient_works_under_xla():
    times = [0.0, 0.333, 1.1055]
    found = gradients("ab4", "checkpointed", times, jit_compile=True, max_steps=200)
    for a, b in zip(found, exact_gradients(times), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_adjoint_equation_is_not_solved_by_a_method_with_a_history():
    with pytest.raises(ValueError, match="AB4 cannot integrate adjoint equations.*Received: adjoint=Interpolating"):
        solve("rk4", [0.0, 1.0], 0.1, adjoint=keras_ode.adjoints.Interpolating(solver="ab4"))
