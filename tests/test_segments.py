"""Solves cut at the times where the dynamics jumps."""

import numpy as np
import pytest
import tensorflow as tf

import keras_ode
from tests.gradients import quick
from tests.marks import nightly
from tests.references import Counting

TIGHT = {"rtol": 1e-9, "atol": 1e-9, "jit_compile": False}
ONE = tf.constant([1.0], tf.float64)


def kicked(t, y):
    """Decay with a push between 0.3 and 0.7."""
    return -3 * y + tf.where((t > 0.3) & (t < 0.7), tf.constant(10.0, y.dtype), 0)


def kicked_solution(t, push=10.0):
    """From 1 at time 0: the decay of the start, and of what the push added by then."""
    pushed = push / 3 * (np.exp(-3 * (t - np.clip(t, 0.3, 0.7))) - np.exp(-3 * (t - 0.3))) * (t > 0.3)
    return np.exp(-3 * t) + pushed


def switched_oscillator(t, y):
    return tf.stack([y[1], -y[0] + tf.where((t > 0.9) & (t < 2.3), tf.constant(4.0, y.dtype), 0) * tf.cos(y[0])])


def test_solution_through_jumps_is_that_of_the_closed_form():
    """Jumps in any order, some outside the interval or at its ends; saved times between jumps, and on one."""
    times = np.array([0.0, 0.2, 0.3, 0.5, 1.0])
    dynamics = Counting(kicked)
    solution = keras_ode.solve(dynamics, ONE, times, jump_times=[0.7, 1.0, 0.3, -2.0, 0.0, 5.0], **TIGHT)
    np.testing.assert_allclose(solution.ys[:, 0], kicked_solution(times), rtol=1e-8)
    # No step was wasted on a jump: what is left is smooth.
    assert int(solution.stats["num_rejected"]) <= 3


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.slow
def test_step_ends_right_before_a_jump_at_the_last_time(per_sample):
    """The stages of a step at its end are before the jump; of constant steps nothing else would tell."""
    times = [[0.0, 1.0], [0.0, 2.0]] if per_sample else [0.0, 1.0]
    back_and_forth = lambda t, y: tf.where(t < 1.0, tf.ones_like(y), -tf.ones_like(y))
    options = {"solver": "rk4", "step_size": 0.25, "jump_times": [1.0], "per_sample": per_sample, "jit_compile": False}
    end = keras_ode.solve(back_and_forth, tf.zeros([2, 1], tf.float64), times, **options).ys[-1, :, 0]
    np.testing.assert_allclose(end, [1, 0] if per_sample else [1, 1], atol=1e-12)


def test_jump_is_landed_on_in_double_precision():
    """0.3 in single precision is larger than in double: a step would end beyond the jump."""
    times = tf.Variable(tf.zeros([0], tf.float64), shape=[None], trainable=False)

    def dynamics(t, y):
        times.assign(tf.concat([times, t[None]], axis=0))
        return -y

    keras_ode.solve(dynamics, ONE, [0.0, 1.0], jump_times=[0.3], **TIGHT)
    called = times.numpy()
    assert called[called < 0.3].max() == np.nextafter(0.3, 0)
    assert called[called > 0.3].min() == np.nextafter(0.3, 1)


# The other adjoints have a jump in the next test.
@pytest.mark.parametrize("adjoint", quick("interpolating", "checkpointed"))
@pytest.mark.slow
def test_gradients_through_jumps_are_those_of_the_closed_form(adjoint):
    start, push, jumps = (tf.constant(x, tf.float64) for x in ([1.0], 10.0, [0.7, 0.3]))
    with tf.GradientTape() as tape:
        tape.watch((start, push, jumps))
        dynamics = lambda t, y: -3 * y + tf.where((t > 0.3) & (t < 0.7), push, 0)
        last = keras_ode.solve(dynamics, start, [0.0, 0.5, 1.0], jump_times=jumps, adjoint=adjoint, **TIGHT).ys[-1, 0]
    by_start, by_push, by_jumps = tape.gradient(last, (start, push, jumps))
    np.testing.assert_allclose(by_start, [np.exp(-3)], rtol=1e-6)
    np.testing.assert_allclose(by_push, (np.exp(-0.9) - np.exp(-2.1)) / 3, rtol=1e-6)
    # A push that ends later, or starts later.
    np.testing.assert_allclose(by_jumps, [10 * np.exp(-0.9), -10 * np.exp(-2.1)], rtol=1e-6)


@pytest.mark.parametrize("adjoint", quick("backsolve", "direct"))
@pytest.mark.slow
def test_saved_time_on_a_jump_keeps_its_derivative(adjoint):
    times, jumps = tf.constant([0.0, 0.5, 1.0], tf.float64), tf.constant([0.5], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch((times, jumps))
        options = {"jump_times": jumps, "adjoint": adjoint, **TIGHT}
        saved = keras_ode.solve(lambda y: tf.fill(tf.shape(y), tf.constant(2.0, y.dtype)), ONE, times, **options).ys[1, 0]
    by_times, by_jumps = tape.gradient(saved, (times, jumps))
    np.testing.assert_allclose(by_times, [-2, 2, 0], atol=1e-12)
    np.testing.assert_allclose(by_jumps, [0], atol=1e-12)


@pytest.mark.parametrize(
    ("adjoint", "kept"),
    [
        ("interpolating", 0.5),
        nightly("backsolve", 0.5),
        nightly("checkpointed", 0.7),
    ],
)
@pytest.mark.slow
def test_jump_times_save_evaluations_forward_and_backward(adjoint, kept):
    def evaluations(jump_times):
        start, dynamics = tf.constant([1.0, 0.5], tf.float64), Counting(switched_oscillator)
        with tf.GradientTape() as tape:
            tape.watch(start)
            options = {"rtol": 1e-6, "atol": 1e-6, "jit_compile": False, "adjoint": adjoint, "jump_times": jump_times}
            solution = keras_ode.solve(dynamics, start, [0.0, 4.0], **options)
            last = solution.ys[-1]
        forward = dynamics.take()
        assert forward == int(solution.stats["num_evaluations"])
        tape.gradient(last, start)
        return np.array([forward, dynamics.take()])

    # A jump costs a step of order five about as many rejections as it takes to find it to 1e-6 of the time. The backward
    # pass of "checkpointed" repeats no rejected step, so there only the smaller steps around a jump are saved.
    assert (evaluations([0.9, 2.3]) < evaluations(None) * [0.5, kept]).all()


@pytest.mark.slow
def test_rows_that_go_opposite_ways_pass_the_same_jump():
    times = np.array([[0.0, 0.5, 1.0], [1.0, 0.2, 0.0]])
    start = tf.constant([[1.0], [kicked_solution(1.0)]], tf.float64)
    solution = keras_ode.solve(kicked, start, times, jump_times=[0.3, 0.7], per_sample=True, **TIGHT)
    np.testing.assert_allclose(solution.ys[:, :, 0], kicked_solution(times.T), rtol=1e-6)


@pytest.mark.slow
def test_event_after_a_jump_is_found():
    event = keras_ode.Event(lambda y: y[0] - 1.5)
    time = keras_ode.solve(kicked, ONE, [0.0, 1.0], jump_times=[0.3, 0.7], event=event, **TIGHT).event_time
    # From exp(-0.9) at 0.3 towards 10 / 3.
    expected = 0.3 + np.log((10 / 3 - np.exp(-0.9)) / (10 / 3 - 1.5)) / 3
    assert float(time) == pytest.approx(expected, abs=1e-8)


@pytest.mark.slow
def test_failure_after_a_jump_keeps_what_came_before_and_names_the_component():
    explosion = lambda y: y**2
    start, options = tf.constant([0.1, 1.0], tf.float64), {"jump_times": [0.5], **TIGHT}
    ys = keras_ode.solve(explosion, start, [0.0, 0.25, 0.8, 2.0], on_failure="nan", **options).ys
    np.testing.assert_allclose(ys[:, 1], [1, 1 / 0.75, 1 / 0.2, np.nan], rtol=1e-7)
    with pytest.raises(keras_ode.SolveError, match=r"(?s)t = 1\b.*index \[1\] of the state"):
        keras_ode.solve(explosion, start, [0.0, 0.25, 0.8, 2.0], **options)


@pytest.mark.parametrize(("jumps", "error"), [([[0.5]], ValueError), (["soon"], TypeError), ([0.5, np.nan], ValueError)])
def test_bad_jump_times_are_refused_with_what_was_received(jumps, error):
    with pytest.raises(error, match="jump_times.*Received"):
        keras_ode.solve(kicked, ONE, [0.0, 1.0], jump_times=jumps, **TIGHT)


def test_jump_time_that_is_nan_in_a_graph_leaves_nothing_but_nan():
    run = tf.function(lambda jumps: keras_ode.solve(kicked, ONE, [0.0, 1.0], jump_times=jumps, solver="bosh3").ys[-1])
    assert np.isnan(run(tf.constant([0.3, np.nan], tf.float64))) and np.isfinite(run(tf.constant([0.3, np.inf], tf.float64)))


@pytest.mark.slow
def test_many_jumps_are_solved_in_one_loop():
    """So that a trace takes no longer the more there are; with the solution and the gradient of the closed form."""

    @tf.function
    def run(jumps, inner):
        with tf.GradientTape() as tape:
            tape.watch(jumps)
            dynamics = lambda t, y: -3 * y + tf.where((t > inner[0]) & (t < inner[1]), tf.constant(10.0, y.dtype), 0)
            last = keras_ode.solve(dynamics, ONE, [0.0, 1.0], jump_times=jumps, **TIGHT).ys[-1, 0]
        return last, tape.gradient(last, jumps)

    jumps = tf.constant(np.linspace(0.0, 1.0, 11))
    last, by_jumps = run(jumps, tf.gather(jumps, [3, 7]))
    np.testing.assert_allclose(last, kicked_solution(1.0), rtol=1e-8)
    expected = np.zeros(11)
    expected[[3, 7]] = -10 * np.exp(-2.1), 10 * np.exp(-0.9)
    np.testing.assert_allclose(by_jumps, expected, atol=1e-6)
    loops = [op for op in run.get_concrete_function(jumps, jumps[:2]).graph.get_operations() if "While" in op.type]
    assert len(loops) == 2  # one forward, one backward
