"""Derivatives of any order through the steps."""

import numpy as np
import pytest
import scipy.linalg
import tensorflow as tf

import keras_ode
from tests.marks import nightly
from tests.references import relative_error

OPTIONS = {"adjoint": "direct", "rtol": 1e-8, "atol": 1e-8, "max_steps": 64}
RATE = 0.7


def eager(function):
    return function


def compiled(function):
    return tf.function(function, jit_compile=True)


def in_ways(*ways, at_night=()):
    """Second derivatives take long to trace, so each test has one or two of the three ways, and the Jacobian has all."""
    ids = [{eager: "eager", compiled: "compiled"}.get(way, "graph") for way in (*ways, *at_night)]
    return pytest.mark.parametrize("how", [*ways, *map(nightly, at_night)], ids=ids)


def derivative(function):
    def differentiate(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        return tape.gradient(y, x)

    return differentiate


def second_derivative(how, function, at):
    return how(derivative(derivative(function)))(tf.constant(at, tf.float64))


def double(x):
    return tf.constant(x, tf.float64)


# The tests after it run in graphs, and the one of the Jacobian in eager code.
@in_ways(compiled, at_night=[eager])
@pytest.mark.slow
def test_second_derivative_by_the_start_is_that_of_the_closed_form(how):
    found = second_derivative(
        how, lambda y: keras_ode.odeint(lambda t, y: -(y**3), y, [0.0, 1.0], **OPTIONS)[-1], [1.0]
    )
    # y(1) = y0 / sqrt(1 + 2 y0^2); its second derivative is -6 y0 / (1 + 2 y0^2)^(5/2).
    np.testing.assert_allclose(found, [-6 / 3**2.5], rtol=1e-5)


@in_ways(tf.function)
@pytest.mark.slow
def test_second_derivative_by_what_the_dynamics_closes_over_is_that_of_the_closed_form(how):
    found = second_derivative(
        how, lambda k: keras_ode.odeint(lambda t, y: -k * y, double([1.0]), [0.0, 1.0], **OPTIONS)[-1], RATE
    )
    np.testing.assert_allclose(found, np.exp(-RATE), rtol=1e-6)


@in_ways(compiled)
@pytest.mark.slow
def test_second_derivative_of_saved_states_by_an_argument_is_that_of_the_closed_form(how):
    def total(k):
        ys = keras_ode.odeint(lambda t, y, k: -k * y, double([1.0]), [0.0, 0.5, 1.0], args=(k,), **OPTIONS)
        return tf.reduce_sum(ys)

    expected = 0.25 * np.exp(-0.5 * RATE) + np.exp(-RATE)
    np.testing.assert_allclose(second_derivative(how, total, RATE), expected, rtol=1e-6)


@in_ways(tf.function)
@pytest.mark.slow
def test_second_derivative_by_the_last_time_is_that_of_the_closed_form(how):
    def end(t):
        return keras_ode.odeint(lambda t, y: -RATE * y, double([1.0]), tf.stack([double(0.0), t]), **OPTIONS)[-1]

    np.testing.assert_allclose(second_derivative(how, end, 1.0), RATE**2 * np.exp(-RATE), rtol=1e-6)


@in_ways(compiled)
@pytest.mark.slow
def test_second_derivative_of_samples_with_their_own_steps_is_that_of_the_closed_form(how):
    def total(k):
        start = double([[1.0], [2.0]])
        return tf.reduce_sum(keras_ode.odeint(lambda t, y: -k * y, start, [0.0, 1.0], per_sample=True, **OPTIONS)[-1])

    np.testing.assert_allclose(second_derivative(how, total, RATE), 3 * np.exp(-RATE), rtol=1e-6)


MATRIX = np.array([[-0.3, 0.2], [0.1, -0.5]])


def scaled_flow(scale):
    """The sum of the end of `y' = scale * (MATRIX y)` from (1, 2)."""
    return np.sum(scipy.linalg.expm(np.diag(scale) @ MATRIX) @ [1, 2])


# In a graph TensorFlow vectorizes the second derivative, which takes it half a minute.
@in_ways(eager, compiled, at_night=[tf.function])
@pytest.mark.slow
def test_jacobian_of_a_gradient_is_the_matrix_of_second_differences(how):
    @how
    def hessian(scale):
        with tf.GradientTape(persistent=how is eager) as outer:
            outer.watch(scale)
            with tf.GradientTape() as inner:
                inner.watch(scale)
                options = {"solver": "rk4", "step_size": 0.02, "adjoint": "direct", "max_steps": 60, "jit_compile": False}
                ys = keras_ode.odeint(
                    lambda t, y: scale * tf.linalg.matvec(double(MATRIX), y), double([1.0, 2.0]), [0.0, 1.0], **options
                )
                total = tf.reduce_sum(ys[-1])
            gradient = inner.gradient(total, scale)
        # TensorFlow vectorizes second derivatives of loops in graphs alone.
        return outer.jacobian(gradient, scale, experimental_use_pfor=how not in (eager, compiled))

    at, h = np.array([0.5, 1.5]), 1e-4
    a, b = h * np.eye(2)[:, None], h * np.eye(2)[None, :]
    flow = np.vectorize(scaled_flow, signature="(n)->()")
    expected = (flow(at + a + b) - flow(at + a - b) - flow(at - a + b) + flow(at - a - b)) / (4 * h * h)
    np.testing.assert_allclose(hessian(double(at)), expected, atol=1e-6)


# Dynamics with so many weights that XLA compiles its calls


def wide_weights(width=520):
    random = np.random.default_rng(0)
    shapes = (2, width), (width, width), (width, 2)
    return [double(random.normal(size=s) / np.sqrt(s[0])) for s in shapes]


def wide_total(scale, times, weights, **options):
    """A number that depends on all: `scale` multiplies the start."""

    def field(t, y):
        for weight in weights:
            y = tf.tanh(y @ weight)
        return y * tf.cos(t)

    solution = keras_ode.solve(field, scale * double([[1.0, -1.0]]), times, **{**OPTIONS, **options})
    return tf.reduce_sum(solution.ys[-1] ** 2)


@pytest.mark.parametrize("how", [eager, tf.function], ids=["eager", "graph"])
@pytest.mark.slow
def test_compiled_calls_give_the_gradients_of_the_plain_graph(how):
    @how
    def gradients(jit_compile):
        weights, sources = wide_weights(), (double(0.5), double([0.0, 0.4]))
        with tf.GradientTape() as tape:
            tape.watch((sources, weights))
            total = wide_total(*sources, weights, jit_compile=jit_compile)
        return tape.gradient(total, [*sources, *weights])

    for compiled_calls, plain in zip(gradients("auto"), gradients(False), strict=True):
        assert relative_error(compiled_calls, plain) < 1e-10


@pytest.mark.slow
def test_second_derivative_through_compiled_calls_is_that_of_the_plain_graph():
    def second(jit_compile):
        weights, times = wide_weights(), double([0.0, 0.4])
        return second_derivative(tf.function, lambda s: wide_total(s, times, weights, jit_compile=jit_compile), 0.5)

    np.testing.assert_allclose(second("auto"), second(False), rtol=1e-9)


@pytest.mark.slow
def test_only_many_weights_for_the_size_of_the_state_are_compiled():
    def compiles(rows, width):
        weights = [tf.Variable(tf.ones(s)) for s in ((2, width), (width, width), (width, 2))]

        @tf.function
        def solve(y):
            return keras_ode.odeint(lambda t, y: y @ weights[0] @ weights[1] @ weights[2], y, [0.0, 1.0], adjoint="direct")

        graph = solve.get_concrete_function(tf.TensorSpec([rows, 2])).graph
        operations = [op for op in graph.get_operations() if op.type == "PartitionedCall"]
        return any(op.get_attr("_XlaMustCompile") for op in operations)

    assert compiles(4, 520)
    assert not compiles(64, 520)
    assert not compiles(None, 520)
    assert not compiles(4, 64)
