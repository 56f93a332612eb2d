"""Events, jumps and dense output against closed forms."""

import numpy as np
import pytest
import tensorflow as tf

import keras_ode

TIGHT = {"rtol": 1e-9, "atol": 1e-9, "jit_compile": False}
ONE = tf.constant([1.0], tf.float64)


def decay(t, y):
    return -y


def test_time_of_an_event_and_its_derivatives_are_those_of_the_closed_form():
    level, start = tf.Variable(0.5, dtype=tf.float64), tf.constant([2.0], tf.float64)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(start)
        event = keras_ode.Event(lambda t, y: y[0] - level)
        solution = keras_ode.solve(decay, start, [0.0, 3.0], event=event, **TIGHT)
        time, state = solution.event_time, solution.event_state
    # y0 exp(-t) = c: t = ln(y0 / c), dt/dy0 = 1 / y0, dt/dc = -1 / c; and the state there is c.
    assert float(time) == pytest.approx(np.log(4), abs=1e-7)
    np.testing.assert_allclose(tape.gradient(time, start), [0.5], rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(time, level), -2.0, rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(state, level), 1.0, rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(state, start), [0.0], atol=1e-6)
    assert int(solution.status) == keras_ode.Status.EVENT


def test_rows_have_their_own_events():
    start = tf.constant([[1.0], [2.0], [0.1]], tf.float64)
    event = keras_ode.Event(lambda t, y: y[:, 0] - 0.5)
    solution = keras_ode.solve(decay, start, [0.0, 1.0, 3.0], event=event, per_sample=True, **TIGHT)
    np.testing.assert_allclose(solution.event_time, [np.log(2), np.log(4), np.nan], rtol=1e-7)
    expected = [[1, 2, 0.1], [np.nan, 2 * np.exp(-1), 0.1 * np.exp(-1)], [np.nan, np.nan, 0.1 * np.exp(-3)]]
    np.testing.assert_allclose(solution.ys[:, :, 0], expected, rtol=1e-7)


def test_earliest_of_several_events_wins():
    events = [keras_ode.Event(lambda t, y: y[0] - 0.3), keras_ode.Event(lambda t, y: y[0] - 0.6)]
    solution = keras_ode.solve(decay, ONE, [0.0, 3.0], event=events, **TIGHT)
    assert float(solution.event_time) == pytest.approx(-np.log(0.6), abs=1e-7)


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


def test_bouncing_ball_and_its_gradient_are_those_of_the_closed_form():
    bounciness, start = tf.constant(0.8, tf.float64), tf.constant([1.0, 0.0], tf.float64)
    event = keras_ode.Event(
        lambda y: y[0], direction=-1, reset=lambda y: tf.stack([0 * y[0], -bounciness * y[1]]), max_events=4
    )
    with tf.GradientTape() as tape:
        tape.watch((start, bounciness))
        solution = keras_ode.solve(lambda y: tf.stack([y[1], -9.81 + 0 * y[1]]), start, [0.0, 1.0, 1.5], event=event, **TIGHT)
        height = solution.ys[-1, 0]
    by_start, by_bounciness = tape.gradient(height, (start, bounciness))
    step = 1e-6
    assert float(height) == pytest.approx(ball(1, 0.8, 1.5), abs=1e-6)
    expected = (ball(1 + step, 0.8, 1.5) - ball(1 - step, 0.8, 1.5)) / (2 * step)
    assert float(by_start[0]) == pytest.approx(expected, rel=1e-5)
    expected = (ball(1, 0.8 + step, 1.5) - ball(1, 0.8 - step, 1.5)) / (2 * step)
    assert float(by_bounciness) == pytest.approx(expected, rel=1e-5)


def test_solution_through_jumps_is_that_of_the_closed_form():
    def kicked(t, y):
        return -3 * y + tf.cast(tf.where((t > 0.3) & (t < 0.7), 10.0, 0.0), tf.float64)

    landed = keras_ode.solve(kicked, ONE, [0.0, 1.0], jump_times=[0.7, 0.3], **TIGHT)
    middle = np.exp(-0.9)
    middle = 10 / 3 + (middle - 10 / 3) * np.exp(-1.2)
    np.testing.assert_allclose(landed.ys[-1], [middle * np.exp(-0.9)], rtol=1e-6)


@pytest.mark.parametrize("adjoint", ["checkpointed", "direct"])
@pytest.mark.parametrize("per_sample", [False, True])
def test_dense_output_and_its_gradients_are_those_of_the_closed_form(adjoint, per_sample):
    rate, start = tf.constant(1.5, tf.float64), tf.constant([[1.0], [2.0]], tf.float64)
    times = tf.constant([0.5, 1.7], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch((rate, start, times))
        solution = keras_ode.solve(
            lambda y: -rate * y, start, [0.0, 2.0], dense=True, max_steps=100, per_sample=per_sample, adjoint=adjoint, **TIGHT
        )
        values = solution.evaluate(times)
        loss = tf.reduce_sum(values)
    t = times.numpy()
    # The interpolant is of order four: less accurate than the steps.
    np.testing.assert_allclose(values[:, 0, 0], np.exp(-1.5 * t), rtol=1e-6)
    by_rate, by_start, by_times = tape.gradient(loss, (rate, start, times))
    np.testing.assert_allclose(by_rate, -3 * np.sum(t * np.exp(-1.5 * t)), rtol=1e-6)
    np.testing.assert_allclose(by_start, [[np.exp(-1.5 * t).sum()]] * 2, rtol=1e-6)
    np.testing.assert_allclose(by_times, -4.5 * np.exp(-1.5 * t), rtol=1e-4)


def test_dense_output_is_nan_outside_the_interval():
    solution = keras_ode.solve(decay, ONE, [0.0, 1.0], dense=True, max_steps=100, **TIGHT)
    np.testing.assert_array_equal(np.isnan(solution.evaluate([-0.1, 0.0, 1.0, 1.1])[:, 0]), [True, False, False, True])


def test_adjoint_that_cannot_differentiate_dense_output_is_refused():
    with pytest.raises(ValueError, match="checkpointed.*backsolve|backsolve|Backsolve"):
        keras_ode.solve(decay, ONE, [0.0, 1.0], dense=True, adjoint="backsolve", **TIGHT)


def test_stiffness_is_the_spectral_radius_of_a_linear_field():
    solution = keras_ode.solve(lambda y: -40 * y, ONE, [0.0, 1.0], rtol=1e-6, atol=1e-6, jit_compile=False)
    assert float(solution.stats["stiffness"]) == pytest.approx(40, rel=0.01)


def test_tolerance_finer_than_the_dtype_warns():
    with pytest.warns(UserWarning, match="1e-12.*float32"):
        keras_ode.solve(decay, tf.constant([1.0]), [0.0, 0.1], rtol=1e-12, atol=1e-12, jit_compile=False, on_failure="nan", max_steps=5)
