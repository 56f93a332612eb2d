"""What is found out about a solve that failed, forward and backward."""

import functools
import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ode
from keras_ode import Status, dynamics
from keras_ode.adjoints import Backsolve, Checkpointed, Interpolating
from keras_ode.adjoints.problem import Problem
from keras_ode.arguments import checked_method
from tests.gradients import quick
from tests.marks import graded, slow

PLAIN = {"jit_compile": False}
ONE = tf.constant([1.0], tf.float64)
PAIR = tf.constant([1.0, 0.0], tf.float64)


def rotation(y):
    return tf.stack([y[1], -y[0]])


def message(function, y0, t, **options):
    with pytest.raises(keras_ode.SolveError) as raised:
        keras_ode.solve(function, y0, t, **PLAIN, **options)
    return str(raised.value)


# Forward


def test_stiff_equation_is_named_with_the_component():
    relaxation = lambda t, y: tf.stack([-1e5 * (y[0] - tf.cos(t)), -y[1]])
    text = message(relaxation, PAIR, [0.0, 10.0], max_steps=300)
    assert "max_steps=300 was reached" in text
    assert text.count("the equation is stiff") == 1
    assert "solver='rodas5p'" in text
    assert "index [0] of the state" in text


def test_field_that_is_not_finite_is_named_with_the_component():
    # From 0.5, the second component passes 1 at time 0.5.
    late = lambda y: tf.where(y > 1, tf.constant(np.nan, tf.float64), 1)
    text = message(late, tf.constant([0.0, 0.5], tf.float64), [0.0, 10.0])
    assert "t = 0.5 " in text
    assert "NaN or infinite there. Check the dynamics" in text
    assert "The first element that is not finite is at index [1] of the state" in text


def test_tolerance_finer_than_the_dtype_is_named():
    text = message(rotation, tf.constant([1e8, 0.0]), [0.0, 10.0], rtol=1e-12, atol=1e-6)
    assert "rtol=1e-12 and atol=1e-06 are finer than float32 can represent" in text
    assert "solve in float64" in text


def test_too_few_steps_are_named():
    text = message(rotation, PAIR, [0.0, 100.0], rtol=1e-9, atol=1e-9, max_steps=20)
    assert "after 20 steps: max_steps=20 was reached. The tolerances need more steps than that: raise max_steps" in text


def test_solution_that_grows_without_bound_is_named_with_sample_and_component():
    text = message(lambda y: y**2, tf.constant([[0.1], [1.0]], tf.float64), [0.0, 5.0], per_sample=True)
    assert re.match(r"The solve of sample 1 stopped at t = (1|0\.9999)", text)
    assert "grows without bound" in text
    assert "index [1, 0] of the state" in text


def test_constant_step_that_is_too_large_is_named():
    text = message(lambda y: -1e3 * y, PAIR, [0.0, 100.0], solver="rk4", step_size=0.1)
    assert "The constant step_size=0.1 is too large" in text
    assert "Use a smaller step_size" in text


@pytest.mark.parametrize("solver", ["euler", "rk4", "tsit5"])
def test_constant_steps_through_nan_are_no_success(solver):
    late = lambda t, y: y * tf.sqrt(0.5 - t)
    solution = keras_ode.solve(late, PAIR, [0.0, 1.0], solver=solver, controller="constant", step_size=0.1, on_failure="nan", **PLAIN)
    assert int(solution.status) == Status.NON_FINITE
    assert np.isnan(solution.ys[-1]).all()


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6])
@pytest.mark.parametrize("function", [lambda t, y: y * tf.sqrt(0.5 - t), lambda t, y: tf.where(t > 0.5, tf.constant(np.nan, y.dtype), y)])
def test_solve_ends_within_a_hundred_tries_where_the_field_turns_nan(function, tolerance):
    solution = keras_ode.solve(function, PAIR, [0.0, 2.0], rtol=tolerance, atol=tolerance, on_failure="nan", **PLAIN)
    assert int(solution.status) == Status.NON_FINITE
    assert int(solution.stats["num_steps"]) <= 100


@pytest.mark.parametrize("tolerance", graded([1e-3, 1e-6, 1e-9], quick=[1e-6]))
def test_solve_is_not_stuck_for_a_hundred_tries_where_the_solution_blows_up(tolerance):
    def end(**options):
        with pytest.raises(keras_ode.SolveError) as raised:
            keras_ode.solve(lambda y: y**2, ONE, [0.0, 2.0], rtol=tolerance, atol=tolerance, **options, **PLAIN)
        return raised.value

    last = end()
    num_steps = int(re.search(r"after (\d+) steps", str(last)).group(1))
    assert last.time == pytest.approx(1, rel=10 * tolerance)
    # A hundred tries earlier it still moved.
    assert num_steps <= 100 or end(max_steps=num_steps - 100).time < last.time - 10 * np.spacing(last.time)


@pytest.mark.parametrize("build", [
    lambda **options: keras_ode.solve(rotation, tf.constant([1.0, 0.0]), [0.0, 0.1], max_steps=5, on_failure="nan", **options, **PLAIN),
    lambda **options: keras_ode.ODELayer(rotation, **options),
], ids=["solve", "layer"])  # fmt: skip
def test_tolerance_finer_than_the_dtype_warns_at_the_users_line(build):
    with pytest.warns(UserWarning, match="1e-12.*float32") as caught:
        build(rtol=1e-12, atol=1e-12)
    assert caught[0].filename == __file__


def test_layer_in_double_precision_may_have_fine_tolerances():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        keras_ode.ODELayer(rotation, rtol=1e-9, atol=1e-9, dtype="float64")


def test_stiffness_is_the_spectral_radius_of_a_linear_field():
    solution = keras_ode.solve(lambda y: -40 * y, ONE, [0.0, 1.0], rtol=1e-6, atol=1e-6, **PLAIN)
    assert float(solution.stats["stiffness"]) == pytest.approx(40, rel=0.01)


def test_stiffness_is_that_of_every_row():
    rates = tf.constant([[1.0], [40.0]], tf.float64)
    solution = keras_ode.solve(lambda y: -rates * y, tf.ones_like(rates), [0.0, 1.0], rtol=1e-6, atol=1e-6, per_sample=True, **PLAIN)
    np.testing.assert_allclose(solution.stats["stiffness"], [1, 40], rtol=0.01)


# Backward


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", quick("interpolating", "direct", slow_ones=[]))
def test_failed_row_has_gradients_of_nan_and_leaves_those_of_the_others_alone(adjoint):
    """y' = k y^2 from 2 does not reach 1. The rows share k, so its gradient cannot be told."""
    start, k = tf.constant([[0.1], [2.0], [0.2]], tf.float64), tf.constant(1.0, tf.float64)
    options = {"per_sample": True, "adjoint": adjoint, "on_failure": "nan", "rtol": 1e-6, "max_steps": 400, **PLAIN}
    with tf.GradientTape() as tape:
        tape.watch((start, k))
        solution = keras_ode.solve(lambda y: k * y**2, start, [0.0, 0.25, 1.0], **options)
        loss = tf.reduce_sum(solution.ys[-1])
    by_start, by_k = tape.gradient(loss, (start, k))
    assert solution.status.numpy().tolist() == [Status.SUCCESS, Status.STEP_TOO_SMALL, Status.SUCCESS]
    np.testing.assert_allclose(by_start[:, 0], [1 / 0.9**2, np.nan, 1 / 0.8**2], rtol=1e-4)
    assert np.isnan(by_k)


# Here TensorFlow differentiates the steps, and above the package.
@pytest.mark.parametrize("adjoint", quick("direct", slow_ones=["interpolating"]))
def test_failed_solve_has_gradients_of_nan(adjoint):
    start, k = tf.constant([2.0], tf.float64), tf.constant(1.0, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch((start, k))
        options = {"adjoint": adjoint, "on_failure": "nan", "max_steps": 200, **PLAIN}
        loss = tf.reduce_sum(keras_ode.solve(lambda y: k * y**2, start, [0.0, 1.0], **options).ys[-1])
    assert all(np.isnan(g).all() for g in tape.gradient(loss, (start, k)))


def backward_status(adjoint, y0, t, max_steps, rate=1.0, per_sample=True):
    """The statuses of a forward and a backward solve of `y' = -rate y`."""
    y0, times = tf.constant(y0, tf.float64), tf.constant(t, tf.float64)
    if per_sample:
        times = tf.tile(times[:, None], [1, len(y0)])
    found = both_passes(adjoint, max_steps, rate, per_sample)(y0, times)
    return [status.numpy().tolist() for status in found]


@functools.cache
def both_passes(adjoint, max_steps, rate, per_sample):
    """A function of the start and the times that gives both statuses, traced once."""

    @tf.function(autograph=False)
    def run(y0, times):
        method = checked_method("tsit5", 1e-6, 1e-6, None, None, max_steps, tf.float64)._replace(per_sample=per_sample)
        field = dynamics.close(lambda y: -tf.constant(rate, tf.float64) * y, times[0], y0)
        problem = Problem(field, times, (y0,), field.parameters, method, times_vary=False)
        outcome, memory = adjoint.forward(problem)
        found = adjoint.backward(problem, outcome, memory, tuple(tf.ones_like(leaf) for leaf in outcome.ys))
        return outcome.status, found.status

    return run


@pytest.mark.parametrize("adjoint", [Interpolating(), slow(Backsolve()), slow(Checkpointed())])
def test_backward_pass_that_succeeds_says_so_for_every_row(adjoint):
    assert backward_status(adjoint, [[1.0], [2.0]], [0.0, 1.0], max_steps=100) == [[0, 0], [0, 0]]


@pytest.mark.parametrize("adjoint", [Interpolating(rtol=1e-13, atol=1e-13), slow(Backsolve(rtol=1e-13, atol=1e-13))])
def test_backward_pass_that_needs_too_many_steps_says_so(adjoint):
    forward, backward = backward_status(adjoint, [[1.0], [2.0]], [0.0, 3.0], max_steps=40)
    assert forward == [Status.SUCCESS] * 2
    assert backward == [Status.MAX_STEPS] * 2


@pytest.mark.parametrize("adjoint", [Interpolating(), slow(Backsolve()), slow(Checkpointed())])
def test_backward_pass_of_a_failed_row_has_its_status(adjoint):
    forward, backward = backward_status(adjoint, [[1.0], [np.nan]], [0.0, 1.0], max_steps=100)
    assert forward == [Status.SUCCESS, Status.NON_FINITE]
    assert backward[0] == Status.SUCCESS
    assert backward[1] != Status.SUCCESS


def test_backward_pass_that_drifted_off_the_stored_states_says_so():
    """Backward from near zero, the error of y' = -20 y has e^20 times its size at the start."""
    _, backward = backward_status(Backsolve(checkpoints=0), [1.0, 0.0], [0.0, 1.0], max_steps=4000, rate=(20.0, 0.0), per_sample=False)
    assert backward == Status.NOT_CONVERGED


# NaN that was there before the solve


def test_weight_that_is_nan_is_named_and_not_the_dynamics():
    first, second = keras.layers.Dense(2, name="first"), keras.layers.Dense(2, name="second")
    network = keras.Sequential([first, second])
    network.build((None, 2))
    second.kernel.assign([[1.0, np.nan], [0.0, 0.0]])
    text = message(network, tf.ones([1, 2]), [0.0, 1.0])
    assert "The weight '" in text and "second/kernel' of shape (2, 2) was NaN before the solve, in 1 of 4 elements" in text
    assert "checkpoint" in text and "learning_rate" in text and "logarithms" not in text
    first.bias.assign([np.inf, 0.0])
    assert "first/bias' of shape (2,) was infinite before the solve, in 1 of 2 elements" in message(network, tf.ones([1, 2]), [0.0, 1.0])
    assert "holds for 1 more of the weights and inputs" in message(network, tf.ones([1, 2]), [0.0, 1.0])
    layer = keras_ode.ODELayer(network, jit_compile=False)
    with pytest.raises(keras_ode.SolveError, match="second/kernel|first/bias"):
        layer(tf.ones([1, 2]))


@pytest.mark.slow
def test_input_variable_and_argument_that_are_nan_are_named():
    nan = tf.constant(np.nan, tf.float64)
    rate = tf.Variable(nan, name="rate")
    assert "The variable 'rate' of shape () was NaN before the solve" in message(lambda y: -rate * y, ONE, [0.0, 1.0])
    assert "The state y0 of shape (1,) was NaN before the solve, in 1 of 1" in message(lambda y: -y, nan * ONE, [0.0, 1.0])
    assert "A tensor in args of shape () was NaN before the solve" in message(lambda y, k: -k * y, ONE, [0.0, 1.0], args=(nan,))
    assert "reads from outside, of shape () was NaN" in message(lambda y: -nan * y, ONE, [0.0, 1.0])


def test_only_the_row_that_failed_is_looked_at():
    start = tf.constant([[1.0], [2.0], [np.nan]], tf.float64)
    rates = tf.constant([[-np.inf], [np.nan], [1.0]], tf.float64)
    text = message(lambda y, k: tf.where(k < 0, tf.zeros_like(k), -k) * y, start, [0.0, 1.0], args=(rates,), per_sample=True)
    assert "sample 1" in text and "A tensor in args of shape (1,) was NaN before the solve, in 1 of 1 elements" in text
    assert "more of the weights" not in text


def test_dynamics_that_becomes_nan_is_still_told_to_look_at_its_logarithms():
    assert "logarithms" in message(lambda t, y: y * tf.math.log(0.5 - t), ONE, [0.0, 1.0])
