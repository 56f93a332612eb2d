"""Dense output against closed forms."""

import numpy as np
import pytest
import tensorflow as tf

import keras_ode
from keras_ode.solvers import SOLVERS
from tests.marks import graded, nightly
from tests.references import SOLVERS_OF_ANY_STATE

TIGHT = {"rtol": 1e-9, "atol": 1e-9, "jit_compile": False}
TIMES = np.array([0.0, 0.07, 0.5, 0.93, 1.7, 2.0])


def cosine(t, y):
    """From y(0) = 1, the solution is exp(sin t)."""
    return y * tf.cos(t)


def solve(**options):
    return keras_ode.solve(cosine, tf.constant([1.0], tf.float64), [0.0, 2.0], dense=True, **options)


# Quick: one of each kind of interpolant; the solvers' own tests have states inside steps of every one of them.
SLOW = ["dopri8", "vern9", "radau", "kvaerno5", "bdf", "ab3", "reversible", "auto"]


@pytest.mark.parametrize("name", graded(SOLVERS_OF_ANY_STATE, quick=["bosh3", "tsit5", "rk4", "rodas5p", "abm4"], slow_ones=SLOW))
def test_values_and_derivatives_of_every_solver_converge_to_the_closed_form(name):
    """Over 400 steps: the order of the method for values, of its interpolant for derivatives, at least one."""
    options = {"controller": "constant", "step_size": 0.005, "max_steps": 401}
    # Ten times the size of the step to the power of the order; cubic interpolation has order four.
    order = SOLVERS[name].order
    of_values, of_derivatives = 10 * 0.005 ** min(order, 4), 10 * 0.005 ** min(order, 3)
    if name == "bdf":  # whose order follows from its errors
        options, of_values, of_derivatives = {"rtol": 1e-9, "atol": 1e-9, "max_steps": 1000}, 1e-6, 1e-4
    solution = solve(solver=name, jit_compile=False, **options)
    exact = np.exp(np.sin(TIMES))
    np.testing.assert_allclose(solution.evaluate(TIMES)[:, 0], exact, atol=of_values)
    np.testing.assert_allclose(solution.derivative(TIMES)[:, 0], exact * np.cos(TIMES), atol=of_derivatives)


@pytest.mark.slow
@pytest.mark.parametrize(
    "adjoint, per_sample",
    [nightly("checkpointed", False), ("checkpointed", True), nightly("direct", True)],
)
def test_dense_output_and_its_gradients_are_those_of_the_closed_form(adjoint, per_sample):
    rate, start = tf.constant(1.5, tf.float64), tf.constant([[1.0], [2.0]], tf.float64)
    times, interval = tf.constant([0.5, 1.7], tf.float64), tf.constant([0.0, 2.0], tf.float64)
    options = {"dense": True, "max_steps": 100, "per_sample": per_sample, "adjoint": adjoint, **TIGHT}
    with tf.GradientTape() as tape:
        tape.watch((rate, start, times, interval))
        values = keras_ode.solve(lambda y: -rate * y, start, interval, **options).evaluate(times)
        loss = tf.reduce_sum(values)
    t = times.numpy()
    # The interpolant is of order four: less accurate than the steps.
    np.testing.assert_allclose(values[:, 0, 0], np.exp(-1.5 * t), rtol=1e-6)
    by_rate, by_start, by_times, by_interval = tape.gradient(loss, (rate, start, times, interval))
    np.testing.assert_allclose(by_interval, [4.5 * np.exp(-1.5 * t).sum(), 0], rtol=1e-6, atol=1e-3)
    np.testing.assert_allclose(by_rate, -3 * np.sum(t * np.exp(-1.5 * t)), rtol=1e-6)
    np.testing.assert_allclose(by_start, [[np.exp(-1.5 * t).sum()]] * 2, rtol=1e-6)
    np.testing.assert_allclose(by_times, -4.5 * np.exp(-1.5 * t), rtol=1e-4)


@pytest.mark.parametrize("adjoint, jit_compile", [("checkpointed", True), nightly("direct", False)])
@pytest.mark.slow
def test_dense_output_in_a_graph_has_values_and_gradients(adjoint, jit_compile):
    @tf.function(jit_compile=jit_compile)
    def run(start, t):
        with tf.GradientTape() as tape:
            tape.watch(start)
            solution = keras_ode.solve(cosine, start, [0.0, 2.0], dense=True, max_steps=20, adjoint=adjoint, rtol=1e-5, atol=1e-5)
            slope = solution.derivative(t)
        return solution.evaluate(t), slope, tape.gradient(slope, start)

    value, slope, gradient = run(tf.constant([1.0]), tf.constant(0.7))
    exact = np.exp(np.sin(0.7))
    np.testing.assert_allclose(value, [exact], rtol=1e-4)
    # A derivative loses an order of the interpolant.
    np.testing.assert_allclose(slope, [exact * np.cos(0.7)], rtol=1e-3)
    np.testing.assert_allclose(gradient, [exact * np.cos(0.7)], rtol=1e-3)


def test_rows_are_evaluated_at_times_of_their_own():
    start = tf.constant([[1.0], [2.0]], tf.float64)
    solution = keras_ode.solve(
        lambda y: -y, start, [[0.0, 2.0], [2.0, 1.0]], dense=True, max_steps=100, per_sample=True, **TIGHT
    )
    values = solution.evaluate([[0.5, 2.0], [1.5, 1.0]])[:, :, 0]
    np.testing.assert_allclose(values, [[np.exp(-0.5), 2 * np.exp(0.5)], [np.exp(-2), 2 * np.exp(1)]], rtol=1e-6)
    slopes = solution.derivative([[0.5, 2.0], [1.5, 1.0]])[:, :, 0]
    np.testing.assert_allclose(slopes, -values, rtol=1e-4)


@pytest.mark.parametrize("adjoint", ["checkpointed", "direct"])
@pytest.mark.slow
def test_row_over_no_time_is_evaluated_as_its_start(adjoint):
    start, times = tf.constant([[1.0], [2.0]], tf.float64), tf.constant([[0.5], [1.0]], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch((start, times))
        options = {"dense": True, "max_steps": 50, "per_sample": True, "adjoint": adjoint, **TIGHT}
        solution = keras_ode.solve(lambda y: -y, start, [[0.0, 1.0], [1.0, 1.0]], **options)
        values = solution.evaluate(times)
    np.testing.assert_allclose(values[0, :, 0], [np.exp(-0.5), 2], rtol=1e-6)
    by_start, by_times = tape.gradient(values, (start, times))
    np.testing.assert_allclose(by_start, [[np.exp(-0.5)], [1]], rtol=1e-6)
    # There is no other time at which that row could be evaluated: a derivative does not exist.
    np.testing.assert_allclose(by_times, [[-np.exp(-0.5)], [np.nan]], rtol=1e-4)
    np.testing.assert_array_equal(np.isnan(solution.evaluate([[0.5], [1.1]])[0, :, 0]), [False, True])


def test_dense_output_is_nan_outside_the_interval():
    solution = solve(max_steps=100, **TIGHT)
    outside = np.isnan(solution.evaluate([-0.1, 0.0, 2.0, 2.1])[:, 0])
    np.testing.assert_array_equal(outside, [True, False, False, True])


@pytest.mark.parametrize("times", [[0.7, 1.3], [1.3, 0.7], [0.2, 1.1]])
def test_ends_are_inside_the_interval_in_single_precision(times):
    """In which the last time, less the first, may be more than the duration by rounding, and the first one less than it was."""
    options = {"dense": True, "max_steps": 50, "rtol": 1e-5, "jit_compile": False}
    solution = keras_ode.solve(lambda y: -y, tf.constant([1.0]), times, **options)
    exact = [1.0, np.exp(times[0] - times[1])]
    for asked in (times, solution.ts):
        np.testing.assert_allclose(solution.evaluate(asked)[:, 0], exact, rtol=1e-4)
    beyond = np.array(times) + 1e-5 * np.sign(times[1] - times[0]) * np.array([-1, 1])
    assert np.isnan(solution.evaluate(beyond)).all()


def test_dense_output_of_a_failed_solve_ends_where_it_stopped():
    solution = keras_ode.solve(lambda y: y**2, tf.constant([1.0], tf.float64), [0.0, 2.0], dense=True, on_failure="nan", **TIGHT)
    np.testing.assert_allclose(solution.evaluate([0.5, 1.5])[:, 0], [2, np.nan], rtol=1e-6)


def test_evaluation_without_dense_output_says_how_to_ask_for_it():
    solution = keras_ode.solve(cosine, tf.constant([1.0], tf.float64), [0.0, 1.0], **TIGHT)
    with pytest.raises(ValueError, match="dense=True"):
        solution.evaluate(0.5)


@pytest.mark.parametrize("adjoint", ["backsolve", "interpolating"])
def test_adjoint_that_cannot_differentiate_dense_output_is_refused(adjoint):
    with pytest.raises(ValueError, match=f"adjoint='checkpointed' or 'direct'.*(?i:{adjoint})"):
        solve(adjoint=adjoint, **TIGHT)


@pytest.mark.parametrize("options", [{"jump_times": [0.5]}, {"event": keras_ode.Event(lambda y: y[0])}])
def test_dense_output_of_several_segments_is_refused(options):
    with pytest.raises(ValueError, match="one by one"):
        solve(**options, **TIGHT)


def test_many_times_are_evaluated_at_once():
    """Without a loop over them, and so without a call of its own for each in eager code."""
    solution = keras_ode.solve(lambda y: -y, tf.constant([1.0], tf.float64), [0.0, 2.0], dense=True, rtol=1e-8, max_steps=64, jit_compile=False)
    times = np.linspace(0, 2, 1000)
    evaluate = tf.function(lambda t: solution.evaluate(t)).get_concrete_function(tf.constant(times))
    assert not {op.type for op in evaluate.graph.get_operations()} & {"While", "StatelessWhile"}
    np.testing.assert_allclose(solution.evaluate(times)[:, 0], np.exp(-times), rtol=1e-5)
