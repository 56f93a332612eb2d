"""`per_sample=True`: a row's solve is its own."""

import hypothesis
import hypothesis.strategies as st
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ode
from keras_ode.adjoints import Backsolve
from keras_ode.solvers import SOLVERS
from tests.gradients import quick
from tests.marks import graded
from tests.references import SYMPLECTIC, Counting

TIMES = np.linspace(0, 5, 6)
MU = np.array([[0.5], [1.0], [3.0], [8.0]])
START = np.array([[2.0, 0.0]] * 4)
OPTIONS = {"rtol": 1e-7, "atol": 1e-7, "max_steps": 512, "jit_compile": False}


def van_der_pol(t, y, mu):
    return tf.concat([y[:, 1:], mu * (1 - y[:, :1] ** 2) * y[:, 1:] - y[:, :1] + 0.1 * tf.sin(t)], axis=-1)


def gradients(mu, start, times, **options):
    mu, start, times = (tf.constant(x, tf.float64) for x in (mu, start, times))
    with tf.GradientTape() as tape:
        tape.watch((mu, start))
        solution = keras_ode.solve(van_der_pol, start, times, args=(mu,), **{**OPTIONS, **options})
        loss = tf.reduce_sum(solution.ys * tf.cast(tf.range(1, 7)[:, None, None], tf.float64))
    return solution, tape.gradient(loss, (mu, start))


@pytest.fixture(scope="module")
def alone():
    """Each row's solve and gradients (by its own steps) without the others."""
    return [gradients(MU[i : i + 1], START[i : i + 1], TIMES, adjoint="checkpointed") for i in range(4)]


@pytest.mark.slow
def test_states_and_steps_of_a_row_are_those_of_solving_it_alone(alone):
    solution, _ = gradients(MU, START, TIMES, per_sample=True, adjoint="checkpointed")
    np.testing.assert_allclose(solution.ys, np.concatenate([s.ys for s, _ in alone], axis=1), atol=1e-12)
    np.testing.assert_array_equal(solution.stats["num_steps"], [int(s.stats["num_steps"]) for s, _ in alone])


# Another adjoint than the reference's differs by its own error, a few hundred tolerances of gradients of size 20.
@pytest.mark.slow  # quick are the gradients of rows that have a closed form, below
@pytest.mark.parametrize(
    ("adjoint", "atol"), [("checkpointed", 1e-9), ("direct", 1e-9), ("interpolating", 1e-3), ("backsolve", 1e-2)]
)
def test_gradients_of_a_row_are_those_of_solving_it_alone(alone, adjoint, atol):
    rows = slice(0, 3) if adjoint == "backsolve" else slice(0, 4)  # the stiff row cannot be solved backward so well
    _, found = gradients(MU[rows], START[rows], TIMES, per_sample=True, adjoint=adjoint)
    for i in (0, 1):
        np.testing.assert_allclose(found[i], np.concatenate([g[i] for _, g in alone[rows]]), atol=atol)


def test_rows_have_their_own_times_and_directions():
    solution = keras_ode.solve(
        lambda y: 2 * tf.ones_like(y), tf.constant([[1.0], [9.0]]), [[0.0, 3.0, 5.0], [2.0, 0.5, -8.0]], per_sample=True, jit_compile=False
    )
    np.testing.assert_allclose(solution.ys[:, :, 0], [[1, 9], [7, 6], [11, -11]], rtol=1e-6)


def test_a_row_that_fails_leaves_the_others_untouched():
    start = tf.constant([[1.0], [np.nan], [2.0]], tf.float64)
    options = {**OPTIONS, "per_sample": True, "on_failure": "nan"}
    solution = keras_ode.solve(lambda y: -y, start, [0.0, 1.0], **options)
    np.testing.assert_array_equal(solution.status, [0, keras_ode.Status.NON_FINITE, 0])
    np.testing.assert_allclose(solution.ys[-1, :, 0], [np.exp(-1), np.nan, 2 * np.exp(-1)], rtol=1e-6)


def test_error_of_a_failed_row_names_it():
    with pytest.raises(keras_ode.SolveError, match="sample 1") as raised:
        keras_ode.solve(lambda y: y**2, tf.constant([[0.1], [1.0]], tf.float64), [0.0, 2.0], per_sample=True, jit_compile=False)
    assert raised.value.sample == 1
    assert raised.value.time == pytest.approx(1, abs=1e-3)  # y = 1 / (1 - t)


@pytest.mark.slow
def test_compiled_rows_are_those_of_the_plain_graph():
    # There are fewer stages to compile than in the default solver.
    options = {**OPTIONS, "solver": "bosh3", "rtol": 1e-4, "atol": 1e-4, "per_sample": True, "args": (MU,)}
    plain, compiled = (
        keras_ode.solve(van_der_pol, START, TIMES, **{**options, "jit_compile": jit}).ys for jit in (False, True)
    )
    np.testing.assert_allclose(plain, compiled, atol=1e-11)


@pytest.mark.slow
def test_loop_runs_no_longer_than_the_hardest_row_alone():
    """Van der Pol's equation, smooth for some rows and stiff for others; shared steps are four times as many."""
    mu, start = np.linspace(0.5, 25, 256)[:, None], np.array([[2.0, 0.0]] * 256)
    options = {"rtol": 1e-5, "atol": 1e-5, "adjoint": Backsolve(checkpoints=0), "jit_compile": False}
    equation = lambda t, y, mu: tf.concat([y[:, 1:], mu * (1 - y[:, :1] ** 2) * y[:, 1:] - y[:, :1]], axis=-1)
    dynamics = Counting(lambda t, y: equation(t, y, mu))
    rows = keras_ode.solve(dynamics, start, [0.0, 40.0], per_sample=True, **options)
    # Two evaluations choose the first step, then tsit5 takes six a step.
    iterations = (dynamics.take() - 2) / 6
    hardest = int(np.argmax(rows.stats["num_steps"]))
    row = slice(hardest, hardest + 1)
    alone = keras_ode.solve(equation, start[row], [0.0, 40.0], args=(mu[row],), **options)
    shared = keras_ode.solve(dynamics, start, [0.0, 40.0], **options)
    print(f"{iterations:.0f} iterations; the hardest row alone takes {alone.stats['num_steps']}, shared steps {shared.stats['num_steps']}")
    assert iterations == np.max(rows.stats["num_steps"]) == int(alone.stats["num_steps"])
    assert int(shared.stats["num_steps"]) > 3 * iterations


def decay(t, y):
    """From y at time s, the solution at t is y exp(sin t - sin s)."""
    return y * tf.cos(t)


def turning(t, y):
    """Turns `(q, p)` by the angle `t^2`."""
    q, p = y
    return 2 * t * p, -2 * t * q


def two_rows(name):
    """A dynamics that suits a solver, two rows to start from, and their times: the second row goes back in time."""
    start, times = tf.constant([[1.0], [-2.0]], tf.float64), [[0.0, 0.7, 1.5], [1.0, 0.2, 0.0]]
    options = {"solver": name, "step_size": None if SOLVERS[name].error_order else 0.1, "rtol": 1e-4, "atol": 1e-4}
    if name in SYMPLECTIC:
        return turning, (start, 0.5 * start[::-1]), times, options
    return decay, start, times, options


# Quick: an explicit pair, a linear system for each row, and two kinds of history. Slow: one of each other kind of step.
SLOW = ["rk4", "dopri8", "radau", "kvaerno5", "kencarp4", "trapezoid", "ab3", "yoshida4", "asynchronous_leapfrog", "reversible", "auto"]


@pytest.mark.parametrize("name", graded(SOLVERS, quick=["tsit5", "abm4"], slow_ones=[*SLOW, "rodas5p", "bdf"]))
def test_rows_of_every_solver_are_those_of_solving_them_alone(name):
    dynamics, start, times, options = two_rows(name)
    options = {**OPTIONS, **options}
    both = keras_ode.solve(dynamics, start, times, per_sample=True, **options)
    for i, row in enumerate(times):
        alone = keras_ode.solve(dynamics, tf.nest.map_structure(lambda leaf, i=i: leaf[i], start), row, **options)
        for rows, single in zip(tf.nest.flatten(both.ys), tf.nest.flatten(alone.ys), strict=True):
            np.testing.assert_allclose(rows[:, i], single, rtol=1e-14)
        assert {k: int(v[i]) for k, v in both.stats.items() if k != "stiffness"} == {
            k: int(v) for k, v in alone.stats.items() if k != "stiffness"
        }


# One of each kind of step: those of a kind differ in their coefficients alone.
KINDS = ["tsit5", "dopri8", "rodas5p", "radau", "kvaerno5", "bdf", "implicit_midpoint", "ab3", "abm4", "leapfrog", "yoshida4",
         "asynchronous_leapfrog", "reversible_heun", "reversible", "auto"]  # fmt: skip


@pytest.mark.parametrize("name", graded(KINDS, quick=[], slow_ones=["tsit5", "rodas5p", "kvaerno5", "bdf", "abm4", "reversible"]))
def test_rows_of_every_kind_of_solver_are_the_same_under_xla(name):
    dynamics, start, times, options = two_rows(name)
    run = lambda y: tf.stack(tf.nest.flatten(keras_ode.odeint(dynamics, y, times, per_sample=True, max_steps=200, **options)))
    np.testing.assert_allclose(tf.function(run, jit_compile=True)(start), run(start), rtol=1e-9)


@pytest.mark.parametrize("adjoint", quick("interpolating"))
def test_gradients_of_rows_with_their_own_grids_and_directions_are_those_of_the_closed_form(adjoint):
    """y' = k y cos t; the last row is padded with its last time."""
    start, k = tf.constant([[1.0], [-2.0], [0.5]], tf.float64), tf.constant(1.5, tf.float64)
    times = tf.constant([[0.0, 0.5, 1.5], [1.0, 0.2, -0.5], [2.0, 3.0, 3.0]], tf.float64)
    weights = np.array([[1.0, 2.0, 3.0], [0.5, -1.0, 2.0], [1.0, -2.0, 0.5]])
    with tf.GradientTape() as tape:
        tape.watch((start, k, times))
        ys = keras_ode.odeint(lambda t, y: k * y * tf.cos(t), start, times, per_sample=True, adjoint=adjoint, **OPTIONS)
        loss = tf.reduce_sum(tf.transpose(ys[:, :, 0]) * weights)
    by_start, by_k, by_times = tape.gradient(loss, (start, k, times))
    t, y = times.numpy(), start.numpy()
    phase = np.sin(t) - np.sin(t[:, :1])
    grown = np.exp(1.5 * phase)
    np.testing.assert_allclose(ys[:, :, 0], (y * grown).T, rtol=1e-5)
    np.testing.assert_allclose(by_start[:, 0], (weights * grown).sum(axis=1), rtol=1e-4)
    np.testing.assert_allclose(by_k, (weights * y * grown * phase).sum(), rtol=1e-4)
    expected = weights * y * grown * 1.5 * np.cos(t)
    expected[:, 0] = -(weights[:, 1:] * y * grown[:, 1:] * 1.5 * np.cos(t[:, :1])).sum(axis=1)
    # What time the padding holds is one and the same: its gradients count together.
    expected[2, 1:] = expected[2, 1:].sum(), 0
    found = by_times.numpy()
    found[2, 1:] = found[2, 1:].sum(), 0
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_single_precision_rows_are_those_of_solving_them_alone_within_rounding():
    start = tf.constant([[1.0], [-2.0], [30.0]])
    options = {**OPTIONS, "rtol": 1e-4, "atol": 1e-4}
    both = keras_ode.solve(decay, start, [0.0, 1.5], per_sample=True, **options)
    for i in range(3):
        alone = keras_ode.solve(decay, start[i], [0.0, 1.5], **options)
        np.testing.assert_allclose(both.ys[-1, i], alone.ys[-1], rtol=1e-6)


# A batch of six, of which hypothesis makes others of six: one function is traced for all.


@pytest.fixture(scope="module")
def solve_six():
    mu = tf.constant([0.5, 1.0, 2.0, 3.0, 4.0, 5.0], tf.float64)[:, None]

    @tf.function(autograph=False)
    def solve(rows, times):
        y0 = tf.concat([2 * tf.ones_like(mu), 0 * mu], axis=1)
        chosen = tf.gather(mu, rows)
        options = {**OPTIONS, "adjoint": Backsolve(checkpoints=0), "per_sample": True, "args": (chosen,)}
        solution = keras_ode.solve(van_der_pol, tf.gather(y0, rows), tf.gather(times, rows), **options)
        return solution.ys[-1], solution.stats["num_steps"]

    return solve


# Rows with grids of their own, some backward, some padded.
GRIDS = np.array([[0, 1, 2], [0, 1, 1], [2, 1, 0], [0, 3, 5], [5, 3, 3], [1, 2, 4]], dtype="float64")


@hypothesis.settings(max_examples=15, deadline=None)
@hypothesis.given(rows=st.lists(st.integers(0, 5), min_size=6, max_size=6))
def test_batch_mates_never_change_a_row(solve_six, rows):
    """Any six rows, in any order and with any repetition: permuted, split or padded, a row is what it is."""
    states, steps = solve_six(tf.range(6), GRIDS)
    found, found_steps = solve_six(tf.constant(rows), GRIDS)
    np.testing.assert_array_equal(found_steps, steps.numpy()[rows])
    # Elementwise operations alone: there is no rounding that depends on the place in the batch, but that of vectorized loops.
    np.testing.assert_allclose(found, states.numpy()[rows], rtol=1e-13, atol=1e-13)


# The layer


def linear(rate):
    dense = keras.layers.Dense(2, use_bias=False, kernel_initializer=keras.initializers.Identity(rate))
    return keras.Sequential([dense])


def test_layer_with_times_for_every_row_is_the_closed_form():
    layer = keras_ode.ODELayer(linear(-0.5), per_sample=True, return_sequences=True, rtol=1e-5, atol=1e-6, jit_compile=False)
    times = np.array([[0.0, 1.0, 3.0], [2.0, 1.0, 1.0]], "float32")
    ys = layer(tf.ones([2, 2]), t=times)
    np.testing.assert_allclose(ys[:, :, 0], np.exp(-0.5 * (times - times[:, :1])), rtol=1e-4)


@pytest.mark.slow
def test_layer_with_its_own_step_for_every_row_trains():
    model = keras.Sequential([keras_ode.ODELayer(linear(0.1), per_sample=True, jit_compile=False)])
    model.compile(keras.optimizers.Adam(0.05), "mse")
    x = np.random.default_rng(0).normal(size=(64, 2)).astype("float32")
    losses = model.fit(x, x * np.exp(-1), epochs=20, batch_size=32, verbose=0).history["loss"]
    assert losses[-1] < losses[0] / 10


@pytest.mark.slow
def test_row_of_nan_leaves_the_gradients_of_the_others_exactly_as_they_are():
    def gradient(start):
        start = tf.constant(start, tf.float64)
        with tf.GradientTape() as tape:
            tape.watch(start)
            loss = tf.reduce_sum(keras_ode.odeint(decay, start, [0.0, 1.5], per_sample=True, on_failure="nan", **OPTIONS)[-1])
        return tape.gradient(loss, start).numpy()[:, 0]

    whole, broken = gradient([[1.0], [-2.0], [30.0]]), gradient([[1.0], [np.nan], [30.0]])
    np.testing.assert_array_equal(broken, [whole[0], np.nan, whole[2]])
