"""Jacobians that the user gives, beside those by automatic differentiation."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ode
from tests.marks import nightly
from tests.seeds import seed


def field(t, y, rate):
    a, b = y[..., :1], y[..., 1:]
    return tf.concat([-rate * a * b - t * a, rate * a * b - 50 * b], axis=-1)


def jacobian(t, y, rate):
    a, b = y[..., :1], y[..., 1:]
    return tf.stack([tf.concat([-rate * b - t, -rate * a], -1), tf.concat([rate * b, rate * a - 50], -1)], axis=-2)


RATE, START = tf.constant(3.0, tf.float64), tf.constant([1.0, 0.5], tf.float64)
ROWS = tf.stack([START, 2 * START, START / 3])


def solve(y0, **options):
    defaults = {"args": (RATE,), "rtol": 1e-6, "atol": 1e-8, "jit_compile": False}
    return keras_ode.solve(field, y0, [0.0, 1.0], **{**defaults, **options})


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["rodas5p", nightly("kencarp4"), "radau"])
def test_solution_is_the_same_with_fewer_evaluations(solver):
    found, expected = solve(START, solver=solver, jacobian=jacobian), solve(START, solver=solver)
    np.testing.assert_allclose(found.ys, expected.ys, rtol=1e-12)
    saved = int(expected.stats["num_evaluations"]) - int(found.stats["num_evaluations"])
    assert saved == 2 * int(found.stats["num_steps"])


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.slow
def test_rows_have_a_jacobian_each(per_sample):
    found, expected = (solve(ROWS, solver="rodas5p", per_sample=per_sample, **k) for k in ({"jacobian": jacobian}, {}))
    np.testing.assert_allclose(found.ys, expected.ys, rtol=1e-11)
    saved = expected.stats["num_evaluations"] - found.stats["num_evaluations"]
    np.testing.assert_array_equal(saved, found.stats["num_steps"] * (2 if per_sample else 6))


@pytest.mark.slow
def test_gradients_of_rosenbrock_methods_follow_what_the_jacobian_reads():
    """The result of a step depends on the Jacobian, so its gradient does too."""
    weight, found = tf.Variable(3.0, dtype=tf.float64), []
    for ours in (None, lambda t, y: jacobian(t, y, weight)):
        with tf.GradientTape() as tape:
            tape.watch(START)
            end = keras_ode.odeint(
                lambda t, y: field(t, y, weight), START, [0.0, 1.0], solver="rosenbrock23", step_size=0.5, controller="constant",
                adjoint="checkpointed", jacobian=ours, jit_compile=False,
            )[-1, 0]  # fmt: skip
        found.append(tape.gradient(end, (weight, START)))
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("solver", [nightly("implicit_euler"), "radau"])
def test_crude_jacobian_costs_iterations_but_changes_neither_the_solution_nor_its_gradient(solver):
    found = []
    for ours in (None, lambda t, y, rate: tf.linalg.diag(tf.constant([0.0, -50.0], tf.float64))):
        with tf.GradientTape() as tape:
            tape.watch(RATE)
            options = {"solver": solver, "step_size": 0.125, "controller": "constant", "adjoint": "checkpointed"}
            end = solve(START, jacobian=ours, **options).ys[-1, 0]
        found.append((end, tape.gradient(end, RATE)))
    np.testing.assert_allclose(*found, rtol=1e-9)


@pytest.mark.slow
def test_gradient_of_a_steady_state_does_not_depend_on_it():
    """`0 = 1 - rate y^2`: y = rate^(-1/2)."""
    rate = tf.constant(4.0, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(rate)
        solution = keras_ode.solve(
            lambda t, y, rate: 1 - rate * y**2, tf.ones([1], tf.float64), [0.0, np.inf], args=(rate,), solver="kvaerno3",
            event=keras_ode.SteadyState(), jacobian=lambda t, y, rate: -3 * tf.ones([1, 1], tf.float64), jit_compile=False,
        )  # fmt: skip
        end = solution.ys[-1, 0]
    np.testing.assert_allclose(tape.gradient(end, rate), -0.5 * 4.0**-1.5, rtol=1e-2)


@keras.saving.register_keras_serializable(package="tests")
def of_relaxation(y):
    return -1000 * tf.eye(2, batch_shape=tf.shape(y)[:1])


def test_layer_takes_it_and_is_loaded_with_it(tmp_path):
    seed(0)

    @keras.saving.register_keras_serializable(package="tests")
    def relaxation(y):
        return 1000 * (1 - y)

    layer = keras_ode.ODELayer(relaxation, solver="rodas5p", jacobian=of_relaxation, jit_compile=False)
    model = keras.Sequential([keras.Input([2]), layer])
    x = np.zeros([3, 2], "float32")
    np.testing.assert_allclose(model(x), np.ones([3, 2]), rtol=1e-4)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.layers[-1].jacobian is of_relaxation
    np.testing.assert_allclose(loaded(x), model(x), rtol=1e-6)


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"solver": "tsit5"}, ValueError, "Tsit5 is explicit and uses no Jacobian: leave jacobian out"),
        ({"jacobian": lambda t, y, rate: y}, ValueError, r"float64 of shape \(2, 2\) for a state of shape \(2,\), .* Received: float64"),
        ({"jacobian": lambda t, y, rate: tf.zeros([2, 2])}, ValueError, "must return float64 .* Received: float32"),
        ({"jacobian": 3}, TypeError, "jacobian must be a function like the dynamics.*Received: jacobian=3"),
        ({"y0": ROWS[:, 0], "per_sample": True}, ValueError, r"one tensor, rows \[B, D\]. Received: .*\[\(3,\)\]"),
        ({"y0": (START, START)}, ValueError, r"one tensor, a vector \[D\] or rows \[B, D\]"),
    ],
)
def test_what_does_not_fit_is_refused(options, error, words):
    with pytest.raises(error, match=words):
        solve(**{"y0": START, "solver": "rodas5p", "jacobian": jacobian, **options})


def test_layer_refuses_it_with_an_explicit_solver():
    with pytest.raises(ValueError, match="Tsit5 is explicit"):
        keras_ode.ODELayer(lambda y: -y, jacobian=of_relaxation)
