"""Steady states and their derivatives against closed forms."""

import numpy as np
import pytest
import tensorflow as tf

import keras_ode
from keras_ode import Status, SteadyState
from tests.marks import nightly

INFINITY = float("inf")
TIGHT = {"rtol": 1e-7, "atol": 1e-7, "max_steps": 2000, "jit_compile": False}
FINE = SteadyState(rtol=1e-9, atol=1e-9)
A = np.array([[3.0, -1.0, 0.5], [2.0, 2.0, 0.0], [0.3, 0.0, 0.5]])
B = np.array([1.0, -2.0, 0.5])
WEIGHTS = np.array([1.0, 2.0, -3.0])
START = tf.constant([0.3, 0.0, 10.0], tf.float64)


# That XLA compiles this is claimed of rows, below.
@pytest.mark.slow
@pytest.mark.parametrize(
    "solver, how",
    [
        ("tsit5", {}),
        nightly("bosh3", {}),
        nightly("tsit5", {"jit_compile": True}),
    ],
    ids=str,
)
def test_linear_steady_state_and_its_derivatives(solver, how):
    @tf.function(**how)
    def compute(a, b, start):
        with tf.GradientTape() as tape:
            tape.watch((a, b, start))
            f = lambda y: b - tf.linalg.matvec(a, y)
            solution = keras_ode.solve(f, start, INFINITY, event=FINE, solver=solver, **TIGHT)
            loss = tf.reduce_sum(WEIGHTS * solution.event_state)
        return solution.ys, solution.status, solution.stats["num_steps"], tape.gradient(loss, (a, b, start))

    ys, status, num_steps, (by_a, by_b, by_start) = compute(tf.constant(A), tf.constant(B), START)
    # y* = A^-1 b; with a = A^-T w, d(w y*)/db = a and d(w y*)/dA = -a y*^T.
    steady, a = np.linalg.solve(A, B), np.linalg.solve(A.T, WEIGHTS)
    assert int(status) == Status.EVENT and int(num_steps) < {"tsit5": 100, "bosh3": 500}[solver]
    np.testing.assert_allclose(ys, [START, steady], rtol=1e-8)
    np.testing.assert_allclose(by_b, a, rtol=1e-8)
    np.testing.assert_allclose(by_a, -np.outer(a, steady), rtol=1e-7)
    assert np.all(np.asarray(by_start) == 0)


def logistic(start, r, k, **options):
    with tf.GradientTape() as tape:
        tape.watch((start, r, k))
        f = lambda t, y, r, k: r * y * (1 - y / k)
        solution = keras_ode.solve(f, start, INFINITY, args=(r, k), event=FINE, per_sample=True, **TIGHT, **options)
        total = tf.reduce_sum(tf.where(solution.status[:, None] == Status.EVENT, solution.event_state, 0))
    return solution._replace(dense=None), tape.gradient(total, (start, r, k))


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "XLA"])
@pytest.mark.slow
def test_rows_come_to_rest_each_alone(jit_compile):
    compute = tf.function(logistic, jit_compile=jit_compile)
    start = tf.constant([[0.5], [8.0], [0.1]], tf.float64)
    r, k = tf.constant([[1.0], [1e4], [1e-3]], tf.float64), tf.constant([[2.0], [3.0], [0.7]], tf.float64)
    solution, (by_start, by_r, by_k) = compute(start, r, k)
    np.testing.assert_allclose(solution.event_state, k, rtol=1e-5)
    np.testing.assert_allclose(solution.ys[-1], k, rtol=1e-5)
    np.testing.assert_allclose(by_start, [[0.0]] * 3, atol=1e-5)
    np.testing.assert_allclose(by_k, [[1.0]] * 3, rtol=1e-5)
    np.testing.assert_allclose(by_r * r, [[0.0]] * 3, atol=1e-5)
    assert np.all(solution.event_index == 0) and np.all(np.isfinite(solution.event_time))
    # From below zero, the second goes to minus infinity. The others do not depend on it.
    rest = solution.event_state
    solution, (by_start, _, again_by_k) = compute(start * [[1.0], [-1.0], [1.0]], r, k)
    np.testing.assert_allclose(solution.event_state[::2], rest[::2], rtol=1e-14)
    np.testing.assert_allclose(again_by_k[::2], by_k[::2], rtol=1e-14)
    assert solution.status[1] not in (Status.SUCCESS, Status.EVENT)
    np.testing.assert_array_equal(np.isnan(solution.event_state[:, 0]), [False, True, False])
    np.testing.assert_array_equal(np.isnan(by_start[:, 0]), [False, True, False])
    assert list(solution.event_index) == [0, -1, 0] and np.isnan(solution.event_time[1])


@pytest.mark.slow
def test_default_tolerances_are_those_of_the_solve_in_single_precision():
    # A stiff system with a nest as state: without care, steps at the limit of stability keep it from rest.
    rates = tf.constant([1.0, 300.0])
    with tf.GradientTape() as tape:
        tape.watch(rates)
        f = lambda y: {"a": rates * (tf.constant([2.0, -1.0]) - y["a"]), "b": tf.reduce_sum(y["a"]) - y["b"]}
        y0 = {"a": tf.zeros([2]), "b": tf.constant(0.0)}
        solution = keras_ode.solve(f, y0, INFINITY, event=SteadyState(), max_steps=8000, jit_compile=False)
        loss = solution.event_state["b"]
    np.testing.assert_allclose(solution.event_state["a"], [2.0, -1.0], rtol=5e-3)
    np.testing.assert_allclose(tape.gradient(loss, rates), [0.0, 0.0], atol=5e-3)


@pytest.mark.parametrize("options", [{}, {"solver": "rk4", "step_size": 0.1}], ids=str)
@pytest.mark.slow
def test_what_repels_forward_attracts_backward(options):
    levels, start = tf.Variable([[1.0], [-2.0]], dtype=tf.float64), tf.constant([[3.0], [3.0]], tf.float64)
    speed = tf.constant([[1.0], [2.0]], tf.float64)
    with tf.GradientTape() as tape:
        event = SteadyState(1e-7, 1e-7)
        solution = keras_ode.solve(
            lambda y: speed * (y - levels), start, [1.0, -INFINITY], event=event, per_sample=True, **TIGHT, **options
        )
        loss = tf.reduce_sum(solution.event_state * [[1.0], [3.0]])
    np.testing.assert_allclose(solution.ys, [start, levels], rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(loss, levels), [[1.0], [3.0]], rtol=1e-6)
    assert np.all(solution.event_time < 0)


def test_layer_has_a_steady_state():
    layer = keras_ode.ODELayer(lambda y: 1.0 - y, per_sample=True)
    solution = layer.solve(tf.zeros([2, 1]), t=INFINITY, event=SteadyState(1e-5, 1e-5))
    np.testing.assert_allclose(solution.event_state, [[1.0]] * 2, rtol=1e-4)


@pytest.mark.slow
def test_dynamics_that_never_rests_fails_and_says_so():
    rotation = lambda y: tf.stack([y[1], -y[0]])
    start, options = tf.constant([1.0, 0.0], tf.float64), {**TIGHT, "solver": "bosh3", "max_steps": 100}
    with pytest.raises(keras_ode.SolveError, match="the state was not steady by then. SteadyState ends.* raise max_steps=100"):
        keras_ode.solve(rotation, start, INFINITY, event=FINE, **options)
    scale = tf.Variable(1.0, dtype=tf.float64)
    with tf.GradientTape() as tape:
        f = lambda y: scale * rotation(y)
        solution = keras_ode.solve(f, start, INFINITY, event=FINE, on_failure="nan", **options)
    assert int(solution.status) == Status.MAX_STEPS and int(solution.stats["num_steps"]) == 100
    assert np.isnan(solution.event_state).all() and np.isnan(solution.ys[-1]).all() and np.isnan(solution.event_time)
    assert np.isnan(tape.gradient(solution.event_state, scale))


@pytest.mark.slow
def test_conserved_quantity_leaves_no_derivative_where_elimination_only_rounds_to_a_singular_matrix():
    rates = tf.constant([[-1.1, 0.9, 0.1], [0.4, -1.2, 0.5], [0.7, 0.3, -0.6]], tf.float64)  # the columns sum to zero
    with tf.GradientTape() as tape:
        tape.watch(rates)
        options = {**TIGHT, "solver": "rodas5p", "max_steps": 200}
        start = tf.constant([1.0, 0.0, 0.0], tf.float64)
        rest = keras_ode.solve(lambda y: tf.linalg.matvec(rates, y), start, INFINITY, event=FINE, **options).event_state
    null = np.linalg.svd(rates)[2][-1]
    np.testing.assert_allclose(rest, null / null.sum(), rtol=1e-6)
    assert np.isnan(tape.gradient(rest, rates)).all()


@pytest.mark.slow
def test_conserved_quantity_leaves_no_derivative_and_second_ones_are_refused():
    flow, start = tf.constant(1.0, tf.float64), tf.constant([1.0, 0.0], tf.float64)

    def rest(flow):
        exchange = lambda y: tf.stack([y[1] - flow * y[0], flow * y[0] - y[1]])
        return keras_ode.solve(exchange, start, INFINITY, event=FINE, **{**TIGHT, "max_steps": 200}).event_state[0]

    with tf.GradientTape() as tape:
        tape.watch(flow)
        state = rest(flow)
    np.testing.assert_allclose(state, 0.5, rtol=1e-7)
    assert np.isnan(tape.gradient(state, flow))
    with tf.GradientTape() as outer:
        outer.watch(flow)
        with tf.GradientTape() as tape:
            tape.watch(flow)
            state = rest(flow)
        with pytest.raises(NotImplementedError, match="SteadyState gives first derivatives only.*solve over a finite time"):
            tape.gradient(state, flow)


def test_what_makes_no_sense_is_refused():
    decay, one = lambda y: -y, tf.constant([1.0])
    for t in ([0.0, 1.0], [0.0, 1.0, INFINITY]):
        with pytest.raises(ValueError, match=r"SteadyState ends a solve without another end: use .* Received: t=array"):
            keras_ode.solve(decay, one, t, event=SteadyState())
    with pytest.raises(ValueError, match="leave adjoint out. Received: adjoint='direct'"):
        keras_ode.solve(decay, one, INFINITY, event=SteadyState(), adjoint="direct")
    with pytest.raises(ValueError, match="cannot be combined with jump_times"):
        keras_ode.solve(decay, one, INFINITY, event=SteadyState(), jump_times=[1.0])
    with pytest.raises(TypeError, match="or a keras_ode.SteadyState alone. Received"):
        keras_ode.solve(decay, one, [0.0, 1.0], event=[SteadyState(), keras_ode.Event(lambda y: y[0])])
    with pytest.raises(ValueError, match="rtol must be a number that is not negative, or None. Received: rtol=-1"):
        SteadyState(rtol=-1)
    with pytest.raises(ValueError, match="must not both be zero"):
        SteadyState(0, 0)


@pytest.mark.slow
def test_steady_state_of_a_stiff_equation_is_found_and_differentiated_by_an_implicit_solver():
    """`y = (a, a^2)`, where the second component follows the first three thousand times as fast."""
    a = tf.Variable(2.0, dtype="float64")
    with tf.GradientTape() as tape:
        solution = keras_ode.solve(
            lambda t, y: tf.stack([a - y[0], 3000 * (y[0] ** 2 - y[1])]),
            tf.zeros([2], tf.float64),
            [0.0, np.inf],
            event=keras_ode.SteadyState(),
            solver="rodas5p",
            rtol=1e-8,
            atol=1e-8,
            jit_compile=False,
        )
        total = tf.reduce_sum(solution.event_state)
    np.testing.assert_allclose(solution.event_state, [2, 4], rtol=1e-6)
    assert int(solution.stats["num_steps"]) < 300
    np.testing.assert_allclose(tape.gradient(total, a), 1 + 2 * 2, rtol=1e-6)
