"""Programs: traced once, run as plain graphs at first, and compiled when their solves have taken enough steps."""

import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ode
from keras_ode import internals, programs
from keras_ode.recent import Recent

RATE = 0.7


def decay(rate):
    """`y' = -rate y^2`: `y = 1 / (1 / y0 + rate t)`, `dy/dy0 = (y / y0)^2` and `dy/drate = -t y^2`."""
    return lambda t, y: -rate * y * y


def uncompilable(t, y):
    """XLA refuses this, as it sees only when it is asked."""
    return -RATE * y * tf.py_function(lambda y: y, [y], y.dtype)


@pytest.fixture
def soon(monkeypatch):
    """Programs compile after a single step, and do not know beforehand what XLA refuses."""
    monkeypatch.setattr(programs, "STEPS_BEFORE_COMPILING", 1)
    monkeypatch.setattr("keras_ode.vector_field.why_not_compiled", lambda graph, fingerprint: None)


@pytest.mark.parametrize("adjoint", ["interpolating", "checkpointed", "backsolve"])
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.slow
def test_solve_and_gradient_are_right_before_and_after_compiling(adjoint, per_sample, soon):
    rate = tf.Variable(RATE, dtype="float64")
    options = {"adjoint": adjoint, "per_sample": per_sample, "rtol": 1e-8, "atol": 1e-8}

    @tf.function(autograph=False)
    def solve(y0):
        with tf.GradientTape() as tape:
            tape.watch(y0)
            ys = keras_ode.odeint(decay(rate), y0, [0.0, 0.5, 1.0], **options)
            total = tf.reduce_sum(ys[-1])
        return ys, tape.gradient(total, [y0, rate])

    y0 = np.array([[1.0], [1.5], [2.0]])
    for _ in range(2):  # the second is compiled
        ys, (of_y0, of_rate) = solve(tf.constant(y0))
        exact = 1 / (1 / y0 + RATE * np.array([0.0, 0.5, 1.0])[:, None, None])
        np.testing.assert_allclose(ys, exact, rtol=1e-5)
        np.testing.assert_allclose(of_y0, (exact[-1] / y0) ** 2, rtol=1e-4)
        np.testing.assert_allclose(of_rate, -np.sum(exact[-1] ** 2), rtol=1e-4)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.slow
def test_solve_that_no_tape_records_keeps_no_steps_and_still_has_a_gradient(compiled, monkeypatch):
    monkeypatch.setattr(programs, "STEPS_BEFORE_COMPILING", 1 if compiled else 10**9)
    monkeypatch.setattr(programs, "_kept", Recent(8))
    kept = []
    original = programs._Program._for_xla
    monkeypatch.setattr(programs._Program, "_for_xla", lambda self, places: (kept.append(len(places)), original(self, places))[1])
    rate = tf.Variable(RATE, dtype="float64")
    solve = tf.function(lambda y0: keras_ode.odeint(decay(rate), y0, [0.0, 1.0], rtol=1e-8, atol=1e-8)[-1], autograph=False)
    y0 = np.array([[1.0], [1.5]])
    exact = 1 / (1 / y0 + RATE)
    for _ in range(2):
        np.testing.assert_allclose(solve(tf.constant(y0)), exact, rtol=1e-6)
        with tf.GradientTape() as tape:  # the function was traced without one
            total = tf.reduce_sum(solve(tf.constant(y0)))
        np.testing.assert_allclose(tape.gradient(total, rate), -np.sum(exact**2), rtol=1e-5)
    without, with_steps, _ = kept
    assert without < with_steps


@pytest.mark.slow
def test_solve_that_no_tape_records_takes_no_stages_for_interpolants():
    """Dopri8 has 12 stages a step, of which one is shared, and three more for its interpolant."""
    rate = tf.Variable(RATE, dtype="float64")
    solve = lambda: keras_ode.solve(
        decay(rate), tf.constant([1.0], tf.float64), [0.0, 2.0], solver="dopri8", rtol=1e-8, jit_compile=False
    )
    stats = solve().stats
    with tf.GradientTape() as tape:
        recorded = solve()
        total = tf.reduce_sum(recorded.ys[-1])
    steps = int(stats["num_steps"])
    assert int(recorded.stats["num_evaluations"]) - int(stats["num_evaluations"]) == 3 * steps
    np.testing.assert_allclose(tape.gradient(total, rate), -2 / (1 + 2 * RATE) ** 2, rtol=1e-6)


def test_what_only_reports_is_compiled_where_it_is_asked_for(soon, monkeypatch):
    """A layer returns states alone, so that XLA need not estimate the stiffness in each step; `layer.solve` returns all."""
    kept = []
    original = programs._Program._for_xla
    monkeypatch.setattr(programs, "_kept", Recent(8))
    monkeypatch.setattr(programs._Program, "_for_xla", lambda self, places: (kept.append(len(places)), original(self, places))[1])
    layer = keras_ode.ODELayer(lambda t, y: -RATE * y * y, rtol=1e-6, atol=1e-6)
    states = tf.function(lambda y0: layer(y0), autograph=False)
    all_of_it = tf.function(lambda y0: layer.solve(y0), autograph=False)
    y0 = np.array([[1.0], [1.5]], "float32")
    for _ in range(2):  # the second is compiled
        np.testing.assert_allclose(states(tf.constant(y0)), 1 / (1 / y0 + RATE), rtol=1e-5)
        solution = all_of_it(tf.constant(y0))
        np.testing.assert_allclose(solution.ys[-1], 1 / (1 / y0 + RATE), rtol=1e-5)
        # The Jacobian is -2 RATE y, of which y is at most 1.5.
        assert RATE < float(solution.stats["stiffness"]) < 2 * RATE * 1.5
    without, with_statistics = kept
    assert without < with_statistics


def test_layer_that_fails_in_eager_code_still_says_that_it_is_stiff():
    layer = keras_ode.ODELayer(lambda t, y: -1e4 * (y - tf.cos(t)), max_steps=50)
    with pytest.raises(keras_ode.SolveError) as raised:
        layer(tf.ones([1, 1]))
    assert raised.value.status == keras_ode.Status.STIFF


def test_only_a_size_that_has_taken_enough_steps_is_compiled(soon):
    solve = tf.function(lambda y0: keras_ode.odeint(uncompilable, y0, [0.0, 1.0], rtol=1e-5)[-1], autograph=False)
    solve = solve.get_concrete_function(tf.TensorSpec([None, 1]))
    for rows in (1, 2, 3):
        np.testing.assert_allclose(solve(tf.ones([rows, 1])), 1 / (1 + RATE) * np.ones([rows, 1]), rtol=1e-4)
    with pytest.raises(tf.errors.OpError, match="EagerPyFunc"):  # so XLA was asked
        solve(tf.ones([2, 1]))


def test_steps_are_counted_before_anything_is_compiled(monkeypatch):
    monkeypatch.setattr("keras_ode.vector_field.why_not_compiled", lambda graph, fingerprint: None)
    monkeypatch.setattr(programs, "STEPS_BEFORE_COMPILING", 95)
    options = {"controller": "constant", "step_size": 0.03125}  # 32 steps
    solve = tf.function(lambda y0: keras_ode.odeint(uncompilable, y0, [0.0, 1.0], **options)[-1], autograph=False)
    for _ in range(3):
        solve(tf.ones([1]))
    with pytest.raises(tf.errors.OpError, match="EagerPyFunc"):
        solve(tf.ones([1]))


@pytest.mark.slow
def test_calls_of_a_layer_and_equal_layers_share_their_programs(monkeypatch):
    traced = []
    original = programs._Program.__init__
    monkeypatch.setattr(programs._Program, "__init__", lambda self, *a: (traced.append(self), original(self, *a))[1])
    layers = [keras_ode.ODELayer(keras.layers.Dense(2, activation="tanh")) for _ in range(2)]
    x = inputs = keras.Input([2], batch_size=5)
    for layer in (*layers, *layers, *layers):
        x = layer(x)
    model = keras.Model(inputs, x)

    @tf.function(autograph=False)
    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(x))
        return loss, tape.gradient(loss, model.trainable_weights)

    loss, gradients = step(tf.ones([5, 2]))
    assert len(traced) == 2  # forward and backward
    with tf.GradientTape() as tape:
        expected = tf.reduce_sum(model(tf.ones([5, 2])))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for found, exact in zip(gradients, tape.gradient(expected, model.trainable_weights), strict=True):
        np.testing.assert_allclose(found, exact, rtol=1e-4)


def test_program_that_surrounds_a_solve_compiles_it():
    solve = lambda y0: keras_ode.odeint(decay(RATE), y0, [0.0, 1.0], rtol=1e-5)[-1]
    solve = tf.function(solve, autograph=False, jit_compile=True)
    np.testing.assert_allclose(solve(tf.constant([1.0])), [1 / (1 + RATE)], rtol=1e-4)


def test_what_xla_lacks_is_replaced():
    @tf.function(autograph=False)
    def put(x, i, v):
        def body(k, x):
            return k + 1, internals.update_in_place(tf.raw_ops.DeepCopy(x=x), [i + k], v[None])

        rows = tf.stack([-v, v])
        twice = internals.update_in_place(tf.raw_ops.DeepCopy(x=x), i + tf.range(2), rows)
        return tf.while_loop(lambda k, x: k < 2, body, (0, x))[1], twice

    specs = [tf.TensorSpec([4, 3]), tf.TensorSpec([], "int32"), tf.TensorSpec([3])]
    graph = put.get_concrete_function(*specs).graph
    definition = programs.for_xla(graph.as_graph_def(), {x.op.name for x in graph.inputs})
    library = tf.compat.v1.GraphDef(library=definition.library).library
    definition.ClearField("library")

    @tf.function(autograph=False, jit_compile=True)
    def compiled(*given):
        internals.import_functions(tf.compat.v1.get_default_graph(), library)
        inputs = {x.name: y for x, y in zip(graph.inputs, given, strict=True)}
        return tf.graph_util.import_graph_def(definition, inputs, [x.name for x in graph.outputs], name="")

    looped, twice = compiled(tf.zeros([4, 3]), tf.constant(1), tf.constant([1.0, 2.0, 3.0]))
    row, nothing = [1.0, 2.0, 3.0], [0.0, 0.0, 0.0]
    np.testing.assert_array_equal(looped, [nothing, row, row, nothing])
    np.testing.assert_array_equal(twice, [nothing, [-1.0, -2.0, -3.0], row, nothing])


@pytest.mark.slow
def test_gradient_of_a_program_is_found_by_tf_gradients():
    """TensorFlow Probability differentiates by tf.gradients in graphs, which asks to place what it adds beside the rest."""

    @tf.function(autograph=False)
    def gradient(y):
        end = keras_ode.solve(lambda y: -y, y, [0.0, 1.0], solver="bosh3", rtol=1e-5).ys[-1]
        return tf.gradients(end, y)[0]

    np.testing.assert_allclose(gradient(tf.ones([2])), np.full(2, np.exp(-1)), rtol=1e-3)


# Solves of six kinds in eager code, and six estimates: TensorFlow's warning begins with five.
MANY_KINDS = """
import tensorflow as tf
import keras_ode

rate = tf.Variable(1.0)
for size in range(1, 7):
    options = {"solver": "euler", "step_size": 0.5, "jit_compile": False}
    keras_ode.solve(lambda y: -y, tf.ones([size]), [0.0, 1.0], **options)
    ys = tf.ones([2, size])
    keras_ode.estimate(lambda y: -rate * y, ys, [0.0, 1.0], variables=[rate], num_steps=1, adjoint="checkpointed", **options)
"""


@pytest.mark.slow
def test_solves_of_many_kinds_do_not_warn_of_retracing():
    """In a process of its own, since TensorFlow warns only twice."""
    command = [sys.executable, "-c", MANY_KINDS]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=pathlib.Path(__file__).parents[1])
    assert "retracing" not in done.stderr


def calls_of(graph):
    """The types of the calls of functions that the outputs of a graph need, without those that run for their effects."""
    found, waiting = {}, [x.op for x in graph.outputs]
    while waiting:
        op = waiting.pop()
        if op.name not in found:
            found[op.name] = op
            waiting += [x.op for x in op.inputs] + list(op.control_inputs)
    return [op.type for op in found.values() if op.type.endswith("PartitionedCall")]


@pytest.mark.slow
def test_gradient_by_the_times_is_computed_only_where_it_is_asked_for():
    @tf.function(autograph=False)
    def gradients(rate, times, by_times):
        with tf.GradientTape() as tape:
            tape.watch([rate, times])
            ys = keras_ode.odeint(lambda t, y: -rate * y, tf.ones([1]), times, rtol=1e-5, jit_compile=False)
            loss = ys[-1, 0]
        return tape.gradient(loss, [rate, times] if by_times else [rate])

    rate, times = tf.constant(2.0), tf.constant([0.0, 0.3, 0.5])
    alone, both = (calls_of(gradients.get_concrete_function(rate, times, by_times).graph) for by_times in (False, True))
    # What has no effects and is not needed is not run.
    assert len(both) == len(alone) + 1 and both.count("PartitionedCall") == alone.count("PartitionedCall") + 1
    by_rate, by_times = gradients(rate, times, True)
    np.testing.assert_allclose(by_rate, -0.5 * np.exp(-1), rtol=1e-4)
    np.testing.assert_allclose(by_times, [2 * np.exp(-1), 0, -2 * np.exp(-1)], rtol=1e-4, atol=1e-6)
