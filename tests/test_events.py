"""Events against closed forms."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.optimize
import tensorflow as tf

import keras_ode
from keras_ode import Status
from tests.gradients import quick
from tests.marks import nightly, slow
from tests.references import Counting

TIGHT = {"rtol": 1e-9, "atol": 1e-9, "jit_compile": False}
ONE = tf.constant([1.0], tf.float64)


def decay(t, y):
    return -y


def decay_to_a_level(start, level, rate, times, of):
    """The solution that ends at a level, and the gradients of `of(solution)` by the start, the level and the rate; one trace.

    A tape that lasts for several gradients would have TensorFlow trace the solve again, for derivatives of higher order.
    """
    start, level, rate = tf.constant([start], tf.float64), *(tf.Variable(x, dtype=tf.float64) for x in (level, rate))
    with tf.GradientTape() as tape:
        tape.watch(start)
        event = keras_ode.Event(lambda t, y: y[0] - level)
        solution = keras_ode.solve(lambda y: -rate * y, start, times, event=event, **TIGHT)
        value = of(solution)
    return solution, tape.gradient(value, (start, level, rate))


@pytest.mark.slow
def test_time_of_an_event_and_its_derivatives_are_those_of_the_closed_form():
    inputs = 2.0, 0.5, 1.0, [0.0, 1.0, 3.0]
    solution, of_time = decay_to_a_level(*inputs, lambda solution: solution.event_time)
    _, of_state = decay_to_a_level(*inputs, lambda solution: solution.event_state)
    # y0 exp(-k t) = c: t = ln(y0 / c) / k, dt/dy0 = 1 / y0, dt/dc = -1 / c, dt/dk = -t; and the state there is c.
    assert float(solution.event_time) == pytest.approx(np.log(4), abs=1e-7)
    np.testing.assert_allclose(tf.concat([of_time[0], of_time[1:]], 0), [0.5, -2.0, -np.log(4)], rtol=1e-6)
    np.testing.assert_allclose(tf.concat([of_state[0], of_state[1:]], 0), [0.0, 1.0, 0.0], rtol=1e-6, atol=1e-6)
    assert int(solution.status) == keras_ode.Status.EVENT


@pytest.mark.slow
def test_second_derivative_of_the_time_of_an_event_is_nan_and_not_a_part_of_it():
    start = tf.constant([2.0], tf.float64)
    with tf.GradientTape() as outer:
        outer.watch(start)
        with tf.GradientTape() as tape:
            tape.watch(start)
            options = {"event": keras_ode.Event(lambda y: y[0] - 0.5), "adjoint": "direct", "max_steps": 32, **TIGHT}
            time = keras_ode.solve(decay, start, [0.0, 3.0], **options).event_time
        gradient = tape.gradient(time, start)
    np.testing.assert_allclose(gradient, [0.5], rtol=1e-6)
    assert np.isnan(outer.gradient(gradient, start)).all()


# The second derivatives above are of "direct", the bouncing ball below is of "checkpointed", and "backsolve" is of one kind
# with "interpolating".
@pytest.mark.parametrize("adjoint", quick("interpolating", "direct", slow_ones=[]))
@pytest.mark.slow
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


@pytest.mark.slow
def test_earliest_of_several_events_wins():
    low, high = tf.Variable(0.3, dtype=tf.float64), tf.Variable(0.6, dtype=tf.float64)
    with tf.GradientTape() as tape:
        events = [keras_ode.Event(lambda t, y: y[0] - low), keras_ode.Event(lambda t, y: y[0] - high)]
        time = keras_ode.solve(decay, ONE, [0.0, 3.0], event=events, **TIGHT).event_time
    assert float(time) == pytest.approx(-np.log(0.6), abs=1e-7)
    np.testing.assert_allclose(tape.gradient(time, (low, high)), [0, -1 / 0.6], rtol=1e-6)


@pytest.mark.slow
def test_rows_tell_which_event_happened():
    events = [keras_ode.Event(lambda y: y[:, 0] - 0.3), keras_ode.Event(lambda y: y[:, 0] - 0.6)]
    start = tf.constant([[1.0], [0.5], [0.1]], tf.float64)
    solution = keras_ode.solve(decay, start, [0.0, 3.0], event=events, per_sample=True, **TIGHT)
    np.testing.assert_array_equal(solution.event_index, [1, 0, -1])
    np.testing.assert_allclose(solution.event_time, [-np.log(0.6), -np.log(0.6), np.nan], rtol=1e-7)


def test_event_in_backward_time_is_found():
    solution, (by_start, *_) = decay_to_a_level(1.0, 2.0, 1.0, [3.0, 2.5, 0.0], lambda solution: solution.event_time)
    # y0 exp(3 - t) = 2, and the state before it is saved.
    assert float(solution.event_time) == pytest.approx(3 - np.log(2), abs=1e-8)
    np.testing.assert_allclose(by_start, [1.0], rtol=1e-6)
    np.testing.assert_allclose(solution.ys[:, 0], [1, np.exp(0.5), np.nan], rtol=1e-7)


@pytest.mark.slow
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


@pytest.mark.slow
def test_evaluations_to_find_the_event_are_counted():
    """Under XLA, for which the other tests of events that compile are slow."""
    dynamics = Counting(decay)
    options = {"event": keras_ode.Event(lambda y: y[0] - 0.5), "solver": "bosh3", "jit_compile": True}
    solution = keras_ode.solve(dynamics, ONE, [0.0, 3.0], **options)
    assert int(solution.stats["num_evaluations"]) == dynamics.take()


@pytest.mark.parametrize("jit_compile", [nightly(False), True])
@pytest.mark.slow
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


@pytest.mark.slow
def test_solve_with_an_event_can_be_compiled_alone():
    start = tf.constant([2.0])
    with tf.GradientTape() as tape:
        tape.watch(start)
        event = keras_ode.Event(lambda y: y[0] - 0.5)
        time = keras_ode.solve(decay, start, [0.0, 3.0], event=event, rtol=1e-5, atol=1e-5, jit_compile=True).event_time
    np.testing.assert_allclose(tape.gradient(time, start), [0.5], rtol=1e-4)


def time_along_a_turn(start, level, direction):
    """When the first coordinate of a turn by one radian a unit of time passes a level; one trace for each direction."""
    event = keras_ode.Event(lambda y: y[0] - level, direction=direction)
    options = {"event": event, **TIGHT}
    start, level = tf.constant(start, tf.float64), tf.constant(level, tf.float64)
    return float(keras_ode.solve(lambda y: tf.stack([y[1], -y[0]]), start, [0.0, 6.0], **options).event_time)


# A condition that becomes false, below, has the direction -1.
@pytest.mark.slow
@pytest.mark.parametrize(("direction", "expected"), [(1, 1.5 * np.pi), (-1, 0.5 * np.pi), nightly(0, 0.5 * np.pi)])
def test_direction_chooses_among_roots(direction, expected):
    assert time_along_a_turn([1.0, 0.0], 0.0, direction) == pytest.approx(expected, abs=1e-6)  # cos t


@pytest.mark.parametrize(("direction", "time"), [slow(-1, 0.0), (1, 1.5 * np.pi), slow(0, 1.5 * np.pi)])
def test_function_that_is_zero_at_the_start_is_an_event_if_it_leaves_zero_in_the_direction(direction, time):
    found = time_along_a_turn([1.0, -1.0], 1.0, direction)  # cos t - sin t - 1, which falls, and rises through zero later
    np.testing.assert_allclose(found, time, atol=1e-15)


@pytest.mark.slow
@pytest.mark.parametrize("direction", [-1, 0])
def test_turn_that_rises_from_the_level_comes_back_to_it(direction):
    assert time_along_a_turn([0.0, 3.0], 0.0, direction) == pytest.approx(np.pi, abs=1e-7)  # 3 sin t


@pytest.mark.slow
def test_two_roots_within_one_step_are_found_and_as_many_probes_as_asked_for_find_closer_ones():
    """Of cos t = -0.9, and of cos t = -0.995, which are 0.2 apart: steps of y' = 1 grow to all of the interval."""

    def times(level, **options):
        event = keras_ode.Event(lambda t, y: tf.cos(t) + level, terminal=False, max_events=3, **options)
        start = tf.constant([0.0], tf.float64)
        options = {"rtol": 1e-3, "atol": 1e-3, "step_size": 10.0, "jit_compile": False}
        return keras_ode.solve(lambda y: tf.ones_like(y), start, [0.0, 2 * np.pi], event=event, **options).event_time

    def roots(level):
        return [np.arccos(-level), 2 * np.pi - np.arccos(-level), np.nan]

    np.testing.assert_allclose(times(0.9), roots(0.9), rtol=1e-12)
    np.testing.assert_allclose(times(0.995, probes=40), roots(0.995), rtol=1e-12)


@pytest.mark.parametrize("options", [{"probes": 0}, {"probes": 2.5}, {"max_events": True}])
def test_bad_options_are_refused_with_what_was_received(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name} must be a positive whole number. Received: {name}={value}"):
        keras_ode.Event(lambda y: y, **options)


@pytest.mark.slow
def test_functions_without_a_slope_have_their_events_where_they_jump_and_no_gradient():
    """The last row's function is smooth."""

    def functions(y):
        y = y[:, 0]
        return tf.stack([tf.sign(y[0] - 0.5), tf.where(y[1] > 0.5, 1.0, -1.0), tf.where(y[2] > 0.5, y[2], y[2] - 1), y[3] - 0.5])

    def gradient(of):
        start = tf.constant([[1.0]] * 4)
        with tf.GradientTape() as tape:
            tape.watch(start)
            event = keras_ode.Event(functions, terminal=False, max_events=2)
            options = {"event": event, "per_sample": True, "rtol": 1e-5, "atol": 1e-6, "jit_compile": False}
            solution = keras_ode.solve(decay, start, [0.0, 2.0], **options)
            value = of(solution)
        return solution, tape.gradient(value, start)

    solution, of_time = gradient(lambda solution: solution.event_time[0])
    np.testing.assert_allclose(solution.event_time, [[np.log(2)] * 4, [np.nan] * 4], rtol=1e-5)
    np.testing.assert_allclose(of_time, [[np.nan]] * 3 + [[1]], rtol=1e-4)
    # The states after it do not depend on when it was.
    _, of_last = gradient(lambda solution: solution.ys[-1])
    np.testing.assert_allclose(of_last, [[np.exp(-2)]] * 4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("direction", "time"), [(-1, np.log(2)), (1, np.nan)])
def test_condition_is_an_event_where_it_becomes_false_or_true(direction, time):
    event = keras_ode.Event(lambda y: y[0] > 0.5, direction=direction)
    solution = keras_ode.solve(decay, ONE, [0.0, 2.0], event=event, **TIGHT)
    np.testing.assert_allclose(solution.event_time, time, rtol=1e-8)


@pytest.mark.slow
def test_function_that_becomes_nan_ends_the_solve_with_a_sentence():
    event = keras_ode.Event(lambda y: tf.sqrt(y[0] - 0.5))
    options = {**TIGHT, "event": event}
    with pytest.raises(keras_ode.SolveError, match="fn became NaN.*NaN has no sign"):
        keras_ode.solve(decay, ONE, [0.0, 2.0], **options)
    solution = keras_ode.solve(decay, ONE, [0.0, 2.0], on_failure="nan", **options)
    assert int(solution.status) == Status.NON_FINITE
    assert np.isnan(solution.ys[-1]).all()


@pytest.mark.slow
def test_event_where_a_jump_is_happens_once():
    event = keras_ode.Event(lambda y: y[0] - 0.5, terminal=False, max_events=3)
    rise = lambda t, y: tf.ones_like(y) + tf.where(t > 0.5, tf.ones_like(y), 0)
    solution = keras_ode.solve(rise, 0 * ONE, [0.0, 1.0], event=event, jump_times=[0.5], solver="bosh3", **TIGHT)
    np.testing.assert_allclose(solution.event_time, [0.5, np.nan, np.nan], rtol=1e-12)
    np.testing.assert_allclose(solution.ys[-1], [1.5], rtol=1e-12)


@pytest.mark.slow
def test_row_over_no_time_keeps_its_start_beside_rows_with_events():
    start, times = tf.constant([[1.0], [2.0]], tf.float64), [[0.0, 1.0, 2.0], [1.0, 1.0, 1.0]]
    with tf.GradientTape() as tape:
        tape.watch(start)
        event = keras_ode.Event(lambda y: y[:, 0] - 0.5, terminal=False, max_events=1)
        ys = keras_ode.solve(decay, start, times, event=event, per_sample=True, **TIGHT).ys
        later = ys[1:]
    np.testing.assert_allclose(ys[:, :, 0], [[1, 2], [np.exp(-1), 2], [np.exp(-2), 2]], rtol=1e-7)
    np.testing.assert_allclose(tape.gradient(later, start), [[np.exp(-1) + np.exp(-2)], [2]], rtol=1e-6)


ALONG = np.linspace(0, 2, 20001)


@hypothesis.settings(max_examples=30, deadline=None, derandomize=True)
@hypothesis.given(
    motion=st.lists(st.floats(-2, 2), min_size=4, max_size=4),
    waves=st.lists(st.floats(-3, 3), min_size=2, max_size=2),
    level=st.floats(-1, 1),
)
@pytest.mark.slow
def test_first_root_of_a_smooth_function_along_a_polynomial_is_that_of_a_dense_scan(motion, waves, level):
    """Along y = a t + b t^2 + c t^3 + d t^4, of sin(v y + t) + cos(w t) / 2 - level."""
    position = np.polynomial.Polynomial([0.0, *motion])
    value = lambda t: np.sin(waves[0] * position(t) + t) + np.cos(waves[1] * t) / 2 - level
    seen = value(ALONG)
    roots = np.flatnonzero(seen[1:] * seen[:-1] <= 0)
    # Roots closer than the probes, and those that are touched, may be missed.
    hypothesis.assume(np.abs(seen[0]) > 1e-3 and (np.abs(np.diff(roots[:2])) > 300).all())
    bends = np.flatnonzero(np.diff(np.sign(np.diff(seen))))
    hypothesis.assume((np.abs(seen[bends]) > 1e-3).all())

    slopes, v, w, c = (tf.constant(x, tf.float64) for x in (position.deriv().coef.tolist() + [0.0] * 4, *waves, level))
    event = keras_ode.Event(lambda t, y: tf.sin(v * y[0] + t) + tf.cos(w * t) / 2 - c, probes=60)
    velocity = lambda t, y: tf.ones_like(y) * sum(slopes[i] * t**i for i in range(4))
    time = keras_ode.solve(velocity, 0 * ONE, [0.0, 2.0], event=event, **TIGHT).event_time
    expected = np.nan
    if roots.size:
        expected = scipy.optimize.brentq(value, ALONG[roots[0]], ALONG[roots[0] + 1], xtol=1e-14)
    np.testing.assert_allclose(time, expected, atol=1e-9)


# A method with few stages that follows parabolas exactly.
OF_PARABOLAS = {"solver": "bosh3"}


def fall(y):
    return tf.stack([y[1], -9.81 + 0 * y[1]])


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
        height = keras_ode.solve(fall, start, [0.0, 1.0, 1.5], event=event, max_steps=64, **OF_PARABOLAS, **options).ys[-1, 0]
    by_start, by_bounciness = tape.gradient(height, (start, bounciness))
    return height, by_start[0], by_bounciness


def bounce_in_closed_form(step=1e-6):
    by_height = (ball(1 + step, 0.8, 1.5) - ball(1 - step, 0.8, 1.5)) / (2 * step)
    by_bounciness = (ball(1, 0.8 + step, 1.5) - ball(1, 0.8 - step, 1.5)) / (2 * step)
    return ball(1, 0.8, 1.5), by_height, by_bounciness


@pytest.mark.parametrize("adjoint", quick("checkpointed", "direct", slow_ones=[]))
@pytest.mark.slow
def test_bouncing_ball_and_its_gradient_are_those_of_the_closed_form(adjoint):
    found = bounce(tf.constant([1.0, 0.0], tf.float64), tf.constant(0.8, tf.float64), adjoint=adjoint, **TIGHT)
    np.testing.assert_allclose(found, bounce_in_closed_form(), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True])
def test_bouncing_ball_in_a_graph_in_single_precision_is_that_of_the_closed_form(jit_compile):
    run = tf.function(lambda *inputs: bounce(*inputs, rtol=1e-5, atol=1e-5), jit_compile=jit_compile)
    np.testing.assert_allclose(run(tf.constant([1.0, 0.0]), tf.constant(0.8)), bounce_in_closed_form(), rtol=1e-3)


def resting_ball(bounciness, dtype, on_floor, **options):
    """A ball on [0, 5], dropped from 1: the flights take 0.903 b^n each. `on_floor` is what a bounce makes of the height."""
    event = keras_ode.Event(
        lambda y: y[0], direction=-1, reset=lambda y: tf.stack([on_floor * y[0], -bounciness * y[1]]), max_events=200
    )
    options = {"rtol": 1e-6, "atol": 1e-6, "jit_compile": False, **OF_PARABOLAS, **options}
    return keras_ode.solve(fall, tf.constant([1.0, 0.0], dtype), np.linspace(0, 5, 51), event=event, **options)


@pytest.mark.parametrize("dtype", [tf.float32, pytest.param(tf.float64, marks=pytest.mark.slow)])
def test_ball_comes_to_rest_with_a_status_and_never_falls_through_the_floor(dtype):
    first = np.sqrt(2 / 9.81)
    for bounciness, on_floor in ((0.8, 0.0), (0.8, 1.0), (0.3, 1.0), (0.0, 0.0), (0.0, 1.0)):
        b, kept = (tf.constant(x, dtype) for x in (bounciness, on_floor))
        solution = resting_ball(b, dtype, kept, on_failure="nan")
        times = solution.event_time.numpy()
        expected = first * (1 + 2 * np.cumsum(bounciness ** np.arange(1, 201)))
        expected = np.concatenate([[first], expected])
        count = np.isfinite(times).sum()
        np.testing.assert_allclose(times[:count], expected[:count], rtol=5e-4 if dtype == tf.float32 else 1e-9)
        # Bounces are told apart until they come as close as times are resolved; and then there is no next state.
        assert expected[-1] - expected[count] < 1e-4
        assert int(solution.status) == Status.STEP_TOO_SMALL
        heights, saved = solution.ys.numpy()[:, 0], np.linspace(0, 5, 51)
        assert np.nanmin(heights) > -1e-6
        np.testing.assert_array_equal(np.isnan(heights), saved > times[count - 1])


def test_ball_that_comes_to_rest_says_so():
    with pytest.raises(keras_ode.SolveError, match=r"(?s)t = 4.06.*again where it had just been handled.*max_events"):
        resting_ball(tf.constant(0.8), tf.float32, tf.constant(0.0))


@pytest.mark.parametrize("dtype", [nightly(tf.float32), tf.float64])
@pytest.mark.slow
def test_time_of_the_third_bounce_and_its_gradient_are_those_of_the_closed_form_in_both_directions_of_time(dtype):
    first = np.sqrt(2 / 9.81)
    for end in (2.5, -2.5):
        height, bounciness = tf.constant(1.0, dtype), tf.constant(0.8, dtype)
        with tf.GradientTape() as tape:
            tape.watch((height, bounciness))
            reset = lambda y: tf.stack([0 * y[0], -bounciness * y[1]])
            event = keras_ode.Event(lambda y: y[0], direction=-1, reset=reset, max_events=3)
            start, options = tf.stack([height, 0 * height]), {"rtol": 1e-6, "atol": 1e-6, "jit_compile": False}
            solution = keras_ode.solve(fall, start, [0.0, end], event=event, **OF_PARABOLAS, **options)
            time = solution.event_time[2]
        by_height, by_bounciness = tape.gradient(time, (height, bounciness))
        sign, rtol = np.sign(end), 1e-4 if dtype == tf.float32 else 1e-8
        # sqrt(2 h / g) (1 + 2 b + 2 b^2)
        np.testing.assert_allclose(time, sign * first * (1 + 1.6 + 1.28), rtol=rtol)
        np.testing.assert_allclose(by_height, sign * first * (1 + 1.6 + 1.28) / 2, rtol=rtol)
        np.testing.assert_allclose(by_bounciness, sign * first * (2 + 4 * 0.8), rtol=rtol)
        assert int(solution.status) == Status.EVENT


@pytest.mark.slow
def test_rows_bounce_as_often_as_each_does():
    heights = tf.constant([0.05, 1.0, 20.0], tf.float64)
    bounciness = tf.constant(0.8, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch((heights, bounciness))
        reset = lambda y: tf.stack([0 * y[:, 0], -bounciness * y[:, 1]], axis=1)
        event = keras_ode.Event(lambda y: y[:, 0], direction=-1, reset=reset, max_events=10)
        fall = lambda y: tf.stack([y[:, 1], -9.81 + 0 * y[:, 1]], axis=1)
        start = tf.stack([heights, 0 * heights], axis=1)
        solution = keras_ode.solve(fall, start, [0.0, 0.7], event=event, per_sample=True, **OF_PARABOLAS, **TIGHT)
        last = solution.ys[-1, :, 0]
    expected = [ball(h, 0.8, 0.7) for h in (0.05, 1.0)] + [20 - 9.81 * 0.7**2 / 2]
    np.testing.assert_allclose(last, expected, rtol=1e-8)
    np.testing.assert_array_equal(np.isfinite(solution.event_time).sum(axis=0), [7, 1, 0])
    by_heights, by_bounciness = tape.gradient(last, (heights, bounciness))
    step = 1e-6
    change = [(ball(h * (1 + step), 0.8, 0.7) - ball(h * (1 - step), 0.8, 0.7)) / (2 * step * h) for h in (0.05, 1.0)]
    np.testing.assert_allclose(by_heights, [*change, 1], rtol=1e-5)
    change = sum((ball(h, 0.8 + step, 0.7) - ball(h, 0.8 - step, 0.7)) / (2 * step) for h in (0.05, 1.0))
    np.testing.assert_allclose(by_bounciness, change, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True])
def test_event_that_repeats_is_differentiable_in_a_graph(jit_compile):
    @tf.function(jit_compile=jit_compile)
    def run(start):
        with tf.GradientTape() as tape:
            tape.watch(start)
            event = keras_ode.Event(lambda y: y[0], terminal=False, max_events=3)
            solution = keras_ode.solve(
                lambda y: tf.stack([y[1], -y[0]]), start, [0.0, 7.0], event=event, rtol=1e-6, atol=1e-6
            )
            time = solution.event_time[1]
        return solution.event_time, tape.gradient(time, start)

    times, gradient = run(tf.constant([1.0, 0.0]))
    np.testing.assert_allclose(times, [np.pi / 2, 3 * np.pi / 2, np.nan], rtol=1e-4)
    np.testing.assert_allclose(gradient, [0, 1], atol=1e-3)
