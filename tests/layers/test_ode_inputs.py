"""What reaches the dynamics besides the state, and what the output says of itself: arguments, masks, symbolic shapes."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ode
from keras_ode import ODELayer
from tests.marks import slow

# Shapes


@pytest.mark.parametrize("t", [[0.0, 0.5, 1.0, 2.0], (0.0, 0.5, 1.0, 2.0), np.array([0.0, 0.5, 1.0, 2.0])], ids=["list", "tuple", "array"])
def test_symbolic_call_with_times_has_the_shape_that_it_returns(t):
    layer, inputs = ODELayer(lambda y: -y, return_sequences=True, jit_compile=False), keras.Input([2])
    output = layer(inputs, t=t)
    assert output.shape == (None, 4, 2)
    assert keras.Model(inputs, output)(np.ones([3, 2])).shape == (3, 4, 2)


@pytest.mark.parametrize("t, expected", [
    ([[0.0, 1.0, 2.0]] * 5, 3),
    ([np.arange(3.0)] * 5, 3),
    (tf.zeros([5, 3]), 3),
    ([tf.constant(0.0), tf.constant(1.0)], 2),
    (keras.Input([7]), 7),
    (keras.Input([None]), None),
])
def test_symbolic_length_is_that_of_the_times_in_any_form(t, expected):
    layer = ODELayer(lambda y: -y, return_sequences=True, per_sample=True)
    assert layer(keras.Input([2]), t=t).shape == (None, expected, 2)


# Further arguments


@keras.saving.register_keras_serializable(package="tests")
def forced(t, y, strength):
    """`y(t) = strength (cos t + sin t - exp(-t)) / 2` from zero."""
    return -y + strength * tf.cos(t)


RESPONSE = (np.cos(1) + np.sin(1) - np.exp(-1)) / 2
STRENGTHS = np.array([[1.0], [2.0], [3.0]], "float32")


@pytest.mark.parametrize(
    "per_sample, adjoint",
    [slow(False, "backsolve"), slow(True, "interpolating"), slow(True, "checkpointed"), (False, "direct")],
)
def test_forced_oscillator_and_its_gradient_are_those_of_the_closed_form(adjoint, per_sample):
    layer = ODELayer(forced, rtol=1e-6, atol=1e-7, adjoint=adjoint, per_sample=per_sample, max_steps=64, jit_compile=False)
    strengths = tf.constant(STRENGTHS)

    @tf.function
    def value_and_gradient(strengths):
        with tf.GradientTape() as tape:
            tape.watch(strengths)
            y = layer(tf.zeros([3, 1]), args=(strengths,))
            loss = tf.reduce_sum(tf.constant([[1.0], [10.0], [100.0]]) * y)
        return y, tape.gradient(loss, strengths)

    y, gradient = value_and_gradient(strengths)
    np.testing.assert_allclose(y, RESPONSE * STRENGTHS, rtol=1e-5)
    np.testing.assert_allclose(gradient, RESPONSE * np.array([[1], [10], [100]]), rtol=1e-4)


HOW = pytest.mark.parametrize(
    "how", [slow(lambda f: f), tf.function, slow(tf.function(jit_compile=True))], ids=["eager", "graph", "compiled"]
)


@pytest.mark.parametrize("how", [lambda f: f, tf.function(jit_compile=True)], ids=["eager", "compiled"])
@pytest.mark.slow
def test_rate_of_each_row_gives_each_its_own_decay(how):
    layer = ODELayer(lambda t, y, k: -k * y, rtol=1e-6, per_sample=True, jit_compile=False)
    rates = tf.constant([[0.1], [1.0], [5.0]])

    @how
    def value_and_gradient(rates):
        with tf.GradientTape() as tape:
            tape.watch(rates)
            y = layer(tf.ones([3, 1]), args=(rates,))
        return y, tape.gradient(y, rates)

    y, gradient = value_and_gradient(rates)
    np.testing.assert_allclose(y, np.exp(-rates), rtol=1e-4)
    np.testing.assert_allclose(gradient, -np.exp(-rates), rtol=1e-4)


@keras.saving.register_keras_serializable(package="tests")
class Conditioned(keras.layers.Layer):
    """A network of time, state and condition, built from the shapes of all three."""

    def build(self, t_shape, y_shape, u_shape):
        self.dense = keras.layers.Dense(y_shape[-1], activation="tanh", dtype=self.dtype_policy)
        self.dense.build((None, y_shape[-1] + u_shape[-1]))

    def call(self, t, y, u):
        return self.dense(keras.ops.concatenate([y, u], axis=-1))


@pytest.fixture(scope="module")
def conditioned():
    y, u = keras.Input([2]), keras.Input([3])
    output = ODELayer(Conditioned(), jit_compile=False)(y, args=(u,))
    model = keras.Model([y, u], keras.layers.Dense(1)(output))
    model.compile(keras.optimizers.Adam(0.03), "mse", jit_compile=False)
    return model


def inputs_of(rows=8):
    random = np.random.default_rng(0)
    return [random.normal(size=(rows, n)).astype("float32") for n in (2, 3)]


@pytest.mark.slow
def test_functional_model_with_arguments_trains(conditioned):
    inputs = inputs_of()
    assert len(conditioned.trainable_weights) == 4
    losses = conditioned.fit(inputs, inputs[1][:, :1], epochs=8, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_functional_model_with_arguments_is_saved(conditioned, tmp_path):
    conditioned.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(inputs_of()), conditioned(inputs_of()))


@pytest.mark.slow
def test_functional_model_with_arguments_is_exported(conditioned, tmp_path):
    conditioned.export(tmp_path / "exported", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "exported")
    # Within the tolerance of the solve.
    np.testing.assert_allclose(loaded.serve(inputs_of(5)), conditioned(inputs_of(5)), rtol=5e-3, atol=5e-3)


def test_arguments_may_be_numbers_arrays_and_nests():
    layer = ODELayer(lambda t, y, k, c: -k * y + c["a"] - c["b"], rtol=1e-6, jit_compile=False)
    y = layer(tf.ones([2, 1]), args=(2.0, {"a": np.ones([2, 1]), "b": 1.0}))
    np.testing.assert_allclose(y, np.full([2, 1], np.exp(-2)), rtol=1e-5)


def test_arguments_reach_the_solve_of_the_layer():
    layer = ODELayer(Conditioned(), jit_compile=False)
    y, u = map(tf.constant, inputs_of())
    solution = layer.solve(y, args=(u,))
    assert len(layer.trainable_weights) == 2
    np.testing.assert_array_equal(solution.ys[-1], layer(y, args=(u,)))


@pytest.mark.slow
def test_gradient_reaches_a_variable_among_the_arguments():
    layer, k = ODELayer(lambda t, y, k: -k * y, rtol=1e-6, adjoint="backsolve", jit_compile=False), keras.Variable(0.5)
    with tf.GradientTape() as tape:
        loss = layer(tf.ones([1, 1]), args=(k,))
    np.testing.assert_allclose(tape.gradient(loss, k.value), -np.exp(-0.5), rtol=1e-4)


def test_arguments_go_with_penalties():
    layer = ODELayer(forced, regularizer="kinetic", rtol=1e-6, adjoint="checkpointed", jit_compile=False)
    y = layer(tf.zeros([3, 1]), args=(STRENGTHS,))
    np.testing.assert_allclose(y, RESPONSE * STRENGTHS, rtol=1e-5)
    assert len(layer.losses) == 1


def test_arguments_that_are_no_tuple_are_refused():
    with pytest.raises(TypeError, match="args must be a tuple.*args=\\(u,\\)"):
        ODELayer(forced)(tf.zeros([3, 1]), args=tf.constant(STRENGTHS))


def test_missing_arguments_are_asked_for():
    with pytest.raises(TypeError, match="Pass the further arguments as args"):
        ODELayer(forced)(tf.zeros([3, 1]))


@pytest.mark.parametrize("make", [
    lambda x: keras_ode.solve(forced, x, [0.0, 1.0], args=(1.0,)),
    lambda x: keras_ode.odeint(forced, tf.zeros([1]), [0.0, 1.0], args=(x,)),
])
def test_solve_in_a_functional_model_is_refused_with_the_fix(make):
    with pytest.raises(TypeError, match=r"not the Keras tensors .* keras_ode.ODELayer\(dynamics, t=...\)\(y0\).*KerasTensor"):
        make(keras.Input([1]))


def test_solve_of_the_layer_in_a_functional_model_is_refused_with_the_fix():
    with pytest.raises(TypeError, match="Call the layer itself there.*in the call of a layer of your own.*KerasTensor"):
        ODELayer(Conditioned()).solve(keras.Input([1]))


# Masks


@keras.saving.register_keras_serializable(package="tests")
class Attention(keras.layers.Layer):
    """Attention among the tokens of the state; Keras hands it the mask that comes with them."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attention = keras.layers.MultiHeadAttention(1, 4, kernel_initializer="ones")

    def build(self, y_shape):
        self.attention.build(y_shape, y_shape)

    def call(self, y):
        return self.attention(y, y)


class MaskedMean(keras.layers.Layer):
    """`y' = -(mean of the real tokens)`."""

    def call(self, t, y, mask=None):
        if mask is None:  # when it is built
            return -y
        weights = keras.ops.cast(mask, y.dtype)[..., None]
        return keras.ops.zeros_like(y) - keras.ops.sum(weights * y, axis=1, keepdims=True) / keras.ops.sum(weights, axis=1, keepdims=True)


TOKENS = np.random.default_rng(1).normal(size=(2, 4, 3)).astype("float32")
PADDED = np.concatenate([TOKENS, np.zeros([2, 2, 3], "float32")], axis=1)
REAL = np.array([[True] * 4 + [False] * 2] * 2)


@HOW
def test_attention_in_the_dynamics_does_not_see_the_padding(how):
    """The real tokens end where they do alone, and attention is given the mask in each mode."""
    layer, masking = ODELayer(Attention(), rtol=1e-5, jit_compile=False), keras.layers.Masking()
    padded = how(lambda x: layer(masking(x)))(tf.constant(PADDED))
    alone = layer(tf.constant(TOKENS))
    assert np.abs(layer(tf.constant(PADDED))[:, :4] - alone).max() > 0.01
    np.testing.assert_allclose(padded[:, :4], alone, rtol=1e-4, atol=1e-5)


def test_mask_of_an_embedding_reaches_a_dynamics_of_time_that_takes_it():
    embedding = keras.layers.Embedding(9, 3, mask_zero=True)
    ids = np.array([[3, 5, 0, 0], [1, 2, 7, 0]])
    y = embedding(ids)
    end = ODELayer(MaskedMean(), rtol=1e-5, jit_compile=False)(y)
    # The mean m of the real tokens follows m' = -m; all tokens fall by as much.
    means = np.stack([np.mean(y[0, :2], axis=0), np.mean(y[1, :3], axis=0)])[:, None]
    np.testing.assert_allclose(end, y + means * (np.exp(-1) - 1), rtol=1e-4, atol=1e-5)


def test_mask_given_by_name_is_the_one_that_counts():
    layer = ODELayer(MaskedMean(), rtol=1e-5, jit_compile=False)
    np.testing.assert_allclose(layer(PADDED, mask=REAL)[:, :4], layer(TOKENS, mask=REAL[:, :4]), rtol=1e-4, atol=1e-5)


def test_mask_comes_along_with_times_and_arguments_of_the_call():
    layer = ODELayer(lambda t, y, k, mask=None: -k * y * tf.cast(mask, y.dtype)[..., None], rtol=1e-6, jit_compile=False)
    y = keras.layers.Masking()(PADDED)
    end = layer(y, t=tf.constant([0.0, 2.0]), args=(tf.constant(0.5),))
    np.testing.assert_allclose(end, np.exp(-1) * PADDED, rtol=1e-5)
    np.testing.assert_array_equal(end._keras_mask, REAL)


def test_recurrent_layer_behind_sees_the_mask():
    """In a functional model, which traces, the padding changes nothing of what the GRU gives."""
    gru, layer, inputs = keras.layers.GRU(2), ODELayer(Attention(), rtol=1e-5, jit_compile=False), keras.Input([None, 3])
    model = keras.Model(inputs, gru(layer(keras.layers.Masking()(inputs))))
    np.testing.assert_allclose(model(PADDED), model(TOKENS), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.predict(PADDED, verbose=0), model(TOKENS), rtol=1e-4, atol=1e-5)


def test_sequences_have_the_mask_at_each_of_their_times():
    layer = ODELayer(Attention(), return_sequences=True, jit_compile=False)
    output = layer(keras.layers.Masking()(PADDED), t=[0.0, 0.5, 1.0])
    np.testing.assert_array_equal(output._keras_mask, np.repeat(REAL[:, None], 3, axis=1))
    symbolic = layer(keras.layers.Masking()(keras.Input([6, 3])), t=[0.0, 0.5, 1.0])
    assert symbolic._keras_mask.shape == (None, 3, 6)
    assert layer.compute_mask(PADDED, tf.constant(REAL)).shape == (2, 2, 6)


def test_state_without_a_mask_gives_none():
    assert getattr(ODELayer(lambda y: -y, jit_compile=False)(TOKENS), "_keras_mask", None) is None


def test_mask_of_one_part_of_a_pair_stays_with_it():
    layer = ODELayer(lambda y: [-y[0], -y[1]], jit_compile=False)
    first, second = layer([keras.layers.Masking()(PADDED), tf.constant(TOKENS)])
    np.testing.assert_array_equal(first._keras_mask, REAL)
    assert getattr(second, "_keras_mask", None) is None


@pytest.mark.slow
def test_gradient_goes_through_a_masked_solve():
    layer = ODELayer(Attention(), rtol=1e-5, jit_compile=False)
    gradients = []
    for x in (keras.layers.Masking()(PADDED), tf.constant(TOKENS)):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(x)[:, :4] ** 2)
        gradients.append(tape.gradient(loss, layer.trainable_weights[0].value))
    np.testing.assert_allclose(*gradients, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("layer", [
    keras_ode.layers.Augment(1),
    keras_ode.layers.ResidualBlocks(keras.layers.Dense(3), 2),
], ids=["Augment", "ResidualBlocks"])
def test_layers_around_pass_the_mask_on(layer):
    np.testing.assert_array_equal(layer(keras.layers.Masking()(PADDED))._keras_mask, REAL)


@pytest.mark.slow
def test_stack_passes_the_mask_to_the_layers_within():
    stack = keras_ode.layers.TimeSequential([keras_ode.layers.TimeDense(3, kernel_initializer="ones"), Attention()])
    layer = ODELayer(stack, rtol=1e-5, t=(0.0, 0.5), jit_compile=False)
    padded = layer(keras.layers.Masking()(PADDED))
    np.testing.assert_allclose(padded[:, :4], layer(tf.constant(TOKENS)), rtol=1e-4, atol=1e-5)
