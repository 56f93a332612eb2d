"""The precision in which dynamics compute, and the tolerances that it allows."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ode

START = tf.constant(np.random.default_rng(1).normal(size=[8, 2]), tf.float32)


def network(*policies):
    """A network of two layers, each with its policy."""
    layers = [keras.layers.Dense(16, activation="tanh", dtype=policies[0]), keras.layers.Dense(2, dtype=policies[1])]
    dynamics, random = keras.Sequential(layers), np.random.default_rng(0)
    dynamics.build((None, 2))
    dynamics.set_weights([0.5 * random.normal(size=w.shape) for w in dynamics.get_weights()])
    return dynamics


def solve(dynamics, **options):
    return keras_ode.solve(dynamics, START, [0.0, 1.0], jit_compile=False, **options)


@pytest.fixture(scope="module")
def exact():
    return solve(network("float32", "float32"), rtol=1e-5).ys[-1]


@pytest.mark.parametrize("wrap", [lambda f: f, lambda f: lambda t, y: tf.cast(f(y), tf.float32)], ids=["layer", "function"])
@pytest.mark.parametrize(
    "policy, rtol, words, error",
    [
        ("mixed_bfloat16", 1e-3, "bfloat16.*0.008.*rtol=0.001.*raised to 0.016", 0.01),
        ("mixed_float16", 1e-5, "float16.*0.001.*rtol=1e-05.*raised to 0.002", 2e-3),
    ],
)
def test_tolerance_is_raised_to_what_the_derivatives_resolve(wrap, policy, rtol, words, error, exact):
    with pytest.warns(UserWarning, match=words) as caught:
        solution = solve(wrap(network(policy, policy)), rtol=rtol)
    assert caught[0].filename == __file__
    assert int(solution.stats["num_evaluations"]) <= 40
    np.testing.assert_allclose(solution.ys[-1], exact, atol=error)


def test_low_precision_on_the_way_warns_and_keeps_the_tolerance():
    with pytest.warns(UserWarning, match="bfloat16 internally.*rtol=0.001.*Try rtol=0.016"):
        solution = solve(network("mixed_bfloat16", "float32"))
    assert int(solution.stats["num_evaluations"]) > 40


@pytest.mark.parametrize("policy, rtol", [("mixed_bfloat16", 0.02), ("float32", 1e-6)])
def test_tolerance_that_the_dynamics_resolves_does_not_warn(policy, rtol):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solve(network(policy, policy), rtol=rtol)


def test_weights_that_are_stored_in_low_precision_do_not_warn():
    weights = tf.Variable(tf.ones([2, 2], tf.bfloat16), trainable=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solve(lambda t, y: -y @ tf.cast(weights, tf.float32))


def test_tolerances_of_torchdiffeq_are_raised_in_float32():
    """Its defaults are below what float32 resolves."""
    with pytest.warns(UserWarning, match="rtol=1e-07.*float32 resolves.*raised to 2.4e-07"):
        y = keras_ode.odeint(lambda t, y: -y, tf.constant([1.0]), [0.0, 1.0], rtol=1e-7, atol=1e-9, jit_compile=False)[-1]
    np.testing.assert_allclose(y, [np.exp(-1)], rtol=1e-6)


def test_leaves_of_double_precision_beside_others_keep_their_tolerance():
    y0 = {"single": tf.constant([0.0]), "double": tf.constant([1.0], tf.float64)}
    dynamics = lambda t, y: {"single": 0 * y["single"], "double": -y["double"]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = keras_ode.solve(dynamics, y0, [0.0, 1.0], rtol=1e-9, atol=1e-9, jit_compile=False).ys["double"][-1]
    np.testing.assert_allclose(y, [np.exp(-1)], rtol=1e-8)


@pytest.mark.parametrize("enabled, rtol, warns", [(True, 1e-6, True), (False, 1e-6, False), (True, 1e-4, False)])
def test_products_in_tensor_float_32_warn(monkeypatch, enabled, rtol, warns):
    """On a GPU, which this test only pretends to have."""
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["GPU:0"] if kind == "GPU" else [])
    monkeypatch.setattr(tf.config.experimental, "tensor_float_32_execution_enabled", lambda: enabled)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        solve(network("float32", "float32"), rtol=rtol)
    assert any("TensorFloat-32" in str(w.message) for w in caught) == warns
