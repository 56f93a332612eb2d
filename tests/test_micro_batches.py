"""Rows that are solved some at a time, against the solve of all at once."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ode
from tests.marks import nightly

Y = tf.constant(np.random.default_rng(0).normal(size=(7, 2)))
RATES = tf.constant(np.linspace(0.1, 3.0, 7)[:, None])
TIMES = tf.constant(np.stack([np.linspace(0, 1 + i / 7, 3) for i in range(7)]))
WEIGHTS = tf.Variable(np.random.default_rng(1).normal(size=(2, 2)) / 2)
OPTIONS = {"per_sample": True, "solver": "bosh3", "jit_compile": False}


def field(t, y, rates, factor):
    return rates * tf.tanh(y @ WEIGHTS) * factor + 0.1 * t


def solved(times, batch_size, adjoint):
    """A solution, and the gradients by the state, an argument with rows, a variable and the times."""
    sources = [Y, RATES, WEIGHTS, TIMES]
    with tf.GradientTape() as tape:
        tape.watch(sources)
        args = (RATES, 1.0)
        solution = keras_ode.solve(field, Y, times, args=args, batch_size=batch_size, adjoint=adjoint, **OPTIONS)
        loss = tf.reduce_sum(solution.ys**2)
    return solution, tape.gradient(loss, sources, unconnected_gradients="zero")


# Seven rows are three parts, of which the last holds its row again; and two.
@pytest.mark.parametrize(
    ("adjoint", "times", "batch_size"),
    [("checkpointed", TIMES, 3), nightly("interpolating", [0.0, 1.0], 4)],
)
@pytest.mark.slow
def test_rows_in_micro_batches_are_those_of_the_whole_solve(adjoint, times, batch_size):
    whole, gradients = solved(times, None, adjoint)
    parts, gradients_of_parts = solved(times, batch_size, adjoint)
    for name in ("ts", "ys", "status", "step_size"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-10)
    for name, value in whole.stats.items():
        np.testing.assert_allclose(parts.stats[name], value, rtol=1e-8)
    for a, b in zip(gradients_of_parts, gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13)


@pytest.mark.slow
def test_micro_batches_are_right_under_xla():
    @tf.function(autograph=False, jit_compile=True)
    def gradient():
        with tf.GradientTape() as tape:
            ys = keras_ode.odeint(field, Y, [0.0, 1.0], args=(RATES, 1.0), batch_size=3, adjoint="checkpointed", **OPTIONS)
            loss = tf.reduce_sum(ys**2)
        return tape.gradient(loss, WEIGHTS)

    np.testing.assert_allclose(gradient(), solved([0.0, 1.0], None, "checkpointed")[1][2], rtol=1e-10)


def test_failed_row_is_named_by_its_place_in_the_whole_batch():
    y = tf.constant([[0.1]] * 4 + [[2.0]])
    with pytest.raises(keras_ode.SolveError) as info:
        keras_ode.solve(lambda y: y**2, y, [0.0, 1.0], batch_size=3, **OPTIONS)
    assert info.value.sample == 4 and "sample 4" in str(info.value)


@pytest.mark.slow
def test_second_derivative_is_refused():
    with pytest.raises(NotImplementedError, match="A solve with batch_size gives first derivatives only.*leave batch_size out"):
        with tf.GradientTape() as outer, tf.GradientTape() as inner:
            for tape in (outer, inner):
                tape.watch(Y)
            loss = tf.reduce_sum(keras_ode.odeint(field, Y, [0.0, 1.0], args=(RATES, 1.0), batch_size=4, **OPTIONS) ** 2)
            gradient = inner.gradient(loss, Y)
        outer.gradient(gradient, Y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a positive whole number, or None. Received: batch_size=0"),
        ({"batch_size": 2, "per_sample": False}, "use per_sample=True. Received: batch_size=2, per_sample=False"),
        ({"batch_size": 2, "dense": True}, "batch_size cannot be combined with dense"),
        ({"batch_size": 2, "jump_times": [0.5]}, "batch_size cannot be combined with jump_times"),
        ({"batch_size": 2, "jump_times": np.array([0.3, 0.5])}, "batch_size cannot be combined with jump_times"),
        ({"batch_size": 2, "step_size": tf.fill([7], 0.1)}, "With batch_size, step_size must be one number"),
        ({"batch_size": 2, "step_size": [0.1, 0.2]}, r"With batch_size, step_size must be one number. Received: step_size=\[0.1"),
    ],
)
def test_bad_combinations_say_why(options, message):
    with pytest.raises(ValueError, match=message):
        keras_ode.solve(lambda y: -y, Y, [0.0, 1.0], **{**OPTIONS, **options})


@pytest.mark.parametrize("own", [False, True])
def test_path_with_as_many_knots_as_there_are_rows_is_not_divided(own):
    """Its first axis is then time; only one with rows of its own is."""
    knots = np.linspace(0, 3, 4)
    values = np.stack([(1 + i) * knots**2 for i in range(4)])[..., None]  # [B, T, C]
    path = keras_ode.paths.LinearPath(knots, values if own else values[0, :, 0])
    read = lambda t, y, path: tf.reshape(path.evaluate(t), tf.shape(y))
    end = keras_ode.odeint(read, tf.zeros([4, 1], tf.float64), [0.0, 3.0], args=(path,), batch_size=2, **OPTIONS)[-1, :, 0]
    exact = 9.5 * (1 + np.arange(4) if own else np.ones(4))  # that of lines through 0, 1, 4, 9
    np.testing.assert_allclose(end, exact, rtol=1e-3)


def test_complex_argument_of_all_rows_is_not_divided():
    start = tf.constant([[1.0 + 0j], [2.0]], tf.complex128)
    end = keras_ode.odeint(lambda y, rate: rate * y, start, [0.0, 1.0], args=(tf.constant(1j, tf.complex128),), batch_size=1, **OPTIONS)
    np.testing.assert_allclose(end[-1], np.exp(1j) * start, rtol=1e-2)


@pytest.mark.slow
def test_rows_of_algebraic_equations_are_those_of_the_whole_solve():
    """With z = x / 2, x' = -x / 2."""
    f = lambda y: tf.stack([-y[:, 1], y[:, 1] - y[:, 0] / 2], axis=1)
    start = tf.constant([[1.0, 0.5], [2.0, 1.0], [3.0, 1.5]], tf.float64)
    options = {**OPTIONS, "solver": "rosenbrock23", "rtol": 1e-5, "mass_matrix": np.diag([1.0, 0.0])}
    with tf.GradientTape() as tape:
        tape.watch(start)
        end = keras_ode.odeint(f, start, [0.0, 1.0], batch_size=2, **options)[-1]
    np.testing.assert_allclose(end, np.exp(-0.5) * start, rtol=1e-4)
    np.testing.assert_allclose(tape.gradient(end, start), [[1.5 * np.exp(-0.5), 0]] * 3, atol=1e-3)


@pytest.mark.slow
def test_layer_solves_in_micro_batches():
    layer = keras_ode.ODELayer(keras.layers.Dense(2, activation="tanh"), **OPTIONS)
    y = tf.cast(Y, "float32")
    np.testing.assert_allclose(layer.solve(y, batch_size=3).ys[-1], layer(y), rtol=1e-5)
