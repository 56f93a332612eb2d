"""Solves without a last time, which an event ends, against closed forms."""

import numpy as np
import pytest
import tensorflow as tf

import keras_ode
from keras_ode import Event, Status
from tests.marks import nightly

INFINITY = float("inf")
TIGHT = {"rtol": 1e-9, "atol": 1e-9, "max_steps": 128, "jit_compile": False}
START = tf.constant([[2.0], [1.0]], tf.float64)
RATE = tf.constant([[0.5], [0.1]], tf.float64)


def first_times(start, rate, level, **options):
    """When rows of `y' = -k y` fall to a level, and the gradients of the first."""
    with tf.GradientTape() as tape:
        tape.watch((start, rate, level))
        event = Event(lambda t, y: y[:, 0] - level)
        solution = keras_ode.solve(
            lambda t, y, k: -k * y, start, INFINITY, args=(rate,), event=event, per_sample=True, **{**TIGHT, **options}
        )
        first = solution.event_time[0]
    return solution.event_time, solution.status, solution.ys, solution.stats, tape.gradient(first, (start, rate, level))


def check_first_times(found):
    times, status, ys, stats, (by_start, by_rate, by_level) = found
    # y0 exp(-k t) = c: t = ln(y0 / c) / k.
    np.testing.assert_allclose(times, [np.log(200) / 0.5, np.log(100) / 0.1], rtol=1e-7)
    assert np.all(np.asarray(status) == Status.EVENT) and np.all(np.isnan(ys[1])) and np.all(stats["num_steps"] < 100)
    np.testing.assert_allclose(by_start, [[1.0], [0.0]], rtol=1e-6)
    np.testing.assert_allclose(by_rate, [[-np.log(200) / 0.25], [0.0]], rtol=1e-6)
    np.testing.assert_allclose(by_level, -200.0, rtol=1e-6)


LEVEL = tf.constant(0.01, tf.float64)


@pytest.mark.parametrize("adjoint", ["interpolating", nightly("backsolve"), nightly("checkpointed"), "direct"])
@pytest.mark.slow
def test_event_ends_a_solve_that_has_no_end(adjoint):
    check_first_times(first_times(START, RATE, LEVEL, adjoint=adjoint))


@pytest.mark.slow
def test_row_whose_event_never_happens_fails_alone_also_under_xla():
    compute = tf.function(first_times, jit_compile=True)
    check_first_times(compute(START, RATE, LEVEL))
    times, status, ys, stats, gradients = compute(START, RATE * [[1.0], [-1.0]], LEVEL)
    np.testing.assert_allclose(times, [np.log(200) / 0.5, np.nan], rtol=1e-7)
    assert list(status) == [Status.EVENT, Status.MAX_STEPS] and int(stats["num_steps"][1]) == 128
    assert np.isnan(ys[1]).all()
    by_start, by_rate, by_level = gradients
    np.testing.assert_allclose(by_start, [[1.0], [np.nan]], rtol=1e-6)
    # What rows share, their args among it, is a sum over rows.
    assert np.isnan(by_rate).all() and np.isclose(by_level, -200.0)


@pytest.mark.slow
def test_open_end_says_what_to_do_where_no_event_comes():
    rise = Event(lambda y: y[0] + 1.0)
    with pytest.raises(keras_ode.SolveError, match="after 20 steps: no event had happened by then.* raise max_steps=20") as raised:
        keras_ode.solve(lambda y: -y, START[0], INFINITY, event=rise, **{**TIGHT, "max_steps": 20})
    assert raised.value.status == Status.MAX_STEPS
    with pytest.raises(keras_ode.SolveError, match="no event had happened by then"):  # steps that grow without end
        keras_ode.solve(lambda y: 0.0 * y, START[0], INFINITY, event=rise, **{**TIGHT, "max_steps": 4096})
    with pytest.raises(keras_ode.SolveError, match="became NaN or infinite there"):
        keras_ode.solve(lambda y: y + np.nan, START[0], INFINITY, event=rise, **TIGHT)


@pytest.mark.parametrize("t", [INFINITY, [0.0, 1.0, INFINITY], [0.0, -INFINITY]], ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"event": Event(lambda y: y[0], terminal=False)}, {"jump_times": [0.5]}],
    ids=["no event", "an event that does not end it", "a jump"],
)
def test_open_end_needs_an_event_that_ends_the_solve(t, options):
    with pytest.raises(ValueError, match="needs an event that ends the solve: solve.* Received: array"):
        keras_ode.solve(lambda y: -y, START[0], t, **options)


@pytest.mark.parametrize("t", [[INFINITY, 0.0], [0.0, INFINITY, 1.0], [-INFINITY, INFINITY], [INFINITY]], ids=str)
def test_only_the_last_time_may_be_infinite(t):
    with pytest.raises(ValueError, match="t must be finite. Received"):
        keras_ode.solve(lambda y: -y, START[0], t, event=Event(lambda y: y[0] - 0.5))


def test_end_that_only_the_graph_knows_fails_without_an_event():
    run = tf.function(lambda t: keras_ode.solve(lambda y: -y, START[0], t, **TIGHT)[1:4:2])
    ys, status = run(tf.constant([0.0, INFINITY], tf.float64))
    assert int(status) == Status.NON_FINITE and np.isnan(ys[-1]).all()


@pytest.mark.slow
def test_times_before_the_open_end_are_saved_back_in_time_too():
    event = Event(lambda y: y[0] - 20.0)
    solution = keras_ode.solve(lambda y: -y, START[0], [1.0, 0.0, -0.5, -INFINITY], event=event, **TIGHT)
    np.testing.assert_allclose(solution.ys[:, 0], [2.0, 2 * np.exp(1.0), 2 * np.exp(1.5), np.nan], rtol=1e-7)
    np.testing.assert_allclose(solution.event_time, 1 - np.log(10), rtol=1e-7)


@pytest.mark.slow
def test_jumps_and_resets_with_an_open_end():
    # A ball falls from the height 1 and keeps half of its speed: it bounces at T, 2 T and 2.5 T, with T = sqrt(2 / g).
    fall = lambda t, y: tf.stack([y[1], -9.81 * tf.ones_like(t)])
    floor = Event(lambda y: y[0], direction=-1, reset=lambda y: tf.stack([tf.zeros_like(y[0]), -0.5 * y[1]]), max_events=3)
    start, first = tf.constant([1.0, 0.0], tf.float64), np.sqrt(2 / 9.81)
    solution = keras_ode.solve(fall, start, INFINITY, event=floor, jump_times=[0.1], **TIGHT)
    np.testing.assert_allclose(solution.event_time, [first, 2 * first, 2.5 * first], rtol=1e-8)
    assert int(solution.status) == Status.EVENT
