"""The sizes of steps that users ask for: limits, grids, sizes of rows, and those to go on with."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ode
from keras_ode import Status
from tests.marks import nightly, slow

ONE = tf.constant([1.0], tf.float64)
PULSE = 0.01 * np.sqrt(np.pi)


def solve(dynamics, y0, t, **options):
    return keras_ode.solve(dynamics, y0, t, **{"jit_compile": False, **options})


def decay(t, y):
    return -y


def pulse(t, y, height):
    return height * tf.exp(-(((t - 5) / 0.01) ** 2)) + 0 * y


def state_and_gradient(**options):
    """The state after the pulse, the derivative by its height, and the status."""
    height = tf.constant(1.0, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(height)
        solution = solve(pulse, 0 * ONE, [0.0, 10.0], args=(height,), rtol=1e-6, atol=1e-9, **options)
        y = solution.ys[-1, 0]
    return y, tape.gradient(y, height), solution.status


# The largest step


@pytest.mark.slow  # the next test claims this of "interpolating"
@pytest.mark.parametrize(
    "adjoint, per_sample",
    [
        *[("interpolating", True), ("backsolve", False), ("checkpointed", False), ("direct", False)],
        *[("interpolating", False), ("backsolve", True)],
    ],
)
def test_pulse_is_seen_with_a_largest_step_and_so_is_its_height_by_every_adjoint(adjoint, per_sample):
    y, gradient, _ = state_and_gradient(adjoint=adjoint, per_sample=per_sample, max_step=0.02)
    np.testing.assert_allclose(y, PULSE, rtol=1e-4)
    np.testing.assert_allclose(gradient, PULSE, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, nightly(True)])
def test_pulse_is_seen_in_a_graph(jit_compile):
    run = tf.function(lambda: state_and_gradient(max_step=0.02), jit_compile=jit_compile, autograph=False)
    y, gradient, _ = run()
    np.testing.assert_allclose(y, PULSE, rtol=1e-4)
    np.testing.assert_allclose(gradient, PULSE, rtol=1e-4)


def test_pulse_as_wide_as_its_name_says_is_seen():
    """The rectangle of the width 0.01 and the height 1: SciPy's answer with the same `max_step`."""
    f = lambda t, y: tf.where((t > 5.0) & (t < 5.01), tf.ones_like(y), 0 * y)
    y = solve(f, 0 * ONE, [0.0, 10.0], rtol=1e-6, atol=1e-8, max_step=0.005).ys[-1]
    np.testing.assert_allclose(y, [0.01], rtol=1e-4)


@pytest.mark.parametrize(
    "adjoint, dtype",
    [
        ("backsolve", "float32"),
        ("interpolating", "float64"),
        *(nightly(*case) for case in [("backsolve", "float64"), ("interpolating", "float32")]),
    ],
)
@pytest.mark.slow
def test_no_step_forward_or_backward_is_longer_than_the_largest(adjoint, dtype):
    sizes = []
    layer = keras_ode.ODELayer(keras.layers.Dense(1, dtype=dtype), t=(0.0, 1.0), max_step=0.03, adjoint=adjoint, jit_compile=False, dtype=dtype)
    inputs = keras.Input([1], dtype=dtype)
    model = keras.Model(inputs, layer(inputs))
    model.compile("sgd", "mse", jit_compile=False)
    recorder = keras_ode.callbacks.SolverStepRecorder()
    model.fit(np.ones([2, 1]), np.ones([2, 1]), verbose=0, callbacks=[recorder])
    assert {r.direction for r in recorder.records} == {"forward", "backward"}
    for record in recorder.records:
        sizes = np.abs(record.step_size)
        assert np.max(sizes) <= 0.03 * (1 + 1e-5)
        assert 34 <= len(sizes) <= 60  # neither many more


@pytest.mark.parametrize("how", [slow("event"), "jump"])
def test_largest_step_holds_in_segments(how):
    options = {"event": keras_ode.Event(lambda t, y: t - 9.0)} if how == "event" else {"jump_times": [3.0]}
    solution = solve(pulse, 0 * ONE, [0.0, 10.0], args=(1.0,), rtol=1e-6, atol=1e-9, max_step=0.02, **options)
    y = solution.event_state if how == "event" else solution.ys[-1]
    np.testing.assert_allclose(y, [PULSE], rtol=1e-4)


def test_steps_of_the_largest_size_are_as_many_as_fit():
    """Constant slopes: every step may be as long as allowed, and none is cut to an ulp before the end."""
    for number in (7, 10, 100):
        solution = solve(lambda t, y: tf.ones_like(y), ONE, [0.0, 1.0], max_step=1 / number, step_size=1.0)
        assert int(solution.stats["num_steps"]) == number


def test_largest_step_that_is_infinite_is_none():
    stats = [solve(decay, ONE, [0.0, 1.0], **options).stats for options in ({}, {"max_step": np.inf})]
    assert int(stats[0]["num_steps"]) == int(stats[1]["num_steps"])


def test_too_few_steps_of_the_largest_size_are_counted_in_the_message():
    with pytest.raises(keras_ode.SolveError, match="With max_step=0.01 the whole solve takes 1000 steps or more: raise max_steps"):
        solve(decay, ONE, [0.0, 10.0], max_step=0.01, max_steps=20)


# The smallest step


def oscillator(t, y):
    return tf.stack([y[1], -400.0 * y[0]])


@pytest.mark.parametrize("how", [lambda f: f, slow(tf.function(jit_compile=True))], ids=["eager", "compiled"])
def test_smallest_step_that_is_not_accurate_enough_ends_the_solve_without_a_number(how):
    y0 = tf.constant([1.0, 0.0], tf.float64)
    run = how(lambda: solve(oscillator, y0, [0.0, 1.0], rtol=1e-8, atol=1e-8, min_step=0.2, on_failure="nan"))
    solution = run()
    assert int(solution.status) == Status.STEP_TOO_SMALL
    assert np.isnan(solution.ys[-1]).all()
    assert int(solution.stats["num_steps"]) < 3


def test_smallest_step_is_named_where_it_ends_the_solve():
    y0 = tf.constant([1.0, 0.0], tf.float64)
    with pytest.raises(keras_ode.SolveError, match="accurate enough, down to min_step=0.2. .*use a smaller min_step"):
        solve(oscillator, y0, [0.0, 1.0], rtol=1e-8, atol=1e-8, min_step=0.2)


def test_smallest_step_that_suffices_changes_no_result_and_only_the_last_step_is_shorter():
    sizes = []

    def note(info):
        tf.py_function(lambda h: sizes.append(float(h)), [info.step_size], [])

    solution = solve(decay, ONE, [0.0, 1.05], rtol=1e-3, atol=1e-3, min_step=0.25, on_step=note)
    np.testing.assert_allclose(solution.ys[-1], [np.exp(-1.05)], rtol=1e-3)
    assert min(sizes[:-1]) >= 0.25 and int(solution.stats["num_rejected"]) == 0


def test_smallest_step_holds_in_the_first_step():
    """The step that would be chosen at the start is about 1e-5 here."""
    sizes = []
    note = lambda info: tf.py_function(lambda h: sizes.append(float(h)), [info.step_size], []) and None
    solve(lambda t, y: tf.ones_like(y), 0 * ONE, [0.0, 1.0], min_step=0.125, on_step=note)
    assert sizes[0] >= 0.125


@pytest.mark.parametrize("adjoint", ["interpolating", slow("backsolve")])
def test_backward_solve_that_needs_smaller_steps_gives_no_gradient(adjoint):
    """The state is zero, and so are its errors, but those of its cotangent are not."""
    y0 = tf.zeros([2], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(y0)
        y = solve(oscillator, y0, [0.0, 1.0], rtol=1e-8, atol=1e-8, min_step=0.2, adjoint=adjoint).ys[-1]
    assert np.isnan(tape.gradient(y, y0)).all()


def test_rows_have_limits_of_their_own_steps():
    y0 = tf.constant([[1.0, 0.0], [0.0, 0.0]], tf.float64)
    f = lambda t, y: tf.stack([y[:, 1], -400.0 * y[:, 0]], axis=1)
    solution = solve(f, y0, [0.0, 1.0], rtol=1e-8, atol=1e-8, min_step=0.2, per_sample=True, on_failure="nan")
    assert solution.status.numpy().tolist() == [Status.STEP_TOO_SMALL, Status.SUCCESS]


# Bad limits


@pytest.mark.parametrize("option", ["max_step", "min_step"])
@pytest.mark.parametrize("value", [0, -0.1, np.nan, "small", True])
def test_limit_that_is_no_positive_number_is_refused(option, value):
    with pytest.raises(ValueError, match=f"{option} must be a positive number, in the units of t, or None. Received: {option}={value!r}"):
        solve(decay, ONE, [0.0, 1.0], **{option: value})


@pytest.mark.parametrize(
    "options, words",
    [
        ({"min_step": 0.2, "max_step": 0.1}, "min_step must not be above max_step. Received: min_step=0.2, max_step=0.1"),
        ({"min_step": np.inf}, "min_step must.*Received: min_step=inf"),
        ({"max_step": 1e-18}, "max_step is smaller than what float64 resolves.*Received: max_step=1e-18"),
        ({"max_step": 0.1, "controller": "constant", "step_size": 0.1}, "max_step limits.*Constant.*leave max_step out.*max_step=0.1"),
    ],
)
def test_limit_that_makes_no_sense_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        solve(decay, ONE, [0.0, 1.0], **options)


def test_limits_are_saved_with_layers_and_models_that_pass_them_on():
    dynamics = keras.layers.Dense(2)
    limits = {"max_step": np.float32(0.5), "min_step": 0.001}
    ode = keras_ode.ODELayer(dynamics, **limits)
    rnn = keras_ode.layers.ODERNN(keras.layers.GRUCell(2), dynamics, **limits)
    flow = keras_ode.models.ContinuousNormalizingFlow(dynamics, **limits)
    latent = keras_ode.models.LatentODE(keras.layers.GRU(2), dynamics, keras.layers.Dense(2), 2, **limits)
    for layer in (ode, rnn, flow, latent):
        config = json.loads(json.dumps(layer.get_config()))
        assert (config["max_step"], config["min_step"]) == (0.5, 0.001)
        copy = type(layer).from_config(config)
        assert copy.get_config()["max_step"] == 0.5


def test_limits_hold_in_a_layer():
    layer = keras_ode.ODELayer(lambda t, y: tf.cast(pulse(t, y, 1.0), y.dtype), t=(0.0, 10.0), max_step=0.02, jit_compile=False)
    np.testing.assert_allclose(layer(tf.zeros([1, 1])), [[PULSE]], rtol=1e-3)


# A step size for every row


def rows(t, y):
    """Rows of different frequencies."""
    return tf.constant([[1.0], [3.0], [9.0]], y.dtype) * tf.cos(t) * y


def row(index):
    return lambda t, y: 3.0**index * tf.cos(t) * y


SIZES = [0.2, 0.05, 0.01]


CONSTANT, FIRST = {"solver": "rk4"}, {"rtol": 1e-6}


@pytest.mark.parametrize(
    "adjoint, options",
    [
        ("checkpointed", CONSTANT),
        ("interpolating", FIRST),
        nightly("interpolating", CONSTANT),
        nightly("checkpointed", FIRST),
    ],
)
@pytest.mark.slow
def test_rows_with_step_sizes_of_their_own_are_solved_as_each_alone(options, adjoint):
    y0 = tf.ones([3, 1], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(y0)
        together = solve(rows, y0, [0.0, 1.0], step_size=SIZES, per_sample=True, adjoint=adjoint, **options)
        y = together.ys[-1]
    gradient = tape.gradient(y, y0)
    for index, size in enumerate(SIZES):
        with tf.GradientTape() as tape:
            one = y0[:1] + 0
            tape.watch(one)
            alone = solve(row(index), one, [0.0, 1.0], step_size=size, per_sample=True, adjoint=adjoint, **options)
            end = alone.ys[-1, 0]
        assert int(together.stats["num_steps"][index]) == int(alone.stats["num_steps"][0])
        np.testing.assert_allclose(y[index], end, rtol=1e-13)
        np.testing.assert_allclose(gradient[index], tape.gradient(end, one)[0], rtol=1e-9)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_step_sizes_of_rows_may_be_tensors_in_a_graph(jit_compile):
    @tf.function(jit_compile=jit_compile, autograph=False)
    def run(sizes):
        return solve(rows, tf.ones([3, 1], tf.float64), [0.0, 1.0], solver="euler", step_size=sizes, per_sample=True)

    expected = [(lambda h, w: np.prod([1 + h * w * np.cos(h * i) for i in range(round(1 / h))]))(h, 3.0**i) for i, h in enumerate(SIZES)]
    np.testing.assert_allclose(run(tf.constant(SIZES)).ys[-1, :, 0], expected, rtol=1e-6)  # 0.05 in float32
    wrong = run(tf.constant([0.2, -1.0, 0.01]))
    assert wrong.status.numpy().tolist() == [Status.SUCCESS, Status.NON_FINITE, Status.SUCCESS]


def test_step_size_that_is_not_positive_in_a_graph_ends_an_adaptive_solve_at_once():
    solution = tf.function(lambda h: solve(decay, ONE, [0.0, 1.0], step_size=h, max_step=0.5))(tf.constant(0.0))
    assert int(solution.status) == Status.NON_FINITE and int(solution.stats["num_steps"]) == 1


@pytest.mark.parametrize(
    "step_size, per_sample, words",
    [
        ([0.1, 0.2], False, r"one for each row of y0. Received: step_size of shape \(2,\), where per_sample=False"),
        ([0.1, 0.2], True, r"Received: step_size of shape \(2,\), where y0 has 3 rows"),
        ([0.1, 0.2, 0.0], True, r"step_size must be a positive number.*Received: step_size=\[0.1, 0.2, 0.0\]"),
        (np.ones([3, 1]), True, "one for each row with per_sample=True.*Received: step_size=array"),
        (tf.constant(["a"]), True, "step_size must be a positive number"),
        (tf.constant(-1.0), False, "step_size must be a positive number.*-1.0"),
    ],
)
def test_step_sizes_that_make_no_sense_are_refused(step_size, per_sample, words):
    with pytest.raises((ValueError, TypeError), match=words):
        solve(rows, tf.ones([3, 1]), [0.0, 1.0], step_size=step_size, per_sample=per_sample)


def test_layer_takes_step_sizes_of_rows_where_it_is_called_alone():
    with pytest.raises(TypeError, match=r"layer.solve takes one for each row too. Received: step_size=\[0.1, 0.2\]"):
        keras_ode.ODELayer(decay, step_size=[0.1, 0.2], per_sample=True)
    layer = keras_ode.ODELayer(decay, solver="euler", step_size=1.0, per_sample=True, jit_compile=False)
    np.testing.assert_allclose(layer.solve(tf.ones([2, 1]), step_size=[0.5, 1.0]).ys[-1], [[0.25], [0.0]])


# The step size to go on with


def wave(t, y):
    return tf.stack([y[..., 1], -25.0 * y[..., 0]], axis=-1)


def in_pieces(restart, number=10, **options):
    """The state after a time of ten in so many pieces, and the evaluations that they took."""
    y, evaluations, size = tf.constant([[1.0, 0.0], [0.0, 0.1]], tf.float64), 0, None
    ends = np.linspace(0, 10, number + 1)
    for start, end in zip(ends[:-1], ends[1:], strict=True):
        solution = solve(wave, y, [start, end], rtol=1e-6, atol=1e-9, step_size=size if restart else None, **options)
        y, size = solution.ys[-1], solution.step_size
        evaluations += solution.stats["num_evaluations"].numpy()
    return y, evaluations


@pytest.mark.parametrize("per_sample", [False, slow(True)])
def test_solve_in_pieces_goes_on_with_the_step_size_of_the_last_one(per_sample):
    whole, once = in_pieces(False, number=1, per_sample=per_sample)
    warm, few = in_pieces(True, per_sample=per_sample)
    _, many = in_pieces(False, per_sample=per_sample)
    np.testing.assert_allclose(warm, whole, atol=1e-5)
    np.testing.assert_allclose(warm, [[np.cos(50), -5 * np.sin(50)], [0.02 * np.sin(50), 0.1 * np.cos(50)]], atol=1e-3)
    assert np.all(few < many)
    # Each piece costs its first evaluation, the step that is cut short at its end, and at most one that is rejected.
    assert np.all(few <= once + 9 * (1 + 6 + 6))


def test_step_size_is_that_of_a_whole_step_where_the_last_one_was_cut():
    """The constant slope lets steps grow to ten times the last; the short one at the end does not shorten the next."""
    solution = solve(lambda t, y: tf.ones_like(y), ONE, [0.0, 1.15], step_size=0.01)
    assert float(solution.step_size) == pytest.approx(10.0)  # 0.01, 0.1, 1, and then the rest, 0.04
    assert solution.step_size.dtype == tf.float64


def test_constant_step_size_is_given_back():
    solution = tf.function(lambda: solve(decay, ONE, [0.0, 0.95], solver="euler", step_size=0.1))()
    assert float(solution.step_size) == 0.1


# TensorFlow differentiates "direct", and could go through the step size there.
@pytest.mark.parametrize("adjoint", [nightly("interpolating"), "direct"])
@pytest.mark.slow
def test_gradient_goes_through_the_state_and_not_through_the_step_size(adjoint):
    def run(y, restart):
        first = solve(wave, y, [0.0, 1.0], rtol=1e-8, adjoint=adjoint, max_steps=100)
        return solve(wave, first.ys[-1], [1.0, 2.0], rtol=1e-8, adjoint=adjoint, step_size=first.step_size if restart else 0.01, max_steps=100).ys[-1]

    y0 = tf.constant([1.0, 0.0], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(y0)
        loss = run(y0, True)[0]
    np.testing.assert_allclose(tape.gradient(loss, y0), [np.cos(10), np.sin(10) / 5], atol=1e-5)
