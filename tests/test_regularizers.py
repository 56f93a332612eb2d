"""Regularizers: their values and gradients, what they leave alone, and that they lower the number of evaluations."""

import keras
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import tensorflow as tf

import keras_ode
from keras_ode import ODELayer, regularizers
from tests.gradients import quick
from tests.marks import nightly, slow
from tests.references import relative_error

MATRIX = np.array([[-0.2, 1.0], [-1.3, -0.4]])
ROWS = np.array([[1.0, 0.5], [-0.3, 2.0], [0.2, 0.1]])
END = 1.5


class Linear(keras.layers.Layer):
    """`y' = M y` for each row."""

    def build(self, shape):
        self.matrix = self.add_weight(shape=(2, 2), initializer=lambda *_, dtype=None: tf.constant(MATRIX, dtype))

    def call(self, y):
        return y @ tf.transpose(self.matrix)


def linear(regularizer, **options):
    options = {"t": (0.0, END), "rtol": 1e-8, "atol": 1e-8, "jit_compile": False, "max_steps": 64, "dtype": "float64", **options}
    return ODELayer(Linear(dtype="float64"), regularizer=regularizer, **options)


def kinetic_energy(matrix, start=0.0, end=END):
    """The mean over the rows of the integral of `|M y|^2`."""

    def integrand(t):
        return np.mean(np.sum((matrix @ scipy.linalg.expm(matrix * (t - start)) @ ROWS.T) ** 2, axis=0))

    return abs(scipy.integrate.quad(integrand, start, end, epsabs=1e-12)[0])


def by_differences(function, x, h=1e-5):
    """Central differences: their error is about the square of `h`."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[index] = h
        gradient[index] = (function(x + step) - function(x - step)) / (2 * h)
    return gradient


def loss_and_gradient(layer):
    with tf.GradientTape() as tape:
        layer(ROWS)
        loss = tf.add_n(layer.losses)
    return float(loss), tape.gradient(loss, layer.trainable_variables[0]).numpy()


# Integrals


@pytest.mark.slow
@pytest.mark.parametrize(
    "adjoint, per_sample",
    [slow("backsolve", False), ("interpolating", True), nightly("checkpointed", True), slow("direct", False)],
)
def test_kinetic_energy_and_its_gradient_are_those_of_the_matrix_exponential(adjoint, per_sample):
    loss, gradient = loss_and_gradient(linear(regularizers.Kinetic(0.5), adjoint=adjoint, per_sample=per_sample))
    assert loss == pytest.approx(0.5 * kinetic_energy(MATRIX), rel=1e-6)
    assert relative_error(gradient, 0.5 * by_differences(kinetic_energy, MATRIX)) < 1e-6


def test_kinetic_energy_is_positive_backward_in_time():
    layer = linear(regularizers.Kinetic(1.0), t=(END, 0.0))
    layer(ROWS)
    assert float(layer.losses[0]) == pytest.approx(kinetic_energy(MATRIX, END, 0.0), rel=1e-6)


class FirstEntry(regularizers.Regularizer):
    def integrand(self, y, derivative, noise, like):
        return y[0][:, 0]


@pytest.mark.parametrize("end", [1.0, -1.0])
def test_integral_keeps_its_sign_and_its_gradient(end):
    layer = ODELayer(lambda y: 0 * y, t=(0.0, end), regularizer=FirstEntry(1.0), jit_compile=False)
    rows = tf.constant([[-1.0], [3.0]])
    with tf.GradientTape() as tape:
        tape.watch(rows)
        layer(rows)
    assert float(layer.losses[0]) == pytest.approx(1.0)
    np.testing.assert_allclose(tape.gradient(layer.losses[0], rows), [[0.5], [0.5]], rtol=1e-5)


@pytest.mark.parametrize("adjoint", quick())  # the mean over many rows, below
def test_jacobian_estimate_is_one_of_those_that_signs_can_give(adjoint):
    """For `e` of signs, `|M^T e|^2` is `|M|^2` plus or minus twice the product of the rows of `M`."""
    layer = linear(regularizers.JacobianFrobenius(1.0), adjoint=adjoint)
    loss, gradient = loss_and_gradient(layer)
    cross = (loss / END - np.sum(MATRIX**2)) / (2 * MATRIX[0] @ MATRIX[1])
    # The mean over three rows of a sign is one of these.
    assert np.min(np.abs(cross - np.array([-1, -1 / 3, 1 / 3, 1]))) < 1e-9
    np.testing.assert_allclose(gradient, 2 * END * (MATRIX + cross * MATRIX[::-1]), rtol=1e-6)


def test_jacobian_estimates_of_many_rows_have_the_frobenius_norm_as_mean():
    layer = linear(regularizers.JacobianFrobenius(1.0), rtol=1e-3)
    layer(np.zeros([4000, 2]))
    # The standard deviation of one row's estimate is `2 END M[0] . M[1]`; this is five of the mean's.
    tolerance = 5 * abs(2 * END * MATRIX[0] @ MATRIX[1]) / np.sqrt(4000)
    assert float(layer.losses[0]) == pytest.approx(END * np.sum(MATRIX**2), abs=tolerance)


def test_noise_is_new_at_each_call():
    layer = linear("jacobian_frobenius")
    losses = set()
    for _ in range(3):
        layer(np.repeat(ROWS, 20, axis=0))
        losses.add(float(layer.losses[0]))
    assert len(losses) == 3


# Sums over steps


@pytest.mark.parametrize(
    "adjoint, per_sample",
    [
        slow("checkpointed", True),
        ("direct", False),
        *(slow(*case) for case in [("checkpointed", False), ("direct", True)]),
    ],
)
def test_error_estimates_of_heun_are_half_the_change_of_slope(adjoint, per_sample):
    """Heun's estimate is `h / 2 (f(y + h f) - f(y)) = h^2 / 2 M^2 y`; with it, `y` moves by `I + h M + h^2 M^2 / 2`."""

    def expected(matrix):
        h, y, total = 0.25, ROWS.T, 0.0
        for _ in range(6):
            error = h * h / 2 * matrix @ matrix @ y
            total += h * np.mean(np.sqrt(np.mean(error**2, axis=0))) if per_sample else h * np.sqrt(np.mean(error**2))
            y = y + h * matrix @ y + error
        return total

    layer = linear(
        regularizers.ErrorEstimate(1.0), solver="heun", controller="constant", step_size=0.25, adjoint=adjoint, per_sample=per_sample
    )
    loss, gradient = loss_and_gradient(layer)
    assert loss == pytest.approx(expected(MATRIX), rel=1e-9)
    assert relative_error(gradient, by_differences(expected, MATRIX)) < 1e-8


# To an implicit solver, rows with a sum in common are one system of equations.
@pytest.mark.parametrize(("adjoint", "solver"), [("checkpointed", "tsit5"), ("direct", "tsit5"), ("checkpointed", "rosenbrock23")])
@pytest.mark.slow
def test_stiffness_of_a_decay_is_its_rate_at_each_step(adjoint, solver):
    rate = tf.Variable(3.0, dtype="float64")
    layer = ODELayer(
        lambda y: -tf.convert_to_tensor(rate) * y,
        regularizer=regularizers.Stiffness(1.0),
        solver=solver,
        controller="constant",
        step_size=0.125,
        adjoint=adjoint,
        max_steps=8,
        jit_compile=False,
        dtype="float64",
    )
    with tf.GradientTape() as tape:
        layer(ROWS)
        loss = layer.losses[0]
    np.testing.assert_allclose((loss, tape.gradient(loss, rate)), (8 * 3.0, 8.0), rtol=1e-9)


@pytest.mark.slow
def test_gradient_of_sums_is_finite_where_nothing_changes():
    layer = linear(["error_estimate", "stiffness"], adjoint="checkpointed")
    with tf.GradientTape() as tape:
        layer(np.zeros([3, 2]))
        loss = tf.add_n(layer.losses)
    np.testing.assert_array_equal(tape.gradient(loss, layer.trainable_variables[0]), np.zeros([2, 2]))


@pytest.mark.parametrize("regularizer", ["error_estimate", "stiffness"])
@pytest.mark.parametrize("adjoint", ["backsolve", "interpolating"])
def test_sum_over_steps_is_refused_by_adjoints_of_the_equation(regularizer, adjoint):
    with pytest.raises(ValueError, match="use adjoint='checkpointed' or 'direct'"):
        linear(regularizer, adjoint=adjoint)


def test_error_estimates_are_refused_where_there_are_none():
    with pytest.raises(ValueError, match="needs a solver that estimates its error"):
        linear("error_estimate", solver="rk4", step_size=0.1, adjoint="checkpointed")


# What they leave alone


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", quick("backsolve", slow_ones=[]))
def test_regularizer_changes_neither_the_steps_nor_the_gradient_of_the_output(adjoint):
    """Loose tolerances: were the penalty under error control, forward or backward, steps would differ."""
    found = []
    for regularizer in (None, regularizers.Kinetic(1e6)):
        layer = linear(regularizer, adjoint=adjoint, solver="bosh3", rtol=1e-2, atol=1e-3)
        with tf.GradientTape() as tape:
            y = layer(ROWS)
            loss = tf.reduce_sum(y**2)
        found.append((y, tape.gradient(loss, layer.trainable_variables[0])))
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_inference_has_no_penalty():
    layer = linear("kinetic")
    layer(ROWS, training=False)
    assert layer.losses == []


@pytest.mark.parametrize("jit_compile", [False, nightly(True)])
@pytest.mark.slow
def test_fit_adds_the_penalty_to_the_loss(jit_compile):
    layer = ODELayer(Linear(), t=(0.0, END), rtol=1e-6, regularizer=regularizers.Kinetic(1.0), jit_compile=False)
    model = keras.Sequential([keras.Input([2]), layer])
    model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=jit_compile)
    targets = ROWS @ scipy.linalg.expm(MATRIX * END).T
    loss = model.fit(ROWS.astype("float32"), targets, verbose=0).history["loss"][0]
    assert loss == pytest.approx(kinetic_energy(MATRIX), rel=1e-5)


# Names and configurations


@pytest.mark.parametrize("name", ["kinetic", "jacobian_frobenius", "error_estimate", "stiffness"])
def test_name_stands_for_its_class(name):
    made = getattr(regularizers, name)()
    assert regularizers.get(name) == made
    assert isinstance(made, regularizers.NFERegularizer)


def test_layer_keeps_its_regularizers_when_saved(tmp_path):
    @keras.saving.register_keras_serializable(package="tests_regularizers")
    def decay(y):
        return -y

    t = regularizers.random_end_time((0.0, 1.0, 3.0), width=0.5)
    given = [regularizers.Kinetic(0.3), "jacobian_frobenius"]
    model = keras.Sequential([keras.Input([2]), ODELayer(decay, t=t, regularizer=given, jit_compile=False)])
    model.save(tmp_path / "model.keras")
    layer = keras.saving.load_model(tmp_path / "model.keras").layers[0]
    assert layer.regularizers == (regularizers.Kinetic(0.3), regularizers.JacobianFrobenius(0.01))
    assert layer.random_end_time == t and layer.t == (0.0, 1.0, 3.0)


def test_unknown_name_and_negative_weight_are_refused():
    with pytest.raises(ValueError, match="regularizer='l2'"):
        linear("l2")
    with pytest.raises(ValueError, match="weight=-1"):
        regularizers.Kinetic(-1)


# Random end times


def test_random_end_time_far_from_zero_is_not_rounded():
    drawn = regularizers.random_end_time((1.7e9, 1.7e9 + 60.0), width=10.0).drawn(tf.constant(0.5))
    np.testing.assert_allclose(drawn[1] - drawn[0], 65)


def test_end_times_are_uniform_in_training_and_fixed_otherwise():
    """With `y' = 1`, the output is the time that was solved for."""
    layer = ODELayer(tf.ones_like, t=regularizers.random_end_time((0.0, 1.0), width=0.5), jit_compile=False)
    y = tf.zeros([1, 1])
    call = tf.function(lambda: layer(y, training=True))
    ends = np.array([float(call()[0, 0]) for _ in range(200)])
    assert ends.min() >= 0.5 and ends.max() <= 1.5
    # Five standard deviations of the mean of 200, and of a uniform distribution's own standard deviation.
    assert abs(ends.mean() - 1) < 5 * (1 / np.sqrt(12)) / np.sqrt(200)
    assert abs(ends.std() - 1 / np.sqrt(12)) < 0.06
    assert float(layer(y, training=False)[0, 0]) == pytest.approx(1.0, rel=1e-5)
    assert float(layer(y)[0, 0]) == pytest.approx(1.0, rel=1e-5)


def test_only_the_last_time_is_random():
    layer = ODELayer(
        tf.ones_like, t=regularizers.random_end_time((0.0, 1.0, 2.0), width=0.5), return_sequences=True, jit_compile=False
    )
    y = layer(tf.zeros([1, 1]), training=True)[0, :, 0]
    np.testing.assert_allclose(y[:2], [0, 1], rtol=1e-5)
    assert 1.5 <= float(y[2]) <= 2.5 and abs(float(y[2]) - 2) > 1e-4


@pytest.mark.parametrize("width", [0.0, 1.0, "0.1"])
def test_width_that_could_pass_another_time_is_refused(width):
    with pytest.raises(ValueError, match="width"):
        regularizers.random_end_time((0.0, 1.0, 2.0), width=width)


# What they are for


def evaluations_after_training(regularizer=None, t=(0.0, 1.0)):
    """The mean number of evaluations of a sample after a network has learned to turn the plane by one radian.

    Its first weights are large, so that paths are not straight.
    """
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(16, activation="tanh"), keras.layers.Dense(2)]
    for layer, scale, seed in zip(layers, (3.0, 0.75), (1, 2), strict=True):
        layer.kernel_initializer = keras.initializers.RandomNormal(stddev=scale, seed=seed)
    dynamics = keras.Sequential(layers)
    options = {"rtol": 1e-4, "atol": 1e-4, "jit_compile": False}
    layer = ODELayer(dynamics, t=t, adjoint="checkpointed", regularizer=regularizer, **options)
    model = keras.Sequential([keras.Input([2]), layer])
    model.compile(keras.optimizers.Adam(0.02), "mse", jit_compile=False)
    x = np.random.default_rng(0).normal(size=(64, 2)).astype("float32")
    turn = np.array([[np.cos(1), np.sin(1)], [-np.sin(1), np.cos(1)]], "float32")
    model.fit(x, x @ turn, batch_size=64, epochs=200, verbose=0)
    solution = keras_ode.solve(dynamics, x, [0.0, 1.0], per_sample=True, **options)
    error = float(np.mean((solution.ys[-1] - x @ turn) ** 2))
    return float(np.mean(solution.stats["num_evaluations"])), error


@pytest.fixture(scope="module")
def unregularized():
    return evaluations_after_training()


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"regularizer": regularizers.Kinetic(0.1)}, id="kinetic"),
        nightly({"regularizer": regularizers.JacobianFrobenius(0.01)}, id="jacobian"),
        nightly({"regularizer": regularizers.ErrorEstimate(100.0)}, id="error"),
        pytest.param({"regularizer": regularizers.Stiffness(0.01)}, id="stiffness"),
        pytest.param({"t": regularizers.RandomEndTime((0.0, 1.0), width=0.75)}, id="random_end"),
    ],
)
def test_trained_network_takes_fewer_evaluations(options, unregularized):
    evaluations, error = evaluations_after_training(**options)
    print(f"{options}: {evaluations:.1f} evaluations, error {error:.4f}; without: {unregularized}")
    # The weakest of them saves a tenth.
    assert evaluations < 0.95 * unregularized[0]
