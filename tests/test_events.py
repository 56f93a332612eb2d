"""Events against closed forms."""

import numpy as np
import pytest
import tensorflow as tf

import keras_ode
from tests.references import Counting

TIGHT = {"rtol": 1e-9, "atol": 1e-9, "jit_compile": False}
ONE = tf.constant([1.0], tf.float64)


def decay(t, y):
    return -y


def test_time_of_an_event_and_its_derivatives_are_those_of_the_closed_form():
    level, rate, start = tf.Variable(0.5, dtype=tf.float64), tf.Variable(1.0, dtype=tf.float64), tf.constant([2.0], tf.float64)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(start)
        event = keras_ode.Event(lambda t, y: y[0] - level)
        solution = keras_ode.solve(lambda y: -rate * y, start, [0.0, 3.0], event=event, **TIGHT)
        time, state = solution.event_time, solution.event_state
    # y0 exp(-k t) = c: t = ln(y0 / c) / k, dt/dy0 = 1 / y0, dt/dc = -1 / c, dt/dk = -t; and the state there is c.
    assert float(time) == pytest.approx(np.log(4), abs=1e-7)
    np.testing.assert_allclose(tape.gradient(time, start), [0.5], rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(time, level), -2.0, rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(time, rate), -np.log(4), rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(state, level), 1.0, rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(state, start), [0.0], atol=1e-6)
    np.testing.assert_allclose(tape.gradient(state, rate), 0.0, atol=1e-6)
    assert int(solution.status) == keras_ode.Status.EVENT


ADJOINTS = pytest.mark.parametrize("adjoint", ["interpolating", "backsolve", "checkpointed", "direct"])


@ADJOINTS
def test_rows_have_their_own_events_and_gradients(adjoint):
    level, start = tf.Variable(0.5, dtype=tf.float64), tf.constant([[1.0], [2.0], [0.1]], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(start)
        event = keras_ode.Event(lambda t, y: y[:, 0] - level)
        solution = keras_ode.solve(decay, start, [0.0, 1.0, 3.0], event=event, per_sample=True, adjoint=adjoint, **TIGHT)
        time = tf.reduce_sum(tf.boolean_mask(solution.event_time, solution.status == keras_ode.Status.EVENT))
    by_start, by_level = tape.gradient(time, (start, level))
    np.testing.assert_allclose(by_start, [[1], [0.5], [0]], rtol=1e-6)
    np.testing.assert_allclose(by_level, -4, rtol=1e-6)
    np.testing.assert_allclose(solution.event_time, [np.log(2), np.log(4), np.nan], rtol=1e-7)
    expected = [[1, 2, 0.1], [np.nan, 2 * np.exp(-1), 0.1 * np.exp(-1)], [np.nan, np.nan, 0.1 * np.exp(-3)]]
    np.testing.assert_allclose(solution.ys[:, :, 0], expected, rtol=1e-7)


def test_earliest_of_several_events_wins():
    low, high = tf.Variable(0.3, dtype=tf.float64), tf.Variable(0.6, dtype=tf.float64)
    with tf.GradientTape() as tape:
        events = [keras_ode.Event(lambda t, y: y[0] - low), keras_ode.Event(lambda t, y: y[0] - high)]
        time = keras_ode.solve(decay, ONE, [0.0, 3.0], event=events, **TIGHT).event_time
    assert float(time) == pytest.approx(-np.log(0.6), abs=1e-7)
    np.testing.assert_allclose(tape.gradient(time, (low, high)), [0, -1 / 0.6], rtol=1e-6)


def test_event_in_backward_time_is_found():
    start = tf.constant([1.0], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(start)
        solution = keras_ode.solve(decay, start, [3.0, 2.5, 0.0], event=keras_ode.Event(lambda y: y[0] - 2), **TIGHT)
        time = solution.event_time
    # y0 exp(3 - t) = 2, and the state before it is saved.
    assert float(time) == pytest.approx(3 - np.log(2), abs=1e-8)
    np.testing.assert_allclose(tape.gradient(time, start), [1.0], rtol=1e-6)
    np.testing.assert_allclose(solution.ys[:, 0], [1, np.exp(0.5), np.nan], rtol=1e-7)


def test_event_that_repeats_is_noted_every_time_and_the_solve_goes_on():
    start = tf.constant([1.0, 0.0], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(start)
        event = keras_ode.Event(lambda y: y[0], terminal=False, max_events=4)
        solution = keras_ode.solve(lambda y: tf.stack([y[1], -y[0]]), start, [0.0, 5.0, 10.0], event=event, **TIGHT)
        time = solution.event_time[2]
    np.testing.assert_allclose(solution.event_time, np.pi * np.array([0.5, 1.5, 2.5, np.nan]), rtol=1e-7)
    np.testing.assert_allclose(solution.event_state[:, 1], [-1, 1, -1, np.nan], rtol=1e-7)
    np.testing.assert_allclose(solution.ys[:, 0], np.cos([0, 5, 10]), atol=1e-7)
    # a cos t + b sin t = 0 at t = arctan2(b, a) + pi / 2 + n pi: dt/db = 1 / a.
    np.testing.assert_allclose(tape.gradient(time, start), [0, 1], atol=1e-6)
    assert int(solution.status) == keras_ode.Status.SUCCESS


def test_evaluations_to_find_the_event_are_counted():
    dynamics = Counting(decay)
    solution = keras_ode.solve(dynamics, ONE, [0.0, 3.0], event=keras_ode.Event(lambda y: y[0] - 0.5), **TIGHT)
    assert int(solution.stats["num_evaluations"]) == dynamics.take()


@pytest.mark.parametrize("jit_compile", [False, True])
def test_single_precision_event_in_a_graph_is_that_of_the_closed_form(jit_compile):
    @tf.function(jit_compile=jit_compile)
    def run(start, level):
        with tf.GradientTape() as tape:
            tape.watch((start, level))
            event = keras_ode.Event(lambda y: y[0] - level)
            time = keras_ode.solve(decay, start, [0.0, 3.0], event=event, rtol=1e-5, atol=1e-5).event_time
        return time, tape.gradient(time, (start, level))

    time, gradients = run(tf.constant([2.0]), tf.constant(0.5))
    np.testing.assert_allclose(time, np.log(4), rtol=1e-5)
    np.testing.assert_allclose(tf.concat([gradients[0], gradients[1][None]], axis=0), [0.5, -2], rtol=1e-5)


def test_solve_with_an_event_can_be_compiled_alone():
    start = tf.constant([2.0])
    with tf.GradientTape() as tape:
        tape.watch(start)
        event = keras_ode.Event(lambda y: y[0] - 0.5)
        time = keras_ode.solve(decay, start, [0.0, 3.0], event=event, rtol=1e-5, atol=1e-5, jit_compile=True).event_time
    np.testing.assert_allclose(tape.gradient(time, start), [0.5], rtol=1e-4)


@pytest.mark.parametrize(("direction", "expected"), [(1, 1.5 * np.pi), (-1, 0.5 * np.pi), (0, 0.5 * np.pi)])
def test_direction_chooses_among_roots(direction, expected):
    event = keras_ode.Event(lambda t, y: y[0], direction=direction)
    start = tf.constant([1.0, 0.0], tf.float64)  # cos t
    solution = keras_ode.solve(lambda y: tf.stack([y[1], -y[0]]), start, [0.0, 6.0], event=event, **TIGHT)
    assert float(solution.event_time) == pytest.approx(expected, abs=1e-6)


def test_event_that_is_true_at_the_start_ends_the_solve_there():
    solution = keras_ode.solve(decay, ONE, [0.0, 1.0], event=keras_ode.Event(lambda t, y: y[0] - 1), **TIGHT)
    assert float(solution.event_time) == 0
    assert int(solution.status) == keras_ode.Status.EVENT


def ball(height, bounciness, end, g=9.81):
    """The height of a ball that is dropped."""
    time, speed = np.sqrt(2 * height / g), np.sqrt(2 * height * g)
    while True:
        speed *= bounciness
        if time + 2 * speed / g > end:
            return speed * (end - time) - g * (end - time) ** 2 / 2
        time += 2 * speed / g


def bounce(start, bounciness, **options):
    """The height at 1.5, and its derivatives by the start and by the bounciness."""
    with tf.GradientTape() as tape:
        tape.watch((start, bounciness))
        reset = lambda y: tf.stack([0 * y[0], -bounciness * y[1]])
        event = keras_ode.Event(lambda y: y[0], direction=-1, reset=reset, max_events=4)
        fall = lambda y: tf.stack([y[1], -9.81 + 0 * y[1]])
        height = keras_ode.solve(fall, start, [0.0, 1.0, 1.5], event=event, max_steps=64, **options).ys[-1, 0]
    by_start, by_bounciness = tape.gradient(height, (start, bounciness))
    return height, by_start[0], by_bounciness


def bounce_in_closed_form(step=1e-6):
    by_height = (ball(1 + step, 0.8, 1.5) - ball(1 - step, 0.8, 1.5)) / (2 * step)
    by_bounciness = (ball(1, 0.8 + step, 1.5) - ball(1, 0.8 - step, 1.5)) / (2 * step)
    return ball(1, 0.8, 1.5), by_height, by_bounciness


@ADJOINTS
def test_bouncing_ball_and_its_gradient_are_those_of_the_closed_form(adjoint):
    found = bounce(tf.constant([1.0, 0.0], tf.float64), tf.constant(0.8, tf.float64), adjoint=adjoint, **TIGHT)
    np.testing.assert_allclose(found, bounce_in_closed_form(), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True])
def test_bouncing_ball_in_a_graph_in_single_precision_is_that_of_the_closed_form(jit_compile):
    run = tf.function(lambda *inputs: bounce(*inputs, rtol=1e-5, atol=1e-5), jit_compile=jit_compile)
    np.testing.assert_allclose(run(tf.constant([1.0, 0.0]), tf.constant(0.8)), bounce_in_closed_form(), rtol=1e-3)
