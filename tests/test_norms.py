"""Norms of a step's error: what they see, and that backward solves use them."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ode
from keras_ode import Status
from tests.marks import graded, nightly
from tests.test_step_sizes import ONE, decay, solve

# The others have nothing of their own here.
ADJOINTS = ["interpolating", *(pytest.param(name, marks=pytest.mark.slow) for name in ("backsolve", "checkpointed"))]
EXACT = np.exp(np.sin(3.0))  # of y' = y cos t, y(0) = 1, and its derivative by y(0)


def largest(errors):
    return tf.reduce_max([tf.reduce_max(tf.abs(e)) for e in tf.nest.flatten(errors)])


def one_that_moves(t, y):
    """One element of ten thousand moves."""
    return tf.concat([y[:1] * tf.cos(t), tf.zeros_like(y[1:])], axis=0)


def solved(norm, adjoint="interpolating", dtype=tf.float64):
    """The errors of the element that moves, and of its derivative by its start, on the scale of the tolerance."""
    y0 = tf.ones([10_000], dtype)
    with tf.GradientTape() as tape:
        tape.watch(y0)
        y = solve(one_that_moves, y0, [0.0, 3.0], rtol=1e-5, atol=1e-5, norm=norm, adjoint=adjoint).ys[-1]
        loss = tf.reduce_sum(y)
    gradient = tape.gradient(loss, y0)
    return abs(float(y[0]) - EXACT) / 1e-5, abs(float(gradient[0]) - EXACT) / 1e-5


@pytest.mark.parametrize("adjoint", graded(ADJOINTS, quick=["interpolating", "direct"], slow_ones=[]))
@pytest.mark.slow
def test_error_of_one_element_among_many_is_seen_by_the_largest_and_hidden_by_the_mean(adjoint):
    """Forward, and in the derivative, for the backward solve has the same norm."""
    hidden, seen = solved("rms", adjoint), solved("max", adjoint)
    assert hidden[0] > 10 and max(seen) < 5
    assert hidden[1] > 5 * seen[1]


@pytest.mark.slow
@pytest.mark.parametrize("how", [lambda f: f, nightly(tf.function(jit_compile=True))], ids=["eager", "compiled"])
def test_function_of_the_user_takes_the_same_steps_as_the_name_that_it_means(how):
    stats = [how(lambda norm=norm: solve(decay, tf.range(1.0, 4.0), [0.0, 5.0], rtol=1e-5, norm=norm).stats)() for norm in ("max", largest)]
    assert int(stats[0]["num_steps"]) == int(stats[1]["num_steps"]) > int(solve(decay, tf.range(1.0, 4.0), [0.0, 5.0]).stats["num_steps"])


@pytest.mark.parametrize("adjoint", ["interpolating", nightly("checkpointed")])
@pytest.mark.slow
def test_norm_that_sees_a_part_of_a_nest_takes_the_steps_that_this_takes_alone(adjoint):
    """And so does the backward solve: states and gradients are those of the same steps."""

    def solved(dynamics, y0, norm):
        layer = keras_ode.ODELayer(dynamics, t=(0.0, 3.0), rtol=1e-5, norm=norm, adjoint=adjoint, jit_compile=False)
        with tf.GradientTape() as tape:
            tape.watch(y0)
            y = layer(y0)
            loss = tf.reduce_sum(tf.nest.flatten(y)[0])
        return tf.nest.flatten(y)[0], tf.nest.flatten(tape.gradient(loss, y0))[0]

    fast = lambda t, y: {"a": y["a"] * tf.cos(t), "b": 30 * tf.cos(30 * t) + 0 * y["b"]}
    both = solved(fast, {"a": tf.ones([1, 1]), "b": tf.zeros([1, 1])}, lambda errors: tf.reduce_max(tf.abs(errors["a"])))
    alone = solved(lambda t, y: y * tf.cos(t), tf.ones([1, 1]), "max")
    for x, y in zip(both, alone, strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-6)


def test_rows_have_norms_of_their_own():
    y0 = tf.constant([[1.0, 0.0], [0.0, 0.0]])
    rows = lambda errors: tf.reduce_max(tf.abs(errors), axis=1)
    by_function, by_name = (
        solve(decay, y0, [0.0, 5.0], rtol=1e-5, norm=norm, per_sample=True).stats["num_steps"].numpy() for norm in (rows, "max")
    )
    np.testing.assert_array_equal(by_function, by_name)
    assert by_name[0] > by_name[1]


def test_weights_of_a_norm_may_change_between_calls():
    """They are read from a variable, for which nothing is compiled anew."""
    weight, y0 = tf.Variable(1.0), tf.ones([2])
    norm = lambda errors: weight * tf.reduce_max(tf.abs(errors))
    counts = []
    for value in (1.0, 1e4):
        weight.assign(value)
        counts.append(int(solve(decay, y0, [0.0, 5.0], norm=norm).stats["num_steps"]))
    assert counts[1] > 2 * counts[0]


@pytest.mark.slow
def test_norm_reads_a_tensor_within_a_differentiated_loop():
    weights = tf.constant([1.0, 0.0])
    layer = keras_ode.layers.ODERNN(
        keras.layers.GRUCell(2), keras.layers.Dense(2), norm=lambda errors: tf.reduce_max(weights * tf.abs(errors)), jit_compile=False
    )
    with tf.GradientTape() as tape:
        y = layer(tf.ones([1, 3, 1]), t=tf.constant([0.0, 0.5, 1.0]))
    assert all(g is not None and np.isfinite(g).all() for g in tape.gradient(y, layer.trainable_weights))


@pytest.mark.parametrize("value", [np.nan, -1.0])
def test_norm_that_gives_no_size_accepts_nothing_and_is_named(value):
    with pytest.raises(keras_ode.SolveError, match="norm of the step's error is negative or not a number") as raised:
        solve(decay, ONE, [0.0, 1.0], norm=lambda errors: value + 0 * tf.reduce_sum(errors))
    assert raised.value.status == Status.NON_FINITE


def test_largest_error_sees_what_is_not_finite():
    f = lambda t, y: tf.where(t > 0.5, tf.constant(np.nan, y.dtype), -y)
    solution = solve(f, ONE, [0.0, 1.0], norm="max", on_failure="nan")
    assert int(solution.status) == Status.NON_FINITE and np.isnan(solution.ys[-1]).all()


@pytest.mark.parametrize(
    "norm, per_sample, words",
    [
        ("l2", False, "norm must be one of 'rms', 'max', or a function.*Received: norm='l2'"),
        (None, False, "norm must be one of.*Received: norm=None"),
        (tf.abs, False, r"norm must return one number: reduce all axes. Received: float64 of shape \(1, 1\)"),
        (tf.reduce_max, True, r"norm must return one number for each row, shape \(1,\).*all axes but the first. Received: .*shape \(\)"),
        (lambda errors: None, False, "norm must return one number. Received: None"),
    ],
)
def test_norm_that_makes_no_sense_is_refused(norm, per_sample, words):
    with pytest.raises((ValueError, TypeError), match=words):
        solve(decay, ONE[None], [0.0, 1.0], norm=norm, per_sample=per_sample)


@keras.saving.register_keras_serializable(package="tests")
def registered(errors):
    return tf.reduce_max(tf.abs(errors))


@pytest.mark.parametrize("norm", ["max", registered])
def test_norm_is_saved_with_a_layer_and_with_models_that_pass_it_on(norm, tmp_path):
    ode = keras_ode.ODELayer(keras.layers.Dense(2), norm=norm)
    flow = keras_ode.models.ContinuousNormalizingFlow(keras.layers.Dense(2), norm=norm)
    for layer in (ode, flow):
        config = json.loads(json.dumps(layer.get_config()))
        copy = type(layer).from_config(config)
        assert getattr(copy, "flows", [copy])[0].norm == norm
    model = keras.Sequential([keras.Input([2]), ode])
    model.save(tmp_path / "model.keras")
    assert keras.saving.load_model(tmp_path / "model.keras").layers[0].norm == norm
