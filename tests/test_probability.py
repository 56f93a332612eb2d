"""Flows as bijectors of TensorFlow Probability, against the closed form of linear flows."""

import keras
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import tensorflow as tf
import tensorflow_probability as tfp

from keras_ode.probability import Flow
from tests.marks import nightly

A = np.array([[0.5, -0.8, 0.1], [0.3, -0.2, 0.4], [-0.2, 0.6, 0.3]])
LOW_RANK = np.outer([0.5, -0.8, 0.1, 1.0], [0.3, 0.2, 0.4, -0.2])
POINTS = np.random.default_rng(0).normal(size=(5, 3))


def linear(matrix, **options):
    """The flow of `z' = z A`."""
    layer = keras.layers.Dense(len(matrix), use_bias=False, dtype="float64")
    options = {"dtype": "float64", "rtol": 1e-9, "atol": 1e-9, "jit_compile": False, **options}
    flow = Flow(layer, [len(matrix)], **options)
    layer.set_weights([matrix])
    return flow


def distribution(flow, size=3):
    base = tfp.distributions.MultivariateNormalDiag(tf.zeros(size, tf.float64))
    return tfp.distributions.TransformedDistribution(base, flow)


def test_linear_flow_is_the_matrix_exponential():
    flow = linear(A)
    np.testing.assert_allclose(flow.forward(POINTS), POINTS @ scipy.linalg.expm(A), rtol=1e-7)
    np.testing.assert_allclose(flow.forward_log_det_jacobian(POINTS), np.full(5, np.trace(A)), rtol=1e-7)
    np.testing.assert_allclose(flow.inverse_log_det_jacobian(POINTS), np.full(5, -np.trace(A)), rtol=1e-7)
    # A new tensor, so that TensorFlow Probability cannot answer from its cache.
    np.testing.assert_allclose(flow.inverse(flow.forward(POINTS).numpy()), POINTS, atol=1e-8)


@pytest.mark.slow
def test_transformed_distribution_samples_and_scores():
    flow = distribution(linear(A))
    end = scipy.linalg.expm(A)
    normal = scipy.stats.multivariate_normal(np.zeros(3), end.T @ end)
    np.testing.assert_allclose(flow.log_prob(POINTS), normal.logpdf(POINTS), rtol=1e-6)
    assert flow.log_prob(POINTS.reshape(1, 5, 3)).shape == (1, 5)
    # A relative standard deviation of sqrt(2 / 20,000) = 0.01.
    np.testing.assert_allclose(np.cov(flow.sample(20_000, seed=1), rowvar=False), normal.cov, atol=0.1)


@pytest.mark.slow
def test_log_likelihood_has_the_gradient_of_the_closed_form():
    """`log p(x) = log N(x e^-A) - tr A`, so the derivative in a direction is that of differences."""
    flow, direction = linear(A), np.random.default_rng(1).normal(size=(3, 3))
    model = distribution(flow)
    (weight,) = model.trainable_variables
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(model.log_prob(POINTS))

    def exact(matrix):
        return scipy.stats.norm.logpdf(POINTS @ scipy.linalg.expm(-matrix)).sum() - 5 * np.trace(matrix)

    slope = (exact(A + 1e-5 * direction) - exact(A - 1e-5 * direction)) / 2e-5
    np.testing.assert_allclose(np.sum(tape.gradient(total, weight) * direction), slope, rtol=1e-5)


@pytest.mark.slow
def test_hutch_plus_plus_is_exact_where_the_rank_is_low():
    points = np.ones((6, 4))
    flow = linear(LOW_RANK, divergence="hutch++", num_vectors=1, solver="bosh3", rtol=1e-7)
    np.testing.assert_allclose(flow.forward_log_det_jacobian(points), np.full(6, np.trace(LOW_RANK)), rtol=1e-6)
    assert np.ptp(linear(LOW_RANK, divergence="hutchinson", solver="bosh3").forward_log_det_jacobian(points)) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("divergence", "num_vectors"), [("hutchinson", 2), nightly("hutch++", 1)])
def test_estimates_and_their_gradients_are_right_on_average(divergence, num_vectors):
    """The log-determinant is `tr A`, whose gradient is the identity. There is a noise for each row."""
    rows = 4000
    flow = linear(A, divergence=divergence, num_vectors=num_vectors, solver="bosh3", rtol=1e-5)
    (weight,) = flow.trainable_variables
    with tf.GradientTape() as tape:
        found = flow.forward_log_det_jacobian(np.ones((rows, 3)))
        mean = tf.reduce_mean(found)
    error = np.std(found) / np.sqrt(rows)
    assert error > 1e-4 and abs(mean - np.trace(A)) < 4 * error
    np.testing.assert_allclose(tape.gradient(mean, weight), np.eye(3), atol=4 / np.sqrt(rows))


def test_enough_vectors_of_hutch_plus_plus_are_exact():
    flow = linear(A, divergence="hutch++", num_vectors=5, solver="bosh3")
    np.testing.assert_allclose(flow.forward_log_det_jacobian(POINTS), np.full(5, np.trace(A)), rtol=1e-6)


def test_wrong_arguments_are_refused():
    layer = keras.layers.Dense(2)
    with pytest.raises(ValueError, match=r"event_shape must be a list of positive integers, such as \[2\]. Received: 2"):
        Flow(layer, 2)
    with pytest.raises(ValueError, match="divergence must be one of .*hutch.*Received: divergence='trace'"):
        Flow(layer, [2], divergence="trace")
    with pytest.raises(ValueError, match="leave it out for 'exact'. Received: num_vectors=2"):
        Flow(layer, [2], num_vectors=2)
    with pytest.raises(ValueError, match=r"has no base: pass it to TransformedDistribution\(base, Flow.*Received: base=None"):
        Flow(layer, [2], base=None)
