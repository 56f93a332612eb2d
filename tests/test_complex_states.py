"""Complex states: against closed forms, and gradients against those that TensorFlow gives through the closed forms."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ode
from keras_ode import Status
from tests.gradients import compiled, quick
from tests.marks import nightly

OPTIONS = {"rtol": 1e-8, "atol": 1e-8, "jit_compile": False}
TIMES = np.array([0.0, 0.4, 1.5])
START = np.array([[1.0 + 0.5j, -0.3j], [0.2 - 1.0j, 2.0]])
FACTOR = np.array([[0.3 + 2.0j, -0.5 + 1.0j]])


def rotation(t, y, factor):
    """Holomorphic: `y' = i t factor y`."""
    return 1j * tf.cast(t, y.dtype) * factor * y


def rotation_exactly(times, y0, factor):
    times = tf.cast(times, y0.dtype)
    return tf.exp(0.5j * (times**2 - times[0] ** 2)[:, None, None] * factor) * y0


def loss_of(ys):
    """Real, and not holomorphic in any of the states."""
    weights = tf.constant(np.random.default_rng(0).normal(size=ys.shape))
    return tf.reduce_sum(weights * (tf.math.real(ys) ** 2 + 3 * tf.math.imag(ys) + tf.math.real(ys) * tf.math.imag(ys)))


def gradients(solve, inputs):
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        total = loss_of(solve(*inputs))
    return tape.gradient(total, inputs)


def inputs_of():
    return [tf.constant(x) for x in (TIMES, START, FACTOR)]


HOWS = {"eager": lambda f: f, "graph": lambda f: tf.function(f, autograph=False), "xla": compiled}


@pytest.mark.parametrize(
    "how, per_sample", [("eager", False), nightly("graph", True), ("xla", True)]
)
@pytest.mark.slow
def test_gradients_by_times_start_and_arguments_are_those_through_the_closed_form(how, per_sample):
    def solve(times, y0, factor):
        return keras_ode.odeint(rotation, y0, times, args=(factor,), per_sample=per_sample, **OPTIONS)

    found = HOWS[how](lambda *inputs: (solve(*inputs), gradients(solve, inputs)))(*inputs_of())
    expected = rotation_exactly(*inputs_of()), gradients(rotation_exactly, inputs_of())
    for a, b in zip(tf.nest.flatten(found), tf.nest.flatten(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", quick("checkpointed", "direct", slow_ones=[]))
def test_gradients_by_variables_and_tensors_that_the_dynamics_reads_are_those_of_a_linear_system(adjoint):
    """`y' = A y` with a complex matrix that is a variable and a complex factor that is a tensor from outside."""
    random = np.random.default_rng(1)
    matrix = tf.Variable(random.normal(size=(2, 2)) + 1j * random.normal(size=(2, 2)))
    factor, y0 = tf.constant(0.5 - 0.3j, tf.complex128), tf.constant(START[0])

    def total(end):
        return tf.reduce_sum(tf.abs(end - tf.constant([1.0 + 0j, 2.0j])) ** 2)

    with tf.GradientTape(persistent=True) as tape:
        tape.watch((factor, y0))
        end = keras_ode.odeint(lambda y: factor * tf.linalg.matvec(matrix, y), y0, [0.0, 1.0], adjoint=adjoint, max_steps=256, **OPTIONS)
        found, expected = total(end[-1]), total(tf.linalg.matvec(tf.linalg.expm(factor * matrix), y0))
    for source in (matrix, factor, y0):
        np.testing.assert_allclose(tape.gradient(found, source), tape.gradient(expected, source), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_nest_of_real_and_complex_leaves_with_all_that_a_solution_offers():
    """The amplitude of a wave and its phase velocity; saved times, dense output, and steps."""

    def dynamics(t, state):
        return {"wave": 1j * tf.cast(state["speed"][0], tf.complex64) * state["wave"], "speed": -state["speed"]}

    def exactly(t):
        return np.exp(1j * (1 - np.exp(-t)))

    state = {"wave": tf.constant(1.0, tf.complex64), "speed": tf.constant([1.0])}
    options = {"rtol": 1e-6, "atol": 1e-6, "jit_compile": False}
    solution = keras_ode.solve(dynamics, state, [0.0, 0.5, 2.0], dense=True, max_steps=64, **options)
    assert solution.ys["wave"].dtype == tf.complex64 and solution.ys["wave"].shape == [3]
    np.testing.assert_allclose(solution.ys["wave"], exactly(np.array([0.0, 0.5, 2.0])), atol=1e-5)
    times = [0.1, 1.0, 1.9]
    np.testing.assert_allclose(solution.evaluate(times)["wave"], exactly(np.array(times)), atol=1e-4)
    expected = 1j * np.exp(-1.0) * exactly(1.0)
    np.testing.assert_allclose(solution.derivative(1.0)["wave"], expected, atol=1e-3)
    steps = keras_ode.solve(dynamics, state, [0.0, 2.0], save="steps", max_steps=64, **options)
    np.testing.assert_allclose(steps.ys["wave"], exactly(steps.ts.numpy()), atol=1e-5)


@pytest.mark.slow
def test_event_its_reset_norm_and_on_step_see_the_complex_state():
    """A quarter of a turn, and back to the start."""
    seen = []

    def norm(errors):
        seen.append(errors.dtype)
        return tf.reduce_max(tf.abs(errors))

    def on_step(info):
        seen.append(info.y.dtype)

    event = keras_ode.Event(lambda y: tf.math.real(y[0]), direction=-1, reset=lambda t, y: y / 1j, max_events=3)
    solution = keras_ode.solve(
        lambda y: 1j * y, tf.constant([1.0 + 0j], tf.complex128), [0.0, 4.0], event=event, norm=norm, on_step=on_step, **OPTIONS
    )
    np.testing.assert_allclose(solution.event_time[:2], [np.pi / 2, np.pi], atol=1e-6)
    np.testing.assert_allclose(solution.event_state[0], [1j], atol=1e-6)
    np.testing.assert_allclose(solution.ys[-1], [np.exp(1j * (4 - np.pi))], atol=1e-6)
    assert set(seen) == {tf.complex128}


def test_implicit_solver_takes_the_derivatives_of_a_function_that_is_not_holomorphic():
    """`y' = -1000 (y + conj(y) / 2) + i y`, whose real and imaginary parts are a stiff linear system of reals."""
    solution = keras_ode.solve(
        lambda y: -1000 * (y + tf.math.conj(y) / 2) + 1j * y, [1.0 + 2.0j, 0.0], [0.0, 0.002, 1.0], solver="rodas5p", **OPTIONS
    )
    matrix = np.array([[-1500.0, -1.0], [1.0, -500.0]])
    values, vectors = np.linalg.eig(matrix)
    end = vectors @ (np.exp(0.002 * values) * np.linalg.solve(vectors, [1.0, 2.0]))
    assert int(solution.status) == Status.SUCCESS and int(solution.stats["num_steps"]) < 200
    np.testing.assert_allclose(solution.ys[1], [end[0] + 1j * end[1], 0], atol=1e-6)


def test_error_control_treats_a_complex_number_as_its_two_parts():
    options = {"rtol": 1e-5, "atol": 1e-7, "jit_compile": False, "save": "steps", "max_steps": 64}
    found = keras_ode.solve(lambda y: (2j - 0.1) * y, [1.0 + 0.5j], [0.0, 3.0], **options)
    pair = keras_ode.solve(
        lambda y: tf.stack([-0.1 * y[0] - 2 * y[1], 2 * y[0] - 0.1 * y[1]]), tf.constant([1.0, 0.5], tf.float64), [0.0, 3.0], **options
    )
    assert int(found.stats["num_evaluations"]) == int(pair.stats["num_evaluations"])
    np.testing.assert_allclose(found.ys[:, 0], tf.complex(*tf.unstack(pair.ys, axis=1)), rtol=1e-12)


class Turn(keras.Layer):
    """Turns complex rows by a matrix of real weights."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], shape[-1]), initializer="ones")

    def call(self, y):
        return 1j * tf.matmul(y, tf.cast(self.kernel, y.dtype))


ROWS = tf.constant([[1.0 + 0j, 0.0], [0.5, 1j], [1.0, 1.0]], tf.complex64)


@pytest.mark.slow
def test_gradient_by_the_weights_of_a_layer_is_that_of_the_matrix_exponential():
    layer = Turn()
    with tf.GradientTape() as tape:
        end = keras_ode.odeint(layer, ROWS, [0.0, 1.0], rtol=1e-5, atol=1e-5, jit_compile=False)[-1]
        total = tf.reduce_sum(tf.math.imag(end))
    kernel = tf.Variable(tf.ones([2, 2]))
    with tf.GradientTape() as exact_tape:
        exact = ROWS @ tf.linalg.expm(1j * tf.cast(kernel, tf.complex64))
        expected = tf.reduce_sum(tf.math.imag(exact))
    np.testing.assert_allclose(end, exact, atol=1e-4)
    np.testing.assert_allclose(tape.gradient(total, layer.trainable_variables)[0], exact_tape.gradient(expected, kernel), atol=1e-3)


def test_ode_layer_refuses_complex_states_and_says_what_to_use():
    layer = keras_ode.ODELayer(Turn())
    for call in (layer, layer.solve):
        with pytest.raises(TypeError, match="Call keras_ode.solve.*complex64"):
            call(ROWS)


@pytest.mark.parametrize(
    ("name", "value"), [("mass_matrix", [[1.0, 0.0], [0.0, 2.0]]), ("jacobian", lambda t, y: tf.eye(2, dtype=y.dtype))]
)
def test_matrices_for_the_elements_of_a_complex_state_are_refused(name, value):
    with pytest.raises(TypeError, match=rf"With {name} the state must be real.*complex128 and shape \(2,\)"):
        keras_ode.solve(lambda t, y: 1j * y, tf.constant(START[1]), [0.0, 1.0], solver="rodas5p", **{name: value})


@pytest.mark.slow
def test_check_of_gradients_takes_complex_states_and_arguments():
    report = keras_ode.check_gradients(rotation, tf.constant(START), TIMES, args=(tf.constant(FACTOR),), rtol=1e-6, atol=1e-6)
    assert set(report.errors) == {"y0", "t", "args"} and max(report.errors.values()) < 1e-3


def test_derivative_of_another_type_is_refused_with_what_was_received():
    with pytest.raises(ValueError, match="must return the state's dtype, complex128. Received: float64"):
        keras_ode.solve(lambda y: tf.math.real(y), [1.0 + 1.0j], [0.0, 1.0])
