"""Derivatives in forward mode, by `tf.autodiff.ForwardAccumulator`, against closed forms."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ode

ONE = tf.constant([1.0], tf.float64)
OPTIONS = {"rtol": 1e-8, "atol": 1e-8, "max_steps": 64, "adjoint": "direct", "jit_compile": False}
EXPECTED = -np.exp(-2.0)  # y' = -k y: dy(1)/dk = -y(1), at k = 2
RATE, TANGENT = tf.constant(2.0, tf.float64), tf.constant(1.0, tf.float64)


def pushed(followed, tangent, function):
    with tf.autodiff.ForwardAccumulator(followed, tangent) as accumulator:
        result = function()
    return accumulator.jvp(result)


def by_args(**options):
    f = lambda y, k: -k * y
    return lambda: keras_ode.odeint(f, ONE, [0.0, 1.0], args=(RATE,), **{**OPTIONS, **options})[-1]


@pytest.mark.slow
def test_derivative_by_args_closures_variables_weights_state_and_times():
    variable = tf.Variable(2.0, dtype=tf.float64)
    dense = keras.layers.Dense(1, use_bias=False, dtype="float64", kernel_initializer=lambda *_, **__: [[-2.0]])
    dense.build((None, 1))
    times = tf.constant([0.0, 1.0], tf.float64)
    solve = lambda f, t: keras_ode.odeint(f, ONE, t, **OPTIONS)[-1]
    found = [
        pushed(RATE, TANGENT, by_args()),
        pushed(RATE, TANGENT, lambda: solve(lambda y: -RATE * y, [0.0, 1.0])),
        pushed(variable, TANGENT, lambda: solve(lambda y: -variable * y, [0.0, 1.0])),
        -pushed(dense.kernel.value, TANGENT[None, None], lambda: keras_ode.odeint(dense, ONE[None], [0.0, 1.0], **OPTIONS)[-1, 0]),
        -pushed(ONE, tf.ones_like(ONE), lambda: solve(lambda y: -2.0 * y, [0.0, 1.0])),
        pushed(times, tf.constant([0.0, 0.5], tf.float64), lambda: solve(lambda y: -2.0 * y, times)),
    ]
    np.testing.assert_allclose(found, [[EXPECTED]] * 6, rtol=1e-6)


@pytest.mark.slow
def test_derivative_in_a_graph_and_of_an_event():
    @tf.function
    def inside(k):
        return pushed(k, TANGENT, lambda: keras_ode.odeint(lambda y: -k * y, ONE, [0.0, 1.0], **OPTIONS)[-1])

    np.testing.assert_allclose(inside(RATE), [EXPECTED], rtol=1e-6)
    outside = tf.function(lambda k: keras_ode.odeint(lambda y: -k * y, ONE, [0.0, 1.0], **OPTIONS)[-1])
    np.testing.assert_allclose(pushed(RATE, TANGENT, lambda: outside(RATE)), [EXPECTED], rtol=1e-6)
    event = keras_ode.Event(lambda y: y[0] - 0.5)
    time = lambda: keras_ode.solve(lambda y: -RATE * y, ONE, [0.0, 3.0], event=event, **OPTIONS).event_time
    np.testing.assert_allclose(pushed(RATE, TANGENT, time), -np.log(2) / 4, rtol=1e-6)


@pytest.mark.parametrize("adjoint", ["interpolating", "backsolve", "checkpointed"])
def test_other_adjoints_name_forward_mode_and_what_to_do(adjoint):
    with pytest.raises(NotImplementedError, match="Forward mode .*ForwardAccumulator.* use adjoint='direct'"):
        pushed(RATE, TANGENT, by_args(adjoint=adjoint))
    inside = tf.function(lambda: pushed(RATE, TANGENT, by_args(adjoint=adjoint)))
    with pytest.raises(NotImplementedError, match="Forward mode .*ForwardAccumulator.* use adjoint='direct'"):
        inside()


def test_accumulator_around_a_function_that_was_traced_before_says_what_to_do():
    outside = tf.function(lambda k: keras_ode.odeint(lambda y: -k * y, ONE, [0.0, 1.0], jit_compile=False)[-1])
    outside(RATE)
    with pytest.raises(NotImplementedError, match="forward mode .*ForwardAccumulator.* use adjoint='direct'"):
        pushed(RATE, TANGENT, lambda: outside(RATE))


def test_xla_is_refused():
    inside = tf.function(lambda: pushed(RATE, TANGENT, by_args()), jit_compile=True)
    with pytest.raises(NotImplementedError, match="leave jit_compile=True out"):
        inside()
