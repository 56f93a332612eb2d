"""Whatever way a dynamics reads variables, its field has the value and the derivatives that TensorFlow gives without one."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ode
from keras_ode.dynamics import close

T = tf.constant(0.5, tf.float64)
Y = tf.constant([0.3, -0.4, 0.5], tf.float64)
COTANGENT = tf.constant([1.0, 2.0, 4.0], tf.float64)


def variable(*values, **options):
    return tf.Variable(values, dtype=tf.float64, **options)


def inner_function():
    k = variable(0.1, 0.2, 0.3)
    inner = tf.function(lambda y: k * y**2)
    inner(Y)  # traced before
    return [k], lambda t, y: inner(y) + t


def inner_function_that_is_compiled():
    k = variable(0.1, 0.2, 0.3)
    inner = tf.function(lambda y: k * tf.sin(y), jit_compile=True)
    return [k], lambda t, y: inner(y)


def module():
    class Module(tf.Module):
        def __init__(self):
            self.w, self.b = tf.Variable(tf.eye(3, dtype=tf.float64)), variable(0.0, 0.1, 0.2)

        @tf.function
        def __call__(self, t, y):
            return self.layer(y) * t

        @tf.function
        def layer(self, y):
            return tf.tanh(tf.linalg.matvec(self.w, y) + self.b)

    made = Module()
    return [made.w, made.b], made


def gather():
    v = variable(0.1, 0.2, 0.3, 0.4)
    return [v], lambda t, y: tf.gather(v, [3, 1, 1]) * y


def gather_nd():
    v = variable(0.1, 0.2, 0.3, 0.4)
    return [v], lambda t, y: tf.gather_nd(v, [[3], [1], [1]]) * y


def embedding():
    v = variable([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    return [v], lambda t, y: tf.nn.embedding_lookup(v, [1])[0] * y


def keras_embedding():
    layer = keras.layers.Embedding(2, 3, dtype="float64")
    layer.build()
    return [layer.embeddings.value], lambda t, y: layer(tf.constant([1]))[0] * y


def read_value():
    k = variable(0.1, 0.2, 0.3)
    return [k], lambda t, y: k.read_value() * y + k.value() * y


def branch():
    k, m = variable(0.1, 0.2, 0.3), variable(0.5)
    return [k, m], lambda t, y: tf.cond(t > 0, lambda: k * y, lambda: m * y) + tf.cond(t < 0, lambda: k * y, lambda: m * y)


def switch():
    k = variable(0.1, 0.2, 0.3)
    return [k], lambda t, y: tf.switch_case(tf.constant(1), [lambda: y, lambda: k * y, lambda: -y])


def loop():
    k = variable(0.1, 0.2, 0.3)

    def run(t, y):
        return tf.while_loop(lambda i, z: i < 3, lambda i, z: (i + 1, k * z + y), (0, y), maximum_iterations=3)[1]

    return [k], run


def loop_in_a_branch_in_a_function():
    k = variable(0.1, 0.2, 0.3)

    @tf.function
    def run(t, y):
        z = y
        for _ in tf.range(2):
            if t > 0.1:
                z = tf.gather(k, [0, 1, 2]) * z + y
        return z

    return [k], run


def mapped():
    k = variable(0.7)
    return [k], lambda t, y: tf.map_fn(lambda row: k[0] * row**2, y)


def vectorized():
    k = variable(0.7)
    return [k], lambda t, y: tf.vectorized_map(lambda row: k[0] * row**2, y)


def recomputed():
    k = variable(0.1, 0.2, 0.3)
    inner = tf.recompute_grad(lambda y: tf.tanh(k * y))
    return [k], lambda t, y: inner(y) * t


def keras_remat():
    if not hasattr(keras, "remat"):
        pytest.skip("this version of Keras has no remat")
    layer = keras.layers.Dense(3, activation="tanh", dtype="float64")
    layer.build((None, 3))
    inner = keras.remat(lambda y: layer(y[None])[0])
    return [layer.kernel.value, layer.bias.value], lambda t, y: inner(y)


def remat_scope():
    if not hasattr(keras, "RematScope"):
        pytest.skip("this version of Keras has no RematScope")
    with keras.RematScope("full"):
        layer = keras.layers.Dense(3, activation="tanh", dtype="float64")
    layer.build((None, 3))
    return [layer.kernel.value, layer.bias.value], lambda t, y: layer(y[None])[0]


def custom_gradient_with_variables():
    k = variable(0.1, 0.2, 0.3)

    @tf.custom_gradient
    def twice(y):
        def gradient(g, variables=None):
            return 2 * g * k, [2 * g * y]

        return 2 * k * y, gradient

    return [k], lambda t, y: twice(y)


def custom_gradient_in_a_function_and_a_loop():
    k = variable(0.1, 0.2, 0.3)
    swish = tf.function(lambda y: tf.nn.silu(k * y))

    def run(t, y):
        return tf.while_loop(lambda i, z: i < 2, lambda i, z: (i + 1, swish(z) + y), (0, y), maximum_iterations=2)[1]

    return [k], run


def gradient_of_a_potential():
    w = tf.Variable(tf.eye(3, dtype=tf.float64))
    potential = tf.function(lambda y: tf.reduce_sum(tf.tanh(tf.linalg.matvec(w, y))))

    def run(t, y):
        with tf.GradientTape() as tape:
            tape.watch(y)
            value = potential(y)
        return tape.gradient(value, y)

    return [w], run


def gradient_of_a_loop():
    k = variable(0.1, 0.2, 0.3)

    def run(t, y):
        with tf.GradientTape() as tape:
            tape.watch(y)
            z = tf.while_loop(lambda i, z: i < 2, lambda i, z: (i + 1, tf.sin(z * k)), (0, y), maximum_iterations=2)[1]
        return tape.gradient(z, y)

    return [k], run


DYNAMICS = [
    inner_function, inner_function_that_is_compiled, module, gather, gather_nd, embedding, keras_embedding, read_value, branch,
    switch, loop, loop_in_a_branch_in_a_function, mapped, vectorized, recomputed, keras_remat, remat_scope,
    custom_gradient_with_variables, custom_gradient_in_a_function_and_a_loop, gradient_of_a_potential,
    gradient_of_a_loop,
]  # fmt: skip


@pytest.mark.parametrize("make", DYNAMICS, ids=lambda make: make.__name__)
def test_field_has_the_value_and_the_derivatives_of_the_dynamics_itself(make):
    variables, dynamics = make()

    @tf.function
    def expected():
        with tf.GradientTape() as tape:
            tape.watch(Y)
            value = dynamics(T, Y)
        return value, tape.gradient(value, [Y, *variables], output_gradients=COTANGENT)

    value, (by_state, *by_variables) = expected()
    field = close(dynamics, T, Y)
    found = field.vjp(T, (Y,), field.parameters, (COTANGENT,))
    np.testing.assert_allclose(field(T, (Y,), field.parameters)[0], value, rtol=1e-12)
    np.testing.assert_allclose(found[0][0], value, rtol=1e-12)
    np.testing.assert_allclose(found[1][0], by_state, rtol=1e-12)
    assert len(found[2]) == len(by_variables) == len(field.select(field.parameters))
    for gradient, right in zip(found[2], by_variables, strict=True):
        np.testing.assert_allclose(gradient, tf.convert_to_tensor(right), rtol=1e-12)
        assert np.any(gradient != 0)


@pytest.mark.parametrize("make", [loop, inner_function, recomputed, gradient_of_a_potential], ids=lambda make: make.__name__)
def test_traces_of_one_dynamics_have_one_fingerprint(make):
    _, dynamics = make()
    assert close(dynamics, T, Y).fingerprint == close(dynamics, T, Y).fingerprint


def test_custom_gradients_that_differ_have_other_fingerprints():
    @tf.custom_gradient
    def straight(y):
        return tf.sign(y), lambda g: g

    @tf.custom_gradient
    def clipped(y):
        return tf.sign(y), lambda g: tf.clip_by_value(g, -1, 1)

    assert close(lambda t, y: straight(y), T, Y).fingerprint != close(lambda t, y: clipped(y), T, Y).fingerprint


def test_variable_that_a_module_makes_in_its_first_call_is_followed():
    class Lazy(tf.Module):
        k = None

        def __call__(self, t, y):
            if self.k is None:
                self.k = tf.Variable(tf.random.uniform([3], dtype=tf.float64))
            return self.k * y

    module = Lazy()
    field = close(module, T, Y)
    np.testing.assert_allclose(field.vjp(T, (Y,), field.parameters, (COTANGENT,))[2][0], COTANGENT * Y)
    np.testing.assert_allclose(field(T, (Y,), field.parameters)[0], module.k * Y)


@pytest.mark.parametrize("size, expected", [(10, True), (2**17, False)])
def test_constants_of_a_graph_are_not_differentiated_and_large_ones_from_outside_neither(size, expected):
    outside = tf.ones([size], tf.float64)
    found = {}

    @tf.function
    def trace(x):
        made = tf.cast(tf.range(3), tf.float64) * tf.constant(2.0, tf.float64)
        with tf.GradientTape() as tape:
            tape.watch(outside if not expected else x)
            for name, tensor in {"made": made, "outside": outside, "argument": x}.items():
                found[name] = any(close(lambda t, y, k=tensor: k[0] * y, T, Y).differentiable)
        unwatched = close(lambda t, y: outside[0] * y, T, Y)
        found["unwatched"] = any(unwatched.differentiable)

    trace(tf.ones([3], tf.float64))
    assert found == {"made": False, "outside": True, "argument": True, "unwatched": expected}


@pytest.mark.slow
def test_gradient_by_a_small_tensor_is_that_of_each_of_its_values():
    """TensorFlow puts small tensors from outside into a graph as constants: they are no Python numbers of the dynamics."""
    for rate in (0.5, 0.7, 0.9):
        rate = tf.constant(rate, tf.float64)
        with tf.GradientTape() as tape:
            tape.watch(rate)
            end = keras_ode.odeint(lambda y: -2.0 * rate * y, tf.constant([1.0], tf.float64), [0.0, 1.0], jit_compile=False)[-1, 0]
        np.testing.assert_allclose(tape.gradient(end, rate), -2 * np.exp(-2 * rate), rtol=1e-2)
