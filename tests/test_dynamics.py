"""Whatever a dynamics is and reads, its value and its gradients are right, or it is refused."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ode
from keras_ode.dynamics import close, takes_time
from tests.gradients import quick
from tests.marks import nightly, slow
from tests.references import Counting, relative_error

ONE = tf.constant([1.0], tf.float64)
RATE = 0.7
# Backsolve is the adjoint that takes the least time to trace. With Runge's method and constant steps, its trace takes three quarters
# of the time that it takes with the default solver; the error is some 1e-10.
TIGHT = {"solver": "rk4", "step_size": 1 / 64, "adjoint": "backsolve", "jit_compile": False}

# y' = k y from 1: y(2) = exp(2 k), whose derivative by k is 2 exp(2 k).
END, SLOPE = np.exp(2 * RATE), 2 * np.exp(2 * RATE)


def end_of(dynamics, y0=ONE, **options):
    return keras_ode.odeint(dynamics, y0, [0.0, 2.0], **{**TIGHT, **options})[-1]


def eager(function):
    return function


MODES = pytest.mark.parametrize(
    "how", [eager, tf.function, slow(tf.function(jit_compile=True))], ids=["eager", "graph", "compiled"]
)


class Scale(keras.layers.Layer):
    """`k y`, with a weight that is used, and one that is not."""

    def __init__(self, **kwargs):
        super().__init__(**{"dtype": "float64", **kwargs})
        self.rate = self.add_weight(shape=(), name="rate")
        self.rate.assign(RATE)  # Keras' constant initializer rounds to float32.
        self.unused = self.add_weight(shape=(2,), name="unused")

    def call(self, y):
        return self.rate * y


class TimedScale(Scale):
    def call(self, t, y):
        return self.rate * y * (1 + 0 * t)


# What the gradient is taken by, and a dynamics that reads it.


def of_tf_variable():
    k = tf.Variable(RATE, dtype=tf.float64)
    return k, lambda t, y: k * y


def of_keras_variable():
    k = keras.Variable(RATE, dtype="float64")
    return k.value, lambda t, y: k * y


def of_layer():
    layer = Scale()
    return layer.rate.value, layer


def of_timed_layer():
    layer = TimedScale()
    return layer.rate.value, layer


def of_layer_in_a_function():
    layer = Scale()
    return layer.rate.value, lambda t, y: layer(y)


def of_bound_method():
    layer = TimedScale()
    return layer.rate.value, layer.call


def of_sequential_model():
    layer = Scale()
    return layer.rate.value, keras.Sequential([layer])


def of_tf_function():
    k = tf.Variable(RATE, dtype=tf.float64)
    return k, tf.function(lambda t, y: k * y)


def of_traced_tf_function():
    k = tf.Variable(RATE, dtype=tf.float64)
    f = tf.function(lambda t, y: k * y)
    f(tf.constant(0.0, tf.float64), ONE)
    return k, f


def of_variable_in_a_branch():
    k = tf.Variable(RATE, dtype=tf.float64)
    return k, lambda t, y: tf.cond(t < 10, lambda: k * y, lambda: -k * y)


def of_variable_in_a_loop():
    k = tf.Variable(RATE, dtype=tf.float64)
    half = lambda i, total, y: (i + 1, total + k * y / 2, y)
    return k, lambda t, y: tf.while_loop(lambda i, *_: i < 2, half, (0, tf.zeros_like(y), y), maximum_iterations=2)[1]


def of_variable_in_a_map():
    k = tf.Variable(RATE, dtype=tf.float64)
    return k, lambda t, y: tf.map_fn(lambda row: k * row, y)


def of_callable_object():
    k = tf.Variable(RATE, dtype=tf.float64)
    return k, Counting(lambda t, y: k * y)


def of_partial():
    k = tf.Variable(RATE, dtype=tf.float64)
    return k, functools.partial(lambda k, t, y: k * y, k)


READERS = {name[3:].replace("_", " "): make for name, make in list(globals().items()) if name.startswith("of_")}


# Those that read a variable in ways of their own, in eager code and in a graph.
EAGER = ("keras variable", "layer")
SLOW_EAGER = ("tf variable", "traced tf function")
GRAPH = ("tf variable", "layer", "bound method", "tf function", "variable in a loop")


@pytest.mark.parametrize(
    "reader, how",
    [
        *((reader, tf.function) if reader in GRAPH else slow(reader, tf.function) for reader in READERS),
        *((reader, eager) if reader in EAGER else slow(reader, eager) if reader in SLOW_EAGER else nightly(reader, eager) for reader in READERS),
    ],
)
def test_value_and_gradient_by_what_the_dynamics_reads_are_those_of_the_closed_form(reader, how):
    k, dynamics = READERS[reader]()

    @how
    def value_and_gradient():
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(end_of(dynamics))
        return value, tape.gradient(value, k)

    value, gradient = value_and_gradient()
    np.testing.assert_allclose(value, END, rtol=1e-8)
    np.testing.assert_allclose(gradient, SLOPE, rtol=1e-7)


@MODES
def test_gradient_by_a_tensor_in_the_closure_is_that_of_the_closed_form(how):
    @how
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            k = tf.square(x)
            loss = tf.reduce_sum(end_of(lambda t, y: k * y))
        return tape.gradient(loss, x)

    np.testing.assert_allclose(gradient(tf.constant(RATE**0.5, tf.float64)), SLOPE * 2 * RATE**0.5, rtol=1e-7)


def test_gradient_by_a_tensor_of_an_outer_graph_is_right_inside_a_loop_body():
    @tf.function
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            k = tf.square(x)
            y = tf.cond(x > 0, lambda: end_of(lambda t, y: k * y), lambda: ONE)
            loss = tf.reduce_sum(y)
        return tape.gradient(loss, x)

    np.testing.assert_allclose(gradient(tf.constant(RATE**0.5, tf.float64)), SLOPE * 2 * RATE**0.5, rtol=1e-7)


@pytest.mark.slow
def test_gradient_by_a_tensor_inside_an_inner_tf_function_is_never_lost_in_silence():
    k = tf.constant(RATE, tf.float64)
    inner = tf.function(lambda y: k * y)
    with tf.GradientTape() as tape:
        tape.watch(k)
        loss = tf.reduce_sum(end_of(lambda t, y: inner(y)))
    np.testing.assert_allclose(tape.gradient(loss, k), SLOPE, rtol=1e-7)


@pytest.mark.slow
def test_gradients_by_a_variable_in_closure_and_argument_add_up():
    k = tf.Variable(RATE, dtype=tf.float64)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(end_of(lambda t, y, other: (k + other) / 2 * y, args=(k.value(),)))
    np.testing.assert_allclose(tape.gradient(loss, k), SLOPE, rtol=1e-7)


@pytest.mark.slow
def test_gradients_by_many_readers_at_once_do_not_mix():
    """Each scales one component: a wrong order would show."""
    a, b = tf.Variable(0.1, dtype=tf.float64), keras.Variable(0.2, dtype="float64")
    c, d = tf.constant(0.3, tf.float64), tf.constant(0.4, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch([c, d])
        dynamics = lambda t, y, d: tf.stack([d, c, b.value, a]) * y
        loss = tf.reduce_sum(end_of(dynamics, tf.ones([4], tf.float64), args=(d,)) * [1.0, 2.0, 3.0, 4.0])
    found = tape.gradient(loss, [d, c, b.value, a])
    np.testing.assert_allclose(found, 2 * np.arange(1, 5) * np.exp(2 * np.array([0.4, 0.3, 0.2, 0.1])), rtol=1e-7)


@pytest.mark.slow
def test_network_gradient_is_that_of_the_same_network_in_a_function():
    """A Keras model and plain tensor operations on its weights are two ways to the same numbers."""
    model = keras.Sequential([keras.layers.Dense(5, activation="tanh"), keras.layers.Dense(3)])
    model.build((None, 3))
    y0 = tf.random.normal([4, 3])
    weights = [v.value for v in model.trainable_variables]

    def plain(t, y):
        w1, b1, w2, b2 = weights
        return tf.tanh(y @ w1 + b1) @ w2 + b2

    gradients = []
    for dynamics in (model, plain):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(end_of(dynamics, y0) ** 2)
        gradients.append(tape.gradient(loss, weights))
    # float32 rounding, in some hundred steps.
    assert max(map(relative_error, *gradients)) < 1e-4


def test_second_solve_after_a_weight_changed_sees_the_new_value():
    layer = Scale()
    first = end_of(layer)
    layer.rate.assign(0.0)
    np.testing.assert_allclose([first, end_of(layer)], [[END], [1.0]], rtol=1e-8)


class Readers(tf.Module):
    """`k y`, one component for each way in which TensorFlow programs read a variable."""

    def __init__(self):
        self.k = tf.Variable([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], dtype=tf.float64)
        self.recomputed = tf.recompute_grad(lambda y: self.k[4] * y)

    @tf.function
    def inner(self, y):
        return self.k[0] * y

    def __call__(self, t, y):
        return tf.stack(
            [
                self.inner(y[0]),
                tf.gather(self.k, 1) * y[1],
                tf.nn.embedding_lookup(self.k, [2])[0] * y[2],
                tf.cond(t < 10, lambda: self.k[3] * y[3], lambda: y[3]),
                self.recomputed(y[4]),
                self.k.read_value()[5] * y[5],
            ]
        )


@pytest.mark.parametrize("adjoint", quick("interpolating", "direct"))
@pytest.mark.slow
def test_gradient_of_every_adjoint_follows_every_way_to_read_a_variable(adjoint):
    dynamics = Readers()

    @tf.function
    def gradient():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(end_of(dynamics, tf.ones([6], tf.float64), adjoint=adjoint))
        return tape.gradient(loss, dynamics.k)

    np.testing.assert_allclose(tf.convert_to_tensor(gradient()), 2 * np.exp(2 * dynamics.k.numpy()), rtol=1e-4)


def test_assignment_between_the_solve_and_its_gradient_does_not_change_the_gradient():
    k = tf.Variable(RATE, dtype=tf.float64)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(end_of(lambda t, y: k * y))
    k.assign(0.0)
    np.testing.assert_allclose(tape.gradient(loss, k), SLOPE, rtol=1e-7)


# What gets no gradient


@pytest.mark.parametrize("how", [eager, tf.function], ids=["eager", "graph"])
def test_gradient_by_an_unused_weight_is_exactly_zero(how):
    layer = Scale()

    @how
    def gradient():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(end_of(layer))
        return tape.gradient(loss, layer.unused.value)

    np.testing.assert_array_equal(gradient(), [0, 0])


@pytest.mark.slow
def test_gradient_by_unused_args_is_exactly_zero():
    unused = tf.constant([1.0, 2.0], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(unused)
        loss = tf.reduce_sum(end_of(lambda t, y, args: y, args=(unused,)))
    np.testing.assert_array_equal(tape.gradient(loss, unused), [0, 0])


@pytest.mark.slow
def test_frozen_layer_gets_no_gradient():
    layer = Scale(trainable=False)
    with tf.GradientTape() as tape:
        tape.watch(layer.rate.value)
        loss = tf.reduce_sum(end_of(layer))
    assert tape.gradient(loss, layer.rate.value) is None


@pytest.mark.slow
def test_untrained_variable_gets_a_gradient_where_a_tape_watches_it():
    k = tf.Variable(RATE, dtype=tf.float64, trainable=False)
    with tf.GradientTape(persistent=True) as tape:
        unwatched = end_of(lambda t, y: k * y) + k
        tape.watch(k)
        watched = end_of(lambda t, y: k * y) + k
    assert tape.gradient(unwatched, k) is None
    np.testing.assert_allclose(tape.gradient(watched, k), SLOPE + 1, rtol=1e-7)


def test_frozen_layer_is_not_differentiated():
    """Nor is any time spent on it: the field has no parameter that a cotangent is computed for."""
    layer = Scale(trainable=False)
    assert not any(close(layer, tf.constant(0.0, tf.float64), ONE).differentiable)


def test_untrained_variable_is_read_when_the_solve_runs():
    k = tf.Variable(0.0, dtype=tf.float64, trainable=False)
    run = tf.function(lambda: end_of(lambda t, y: k * y))
    first = run()
    k.assign(RATE)
    np.testing.assert_allclose([first, run()], [[1.0], [END]], rtol=1e-8)


@pytest.mark.slow
def test_integer_tensors_in_the_closure_may_be_used():
    index = tf.constant([1, 0])
    rates = tf.Variable([0.5, RATE], dtype=tf.float64)
    with tf.GradientTape() as tape:
        ends = end_of(lambda t, y: tf.gather(tf.convert_to_tensor(rates), index) * y, tf.ones([2], tf.float64))
        loss = ends[0]
    np.testing.assert_allclose(ends, [END, np.exp(1)], rtol=1e-8)
    np.testing.assert_allclose(tape.gradient(loss, rates), [0, SLOPE], rtol=1e-7)


@pytest.mark.parametrize("args", [(tf.constant(1),), (1,), slow((tf.constant(True),))], ids=["tensor", "number", "bool"])
def test_args_may_be_integers(args):
    dynamics = lambda t, y, power: RATE * y ** tf.cast(power, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(ONE)
        end = end_of(dynamics, args=args)
    np.testing.assert_allclose(tape.gradient(end, ONE), [END], rtol=1e-7)


def test_untrained_variable_may_be_gathered_from():
    v = tf.Variable([0.0, RATE], dtype=tf.float64, trainable=False)
    np.testing.assert_allclose(end_of(lambda t, y: tf.gather(v, [1]) * y), [END], rtol=1e-8)


def test_embedding_layer_in_the_dynamics_gets_its_gradient():
    layer = keras.layers.Embedding(2, 1, embeddings_initializer=keras.initializers.Constant(RATE), dtype="float64")
    layer.build()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(end_of(lambda t, y: layer(tf.constant([1]))[0] * y))
    gradient = tape.gradient(loss, layer.embeddings.value)
    np.testing.assert_allclose(tf.convert_to_tensor(gradient), [[0], [SLOPE]], rtol=1e-7)


# Signatures




class CallOfState(keras.layers.Layer):
    def call(self, y, training=None, mask=None):
        return y


class CallOfTime(keras.layers.Layer):
    def call(self, t, y, training=None):
        return y


class Methods:
    def of_state(self, y):
        return y

    def of_time(self, t, y):
        return y

    def __call__(self, t, y):
        return y


SIGNATURES = [
    (lambda y: y, 0, False),
    (lambda t, y: y, 0, True),
    (lambda state: state, 0, False),
    (lambda s, x: x, 0, True),
    (lambda y, k=1.0: y, 0, False),
    (lambda t, y, k=1.0: y, 0, True),
    (lambda t, y, *, k=1.0: y, 0, True),
    (lambda y, *, k=1.0: y, 0, False),
    (lambda t, y, k: y, 1, True),
    (lambda y, k: y, 1, False),
    (lambda t, y, *args: y, 0, True),
    (lambda t, y, *args: y, 2, True),
    (lambda t, y, **options: y, 0, True),
    (CallOfState(), 0, False),
    (CallOfTime(), 0, True),
    (Methods().of_state, 0, False),
    (Methods().of_time, 0, True),
    (Methods(), 0, True),
    (functools.partial(lambda k, t, y: y, 1.0), 0, True),
    (functools.partial(lambda t, y, k: y, k=1.0), 0, True),
    (functools.partial(lambda y, k: y, k=1.0), 0, False),
    (tf.function(lambda t, y: y), 0, True),
    (tf.function(lambda y: y), 0, False),
    (keras.Sequential([keras.layers.Dense(1)]), 0, False),
]


@pytest.mark.parametrize("function, num_args, expected", SIGNATURES)
def test_signature_tells_whether_the_dynamics_takes_time(function, num_args, expected):
    assert takes_time(function, num_args) == expected


@pytest.mark.parametrize("function", [lambda: 1, lambda a, b, c: a, lambda *, y: y], ids=["none", "three", "keywords"])
def test_other_signatures_are_refused(function):
    with pytest.raises(TypeError, match="must take the state.*Received a function with the arguments"):
        takes_time(function)


@pytest.mark.parametrize(
    "dynamics",
    [
        lambda y: RATE * y,
        lambda t, y: RATE * y,
        lambda t, y, *args: RATE * y,
        lambda t, y, k=RATE: k * y,
        lambda y, k=RATE: k * y,
        functools.partial(lambda t, y, k: k * y, k=RATE),
    ],
)
def test_dynamics_of_any_signature_is_called_as_it_asks(dynamics):
    np.testing.assert_allclose(end_of(dynamics), [END], rtol=1e-8)


def test_time_reaches_the_dynamics_as_a_scalar_of_the_dtype_of_the_state():
    seen = []

    def dynamics(t, y):
        seen.append((t.shape, t.dtype))
        return y

    end_of(dynamics)
    assert set(seen) == {(tf.TensorShape([]), tf.float64)}


# Python in the dynamics


def test_python_if_on_a_tensor_works():
    def dynamics(t, y):
        if t < 1:
            return RATE * y
        return 0 * y

    end = end_of(dynamics, solver="tsit5", step_size=None, rtol=1e-7, atol=1e-7)  # the tolerance finds where the slope jumps
    np.testing.assert_allclose(end, [np.exp(RATE)], rtol=1e-5)


def test_python_loop_over_a_tensor_works():
    def dynamics(t, y):
        total = tf.zeros_like(y)
        for part in tf.constant([0.3, 0.4], tf.float64):
            total += part * y
        return total

    np.testing.assert_allclose(end_of(dynamics), [END], rtol=1e-8)


def test_dynamics_is_traced_and_not_run_at_every_step():
    calls = []

    def dynamics(t, y):
        calls.append(1)
        return -(y**3)

    stats = keras_ode.solve(dynamics, ONE, [0.0, 2.0], **TIGHT).stats
    assert len(calls) <= 2 < int(stats["num_evaluations"])


def test_layer_that_is_not_built_yet_is_built_by_the_solve():
    model = keras.Sequential([keras.layers.Dense(2, kernel_initializer="zeros", bias_initializer="ones")])
    ys = keras_ode.odeint(model, tf.zeros([3, 2]), [0.0, 1.0], jit_compile=False)
    np.testing.assert_allclose(ys[-1], np.ones([3, 2]), rtol=1e-6)
    assert len(model.trainable_variables) == 2


# Precision


def test_layer_in_single_precision_refuses_a_state_in_double():
    layer = Scale(dtype="float32")
    with pytest.raises(ValueError, match="must return the state's dtype, float64. Received: float32.*dtype='float64'"):
        end_of(layer)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_float16", nightly("mixed_bfloat16")])
def test_layer_in_mixed_precision_computes_in_half_and_the_solve_in_single(policy):
    seen = []

    class Seeing(Scale):
        def call(self, y):
            seen.append(y.dtype)
            return self.rate * y

    layer = Seeing(dtype=policy)
    with tf.GradientTape() as tape:
        end = keras_ode.odeint(layer, tf.constant([1.0]), [0.0, 2.0], adjoint="backsolve", jit_compile=False)[-1]
    gradient = tape.gradient(end, layer.rate.value)
    half = tf.as_dtype(policy.removeprefix("mixed_"))
    assert set(seen) == {half}
    assert (end.dtype, gradient.dtype) == (tf.float32, tf.float32)
    # The rate and each derivative are rounded to 8 bits in bfloat16, 11 in float16.
    rounding = 2e-2 if half == tf.bfloat16 else 3e-3
    assert float(end[0]) == pytest.approx(END, rel=rounding)
    assert float(gradient) == pytest.approx(SLOPE, rel=3 * rounding)


# The vector field


def field_of(dynamics, y=ONE):
    return close(dynamics, tf.constant(0.0, tf.float64), y)


def test_fields_that_compute_the_same_have_one_fingerprint():
    make = lambda: field_of(lambda t, y: 2 * y)
    assert make().fingerprint == make().fingerprint


@pytest.mark.parametrize("other", [lambda t, y: 2 / y, lambda t, y: 2 * y * y, lambda t, y: 2 * y + 0 * t])
def test_fields_that_compute_something_else_have_another_fingerprint(other):
    assert field_of(lambda t, y: 2 * y).fingerprint != field_of(other).fingerprint


def test_zeros_of_two_signs_are_two_numbers():
    fields = [field_of(lambda t, y, k=k: tf.atan2(tf.constant(k, y.dtype), -y)) for k in (0.0, -0.0)]
    values = [field(tf.constant(0.0, tf.float64), (ONE,), field.parameters)[0] for field in fields]
    np.testing.assert_allclose(np.ravel(values), [np.pi, -np.pi])
    assert fields[0].fingerprint != fields[1].fingerprint


def test_python_numbers_that_change_are_not_compiled_anew():
    fields = [field_of(lambda t, y, k=k: tf.sin(3 * y) * k) for k in (0.1, 0.2, 0.3, 0.1)]
    assert len({field.fingerprint for field in fields}) == 2  # once as a constant, then as a parameter
    values = [field(tf.constant(0.0, tf.float64), (ONE,), field.parameters)[0] for field in fields]
    np.testing.assert_allclose(np.ravel(values), np.sin(3) * np.array([0.1, 0.2, 0.3, 0.1]))


def test_convolution_is_known_as_one():
    layer = keras.layers.Conv2D(1, 3, padding="same")
    layer.build((None, 4, 4, 1))
    image = tf.zeros([1, 4, 4, 1])
    assert close(layer, tf.constant(0.0), image).is_convolutional
    assert not close(lambda t, y: y, tf.constant(0.0), image).is_convolutional


def test_vjp_is_the_derivative_and_its_products_with_the_jacobians():
    k = tf.Variable([1.0, 2.0], dtype=tf.float64)
    y, cotangent = tf.constant([3.0, 5.0], tf.float64), tf.constant([1.0, 10.0], tf.float64)
    field = close(lambda t, y: k * y**2 + t, tf.constant(0.0, tf.float64), y)
    derivative, by_state, by_parameters = field.vjp(tf.constant(1.0, tf.float64), (y,), field.parameters, (cotangent,))
    np.testing.assert_allclose(derivative[0], [10, 51])
    np.testing.assert_allclose(by_state[0], [6, 200])
    np.testing.assert_allclose(by_parameters[0], [9, 250])


def test_closing_a_dynamics_leaves_its_variables_as_they_were():
    k = tf.Variable(RATE, dtype=tf.float64)
    field_of(lambda t, y: k * y)
    k.assign(2.0)
    assert float(k) == float(k.read_value()) == float(tf.function(lambda: k + 0)()) == 2


@pytest.mark.parametrize("how", [lambda f: f, slow(tf.function)], ids=["eager", "graph"])
def test_layer_in_a_closure_that_was_never_called_gets_its_gradient(how):
    dense = keras.layers.Dense(2, use_bias=False, kernel_initializer="identity", dtype="float64")

    @how
    def gradient():
        with tf.GradientTape() as tape:
            ys = keras_ode.odeint(lambda t, y: dense(y), tf.ones([1, 2], tf.float64), [0.0, 1.0], **TIGHT)
            loss = tf.reduce_sum(ys[-1])
        return tape.gradient(loss, dense.kernel.value)

    # y' = y M with M the identity: d sum(y0 exp(M)) / dM = e, for every element of M.
    np.testing.assert_allclose(gradient(), np.full([2, 2], np.e), rtol=1e-7)
