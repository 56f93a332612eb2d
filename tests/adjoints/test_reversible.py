"""The reversible adjoint: the gradient of the steps, as plain differentiation and closed forms have it, and what it refuses."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ode
from keras_ode.solvers import Reversible
from tests.marks import nightly

SOLVERS = ["asynchronous_leapfrog", "reversible_heun", Reversible("midpoint", coupling=0.99)]
CONSTANT = {"controller": "constant", "step_size": 0.03, "max_steps": 60}
ADAPTIVE = {"step_size": 0.02, "rtol": 1e-3, "atol": 1e-3, "max_steps": 60}
START, RATE, FORCE = np.array([[1.2], [-0.7], [0.4]]), 1.5, 0.3
TIMES = np.array([0.0, 0.333, 0.5, 1.1055])
ROWS = np.array([TIMES, [1.0, 0.5, 0.2, -0.1], [0.0, 0.3, 0.6, 0.6]])


def gradients(solver, adjoint, times=TIMES, how=lambda f: f, dtype="float64", **options):
    """Of a sum of squares of `y' = k y cos t + u`, by the start, the rate `k`, the argument `u` and the times."""
    start, rate, force, times = (tf.constant(x, dtype) for x in (START, RATE, FORCE, times))

    @how
    def run(start, rate, force, times):
        with tf.GradientTape() as tape:
            tape.watch((start, rate, force, times))
            ys = keras_ode.odeint(
                lambda t, y, u: rate * y * tf.cos(t) + u, start, times, args=(force,), solver=solver, adjoint=adjoint,
                **{"jit_compile": False, **options},
            )  # fmt: skip
            loss = tf.reduce_sum(ys[1:] ** 2)
        return tape.gradient(loss, (start, rate, force, times))

    return [g.numpy() for g in run(start, rate, force, times)]


CASES = [(TIMES, CONSTANT), (TIMES[::-1], ADAPTIVE), (ROWS, {**ADAPTIVE, "per_sample": True})]
# One pair, and the other ones where there is time.
PAIRS = [
    pytest.param(solver, *case, marks=[pytest.mark.slow] * ((i, j) != (1, 1)), id=f"{solver}-{j}")
    for i, solver in enumerate(SOLVERS)
    for j, case in enumerate(CASES)
]


@pytest.mark.parametrize("solver, times, options", PAIRS)
def test_gradient_is_that_of_plain_differentiation(solver, times, options):
    """Saved times, either direction; rows with steps of their own, of which one ends at a repeated time."""
    found = gradients(solver, "reversible", times, **options)
    expected = gradients(solver, "direct", times, **options)
    for a, b in zip(found[:3], expected, strict=False):
        np.testing.assert_allclose(a, b, rtol=1e-10)


XLA = tf.function(jit_compile=True)


@pytest.mark.parametrize(
    "how, dtype, rtol",
    [
        pytest.param(tf.function, "float32", 1e-4, id="graph-float32", marks=pytest.mark.slow),
        nightly(XLA, "float64", 1e-10, id="xla-float64"),
        nightly(tf.function, "float64", 1e-10, id="graph-float64"),
        pytest.param(XLA, "float32", 1e-4, id="xla-float32", marks=pytest.mark.slow),
    ],
)
def test_gradient_in_a_graph_and_under_xla_is_that_of_checkpoints_in_eager_code(how, dtype, rtol):
    options = {"jit_compile": "auto", "per_sample": True, **ADAPTIVE}
    expected = gradients(SOLVERS[2], "checkpointed", ROWS, **options)
    for a, b in zip(gradients(SOLVERS[2], "reversible", ROWS, how, dtype, **options), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol)


def decayed(value, span=2.0, **options):
    """A `value` of the solution of `y' = -k y` from 2 at `k = 0.8`, and its gradients by the start and by `k`."""
    start, rate = tf.constant([[2.0]], tf.float64), tf.constant(0.8, tf.float64)
    options = {"solver": Reversible("bosh3"), "adjoint": "reversible", "jit_compile": False, "rtol": 1e-7, "atol": 1e-7, **options}
    with tf.GradientTape() as tape:
        tape.watch((start, rate))
        found = tf.squeeze(value(keras_ode.solve(lambda t, y: -rate * y, start, [0.0, span], **options)))
    return [float(np.squeeze(x)) for x in (found, *tape.gradient(found, (start, rate)))]


@pytest.mark.slow
def test_gradients_are_those_of_the_closed_form():
    found = decayed(lambda solution: solution.ys[-1], solver=Reversible())
    np.testing.assert_allclose(found, np.array([2, 1, -4]) * np.exp(-1.6), rtol=1e-6)


@pytest.mark.slow
def test_gradients_of_events_are_those_of_the_closed_form():
    """The state is one at `log(2) / k`."""
    event = keras_ode.Event(lambda t, y: y[0, 0] - 1.0)
    found = decayed(lambda solution: solution.event_time, event=event)
    np.testing.assert_allclose(found, [np.log(2) / 0.8, 1 / 1.6, -np.log(2) / 0.64], rtol=1e-5)


@pytest.mark.slow
def test_gradients_through_jumps_and_resets_are_those_of_the_closed_form():
    """Where the state is one, it is doubled: from there it is `4 exp(-k t)`."""
    event = keras_ode.Event(lambda t, y: y[0, 0] - 1.0, reset=lambda t, y: 2 * y, max_events=4)
    found = decayed(lambda solution: solution.ys[-1], event=event, jump_times=[0.5], span=1.5)
    np.testing.assert_allclose(found, np.array([4, 2, -6]) * np.exp(-1.2), rtol=1e-5)


@pytest.mark.slow
def test_gradients_of_dense_output_are_those_of_the_closed_form():
    found = decayed(lambda solution: solution.evaluate(0.7), dense=True, max_steps=200)
    np.testing.assert_allclose(found, np.array([2, 1, -1.4]) * np.exp(-0.56), rtol=1e-5)


@pytest.mark.slow
def test_gradient_is_nan_where_the_steps_back_miss_the_start():
    """Sixty times the half-life: nothing is left of where the solution came from."""
    options = {"controller": "constant", "step_size": 0.05, "span": 52.0, "max_steps": 2000}
    options["solver"] = Reversible("midpoint", 0.9)
    exact = decayed(lambda solution: solution.ys[-1], adjoint="checkpointed", **options)
    found = decayed(lambda solution: solution.ys[-1], **options)
    assert found[0] == exact[0]
    assert np.all(np.isnan(found[1:]))
    assert np.all(np.isfinite(exact))


@pytest.mark.slow
def test_sum_over_steps_is_a_penalty_of_coupled_states_too():
    """The stiffness of a decay is its rate, at each of 50 steps; the sum does not fade by the coupling."""
    rate = tf.constant(0.8, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(rate)
        layer = keras_ode.ODELayer(
            lambda t, y: -rate * y, solver=Reversible("midpoint", 0.9), adjoint="reversible", dtype="float64", jit_compile=False,
            regularizer=keras_ode.regularizers.Stiffness(weight=1.0), controller="constant", step_size=0.02, max_steps=60,
        )  # fmt: skip
        layer(tf.constant([[1.0]], tf.float64), training=True)
        loss = tf.add_n(layer.losses)
    np.testing.assert_allclose(loss, 50 * 0.8, rtol=1e-9)
    np.testing.assert_allclose(tape.gradient(loss, rate), 50, rtol=1e-9)


@pytest.mark.parametrize("solver", ["tsit5", "ab3"])
def test_solver_that_cannot_take_steps_back_is_refused(solver):
    with pytest.raises(ValueError, match=r"needs a reversible solver: .*Reversible\(solver\).*Received: solver="):
        keras_ode.solve(lambda y: -y, [1.0], [0.0, 1.0], solver=solver, adjoint="reversible", step_size=0.1)


@pytest.mark.slow
def test_steps_back_are_recorded():
    layer = keras_ode.ODELayer(keras.layers.Dense(1), solver="reversible_heun", adjoint="reversible", jit_compile=False)
    model = keras.Sequential([keras.Input([1]), layer])
    model.compile("sgd", "mse", jit_compile=False)
    recorder = keras_ode.callbacks.SolverStepRecorder()
    model.fit(np.ones([4, 1]), np.ones([4, 1]), verbose=0, callbacks=[recorder])
    forward, backward = recorder.records
    assert (forward.direction, backward.direction) == ("forward", "backward")
    accepted = forward.step_size[forward.accepted]
    np.testing.assert_allclose(backward.step_size, -accepted[::-1], rtol=1e-5)
