"""What a dynamics does besides returning a derivative happens once a call, or is refused."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ode
from keras_ode import ODELayer
from tests.marks import slow

# No test looks at the accuracy of a solve: few steps of few stages.
FAST = {"solver": "euler", "step_size": 0.5, "jit_compile": False}
HOW = pytest.mark.parametrize(
    "how", [lambda f: f, slow(tf.function), tf.function(jit_compile=True)], ids=["eager", "graph", "compiled"]
)
Y = tf.constant([[1.0, 2.0], [3.0, 6.0]])


def solve(dynamics, y0=Y, **options):
    return keras_ode.solve(dynamics, y0, [0.0, 1.0], **{**FAST, **options})


# State of layers


class Stateful(keras.Model):
    """Has moving statistics, a counter, a metric and a dropout."""

    def __init__(self):
        super().__init__()
        self.norm = keras.layers.BatchNormalization(momentum=0.75)
        self.mean = keras.metrics.Mean()
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, name="calls")

    def call(self, y, training=None):
        if training:
            self.calls.assign_add(1.0)
            self.mean.update_state(y)
        return self.norm(y, training=training) + 0 * self.calls


@HOW
def test_state_is_updated_once_a_call_by_the_evaluation_at_the_start(how):
    layer = ODELayer(Stateful(), **FAST)
    layer.build((None, 2))
    call = how(lambda: layer(Y, training=True))
    for _ in range(2):
        call()
    norm, mean, calls = layer.dynamics.norm, layer.dynamics.mean, layer.dynamics.calls
    np.testing.assert_allclose(norm.moving_mean, (1 - 0.75**2) * np.array([2, 4]), rtol=1e-6)
    np.testing.assert_allclose(norm.moving_variance, 0.75**2 + (1 - 0.75**2) * np.array([1, 4]), rtol=1e-6)
    assert float(calls) == 2
    assert float(mean.result()) == 3


def test_state_is_left_alone_outside_training():
    layer = ODELayer(Stateful(), **FAST)
    layer.build((None, 2))
    before = [v.numpy() for v in layer.variables]
    layer(Y, training=False)
    for variable, value in zip(layer.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_an_evaluation_reads_what_it_assigned_itself():
    class Counted(keras.layers.Layer):
        def build(self, shape):
            self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)

        def call(self, y):
            self.count.assign_add(1.0)
            return tf.ones_like(y) * self.count

    layer = ODELayer(Counted(), **FAST)
    for count in (1, 2):
        np.testing.assert_allclose(layer(tf.zeros([1, 2])), [[count, count]])


@pytest.mark.slow
def test_spectral_normalization_normalizes_in_fit():
    dense = keras.layers.Dense(3, kernel_initializer=keras.initializers.RandomNormal(stddev=5.0))
    layer = ODELayer(keras.layers.SpectralNormalization(dense, power_iterations=5), **FAST)
    model = keras.Sequential([keras.Input([3]), layer])
    model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=False)
    x = np.ones([8, 3], "float32")
    model.fit(x, x, batch_size=2, epochs=2, verbose=0)
    assert np.linalg.norm(dense.kernel.numpy(), 2) == pytest.approx(1, rel=1e-2)


def test_assignment_in_a_branch_and_a_loop_is_state_too():
    count = keras.Variable(0.0, trainable=False)

    def add(number):
        count.assign(count + number)
        return number

    def dynamics(t, y):
        tf.cond(tf.reduce_sum(y) > 0, lambda: add(1.0), lambda: add(10.0))
        tf.while_loop(lambda i: i < 3, lambda i: (i + tf.cast(add(1.0), tf.int32),), (0,))
        return tf.ones_like(y) * count

    np.testing.assert_allclose(solve(dynamics, tf.ones([2])).ys[-1], [5, 5])
    assert float(count) == 4


# Losses


class Penalized(keras.layers.Layer):
    """`w y`, with two losses: that of its activity and one of its own."""

    def __init__(self):
        super().__init__(activity_regularizer=keras.regularizers.L2(0.1))
        self.w = self.add_weight(shape=(), initializer="ones")

    def call(self, y):
        self.add_loss(3 * tf.square(self.w))
        return self.w * y


@HOW
def test_losses_of_the_dynamics_are_those_at_the_start_and_have_gradients(how):
    layer = ODELayer(Penalized(), **FAST)

    @how
    def losses():
        with tf.GradientTape() as tape:
            layer(Y)
            value = tf.add_n(layer.losses)
        return value, tape.gradient(value, layer.dynamics.w.value)

    # Keras divides the loss of an activity by the batch size.
    expected = 3 + 0.1 * 50 / 2
    np.testing.assert_allclose(losses(), [expected, 2 * expected], rtol=1e-5)


def test_losses_of_a_solve_without_a_layer_are_left_out_with_a_warning():
    with pytest.warns(UserWarning, match="'penalized.*' adds losses .* discarded"):
        solve(Penalized())


def test_loss_in_an_inner_function_is_refused():
    layer = Penalized()
    inner = tf.function(lambda y: layer(y))
    with pytest.raises(ValueError, match="adds a loss .* inside a tf.function"):
        solve(lambda t, y: inner(y))


# Counters


@pytest.mark.parametrize("start", [0, 0.0], ids=["integer", "float"])
def test_counter_in_a_function_counts_the_evaluations(start):
    count = tf.Variable(start)

    def dynamics(t, y):
        count.assign_add(1)
        return -y

    stats = solve(dynamics, solver="tsit5", step_size=None).stats
    assert int(count) == int(stats["num_evaluations"])


def test_counter_does_not_disturb_the_gradient():
    count, k = tf.Variable(0.0), tf.Variable(1.0)

    def dynamics(t, y):
        count.assign_add(1.0)
        return k * y

    with tf.GradientTape() as tape:
        end = solve(dynamics, adjoint="direct").ys[-1, 0, 0]
    # Two steps of Euler: (1 + k / 2)^2.
    np.testing.assert_allclose([end, tape.gradient(end, k)], [2.25, 1.5], rtol=1e-6)


def test_trainable_variable_that_is_read_and_changed_is_refused():
    k = tf.Variable(1.0, name="drifting")

    def dynamics(t, y):
        k.assign_add(1.0)
        return k * y

    with pytest.raises(ValueError, match="both reads and changes the trainable variable 'drifting.*trainable=False"):
        solve(dynamics)


# Random numbers


class Holder:
    def __init__(self, layer):
        self.layer = layer

    def __call__(self, t, y):
        return self.layer(tf.ones_like(y), training=True)


def dropout_in_a_function():
    layer = keras.layers.Dropout(0.5)
    return lambda t, y: layer(tf.ones_like(y), training=True)


def dropout_in_a_partial():
    return functools.partial(lambda layer, t, y: layer(tf.ones_like(y), training=True), keras.layers.Dropout(0.5))


def dropout_in_an_object():
    return Holder(keras.layers.Dropout(0.5))


def dropout_in_an_inner_function():
    layer = keras.layers.Dropout(0.5)
    inner = tf.function(lambda y: layer(tf.ones_like(y), training=True))
    return lambda t, y: inner(y)


def numbers_without_a_seed():
    return lambda t, y: tf.cast(keras.random.uniform(tf.shape(y)) > 0.5, y.dtype) * 2


RANDOM = [
    dropout_in_a_function, dropout_in_a_partial, dropout_in_an_object, dropout_in_an_inner_function, numbers_without_a_seed
]  # fmt: skip


@pytest.mark.parametrize("how", [lambda f: f, tf.function], ids=["eager", "graph"])
@pytest.mark.parametrize("make", RANDOM, ids=lambda make: make.__name__)
def test_random_numbers_stay_within_a_solve_and_change_from_call_to_call(make, how):
    dynamics = make()
    call = how(lambda: solve(dynamics, tf.zeros([4, 16])).ys[-1])
    first, second = call().numpy(), call().numpy()
    # Any change of mask on the way would leave values between.
    assert set(np.round([first, second], 4).ravel()) == {0.0, 2.0}
    assert not np.array_equal(first, second)


@pytest.mark.slow
def test_recomputation_under_a_custom_gradient_draws_the_same_numbers():
    """y' = mask * w from 0 is mask * w, so that the gradient by w is the mask that the output shows."""
    dropout, w = keras.layers.Dropout(0.5), tf.Variable(tf.ones([32]))
    draw = lambda y: dropout(tf.ones_like(y), training=True) * w
    recomputed = tf.recompute_grad(draw)
    with tf.GradientTape() as tape:
        # What is drawn before and behind moves the seed too.
        y = solve(lambda t, y: recomputed(y + 0 * draw(y)) + 0 * draw(y), tf.zeros([1, 32])).ys[-1]
        loss = tf.reduce_sum(y)
    np.testing.assert_allclose(tape.gradient(loss, w), y[0], atol=1e-5)
    assert set(np.round(y[0], 4)) == {0.0, 2.0}


def test_two_dropouts_of_one_seed_have_different_masks():
    generator = keras.random.SeedGenerator(3)

    def dynamics(t, y):
        return tf.stack([tf.round(keras.random.uniform([32], seed=generator)) for _ in range(2)])

    first, second = solve(dynamics, tf.zeros([2, 32])).ys[-1]
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(
    "draw",
    [lambda y: tf.random.normal(tf.shape(y)), tf.function(lambda y: tf.nn.dropout(y, 0.5))],
    ids=["normal", "dropout in a function"],
)
def test_random_operations_that_cannot_stay_within_a_solve_are_refused(draw):
    with pytest.raises(ValueError, match="draws new random numbers at each evaluation.*keras.random"):
        solve(lambda t, y: draw(y))


# Weights that no layer knows


def test_weights_in_the_closure_of_a_function_are_named_in_a_warning():
    dense = keras.layers.Dense(2)
    dense.build((None, 2))
    layer = ODELayer(lambda t, y: dense(y), **FAST)
    with pytest.warns(UserWarning, match="reads the trainable weights .*kernel.*trainable_weights.*keras.Model subclass"):
        layer(Y)


# Custom gradients that do not know all


@pytest.mark.slow
def test_recomputation_keeps_the_precision_of_variables_in_a_layer_of_mixed_precision():
    k = keras.Variable(1.0)
    layer = ODELayer(tf.recompute_grad(lambda y: k * y), dtype="mixed_float16", **FAST)
    with pytest.warns(UserWarning, match="reads the trainable weights"), tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.cast(layer(tf.ones([1, 2])), tf.float32))
    # Each row ends near exp(k).
    np.testing.assert_allclose(tape.gradient(loss, k.value), 2 * np.e, rtol=0.5)


@pytest.mark.parametrize("what", ["a tensor", "the state"])
def test_derivative_that_a_custom_gradient_would_lose_is_refused(what):
    k = tf.constant(0.7)

    def dynamics(t, y):
        hidden = k if what == "a tensor" else tf.sin(y)
        return tf.recompute_grad(lambda x: hidden * x)(tf.ones_like(y))

    with tf.GradientTape() as tape, pytest.raises(ValueError, match="from outside that its gradient does not cover"):
        tape.watch([k, Y])
        tape.gradient(solve(dynamics).ys[-1], [k, Y])


@pytest.mark.slow
def test_stopped_tensor_under_a_custom_gradient_is_a_constant():
    k = tf.constant(1.0)
    with tf.GradientTape() as tape:
        tape.watch([k, Y])
        end = solve(lambda t, y: tf.recompute_grad(lambda y: tf.stop_gradient(k) * y)(y), adjoint="direct").ys[-1]
    np.testing.assert_allclose(tape.gradient(end, Y), np.full([2, 2], 2.25), rtol=1e-6)
