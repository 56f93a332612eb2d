"""States at every accepted step, against closed forms."""

import numpy as np
import pytest
import tensorflow as tf

import keras_ode
from keras_ode import Status
from tests.marks import nightly

TIGHT = {"rtol": 1e-8, "atol": 1e-8, "save": "steps"}
RATE = tf.constant(2.0, tf.float64)


def faster_and_faster(t, y, rate):
    return -rate * t * y


def exact(t, start, rate):
    return start * np.exp(-rate * t**2 / 2)


def solve(start, t, rate, **options):
    return keras_ode.solve(faster_and_faster, start, t, args=(rate,), **{**TIGHT, **options})


@pytest.mark.parametrize("times", [[0.0, 1.5], [1.5, -0.5]], ids=str)
def test_steps_are_where_the_solver_went(times):
    start = tf.constant([1.0, -2.0], tf.float64) * exact(times[0], 1.0, 2.0)
    solution = solve(start, times, RATE, max_steps=100)
    count = int(solution.stats["num_accepted"])
    ts, ys = solution.ts.numpy(), solution.ys.numpy()
    assert ts.shape == (101,) and ys.shape == (101, 2)
    assert ts[0] == times[0] and ts[count] == times[1] and 5 < count < 100
    assert np.all(np.diff(ts[: count + 1]) * np.sign(times[1] - times[0]) > 0)
    np.testing.assert_allclose(ys, exact(ts[:, None], np.array([1.0, -2.0]), 2.0), rtol=1e-6)
    assert np.all(ts[count:] == times[1]) and np.all(ys[count:] == ys[-1])
    last = keras_ode.odeint(lambda t, y: faster_and_faster(t, y, RATE), start, times, rtol=1e-8, atol=1e-8)[-1]
    np.testing.assert_allclose(ys[-1], last, rtol=1e-14)


def weighted_states(start, t, rate, **options):
    """A sum of the states at the third step and behind, and its gradients."""
    with tf.GradientTape() as tape:
        tape.watch((start, t, rate))
        solution = solve(start, t, rate, max_steps=64, **options)
        loss = tf.reduce_sum(solution.ys[3]) + 3.0 * tf.reduce_sum(solution.ys[-1])
    by_start, by_time, by_rate = tape.gradient(loss, (start, t, rate))
    return solution.ts, solution.stats["num_accepted"], by_start, by_time, by_rate


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "XLA"])
@pytest.mark.parametrize("adjoint", ["checkpointed", "direct"])
@pytest.mark.slow
def test_gradient_of_steps_is_that_of_the_states_at_their_times(adjoint, jit_compile):
    start, t = tf.constant([1.0], tf.float64), tf.constant([0.2, 1.0], tf.float64)
    compute = tf.function(lambda *x: weighted_states(*x, adjoint=adjoint, jit_compile=False), jit_compile=jit_compile)
    ts, _, by_start, by_time, by_rate = compute(start, t, RATE)
    # y(s) = y0 exp(-k (s^2 - t0^2) / 2), at s = ts[3], which stays, and at t1.
    weights, s = np.array([1.0, 3.0]), np.array([ts[3], 1.0])
    y = np.exp(-2.0 * (s**2 - 0.2**2) / 2)
    np.testing.assert_allclose(by_start, [weights @ y], rtol=1e-6)
    np.testing.assert_allclose(by_rate, weights @ (-(s**2 - 0.2**2) / 2 * y), rtol=1e-6)
    np.testing.assert_allclose(by_time, [weights @ (2.0 * 0.2 * y), 3.0 * -2.0 * y[1]], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", ["checkpointed", nightly("direct")])
def test_rows_have_their_own_steps_and_their_gradients(adjoint):
    start, times = tf.constant([[1.0], [2.0], [1.0]], tf.float64), tf.constant([[0.0, 0.5], [0.0, 3.0], [1.0, 1.0]], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(start)
        solution = solve(start, times, RATE, max_steps=80, per_sample=True, adjoint=adjoint, jit_compile=False)
        loss = tf.reduce_sum(solution.ys[2])
    ts, ys, counts = solution.ts.numpy(), solution.ys.numpy(), solution.stats["num_accepted"].numpy()
    assert ts.shape == (3, 81) and ys.shape == (81, 3, 1) and counts[0] < counts[1] and counts[2] == 0
    for row, count in enumerate(counts[:2]):
        assert np.all(np.diff(ts[row, : count + 1]) > 0) and np.all(ts[row, count:] == times[row, 1])
        np.testing.assert_allclose(ys[:, row, 0], exact(ts[row], start[row, 0], 2.0), rtol=1e-5)
    assert np.all(ts[2] == 1.0) and np.all(ys[:, 2] == 1.0)
    np.testing.assert_allclose(tape.gradient(loss, start)[:, 0], [*exact(ts[:2, 2], 1.0, 2.0), 1.0], rtol=1e-5)


def test_failed_solve_keeps_the_steps_until_it_failed():
    blow_up = lambda y: y**2  # 1 / (1 - t)
    solution = keras_ode.solve(blow_up, tf.constant([1.0], tf.float64), [0.0, 2.0], save="steps", on_failure="nan", max_steps=300)
    count = int(solution.stats["num_accepted"])
    assert int(solution.status) != Status.SUCCESS and count < 300
    ts, ys = solution.ts.numpy(), solution.ys[:, 0].numpy()
    assert np.all(np.diff(ts[: count + 1]) > 0) and np.all(ts[count + 1 :] == 2.0)
    np.testing.assert_allclose(ys[:10], 1 / (1 - ts[:10]), rtol=1e-2)
    assert np.all(np.isfinite(ys[: count + 1])) and np.all(np.isnan(ys[count + 1 :]))


def test_nests_and_constant_steps():
    solution = keras_ode.solve(
        lambda y: {"a": -y["a"], "b": 2.0 + 0.0 * y["b"]},
        {"a": tf.constant(1.0, tf.float64), "b": tf.zeros([2], tf.float64)},
        [0.0, 1.0],
        solver="rk4",
        step_size=0.125,
        max_steps=10,
        save="steps",
    )
    np.testing.assert_allclose(solution.ts, np.minimum(np.arange(11) / 8, 1), atol=1e-12)
    np.testing.assert_allclose(solution.ys["a"], np.exp(-solution.ts), rtol=1e-5)
    np.testing.assert_allclose(solution.ys["b"][:, 1], 2 * solution.ts, rtol=1e-12)


def test_layer_gives_its_steps():
    layer = keras_ode.ODELayer(lambda y: -y, t=(0.0, 2.0), max_steps=20, jit_compile=False)
    solution = layer.solve(tf.ones([3, 2]), save="steps")
    np.testing.assert_allclose(solution.ys[:, 0, 0], np.exp(-solution.ts), rtol=1e-2)


def test_what_makes_no_sense_is_refused():
    one = tf.constant([1.0])
    decay = lambda y: -y
    with pytest.raises(ValueError, match=r"let t be the interval, \[start, end\]. Received: 3 times"):
        keras_ode.solve(decay, one, [0.0, 0.5, 1.0], save="steps")
    with pytest.raises(ValueError, match="save must be one of .* Received: save='all'"):
        keras_ode.solve(decay, one, [0.0, 1.0], save="all")
    with pytest.raises(ValueError, match="use adjoint='checkpointed' or 'direct'. Received: adjoint=Interpolating"):
        keras_ode.solve(decay, one, [0.0, 1.0], save="steps", adjoint="interpolating")
    with pytest.raises(ValueError, match="save='steps' cannot be combined with jump_times: solve the segments one by one"):
        keras_ode.solve(decay, one, [0.0, 1.0], save="steps", jump_times=[0.5])
    with pytest.raises(TypeError, match="no keyword 'save_everystep'. Use save=\"steps\" instead"):
        keras_ode.solve(decay, one, [0.0, 1.0], save_everystep=True)
