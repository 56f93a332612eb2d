"""Continuous normalizing flows against the densities that linear flows make."""

import keras
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import tensorflow as tf

import keras_ode
from keras_ode.layers import ConcatSquash, TimeSequential
from keras_ode.models import ContinuousNormalizingFlow

A = np.array([[0.5, -0.8], [0.3, -0.2]])
POINTS = np.random.default_rng(0).normal(size=(6, 2))


def linear(*matrices, dtype="float64", **options):
    """A flow `z' = z A`, one after the other."""
    layers = [keras.layers.Dense(len(m), use_bias=False, dtype=dtype) for m in matrices]
    options = {"rtol": 1e-7, "atol": 1e-9, "jit_compile": False, **options}
    flow = ContinuousNormalizingFlow(layers, dtype=dtype, **options)
    flow.build((None, len(matrices[0])))
    flow.set_weights(matrices)
    return flow


def density(*matrices, mean=None):
    """What a linear flow makes of a normal with unit variance: `x = z e^A`."""
    flow = np.linalg.multi_dot([np.eye(len(matrices[0])), *(scipy.linalg.expm(m) for m in matrices)])
    return scipy.stats.multivariate_normal((np.zeros(len(flow)) if mean is None else mean) @ flow, flow.T @ flow)


def nonlinear(**options):
    dynamics = TimeSequential([ConcatSquash(8, activation="tanh"), ConcatSquash(2)])
    options = {"solver": "bosh3", "rtol": 1e-4, "atol": 1e-4, "jit_compile": False, **options}  # traced fast: it has few stages
    return ContinuousNormalizingFlow(dynamics, **options)


@pytest.fixture(scope="module")
def trained():
    """A flow on moons and the history of its training."""
    keras.utils.set_random_seed(0)
    flow, (points, _) = nonlinear(), keras_ode.datasets.moons(256)
    flow.compile(keras.optimizers.Adam(0.02), jit_compile=False)
    return flow, points, flow.fit(points, epochs=5, batch_size=64, verbose=0).history["loss"]


# Densities


def test_density_of_a_linear_flow_is_its_closed_form():
    np.testing.assert_allclose(linear(A).log_prob(POINTS), density(A).logpdf(POINTS), atol=1e-5)


def test_density_of_a_linear_flow_is_its_closed_form_in_single_precision():
    flow = linear(A, dtype="float32", rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(flow.log_prob(POINTS.astype("float32")), density(A).logpdf(POINTS), atol=1e-5)


def test_density_is_that_at_the_last_time():
    np.testing.assert_allclose(linear(A, t=(1.0, 3.0)).log_prob(POINTS), density(2 * A).logpdf(POINTS), atol=1e-5)


def test_stacked_flows_follow_each_other_from_the_base():
    flow = linear(A, A.T)
    np.testing.assert_allclose(flow.log_prob(POINTS), density(A, A.T).logpdf(POINTS), atol=1e-5)


def test_density_has_the_same_steps_for_every_sample_or_its_own():
    flow = linear(A, per_sample=True)
    np.testing.assert_allclose(flow.log_prob(POINTS), density(A).logpdf(POINTS), atol=1e-5)


def test_base_may_be_any_distribution():
    import tensorflow_probability as tfp

    base = tfp.distributions.MultivariateNormalDiag(np.array([1.0, 2.0]))
    expected = density(A, mean=[1.0, 2.0]).logpdf(POINTS)
    np.testing.assert_allclose(linear(A, base=base).log_prob(POINTS), expected, atol=1e-5)


@pytest.mark.slow
def test_gradient_by_the_points_is_the_score():
    flow, points = linear(A), tf.constant(POINTS)
    with tf.GradientTape() as tape:
        tape.watch(points)
        total = tf.reduce_sum(flow.log_prob(points))
    score = -POINTS @ np.linalg.inv(density(A).cov)
    np.testing.assert_allclose(tape.gradient(total, points), score, atol=1e-5)


@pytest.mark.slow
def test_density_of_a_network_integrates_to_one(trained):
    flow = trained[0]
    axis = np.linspace(-6, 6, 81, dtype="float32")
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    mass = np.exp(flow.predict(grid, batch_size=len(grid), verbose=0)).sum() * (axis[1] - axis[0]) ** 2
    assert abs(mass - 1) < 0.01


def test_points_may_be_pictures():
    flow = ContinuousNormalizingFlow(keras.layers.Conv2D(1, 1, use_bias=False), rtol=1e-5, jit_compile=False)
    pictures = np.random.default_rng(0).normal(size=(3, 2, 2, 1)).astype("float32")
    flow(pictures)
    flow.dynamics[0].set_weights([np.full((1, 1, 1, 1), 0.7)])
    expected = scipy.stats.norm(scale=np.exp(0.7)).logpdf(pictures).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(flow.log_prob(pictures), expected, rtol=1e-4)


# Hutchinson's estimate


def test_hutchinson_is_exact_where_the_jacobian_is_diagonal():
    """The product of signs with themselves is one, whatever they are."""
    diagonal = np.diag([0.5, -0.2])
    flow = linear(diagonal, divergence="hutchinson")
    np.testing.assert_allclose(flow.log_prob(POINTS), density(diagonal).logpdf(POINTS), atol=1e-5)


def test_hutchinson_is_right_on_average_and_new_in_every_call():
    flow, same = linear(A, divergence="hutchinson"), np.tile(POINTS[:1], (400, 1))
    first, second = flow.log_prob(same).numpy(), flow.log_prob(same).numpy()
    assert not np.array_equal(first, second)
    # The estimate of the trace is 0.3 -+ 0.5, by an even chance.
    np.testing.assert_allclose(sorted({*np.round(first, 4)}), density(A).logpdf(POINTS[0]) + np.array([-0.5, 0.5]), atol=1e-4)
    assert abs(np.mean([first, second]) - density(A).logpdf(POINTS[0])) < 0.5 * 4 / np.sqrt(800)


@pytest.mark.slow
def test_end_time_is_random_in_training_only():
    """At zero, `log p = log N(0) - T trace(A)`."""
    flow = linear(A, t=keras_ode.regularizers.random_end_time((0.0, 1.0), width=0.5))
    zero, at_zero = tf.zeros([1, 2], tf.float64), -np.log(2 * np.pi)

    def end(training):
        return (at_zero - float(flow(zero, training=training)[0])) / np.trace(A)

    assert end(False) == pytest.approx(1, abs=1e-6)
    first, second = end(True), end(True)
    assert first != second and all(0.5 <= x <= 1.5 for x in (first, second)) and abs(first - 1) > 1e-4


@pytest.mark.slow
def test_hutchinson_has_the_same_noise_in_the_solve_and_in_its_gradient():
    """`log p` is then `log N(x e^-A) - noise A noise`, whose gradient by `A_01` tells the noise of the backward pass."""
    flow = linear(np.diag([0.5, -0.2]), divergence="hutchinson")
    (weight,) = flow.trainable_variables
    with tf.GradientTape() as tape:
        change = flow.transport(tf.zeros([1, 2], tf.float64), inverse=True)[1]
    gradient = tape.gradient(change, weight.value).numpy()
    assert set(gradient.ravel()) == {-1.0} or sorted(gradient.ravel()) == pytest.approx([-1, -1, 1, 1])
    np.testing.assert_allclose(np.diag(gradient), -1, rtol=1e-6)


@pytest.mark.slow
def test_training_with_hutchinson_lowers_the_exact_loss():
    points, _ = keras_ode.datasets.moons(256)
    flow = nonlinear(divergence="hutchinson")
    exact = ContinuousNormalizingFlow(flow.dynamics, jit_compile=False)
    before = -np.mean(exact.log_prob(points))
    flow.compile(keras.optimizers.Adam(0.02), jit_compile=False)
    flow.fit(points, epochs=5, batch_size=64, verbose=0)
    assert -np.mean(exact.log_prob(points)) < before - 0.2


# As a Keras model


@pytest.mark.slow
def test_fit_lowers_the_negative_log_likelihood(trained):
    flow, points, losses = trained
    assert losses[-1] < losses[0] - 0.2
    np.testing.assert_allclose(flow.evaluate(points, verbose=0), -np.mean(flow.log_prob(points)), rtol=1e-4)


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_kinetic_penalty_of_a_flow_is_that_of_its_points(divergence):
    """`z' = a z`, from z = 1 back to e^-a: the integral of a^2 z^2 is a (1 - e^-2a) / 2; the log-density's rate is left out."""
    a = 0.7
    flow = linear(np.array([[a]]), divergence=divergence, regularizer=keras_ode.regularizers.Kinetic(1.0))
    flow(np.ones((3, 1)), training=True)
    np.testing.assert_allclose(sum(flow.losses), a * (1 - np.exp(-2 * a)) / 2, rtol=1e-5)


@pytest.mark.slow
def test_fit_under_xla_lowers_the_negative_log_likelihood():
    keras.utils.set_random_seed(0)
    flow = nonlinear()
    flow.compile(keras.optimizers.Adam(0.02), jit_compile=True)
    losses = flow.fit(keras_ode.datasets.moons(256)[0], epochs=3, batch_size=64, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_sample_weights_weigh_the_loss(trained):
    flow, points, _ = trained
    weights = np.arange(4.0) / 1.5
    expected = -np.mean(weights * flow.log_prob(points[:4]).numpy())
    np.testing.assert_allclose(flow.evaluate(points[:4], points[:4], sample_weight=weights, verbose=0), expected, rtol=1e-3)


def test_weights_without_targets_are_refused():
    """Keras would drop them."""
    flow = linear(A)
    flow.compile("sgd")
    for method in (flow.fit, flow.evaluate):
        with pytest.raises(ValueError, match=r"fit\(x, x, sample_weight=weights\). Received: y=None, sample_weight of type ndarray"):
            method(POINTS, sample_weight=np.ones(6))


def test_samples_have_the_covariance_of_a_linear_flow():
    samples = linear(A, rtol=1e-3).sample(20_000, seed=1)
    # A relative standard deviation of sqrt(2 / 20,000) = 0.01.
    np.testing.assert_allclose(np.cov(samples, rowvar=False), density(A).cov, atol=0.1)


@keras.saving.register_keras_serializable(package="tests")
def wide_base():
    import tensorflow_probability as tfp

    return tfp.distributions.MultivariateNormalDiag(tf.zeros(2), tf.fill([2], 3.0))


def test_flow_is_saved_and_loaded_with_the_function_that_makes_its_base(tmp_path):
    flow, points = nonlinear(base=wide_base), POINTS.astype("float32")
    flow(points)
    flow.save(tmp_path / "flow.keras")
    loaded = keras.models.load_model(tmp_path / "flow.keras")
    np.testing.assert_array_equal(loaded.log_prob(points), flow.log_prob(points))


def test_flow_with_a_distribution_as_base_says_how_to_save_it():
    with pytest.raises(ValueError, match="Pass a function that returns it"):
        nonlinear(base=wide_base()).get_config()


def test_sample_before_the_shape_is_known_says_what_to_do():
    with pytest.raises(ValueError, match="call it on some points first"):
        nonlinear().sample(3)


@pytest.mark.parametrize("location", [0.0, [0.0, 0.0]])
def test_base_of_numbers_instead_of_points_is_refused(location):
    import tensorflow_probability as tfp

    flow = linear(A, dtype="float32", rtol=1e-3, base=tfp.distributions.Normal(location, 1.0))
    with pytest.raises(ValueError, match=r"event shape of points, \(2,\).*whose log_prob has the shape \(6, 2\) for 6 points"):
        flow.log_prob(POINTS.astype("float32"))


def test_sequences_are_refused():
    with pytest.raises(ValueError, match="leave return_sequences out. Received: return_sequences=True"):
        nonlinear(return_sequences=True)


def test_unknown_divergence_is_refused():
    with pytest.raises(ValueError, match="divergence must be one of .* Received: divergence='trace'"):
        nonlinear(divergence="trace")


# As a bijector


@pytest.fixture(scope="module")
def transformed(trained):
    import tensorflow_probability as tfp

    flow = trained[0]
    return tfp.distributions.TransformedDistribution(flow.distribution(), flow.as_bijector())


def test_transformed_distribution_has_the_density_of_the_flow(trained, transformed):
    flow, points, _ = trained
    np.testing.assert_allclose(transformed.log_prob(points[:6]), flow.log_prob(points[:6]), atol=1e-4)
    np.testing.assert_allclose(transformed.log_prob(points[:6].reshape(2, 3, 2)), transformed.log_prob(points[:6]).numpy().reshape(2, 3))


@pytest.mark.slow
def test_transformed_distribution_tracks_and_trains_the_variables_of_the_flow(trained, transformed):
    flow, points, _ = trained
    assert {id(v) for v in transformed.trainable_variables} == {id(v.value) for v in flow.trainable_variables}
    variables = [v.value for v in flow.trainable_variables]

    def gradients(distribution):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(distribution.log_prob(points[:6]))
        return tape.gradient(loss, variables)

    for a, b in zip(gradients(transformed), gradients(flow), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-3)


def test_bijector_is_the_exponential_of_a_linear_flow():
    bijector = linear(A).as_bijector()
    np.testing.assert_allclose(bijector.forward(POINTS), POINTS @ scipy.linalg.expm(A), atol=1e-6)
    np.testing.assert_allclose(bijector.inverse(POINTS), POINTS @ scipy.linalg.expm(-A), atol=1e-6)
    np.testing.assert_allclose(bijector.forward_log_det_jacobian(POINTS), np.full(6, np.trace(A)), atol=1e-6)
    np.testing.assert_allclose(bijector.inverse_log_det_jacobian(POINTS), np.full(6, -np.trace(A)), atol=1e-6)


def test_loss_that_fit_would_never_call_is_refused():
    with pytest.raises(ValueError, match="ContinuousNormalizingFlow has a loss of its own.*Received: loss='mse'"):
        linear(A).compile("sgd", loss="mse")


@pytest.mark.slow
def test_flow_in_float64_trains_with_a_regularizer():
    flow = linear(A, solver="bosh3", regularizer=keras_ode.regularizers.Kinetic(1e-3))
    flow.compile("sgd", jit_compile=False)
    assert np.isfinite(flow.fit(POINTS, verbose=0).history["loss"]).all()
