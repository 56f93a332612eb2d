"""A given grid of steps, against the same steps written by hand in NumPy and in TensorFlow."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ode
from keras_ode import Status
from keras_ode.controllers import StepTo
from tests.marks import nightly, slow
from tests.test_step_sizes import ONE, decay, solve

GRID = np.array([0.0, 0.1, 0.35, 0.4, 0.8, 1.0])
START = np.array([1.0, -0.5])


def forced(t, y):
    return tf.stack([y[..., 1], tf.sin(3.0 * t[..., 0] if t.shape.rank else 3.0 * t) - y[..., 0] ** 2], axis=-1)


def forced_np(t, y):
    return np.stack([y[1], np.sin(3.0 * t) - y[0] ** 2])


def by_hand(method, f, y, grid):
    """The states at the ends of the steps of Euler's method, or the classical one of Runge and Kutta."""
    ys = [y]
    for t, end in zip(grid[:-1], grid[1:], strict=True):
        h = end - t
        k1 = f(t, y)
        if method == "euler":
            y = y + h * k1
        else:
            k2 = f(t + h / 2, y + h / 2 * k1)
            k3 = f(t + h / 2, y + h / 2 * k2)
            k4 = f(t + h, y + h * k3)
            y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        ys.append(y)
    return ys


@pytest.mark.parametrize("solver", ["euler", slow("rk4")])
@pytest.mark.parametrize(
    "how", [lambda f: f, slow(tf.function), tf.function(jit_compile=True)], ids=["eager", "graph", "compiled"]
)
def test_steps_end_at_the_times_given(solver, how):
    run = how(lambda y0: solve(forced, y0, GRID, solver=solver, controller=StepTo(GRID)))
    solution = run(tf.constant(START))
    np.testing.assert_allclose(solution.ys, by_hand(solver, forced_np, START, GRID), rtol=1e-13)
    assert int(solution.stats["num_steps"]) == len(GRID) - 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backward", [False, True])
def test_steps_are_counted_once_in_either_direction_and_in_both_precisions(dtype, backward):
    """The times are not numbers of either precision, and are given in either order."""
    grid = np.linspace(0.1, 0.7, 13)
    t = [0.7, 0.1] if backward else [0.1, 0.7]
    for times in (grid, grid[::-1]):
        solution = solve(decay, tf.ones([1], dtype), t, solver="euler", controller=StepTo(times))
        assert int(solution.stats["num_steps"]) == 12
        size = -0.05 if backward else 0.05
        np.testing.assert_allclose(solution.ys[-1], [(1 - size) ** 12], rtol=1e-6)


def test_states_between_are_interpolated_and_cut_no_step():
    """By the cubic polynomial through states and slopes."""
    solution = solve(forced, tf.constant(START), [0.0, 0.2, 0.6, 1.0], solver="rk4", controller=StepTo(GRID))
    ys = by_hand("rk4", forced_np, START, GRID)
    h, x = GRID[4] - GRID[3], (0.6 - GRID[3]) / (GRID[4] - GRID[3])
    y0, y1, f0, f1 = ys[3], ys[4], forced_np(GRID[3], ys[3]), forced_np(GRID[4], ys[4])
    expected = (1 + 2 * x) * (1 - x) ** 2 * y0 + x**2 * (3 - 2 * x) * y1 + h * (x * (1 - x) ** 2 * f0 + x**2 * (x - 1) * f1)
    np.testing.assert_allclose(solution.ys[2], expected, rtol=1e-13)
    np.testing.assert_allclose(solution.ys[-1], ys[-1], rtol=1e-13)
    assert int(solution.stats["num_steps"]) == len(GRID) - 1


def test_adaptive_solver_takes_the_steps_too_whatever_their_errors():
    assert int(solve(decay, ONE, [0.0, 100.0], solver="tsit5", controller=StepTo([0.0, 1.0, 100.0])).stats["num_steps"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "adjoint, per_sample",
    [
        ("checkpointed", True),
        *(nightly(*case) for case in [("direct", False), ("checkpointed", False), ("direct", True)]),
    ],
)
def test_gradient_is_that_of_the_steps_written_by_hand(adjoint, per_sample):
    y0 = tf.constant(START[None] if per_sample else START)
    with tf.GradientTape() as tape:
        tape.watch(y0)
        ys = solve(forced, y0, [0.0, 0.35, 1.0], solver="rk4", controller=StepTo(GRID), adjoint=adjoint, per_sample=per_sample).ys
        loss = tf.reduce_sum(ys[-1] ** 2) + tf.reduce_sum(ys[1])
    with tf.GradientTape() as by_hand_tape:
        by_hand_tape.watch(y0)
        f = lambda t, y: forced(tf.constant([[t]]), y) if per_sample else forced(tf.constant(t), y)
        steps = by_hand("rk4", f, y0, GRID)
        expected = tf.reduce_sum(steps[-1] ** 2) + tf.reduce_sum(steps[2])
    np.testing.assert_allclose(loss, expected, rtol=1e-13)
    np.testing.assert_allclose(tape.gradient(loss, y0), by_hand_tape.gradient(expected, y0), rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "adjoint, per_sample",
    [
        nightly("interpolating", True),
        ("backsolve", False),
        *(nightly(*case) for case in [("interpolating", False), ("backsolve", True)]),
    ],
)
def test_backward_solve_takes_the_forward_steps(adjoint, per_sample):
    """For `y' = y` the backward equation is `a' = -a`: each of its steps multiplies by the same polynomial of the size."""
    weight = tf.constant(1.0, tf.float64)
    y0 = ONE[None]
    with tf.GradientTape() as tape:
        tape.watch((y0, weight))
        y = solve(lambda t, y, w: w * y, y0, [0.0, 1.0], args=(weight,), solver="rk4", controller=StepTo(GRID), adjoint=adjoint, per_sample=per_sample).ys[-1]
    of_y, of_weight = tape.gradient(y, (y0, weight))
    h = np.diff(GRID)
    np.testing.assert_allclose(of_y, [[np.prod(1 + h + h**2 / 2 + h**3 / 6 + h**4 / 24)]], rtol=1e-13)
    np.testing.assert_allclose(of_weight, np.e, rtol=1e-3)


@pytest.mark.parametrize("adjoint", ["interpolating", "backsolve"])
@pytest.mark.slow
def test_continuous_adjoints_converge_with_the_grid(adjoint):
    """More steps than checkpoints, saved times between them: the derivative of y = exp(w sin t) sums at three times."""
    grid, t = 2 * np.linspace(0, 1, 81) ** 1.5, [0.0, 0.61, 1.234, 2.0]
    weight, y0 = tf.constant(0.7, tf.float64), ONE
    with tf.GradientTape() as tape:
        tape.watch((weight, y0))
        ys = solve(lambda t, y, w: w * tf.cos(t) * y, y0, t, args=(weight,), solver="rk4", controller=StepTo(grid), adjoint=adjoint).ys
        loss = tf.reduce_sum(ys[1:])
    of_weight, of_y = tape.gradient(loss, (weight, y0))
    exact = np.exp(0.7 * np.sin(t[1:]))
    np.testing.assert_allclose(of_y, [np.sum(exact)], rtol=1e-5)
    np.testing.assert_allclose(of_weight, np.sum(exact * np.sin(t[1:])), rtol=1e-5)


def test_rows_with_intervals_of_their_own_stop_at_the_times_that_lie_within():
    y0, t = tf.ones([2, 1], tf.float64), np.array([[0.0, 1.0], [0.9, 0.35]])
    solution = solve(decay, y0, t, solver="euler", controller=StepTo(GRID), per_sample=True)
    backward = np.array([0.9, 0.8, 0.4, 0.35])
    expected = [np.prod(1 - np.diff(GRID)), np.prod(1 - np.diff(backward))]
    np.testing.assert_allclose(solution.ys[-1, :, 0], expected, rtol=1e-13)
    assert solution.stats["num_steps"].numpy().tolist() == [5, 3]


@pytest.mark.parametrize("how", [slow("event"), "jump"])
def test_steps_go_on_behind_an_event_and_a_jump(how):
    if how == "jump":
        solution = solve(decay, ONE, [0.0, 1.0], solver="euler", controller=StepTo(GRID), jump_times=[0.6])
        ends = np.array([0.0, 0.1, 0.35, 0.4, 0.6, 0.8, 1.0])
    else:
        reset = keras_ode.Event(lambda t, y: t - 0.6, reset=lambda t, y: y, max_events=2)
        solution = solve(decay, ONE, [0.0, 1.0], solver="euler", controller=StepTo(GRID), event=reset)
        ends = np.array([0.0, 0.1, 0.35, 0.4, 0.6, 0.8, 1.0])
    np.testing.assert_allclose(solution.ys[-1], [np.prod(1 - np.diff(ends))], rtol=1e-12)


def test_derivative_that_is_not_finite_ends_the_solve_where_it_is():
    f = lambda t, y: tf.where(t > 0.5, tf.constant(np.nan, y.dtype), -y)
    with pytest.raises(keras_ode.SolveError, match=r"at t = 0.4 with step size 0.4 ") as raised:
        solve(f, ONE, [0.0, 1.0], solver="euler", controller=StepTo(GRID))
    assert raised.value.status == Status.NON_FINITE


def test_steps_that_are_too_long_are_named():
    with pytest.raises(keras_ode.SolveError, match="step of 100 to the next of the times.*Pass more times"):
        solve(lambda t, y: -1e6 * y**3, ONE, [0.0, 1000.0], solver="euler", controller=StepTo(np.arange(0.0, 1001.0, 100.0)))


@pytest.mark.parametrize(
    "times, words",
    [
        ([0.0], r"times must be two or more finite numbers.*Received: times=\[0.0\]"),
        ([0.0, 0.0], "strictly increasing or decreasing"),
        ([0.0, np.nan], "finite"),
        ("now", "times must be two or more numbers. Received: times='now'"),
        (None, "times must.*Received: times=None"),
        ([0.0, 0.5], "must cover the whole interval, from 0 to 1: .*Received: times from 0 to 0.5"),
        (1e9 + np.linspace(-1, 1, 50), "must cover the whole interval"),
    ],
)
def test_times_that_make_no_sense_are_refused(times, words):
    with pytest.raises((ValueError, TypeError), match=words):
        solve(decay, ONE, [0.0, 1.0], solver="euler", controller=StepTo(times))


def test_times_that_rounding_moves_by_too_much_are_refused():
    grid = np.linspace(1e6, 1e6 + 1, 101)
    with pytest.raises(ValueError, match="Rounding to float32 would change the steps of StepTo by too much"):
        solve(decay, tf.ones([1]), [1e6, 1e6 + 1], solver="euler", controller=StepTo(grid))


def test_interval_that_only_the_graph_knows_and_the_times_do_not_cover_gives_no_number():
    run = tf.function(lambda end: solve(decay, ONE, tf.stack([0.0, end]), solver="euler", controller=StepTo(GRID)))
    assert np.isnan(run(tf.constant(2.0, tf.float64)).ys[-1]).all()
    np.testing.assert_allclose(run(tf.constant(1.0, tf.float64)).ys[-1], [np.prod(1 - np.diff(GRID))])


def test_step_size_beside_times_is_refused():
    with pytest.raises(ValueError, match="StepTo already says where steps end: leave step_size out. Received: step_size=0.1"):
        solve(decay, ONE, [0.0, 1.0], solver="euler", controller=StepTo(GRID), step_size=0.1)


def test_name_alone_is_answered_with_what_is_missing():
    with pytest.raises(ValueError, match="A StepTo needs arguments: pass an object, StepTo.times.. Received: controller='step_to'"):
        solve(decay, ONE, [0.0, 1.0], solver="euler", controller="step_to")


def test_times_are_saved_with_a_layer():
    layer = keras_ode.ODELayer(keras.layers.Dense(1), solver="euler", controller=StepTo(GRID), jit_compile=False)
    copy = keras_ode.ODELayer.from_config(json.loads(json.dumps(layer.get_config())))
    assert copy.controller == StepTo(GRID) and repr(StepTo([0, 1])) == "StepTo(times=(0.0, 1.0))"
