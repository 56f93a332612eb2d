"""A dynamics in two parts, of which one is integrated implicitly: closed forms, SciPy, and the sum as one function."""

import keras
import numpy as np
import pytest
import scipy.integrate
import tensorflow as tf

import keras_ode
from tests.marks import nightly
from tests.seeds import seed


def solve(dynamics, y0, t, **options):
    return keras_ode.solve(dynamics, tf.constant(y0, tf.float64), t, **{"solver": "kencarp4", "jit_compile": False, **options})


def stiff(t, y, rate):
    return -rate * (y - tf.cos(t))


def nonstiff(t, y, rate):
    """With the stiff part, the solution from y(0) = 1 is cos t."""
    return y**2 - tf.cos(t) ** 2 - tf.sin(t)


SPLIT = keras_ode.Split(stiff, nonstiff)


@pytest.mark.slow
def test_error_falls_with_order_four_where_both_parts_depend_on_state_and_time():
    rate = tf.constant(2.0, tf.float64)
    errors = [
        abs(float(solve(SPLIT, [1.0], [0.0, 1.0], args=(rate,), controller="constant", step_size=1 / n).ys[-1, 0]) - np.cos(1.0))
        for n in (8, 16, 32)
    ]
    assert np.all(np.log2(errors[:-1] / np.array(errors[1:])) > 3.75)


@pytest.mark.slow
def test_very_stiff_part_does_not_limit_the_steps():
    rate, options = tf.constant(1e6, tf.float64), {"rtol": 1e-6, "atol": 1e-6}
    solution = solve(SPLIT, [1.5], np.linspace(0, 3, 7), args=(rate,), **options)
    np.testing.assert_allclose(solution.ys[1:, 0], np.cos(np.linspace(0, 3, 7))[1:], atol=1e-4)
    assert int(solution.stats["num_steps"]) < 500  # whole, it takes 60


SIZE = 12
LAPLACE = (np.diag(np.full(SIZE, -2.0)) + np.diag(np.ones(SIZE - 1), 1) + np.diag(np.ones(SIZE - 1), -1)) * (SIZE + 1) ** 2


@pytest.mark.slow
def test_reaction_and_diffusion_are_those_of_scipy_with_fewer_evaluations_of_the_reaction():
    """Of Fisher's equation diffusion is the stiff part; the reaction is evaluated once a stage, and has no Jacobian."""
    matrix = tf.constant(LAPLACE)
    diffusion, reaction = lambda t, y: tf.linalg.matvec(matrix, y), lambda t, y: 20 * y * (1 - y)
    start, end = np.sin(np.pi * np.arange(1, SIZE + 1) / (SIZE + 1)) ** 2, 0.3
    expected = scipy.integrate.solve_ivp(
        lambda t, y: LAPLACE @ y + 20 * y * (1 - y), (0, end), start, "Radau", rtol=1e-10, atol=1e-12
    ).y[:, -1]
    options = {"rtol": 1e-6, "atol": 1e-8}
    split = solve(keras_ode.Split(diffusion, reaction), start, [0.0, end], **options)
    whole = solve(lambda t, y: diffusion(t, y) + reaction(t, y), start, [0.0, end], **options)
    for solution in (split, whole):
        np.testing.assert_allclose(solution.ys[-1], expected, rtol=1e-5)
    of_split, of_whole = (int(x.stats["num_evaluations"]) / int(x.stats["num_accepted"]) for x in (split, whole))
    # With the split, seven evaluations a step are of the reaction, and hardly more than one a stage of the diffusion.
    assert of_split - SIZE - 7 < 6.2 < of_whole - SIZE
    assert 7 * int(split.stats["num_steps"]) < 0.7 * int(whole.stats["num_evaluations"])


@pytest.mark.parametrize("adjoint", ["checkpointed", nightly("interpolating")])
@pytest.mark.slow
def test_gradient_is_that_of_the_closed_form(adjoint):
    """`y' = -a y + b`: `b / a + (y0 - b / a) exp(-a t)`, with a in the stiff part and b, a variable, in the other."""
    a, b, y0 = tf.constant([3.0, 3000.0], tf.float64), tf.Variable(2.0, dtype=tf.float64), tf.constant([1.0, 1.0], tf.float64)
    dynamics = keras_ode.Split(lambda t, y, a: -a * y, lambda t, y, a: b + tf.zeros_like(y))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch((a, y0))
        options = {"args": (a,), "rtol": 1e-7, "atol": 1e-9, "adjoint": adjoint, "solver": "kencarp4", "jit_compile": False}
        found = tf.reduce_sum(keras_ode.odeint(dynamics, y0, [0.0, 0.2, 0.5], **options)[1:])
        exact = tf.add_n([tf.reduce_sum(b / a + (y0 - b / a) * tf.exp(-a * t)) for t in (0.2, 0.5)])
    for source in (a, b, y0):
        np.testing.assert_allclose(tape.gradient(found, source), tape.gradient(exact, source), rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_checkpointed_gradient_is_that_of_the_steps():
    """Steps so long that the derivative of their result is not that of the solution."""

    def end(rate):
        return solve(
            SPLIT, [1.0], [0.0, 2.0], args=(rate,), controller="constant", step_size=1.0, adjoint="checkpointed"
        ).ys[-1, 0]  # fmt: skip

    rate = tf.constant(20.0, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(rate)
        value = end(rate)
    difference = (end(rate + 1e-3) - end(rate - 1e-3)) / 2e-3
    np.testing.assert_allclose(tape.gradient(value, rate), difference, rtol=1e-6)


def test_other_solvers_integrate_the_sum():
    rate, options = tf.constant(2.0, tf.float64), {"solver": "bosh3", "rtol": 1e-6}
    split = solve(SPLIT, [1.0], [0.0, 1.0], args=(rate,), **options)
    whole = solve(lambda t, y, rate: stiff(t, y, rate) + nonstiff(t, y, rate), [1.0], [0.0, 1.0], args=(rate,), **options)
    np.testing.assert_allclose(split.ys, whole.ys, rtol=1e-14)
    assert int(split.stats["num_evaluations"]) == int(whole.stats["num_evaluations"])


@pytest.mark.slow
def test_rows_are_solved_as_if_alone_under_xla_and_with_a_penalty_on_the_speed():
    rate = tf.constant([[2.0], [2000.0]], tf.float64)
    options = {"solver": "kencarp4", "rtol": 1e-6, "per_sample": True}

    @tf.function(jit_compile=True)
    def compiled(rate):
        return keras_ode.odeint(SPLIT, tf.ones_like(rate), [0.0, 1.0], args=(rate,), **options)[-1]

    found = compiled(rate)
    for i in range(2):
        alone = solve(SPLIT, [1.0], [0.0, 1.0], args=(rate[i],), rtol=1e-6).ys[-1]
        np.testing.assert_allclose(found[i], alone, rtol=1e-10)
    layer = keras_ode.ODELayer(
        keras_ode.Split(lambda y: -2 * y, lambda y: 0 * y), solver="kencarp4", regularizer="kinetic", dtype="float64", rtol=1e-6
    )
    layer(np.ones([3, 1]), training=True)
    np.testing.assert_allclose(layer.losses[0] / layer.regularizers[0].weight, 1 - np.exp(-4.0), rtol=1e-4)


@pytest.mark.slow
def test_layer_finds_the_weights_of_both_parts_and_is_loaded(tmp_path):
    seed(0)
    parts = [keras.layers.Dense(2, name=name) for name in ("slow", "fast")]
    model = keras.Sequential([keras_ode.ODELayer(keras_ode.Split(*parts), solver="kencarp4", jit_compile=False)])
    x = np.ones([3, 2], "float32")
    with tf.GradientTape() as tape:
        y = model(x)
    assert len(model.trainable_weights) == 4
    assert all(np.any(g) for g in tape.gradient(y, model.trainable_weights))
    model.save(tmp_path / "model.keras")
    np.testing.assert_allclose(keras.saving.load_model(tmp_path / "model.keras")(x), y, rtol=1e-6)


def test_what_is_no_part_is_refused():
    with pytest.raises(TypeError, match="nonstiff must be a Keras layer, a model or a function.*Received: nonstiff=3"):
        keras_ode.Split(stiff, 3)
    with pytest.raises(ValueError, match="The dynamics 'wrong' must return the shape of the state"):

        def wrong(t, y):
            return y[:1]

        solve(keras_ode.Split(lambda t, y: -y, wrong), [1.0, 2.0], [0.0, 1.0])
    with pytest.raises(ValueError, match="jacobian cannot be combined with a Split"):
        solve(SPLIT, [1.0], [0.0, 1.0], args=(1.0,), jacobian=lambda t, y, rate: -rate * tf.ones([1, 1], tf.float64))
