"""Gradients by the continuous adjoint, against closed forms, complex steps and unrolled loops."""

import functools

import keras
import numpy as np
import pytest
import scipy.linalg
import tensorflow as tf

import keras_ode
from keras_ode.adjoints import Backsolve
from tests.marks import nightly, slow
from tests.references import (
    MATRIX,
    START,
    Counting,
    TanhNetwork,
    linear_gradients,
    lotka_volterra,
    relative_error,
)

# Without XLA, which compiles for seconds and is the claim of few tests.
PLAIN = {"adjoint": "backsolve", "jit_compile": False}
TOLERANCES = [1e-3, 1e-6, 1e-9]
# Where accuracy is not the claim: its trace takes three quarters of the time, and its error over a few units is some 1e-9.
FEW_STAGES = {**PLAIN, "solver": "rk4", "step_size": 1 / 64}


def weights_of(times):
    """A weight for every component of every saved state, of either sign."""
    return np.random.default_rng(1).normal(size=(len(times), 3))


def linear_solve(times, how, **options):
    """Gradients of a weighted sum of the states of `y' = A y` by state, matrix and times; `how` wraps the function."""
    weights = weights_of(times)

    @how
    def gradients(start, matrix, t):
        with tf.GradientTape() as tape:
            tape.watch([start, matrix, t])
            solution = keras_ode.solve(
                lambda t, y: tf.linalg.matvec(matrix, y), start, t, **{**PLAIN, **options}
            )
            loss = tf.reduce_sum(solution.ys * weights)
        return tape.gradient(loss, {"state": start, "matrix": matrix, "times": t})

    found = gradients(tf.constant(START), tf.constant(MATRIX), tf.constant(times, tf.float64))
    return {name: gradient.numpy() for name, gradient in found.items()}


def eager(function):
    return function


# Accuracy


# The backward solve takes steps of a pair of any table: the tests of a hundred times and of failures have others.
@pytest.mark.parametrize("solver", [*map(nightly, ("bosh3", "dopri5", "dopri8")), slow("tsit5")])
def test_gradient_of_a_two_layer_tanh_network_is_that_of_complex_steps(solver):
    network, times = TanhNetwork(), np.array([0.0, 1.0])
    expected = network.gradients_by_complex_step(lambda ys: np.sum(ys[-1] ** 2), times)
    inputs = [tf.Variable(x) for x in (network.start, *network.weights)]
    with tf.GradientTape() as tape:
        solution = keras_ode.solve(
            network.of_tensors(inputs[1:]),
            tf.convert_to_tensor(inputs[0]),
            times,
            solver=solver,
            rtol=1e-9,
            atol=1e-9,
            **PLAIN,
        )
        loss = tf.reduce_sum(solution.ys[-1] ** 2)
    found = tape.gradient(loss, inputs)
    # The issue's own figure for tolerance 1e-9.
    assert max(map(relative_error, found, expected)) < 1e-6


SPANS = [(0.5, 2.5), (0.5, 10.5), (0.5, -1.5), (0.5, -9.5)]


# Two times are saved by other tests.
@pytest.fixture(
    scope="module", params=[p for s in SPANS for p in (slow((s, 2)), (s, 5))], ids=lambda p: f"{p[0]}-{p[1]} times"
)
def linear(request):
    """Found and expected gradients of a linear system over a span, with a number of saved times."""
    (start, end), number = request.param
    times = np.linspace(start, end, number)
    found = linear_solve(times, eager, rtol=1e-9, atol=1e-9)
    return found, linear_gradients(times, weights_of(times))


# Tolerance 1e-9 a step; backward over ten units of time the state of this system grows by a factor of 50.
LINEAR_TOLERANCE = 2e-7


def test_gradient_of_the_state_is_that_of_the_matrix_exponential(linear):
    found, expected = linear
    assert relative_error(found["state"], expected["state"]) < LINEAR_TOLERANCE


def test_gradient_of_the_closure_is_the_frechet_derivative_of_the_matrix_exponential(linear):
    found, expected = linear
    assert relative_error(found["matrix"], expected["matrix"]) < LINEAR_TOLERANCE


def test_gradient_of_the_first_time_is_that_of_the_matrix_exponential(linear):
    found, expected = linear
    assert abs(found["times"][0] - expected["times"][0]) < LINEAR_TOLERANCE * np.abs(expected["times"]).max()


def test_gradients_of_the_later_times_are_those_of_the_matrix_exponential(linear):
    found, expected = linear
    assert relative_error(found["times"][1:], expected["times"][1:]) < LINEAR_TOLERANCE


@pytest.mark.slow  # rows with grids of their own claim this
def test_gradients_of_times_are_right_where_the_dynamics_depends_on_time():
    # y' = y cos t: y(t) = y0 exp(sin t - sin t0).
    t = tf.Variable([0.3, 1.1, 2.5], dtype=tf.float64)
    with tf.GradientTape() as tape:
        ys = keras_ode.odeint(
            lambda t, y: y * tf.cos(t), tf.constant([2.0], tf.float64), t.value(), rtol=1e-9, atol=1e-9, **PLAIN
        )
        loss = tf.reduce_sum(ys[:, 0] * [5.0, 3.0, 1.0])
    t0, t1, t2 = t.numpy()
    y1, y2 = 2 * np.exp(np.sin(t1) - np.sin(t0)), 2 * np.exp(np.sin(t2) - np.sin(t0))
    expected = [-np.cos(t0) * (3 * y1 + y2), 3 * y1 * np.cos(t1), y2 * np.cos(t2)]
    np.testing.assert_allclose(tape.gradient(loss, t), expected, rtol=1e-7)


def test_gradient_of_args_is_that_of_the_matrix_exponential():
    times = np.array([0.0, 1.0, 2.0])
    matrix = tf.constant(MATRIX)
    with tf.GradientTape() as tape:
        tape.watch(matrix)
        ys = keras_ode.odeint(
            lambda t, y, a: tf.linalg.matvec(a["matrix"], y),
            tf.constant(START),
            times,
            args=({"matrix": matrix},),
            **FEW_STAGES,
        )
        loss = tf.reduce_sum(ys * weights_of(times))
    expected = linear_gradients(times, weights_of(times))["matrix"]
    assert relative_error(tape.gradient(loss, matrix), expected) < LINEAR_TOLERANCE


HUNDRED = np.linspace(0, 10, 100)


@functools.cache
def expected_at_a_hundred_times():
    return linear_gradients(HUNDRED, weights_of(HUNDRED))


@pytest.mark.parametrize("tolerance", TOLERANCES)
@pytest.mark.parametrize("solver", ["dopri5", slow("tsit5")])
def test_gradients_with_a_hundred_saved_times_follow_the_tolerance(solver, tolerance):
    found = linear_solve(HUNDRED, eager, solver=solver, rtol=tolerance, atol=tolerance)
    expected = expected_at_a_hundred_times()
    # Error a step is at most the tolerance; the steps' errors add up, some ten of them over each oscillation, and each
    # saved time inside a step is moved to its ends with up to ten tolerances.
    assert max(relative_error(found[name], expected[name]) for name in found) < 50 * tolerance


@pytest.mark.slow
@pytest.mark.parametrize("solver, number", [("euler", 5), ("midpoint", 2), ("rk4", 2), ("rk4", 5), ("tsit5", 5)])
def test_gradient_through_constant_steps_converges_with_the_order_of_the_method(solver, number):
    order = keras_ode.solvers.get(solver).order
    times = np.linspace(0, 1, number)
    expected = linear_gradients(times, weights_of(times))["matrix"]
    steps = 0.05 / 2 ** np.arange(2)
    errors = [
        relative_error(linear_solve(times, eager, solver=solver, controller="constant", step_size=step)["matrix"], expected)
        for step in steps
    ]
    # Between saved times the cotangents pass through cubic Hermite interpolation, of order 4 on each step.
    assert np.log2(errors[0] / errors[1]) > min(order, 4) - 0.3


@pytest.mark.slow
def test_gradients_of_a_nest_of_states_reach_every_leaf():
    # q' = p, p' = -q turns by the angle t.
    start = {"q": tf.constant([1.0, 2.0], tf.float64), "p": tf.constant([[3.0]], tf.float64)}
    with tf.GradientTape() as tape:
        tape.watch(start)
        ys = keras_ode.odeint(
            lambda t, y: {"q": tf.broadcast_to(y["p"][0], [2]), "p": -tf.reduce_mean(y["q"], keepdims=True)[None]},
            start,
            [0.0, 0.7],
            **FEW_STAGES,
        )
        loss = tf.reduce_sum(ys["p"][-1])
    found = tape.gradient(loss, start)
    np.testing.assert_allclose(found["q"], [-np.sin(0.7) / 2] * 2, rtol=1e-7)
    np.testing.assert_allclose(found["p"], [[np.cos(0.7)]], rtol=1e-7)


# Cost


# Those that count, one for all tests of an equation, so that each solve of it is traced once.
NETWORK = Counting(TanhNetwork(16).of_tensors(TanhNetwork(16).weights))
EQUATIONS = {
    "network": (NETWORK, TanhNetwork(16).start, 1.0),
    "network long": (NETWORK, TanhNetwork(16).start, 10.0),
    "lotka volterra": (Counting(lotka_volterra), np.ones(2), 10.0),
    "linear": (Counting(lambda t, y: tf.linalg.matvec(tf.constant(MATRIX), y)), START, 10.0),
}


def backward_evaluations(f, start, times, solver, tolerance):
    start = tf.constant(start)
    with tf.GradientTape() as tape:
        tape.watch(start)
        ys = keras_ode.odeint(f, start, times, solver=solver, rtol=tolerance, atol=tolerance, **PLAIN)
        loss = tf.reduce_sum(ys**2)
    f.take()  # those of the forward solve
    assert tape.gradient(loss, start) is not None
    return f.take()


@pytest.mark.slow  # tests/adjoints/test_impulses.py counts them too, of one equation
@pytest.mark.parametrize("tolerance", [1e-3, 1e-6])
@pytest.mark.parametrize(
    "equation, solver",
    [("network", "tsit5"), ("network long", "tsit5"), ("lotka volterra", "tsit5"), ("linear", "tsit5"), ("network", "dopri5")],
)
def test_backward_evaluations_with_a_hundred_saved_times_are_about_twice_those_with_two_at_most(equation, solver, tolerance):
    dynamics, start, end = EQUATIONS[equation]
    few = backward_evaluations(dynamics, start, np.linspace(0, end, 2), solver, tolerance)
    many = backward_evaluations(dynamics, start, np.linspace(0, end, 100), solver, tolerance)
    # One evaluation more for each step that passes saved times, and steps that land on them. The worst is 2.21, where steps
    # are as long as saved times are apart.
    assert many <= 2.3 * few


@pytest.mark.slow
def test_nothing_is_stored_a_step_for_the_backward_solve():
    """What a differentiated loop keeps of its iterations is kept in tensor lists: there are none."""

    @tf.function
    def gradient(y):
        with tf.GradientTape() as tape:
            tape.watch(y)
            loss = tf.reduce_sum(keras_ode.odeint(lambda t, y: -(y**3), y, [0.0, 0.5, 1.0], **PLAIN))
        return tape.gradient(loss, y)

    concrete = gradient.get_concrete_function(tf.TensorSpec([2]))
    graph = concrete.graph.as_graph_def()
    operations = {node.op for nodes in (graph.node, *(f.node_def for f in graph.library.function)) for node in nodes}
    assert "While" in operations or "StatelessWhile" in operations
    assert not {op for op in operations if op.startswith("TensorListPush")}


@pytest.mark.slow
def test_backward_solve_has_its_own_tolerances():
    times = np.array([0.0, 2.0])
    expected = linear_gradients(times, weights_of(times))["state"]
    options = {"rtol": 1e-9, "atol": 1e-9}
    loose = linear_solve(times, eager, adjoint=Backsolve(rtol=1e-2, atol=1e-2), **options)["state"]
    tight = linear_solve(times, eager, **options)["state"]  # those of the solve
    assert relative_error(tight, expected) < 1e-7 < 1e-4 < relative_error(loose, expected)


@pytest.mark.slow
def test_backward_solve_has_its_own_solver_by_name():
    times = np.array([0.0, 2.0])
    expected = linear_gradients(times, weights_of(times))["state"]
    found = linear_solve(times, eager, adjoint=Backsolve(solver="dopri8"), rtol=1e-9, atol=1e-9)["state"]
    assert relative_error(found, expected) < 1e-7


def test_backward_solver_that_does_not_estimate_its_error_is_refused_in_an_adaptive_solve():
    with pytest.raises(ValueError, match="RK4"):
        linear_solve([0.0, 2.0], eager, adjoint=Backsolve(solver=keras_ode.solvers.RK4()))


@pytest.mark.parametrize("name, value", [("rtol", -1.0), ("atol", "small"), ("solver", "tsit6")])
def test_bad_option_of_the_backward_solve_is_refused_with_what_was_received(name, value):
    with pytest.raises((ValueError, TypeError), match=f"(?s){name}.*{value}"):
        Backsolve(**{name: value})


# The same numbers everywhere


# In graphs, plain and compiled, the tests of all adjoints make this claim.
@pytest.mark.parametrize("how, number", [nightly(tf.function, 5), (eager, 2)], ids=["graph", "eager"])
@pytest.mark.slow
def test_gradients_where_only_the_solve_is_compiled_are_those_of_eager_code(how, number):
    times = np.linspace(0, 2, number)
    found = linear_solve(times, how, jit_compile=True)
    expected = linear_solve(times, eager)
    # Rounding: XLA fuses and reorders; some hundred operations a step.
    for name, gradient in found.items():
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-11, atol=1e-12)


@pytest.mark.slow  # a case of all adjoints claims this
def test_float32_gradients_are_those_of_float64_within_their_rounding():
    start = tf.constant(START, tf.float32)
    matrix = tf.constant(MATRIX, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(start)
        ys = keras_ode.odeint(lambda t, y: tf.linalg.matvec(matrix, y), start, [0.0, 1.0, 2.0], rtol=1e-5, **PLAIN)
        loss = tf.reduce_sum(ys)
    found = tape.gradient(loss, start)
    expected = linear_gradients([0.0, 1.0, 2.0], np.ones((3, 3)))["state"]
    assert found.dtype == tf.float32
    assert relative_error(found, expected) < 1e-4


# Composition


@pytest.mark.slow  # a case of all adjoints claims this
def test_gradient_goes_through_two_stacked_solves():
    first, second = tf.Variable(MATRIX), tf.Variable(MATRIX.T * 0.5)
    start = tf.constant(START)
    options = {"rtol": 1e-9, "atol": 1e-9, **PLAIN}
    with tf.GradientTape() as tape:
        tape.watch(start)
        middle = keras_ode.odeint(lambda t, y: tf.linalg.matvec(first, y), start, [0.0, 1.0], **options)[-1]
        end = keras_ode.odeint(lambda t, y: tf.linalg.matvec(second, y), middle, [0.0, 1.0], **options)[-1]
        loss = tf.reduce_sum(end)
    by_first, by_second, by_start = tape.gradient(loss, [first, second, start])
    one, a, b = np.ones(3), scipy.linalg.expm(MATRIX), scipy.linalg.expm(MATRIX.T * 0.5)
    np.testing.assert_allclose(by_start, (b @ a).T @ one, rtol=1e-7)
    expected = scipy.linalg.expm_frechet(MATRIX.T, np.outer(b.T @ one, START), compute_expm=False)
    np.testing.assert_allclose(by_first, expected, rtol=1e-6, atol=1e-7)
    expected = scipy.linalg.expm_frechet(MATRIX * 0.5, np.outer(one, a @ START), compute_expm=False)
    np.testing.assert_allclose(by_second, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.slow  # a case of all adjoints claims this
def test_one_dynamics_solved_twice_gets_the_sum_of_both_gradients():
    rate = tf.Variable(0.5, dtype=tf.float64)
    options = {"rtol": 1e-9, "atol": 1e-9, **PLAIN}
    with tf.GradientTape() as tape:
        y = tf.constant([2.0], tf.float64)
        for _ in range(2):
            y = keras_ode.odeint(lambda t, y: rate * y, y, [0.0, 1.0], **options)[-1]
        loss = tf.reduce_sum(y)
    # y = 2 exp(2 rate).
    assert float(tape.gradient(loss, rate)) == pytest.approx(4 * np.exp(1.0), rel=1e-8)


# Failures


# By equation and start: its gradient of the last state by the start, at the end of the interval.
NEAR_ZERO = {
    "from zero": (lambda t, y: 1 - y, [0.0], 1.0, [np.exp(-1.0)]),
    "to zero": (lambda t, y: tf.cos(t) + 0 * y, [0.0], np.pi, [1.0]),
    "padded": (lambda t, y: tf.stack([-y[0], 0 * y[1]]), [1.0, 0.0], 1.0, [np.exp(-1.0), 1.0]),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, solver, checkpoints",
    [("from zero", "tsit5", 32), nightly("from zero", "bosh3", 32), ("to zero", "tsit5", 0), nightly("to zero", "bosh3", 0),
     nightly("to zero", "dopri5", 0), ("padded", "tsit5", 0)],
)  # fmt: skip
def test_state_that_passes_through_zero_has_not_drifted(name, solver, checkpoints):
    dynamics, y0, end, expected = NEAR_ZERO[name]
    start = tf.constant(y0)
    with tf.GradientTape() as tape:
        tape.watch(start)
        options = {**PLAIN, "adjoint": Backsolve(checkpoints), "solver": solver}
        loss = tf.reduce_sum(keras_ode.solve(dynamics, start, [0.0, end], **options).ys[-1])
    np.testing.assert_allclose(tape.gradient(loss, start), expected, rtol=5e-3)


@pytest.mark.slow
def test_rows_near_zero_are_measured_by_their_own_size():
    start = tf.constant([[0.0], [1e6]])
    with tf.GradientTape() as tape:
        tape.watch(start)
        options = {**PLAIN, "adjoint": Backsolve(checkpoints=0), "per_sample": True}
        loss = tf.reduce_sum(keras_ode.solve(lambda t, y: tf.cos(t) + 0 * y, start, [0.0, np.pi], **options).ys[-1])
    np.testing.assert_allclose(tape.gradient(loss, start), [[1.0], [1.0]], rtol=1e-3)


@pytest.mark.slow
def test_drift_of_a_small_element_is_seen_beside_a_large_one():
    start = tf.constant([2.0, 0.0, 1e6], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(start)
        dynamics = lambda t, y: tf.stack([y[1], 5 * (1 - y[0] ** 2) * y[1] - y[0], 0 * y[2]])
        options = {**PLAIN, "adjoint": Backsolve(checkpoints=0)}
        loss = tf.reduce_sum(keras_ode.solve(dynamics, start, [0.0, 10.0], **options).ys[-1, :2])
    assert np.isnan(tape.gradient(loss, start)).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "how, times",
    [(eager, [0.0, 2.0]), (tf.function, [0.0, 0.5, 2.0]), nightly(tf.function(jit_compile=True), [0.0, 0.5, 2.0])],
    ids=["eager, two times", "graph, three times", "compiled, three times"],
)
def test_gradients_of_a_failed_solve_are_nan(how, times):
    @how
    def gradients(y, a):
        with tf.GradientTape() as tape:
            tape.watch([y, a])
            solution = keras_ode.solve(lambda t, y: a * y * y, y, times, on_failure="nan", **PLAIN)
            loss = tf.reduce_sum(solution.ys)
        return tape.gradient(loss, [y, a])

    # y = 1 / (1 - t) ends at t = 1.
    for gradient in gradients(tf.constant([1.0]), tf.constant(1.0)):
        assert np.isnan(gradient.numpy()).all()


@pytest.mark.slow
def test_gradients_are_nan_where_only_the_backward_solve_fails():
    start = tf.constant([1.0])
    with tf.GradientTape() as tape:
        tape.watch(start)
        # Forward this decays into nothing in a few steps; backward it grows out of it, and must resolve that.
        ys = keras_ode.odeint(
            lambda t, y: -20 * y,
            start,
            [0.0, 1.0],
            max_steps=40,
            adjoint=Backsolve(checkpoints=0, rtol=1e-7, atol=1e-30),
            jit_compile=False,
        )
        loss = tf.reduce_sum(ys[-1])
    assert np.isnan(tape.gradient(loss, start).numpy()).all()


# Inside an outer loop


class ODECell(keras.layers.Layer):
    """A recurrent cell: the state flows for one unit of time, then the input pushes it."""

    def __init__(self, units, jit_compile=False, **kwargs):
        super().__init__(**kwargs)
        self.units = self.state_size = units
        self.flow = keras.Sequential([keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(units)])
        self.push = keras.layers.Dense(units)
        self.jit_compile = jit_compile

    def build(self, shape):
        self.flow.build((None, self.units))
        self.push.build(shape)

    def call(self, inputs, states):
        y = keras_ode.odeint(self.flow, states[0], [0.0, 0.5, 1.0], adjoint="backsolve", jit_compile=self.jit_compile)[-1]
        y = y + self.push(inputs)
        return y, [y]


@pytest.mark.parametrize(
    "how, solve_jit_compile",
    [
        nightly(eager, False),
        nightly(tf.function, False),  # training, below, runs the layer in a graph
        nightly(tf.function, True),
        (tf.function(jit_compile=True), False),
    ],
    ids=["eager", "graph", "graph, solve compiled", "compiled"],
)
@pytest.mark.slow
def test_gradients_in_a_recurrent_layer_are_those_of_an_unrolled_loop(how, solve_jit_compile):
    cell = ODECell(2, solve_jit_compile)
    layer = keras.layers.RNN(cell)
    inputs = tf.random.normal([3, 3, 1])
    layer.build((3, 3, 1))

    @how
    def recurrent(inputs):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(inputs) ** 2)
        return tape.gradient(loss, [v.value for v in layer.trainable_variables])

    with tf.GradientTape() as tape:
        y = tf.zeros([3, 2])
        for i in range(3):
            y, _ = cell(inputs[:, i], [y])
        loss = tf.reduce_sum(y**2)
    expected = tape.gradient(loss, [v.value for v in layer.trainable_variables])
    for found, unrolled in zip(recurrent(inputs), expected, strict=True):
        # float32 rounding may shift a step size a little, within rtol = 1e-3 of the solve.
        np.testing.assert_allclose(found, unrolled, rtol=1e-4, atol=1e-5)


# That compiled gradients of this cell are right is claimed above.
@pytest.mark.parametrize("jit_compile", [nightly(True), False])
@pytest.mark.slow
def test_recurrent_layer_whose_cell_solves_an_equation_trains(jit_compile):
    model = keras.Sequential([keras.layers.RNN(ODECell(4)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.03), "mse", jit_compile=jit_compile)
    x = np.random.default_rng(0).normal(size=(64, 5, 1)).astype("float32")
    history = model.fit(x, x.sum(axis=1), batch_size=32, epochs=10, verbose=0).history["loss"]
    # Half of the variance of the target, which a constant could not do.
    assert history[-1] < 0.5 * history[0]


@pytest.mark.slow
def test_gradient_in_a_differentiated_while_loop_is_that_of_the_closed_form():
    @tf.function
    def gradients(y, rate):
        with tf.GradientTape() as tape:
            tape.watch([y, rate])
            _, end = tf.while_loop(
                lambda i, y: i < 3,
                lambda i, y: (
                    i + 1,
                    keras_ode.odeint(lambda t, y: rate * y, y, [0.0, 1.0], **FEW_STAGES)[-1],
                ),
                (0, y),
            )
            loss = tf.reduce_sum(end)
        return tape.gradient(loss, [y, rate])

    by_state, by_rate = gradients(tf.constant([2.0], tf.float64), tf.constant(0.3, tf.float64))
    np.testing.assert_allclose(by_state, [np.exp(0.9)], rtol=1e-8)
    np.testing.assert_allclose(by_rate, 6 * np.exp(0.9), rtol=1e-8)


@pytest.mark.slow
def test_times_that_vary_in_a_differentiated_loop_get_their_gradient():
    @tf.function
    def gradient(end):
        with tf.GradientTape() as tape:
            tape.watch(end)
            _, y = tf.while_loop(
                lambda i, y: i < 2,
                lambda i, y: (
                    i + 1,
                    keras_ode.odeint(lambda y: -y, y, tf.stack([0.0, end]), rtol=1e-6, **PLAIN)[-1],
                ),
                (0, tf.constant([1.0])),
            )
            loss = tf.reduce_sum(y)
        return tape.gradient(loss, end)

    # y = exp(-2 end).
    assert float(gradient(tf.constant(0.5))) == pytest.approx(-2 * np.exp(-1.0), rel=1e-5)
