"""What `solve` promises: accuracy, the same numbers everywhere, and answers to bad input."""

import dataclasses
import functools
import itertools

import hypothesis
import hypothesis.strategies as st
import keras
import numpy as np
import pytest
import scipy.linalg
import tensorflow as tf

import keras_ode
from keras_ode import Status
from keras_ode.adjoints import ADJOINTS
from keras_ode.controllers import CONTROLLERS
from keras_ode.solvers import SOLVERS
from tests.gradients import quick
from tests.marks import graded, nightly, slow
from tests.references import EXPLICIT, LIKE_OTHERS, MATRIX, START, Clocked, Counting, cosine, lotka_volterra, solved_by_scipy

CONSTANT = {"controller": "constant", "step_size": 0.1}

ONE = tf.constant([1.0], tf.float64)
# Whatever closes over the same variable is traced once for all tests.
clocked = functools.cache(Clocked)
counting = functools.cache(Counting)
# One that counts and sees times, for what is claimed of every solver.
SEES_TIMES = Clocked(cosine)
COUNTS_AND_SEES_TIMES = Counting(SEES_TIMES)


def solve(dynamics, y0, t, **options):
    """`keras_ode.solve` without XLA, which compiles for seconds and is the claim of few tests."""
    return keras_ode.solve(dynamics, y0, t, **{"jit_compile": False, **options})


def decay(t, y):
    return -y


def eager(function):
    return function


# Eager code runs the graph that a graph holds.
MODES = [eager, slow(tf.function), tf.function(jit_compile=True)], ["eager", "graph", "compiled"]


# Accuracy


# The shortest steps' errors stay well above rounding.
STEPS = {1: [1 / 64, 1 / 128], 2: [1 / 32, 1 / 64], 3: [1 / 32, 1 / 64], 4: [1 / 16, 1 / 32], 5: [1 / 16, 1 / 32], 7: [1 / 4, 1 / 8], 8: [1 / 2, 1 / 4], 9: [1 / 2, 1 / 4]}
# Ends of steps, and times between them.
ENDS, INSIDE = np.linspace(0.5, 4, 8), np.linspace(0, 4, 42)[1:-1]


# The tables of all are checked in exact arithmetic, in tests/solvers.
@pytest.fixture(scope="module", params=[slow(name) if name in LIKE_OTHERS else name for name in EXPLICIT])
def convergence(request):
    """The solver, and the orders with which errors fall at the ends of steps and inside them."""
    solver = keras_ode.solvers.get(request.param)
    times = np.union1d([0.0], np.union1d(ENDS, INSIDE))
    errors = []
    for step_size in STEPS[solver.order]:
        ys = solve(cosine, ONE, times, solver=solver, controller="constant", step_size=step_size).ys[:, 0]
        error = np.abs(ys - np.exp(np.sin(times)))
        errors.append([error[np.isin(times, some)].max() for some in (ENDS, INSIDE)])
    return solver, *np.log2(np.array(errors[0]) / errors[1])


def test_error_falls_with_the_order_of_the_solver(convergence):
    solver, slope, _ = convergence
    assert slope > solver.order - 0.2


def test_error_of_states_saved_inside_steps_falls_with_the_order_of_the_interpolant(convergence):
    solver, _, inner_slope = convergence
    # Within one step the interpolant adds an error one order higher than its own.
    assert inner_slope > min(solver.order, solver.interpolant.order + 1) - 0.2


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-9])
@pytest.mark.parametrize("solver", [slow("bosh3"), slow("dopri5"), "tsit5", "dopri8"])
def test_errors_stay_within_ten_times_the_tolerance(solver, tolerance):
    t = np.linspace(0, 5, 8)
    expected = np.exp(np.sin(t))
    ys = solve(cosine, ONE, t, solver=solver, rtol=tolerance, atol=tolerance, max_steps=20_000).ys[:, 0]
    assert np.all(np.abs(ys - expected) < 10 * tolerance * (1 + expected))
    assert np.abs(ys - expected)[-1] < 10 * tolerance


def test_steps_tried_on_lotka_volterra_are_few():
    stats = solve(lotka_volterra, tf.ones([2], tf.float64), [0.0, 10.0], solver="tsit5", rtol=1e-6, atol=1e-6).stats
    assert int(stats["num_steps"]) <= 105  # diffrax takes 104


def kepler(t, y, concatenate=tf.concat):
    x, v = y[:2], y[2:]
    return concatenate([v, -x / (x[0] ** 2 + x[1] ** 2) ** 1.5], 0)


def van_der_pol(t, y, concatenate=tf.concat):
    return concatenate([y[1:], 5 * (1 - y[:1] ** 2) * y[1:] - y[:1]], 0)


@pytest.mark.parametrize("solver, theirs", [("bosh3", "RK23"), ("dopri5", "RK45")])
@pytest.mark.parametrize("field, y0, end", [slow(kepler, [0.4, 0.0, 0.0, 2.0], 10.0), (van_der_pol, [2.0, 0.0], 15.0)])
def test_steps_are_those_of_scipy(field, y0, end, solver, theirs):
    """SciPy has the same methods, error estimate, first step and controller."""
    solution = solve(lambda t, y: field(t, y), tf.constant(y0, tf.float64), [0.0, end], solver=solver, rtol=1e-6, atol=1e-6)
    expected = scipy.integrate.solve_ivp(lambda t, y: field(t, y, np.concatenate), (0, end), y0, theirs, rtol=1e-6, atol=1e-6)
    assert int(solution.stats["num_accepted"]) == len(expected.t) - 1
    # The last step of ours may be longer by a thousandth.
    np.testing.assert_allclose(solution.ys[-1], expected.y[:, -1], rtol=0, atol=1e-7)


def test_solution_of_lotka_volterra_is_that_of_scipy():
    t = np.linspace(0, 10, 7)
    ys = solve(lotka_volterra, tf.ones([2], tf.float64), t, rtol=1e-9, atol=1e-9).ys
    expected = solved_by_scipy(lambda t, y: np.array([1.5 * y[0] - y[0] * y[1], y[0] * y[1] - 3 * y[1]]), np.ones(2), t)
    # The equations amplify the errors of steps by a factor of some ten.
    np.testing.assert_allclose(ys, expected, atol=1e-7)


@pytest.mark.parametrize("t", [[0.5, 0.0, -3.0], slow([0.5, -1.0, -2.0, -3.0])])
@pytest.mark.parametrize("options", [{"rtol": 1e-8, "atol": 1e-8}, {"solver": "rk4", "step_size": 0.01}])
def test_solve_goes_backward_in_time(t, options):
    ys = solve(cosine, ONE, t, **options).ys[:, 0]
    np.testing.assert_allclose(ys, np.exp(np.sin(t) - np.sin(0.5)), rtol=1e-7)


def test_there_and_back_is_the_start():
    options = {"rtol": 1e-10, "atol": 1e-10}
    there = solve(lotka_volterra, tf.ones([2], tf.float64), [0.0, 3.0], **options).ys[-1]
    back = solve(lotka_volterra, there, [3.0, 0.0], **options).ys[-1]
    np.testing.assert_allclose(back, [1, 1], atol=1e-8)


def test_solution_of_a_linear_system_is_the_matrix_exponential():
    t = np.array([0.0, 0.4, 3.0])
    ys = solve(lambda t, y: tf.linalg.matvec(tf.constant(MATRIX), y), tf.constant(START), t, rtol=1e-10, atol=1e-10).ys
    np.testing.assert_allclose(ys, [scipy.linalg.expm(MATRIX * time) @ START for time in t], atol=1e-9)


def test_saved_states_do_not_change_the_steps():
    few, many = (solve(cosine, ONE, np.linspace(0, 5, n)) for n in (2, 8))
    assert int(few.stats["num_steps"]) == int(many.stats["num_steps"])
    np.testing.assert_array_equal(few.ys[-1], many.ys[-1])


def test_first_saved_state_is_the_start_exactly():
    np.testing.assert_array_equal(solve(cosine, ONE, [0.0, 0.3, 1.0]).ys[0], ONE)


@pytest.mark.parametrize("t", [[1e6, 1e6 + 2], [1e6, 1e6 + 0.5, 1e6 + 2], [1e6, 1e6 - 2]], ids=["two", "three", "backward"])
def test_float32_solve_from_a_million_is_as_accurate_as_from_zero(t):
    solution = solve(decay, tf.constant([1.0]), t, rtol=1e-5)
    assert int(solution.stats["num_steps"]) < 30
    np.testing.assert_allclose(solution.ys[:, 0], np.exp(t[0] - np.array(t)), rtol=1e-4)


@pytest.mark.parametrize("start", [0.0, 1e6])
def test_many_float32_steps_add_up_without_drift(start):
    """A plain float32 sum of three thousand steps of 1e-3 falls short by more than one, and from a million none moves."""
    solution = solve(decay, tf.constant([1.0]), [start, start + 3], solver="rk4", step_size=1e-3)
    assert int(solution.stats["num_steps"]) == 3000
    # Three thousand roundings of the state, at random.
    assert float(solution.ys[-1, 0]) == pytest.approx(np.exp(-3), rel=1e-5)


# In seconds: a year and a month, and a date of today. Single precision resolves 4 and 128 seconds there.
LATE = [390 * 86400.0, 1.7e9]


@pytest.mark.parametrize(
    "how, start",
    [(eager, LATE[0]), (eager, LATE[1]), slow(tf.function, LATE[0]), slow(tf.function(jit_compile=True), LATE[1])],
    ids=["eager-month", "eager-date", "graph-month", "compiled-date"],
)
def test_times_are_subtracted_before_they_are_rounded(how, start):
    t = start + np.array([0.0, 60.0, 75.0, 150.0])
    ys = how(lambda: solve(lambda t, y: -y / 100, tf.constant([1.0]), t, rtol=1e-5).ys)()
    np.testing.assert_allclose(ys[:, 0], np.exp((start - t) / 100), rtol=1e-4)


@pytest.mark.parametrize("adjoint", quick("direct"))
def test_gradients_by_late_times_are_those_of_the_closed_form(adjoint):
    t = tf.constant(LATE[1] + np.array([0.0, 60.0, 150.0]))  # double precision
    with tf.GradientTape() as tape:
        tape.watch(t)
        ys = solve(lambda t, y: -y / 100, tf.constant([1.0]), t, adjoint=adjoint, rtol=1e-5).ys
        loss = ys[1, 0] + 2 * ys[2, 0]
    of_later = -np.exp([-0.6, -1.5]) * [1, 2] / 100
    np.testing.assert_allclose(tape.gradient(loss, t), [-sum(of_later), *of_later], rtol=1e-3)


def test_late_times_of_rows_are_their_own():
    t = LATE[1] + np.array([[0.0, 60.0, 150.0], [7.0, -53.0, -143.0]])
    ys = solve(lambda t, y: -y / 100, tf.ones([2, 1]), t, per_sample=True, rtol=1e-5).ys
    np.testing.assert_allclose(ys[:, :, 0], np.exp((t[:, :1] - t) / 100).T, rtol=1e-4)


def test_dynamics_sees_late_times_rounded():
    seen = Clocked(lambda t, y: -y / 100, "float32")
    solve(seen, tf.constant([1.0]), [LATE[1], LATE[1] + 150.0])
    assert seen.take() == (LATE[1], LATE[1] + 128)


@pytest.mark.parametrize("make", [lambda t: t, tf.constant], ids=["numbers", "tensor"])
def test_dense_output_of_late_times_is_that_of_the_closed_form(make):
    t = LATE[1] + np.array([0.0, 60.0, 75.0, 150.0])
    solution = solve(lambda t, y: -y / 100, tf.constant([1.0]), t[[0, -1]], dense=True, max_steps=64, rtol=1e-5)
    np.testing.assert_allclose(solution.evaluate(make(t))[:, 0], np.exp((t[0] - t) / 100), rtol=1e-4)
    np.testing.assert_allclose(solution.derivative(make(t))[:, 0], -np.exp((t[0] - t) / 100) / 100, rtol=1e-2)
    assert np.isnan(solution.evaluate(LATE[1] + 151.0)).all()


def solve_in_segments(kind, t):
    options = {"jump_times": t[:1] + 75.0} if kind == "jumps" else {"event": keras_ode.Event(lambda y: y[0] - 0.5)}
    return solve(decay, tf.constant([1.0]), t, **options).ys


@pytest.fixture(scope="module", params=["jumps", slow("event")])
def kind_of_segments(request):
    """The kind, and a solve of it in a graph, traced once, where times are known when it runs."""
    return request.param, tf.function(lambda t: solve_in_segments(request.param, t))


@pytest.mark.parametrize("start", LATE)
def test_late_times_that_rounding_would_change_are_refused_with_jumps_and_events(kind_of_segments, start):
    kind, in_graph = kind_of_segments
    t = start + np.array([0.0, 60.0, 150.0])
    with pytest.raises(ValueError, match="(?s)rounded to float32.*float64.*60"):
        solve_in_segments(kind, t)
    assert np.isnan(in_graph(tf.constant(t))[1:]).all()


END, KERAS_END, CONSTANT_TIMES = tf.Variable(1.5), keras.Variable(1.5), tf.constant([0.0, 1.5])
OF_TIMES = {
    "a variable": (lambda: [0.0, END], END, -np.exp(-1.5)),
    "a nested list": (lambda: [[0.0, END], [0.5, END]], END, -np.exp(-1.5) - np.exp(-1.0)),
    "what is made of a variable": (lambda: (0, END / 2), END, -np.exp(-0.75) / 2),
    "a Keras variable": (lambda: [0.0, KERAS_END], KERAS_END.value, -np.exp(-1.5)),
    "numbers of double precision": (lambda: [0.1, END], END, -np.exp(-1.4)),
    "one variable": (lambda: END, END, -np.exp(-1.5)),
    "a constant": (lambda: CONSTANT_TIMES, CONSTANT_TIMES, [np.exp(-1.5), -np.exp(-1.5)]),
}


@pytest.mark.parametrize(
    "kind, how", [*((kind, eager) for kind in OF_TIMES), slow("a variable", tf.function), slow("a constant", tf.function)]
)
def test_gradient_reaches_times_whatever_they_are_made_of(kind, how):
    make, source, expected = OF_TIMES[kind]
    y0 = tf.ones([2, 1]) if kind == "a nested list" else tf.ones([1])

    @how
    def gradient():
        with tf.GradientTape() as tape:
            tape.watch(CONSTANT_TIMES)
            options = {"per_sample": y0.shape.rank == 2, "adjoint": "direct", "max_steps": 64}
            loss = tf.reduce_sum(solve(decay, y0, make(), rtol=1e-5, **options).ys[-1])
        return tape.gradient(loss, source)

    np.testing.assert_allclose(gradient(), expected, rtol=1e-4)


@pytest.mark.parametrize("adjoint", quick("direct"))
def test_saved_time_at_the_end_of_a_step_moves_its_state(adjoint):
    t = tf.constant([0.0, 1.0, 2.0, 3.0])
    with tf.GradientTape() as tape:
        tape.watch(t)
        solution = solve(lambda t, y: 2 + 0 * y, tf.ones([1]), t, solver="euler", step_size=1.0, adjoint=adjoint)
        loss = solution.ys[2, 0]
    np.testing.assert_allclose(tape.gradient(loss, t), [-2, 0, 2, 0], atol=1e-6)


@pytest.mark.parametrize("t", [1.5, tf.constant(1.5), np.float64(1.5)], ids=["number", "tensor", "NumPy"])
def test_one_time_is_the_end_of_a_solve_from_zero(t):
    solution = solve(decay, ONE, t)
    np.testing.assert_array_equal(solution.ts, [0, 1.5])
    np.testing.assert_allclose(solution.ys[-1], [np.exp(-1.5)], rtol=1e-3)


@pytest.mark.parametrize(
    "adjoint, how",
    [
        *(slow(adjoint, eager) for adjoint in ("backsolve", "interpolating")),
        *(slow(adjoint, tf.function) for adjoint in ("interpolating", "checkpointed")),
        ("direct", eager),
    ],
    ids=["backsolve-eager", "interpolating-eager", "interpolating-graph", "checkpointed-graph", "direct-eager"],
)
def test_solve_over_no_time_is_the_start_and_moves_with_its_times(adjoint, how):
    t, rate = tf.constant([2.0, 2.0], tf.float64), tf.Variable(3.0, dtype=tf.float64)

    @how
    def gradients(t, y0):
        with tf.GradientTape() as tape:
            tape.watch([t, y0])
            solution = solve(lambda y: -rate * y, y0, t, adjoint=adjoint)
            loss = 5 * solution.ys[-1, 0]
        return solution.ys, solution.status, tape.gradient(loss, [t, y0, rate])

    ys, status, (of_t, of_y, of_rate) = gradients(t, ONE)
    np.testing.assert_array_equal(ys, [[1], [1]])
    assert int(status) == Status.SUCCESS
    np.testing.assert_allclose(of_t, [15, -15])
    np.testing.assert_allclose([of_y[0], of_rate], [5, 0])


@pytest.mark.parametrize("t", [[2.0], tf.constant([2.0])], ids=["list", "tensor"])
def test_one_time_in_a_list_is_the_start_alone(t):
    start = tf.constant([1.0, 2.0])
    with tf.GradientTape() as tape:
        tape.watch(start)
        solution = solve(decay, start, t, adjoint="direct", max_steps=64)
    np.testing.assert_array_equal(solution.ys, [[1, 2]])
    np.testing.assert_array_equal(solution.ts, [2])
    np.testing.assert_array_equal(tape.gradient(solution.ys, start), [1, 1])


@pytest.mark.parametrize("dtype, duration", [("float32", 1e12), ("float64", 1e30), ("float32", 1e-12)])
@pytest.mark.parametrize("start", [0.0, 1.0])
def test_slow_and_fast_dynamics_are_solved_in_few_steps(dtype, duration, start):
    solution = solve(lambda t, y: (0.5 - y) / duration, tf.constant([start], dtype), [0.0, duration])
    np.testing.assert_allclose(solution.ys[-1], [0.5 + (start - 0.5) * np.exp(-1)], rtol=2e-3)
    assert int(solution.stats["num_steps"]) < 15


@pytest.mark.parametrize("shape", [[], slow([3]), [2, 3, 4], [0, 2]])
def test_state_may_have_any_shape(shape):
    solution = solve(decay, tf.ones(shape), [0.0, 0.5, 1.0])
    assert solution.ys.shape == [3, *shape]
    np.testing.assert_allclose(solution.ys[-1], np.full(shape, np.exp(-1)), rtol=1e-3)


# q' = p, p' = -q from (1, 0) is (cos t, -sin t).
ROTATIONS = {
    "dict": ({"q": tf.ones([2], tf.float64), "p": tf.zeros([2], tf.float64)}, lambda t, y: {"q": y["p"], "p": -y["q"]}),
    "tuple": ((tf.ones([2], tf.float64), tf.zeros([2], tf.float64)), lambda t, y: (y[1], -y[0])),
    "list": ([tf.ones([2], tf.float64), tf.zeros([2], tf.float64)], lambda t, y: [y[1], -y[0]]),
    "nested": (
        {"a": (tf.ones([2], tf.float64), {"b": tf.zeros([2], tf.float64)})},
        lambda t, y: {"a": (y["a"][1]["b"], {"b": -y["a"][0]})},
    ),
}


@pytest.mark.parametrize("nest", [slow("dict"), slow("tuple"), "list", "nested"])  # the last is of dicts and a tuple
def test_state_may_be_a_nest(nest):
    y0, dynamics = ROTATIONS[nest]
    ys = solve(dynamics, y0, [0.0, 0.5, 1.0], rtol=1e-9, atol=1e-9).ys
    tf.nest.assert_same_structure(ys, y0)
    leaves = tf.nest.flatten(ys)
    expected = [np.cos([0.0, 0.5, 1.0]), -np.sin([0.0, 0.5, 1.0])]
    for leaf, value in zip(leaves, expected[::-1] if nest == "dict" else expected, strict=True):
        np.testing.assert_allclose(leaf, np.stack([value] * 2, axis=1), atol=1e-8)


def test_leaves_may_differ_in_dtype():
    y0 = {"single": tf.constant([1.0]), "double": tf.constant([2.0], tf.float64)}
    ys = solve(lambda t, y: tf.nest.map_structure(tf.negative, y), y0, [0.0, 0.4, 1.0], rtol=1e-6, atol=1e-6).ys
    assert (ys["single"].dtype, ys["double"].dtype) == (tf.float32, tf.float64)
    np.testing.assert_allclose(ys["single"][:, 0], np.exp([0, -0.4, -1]), rtol=1e-5)
    np.testing.assert_allclose(ys["double"][:, 0], 2 * np.exp([0, -0.4, -1]), rtol=1e-5)


def test_error_is_controlled_in_every_leaf():
    """A leaf that moves fast is resolved beside a large one that does not."""
    y0 = {"still": tf.ones([3], tf.float64), "fast": tf.constant([1.0, 0.0], tf.float64)}
    ys = solve(
        lambda t, y: {"still": tf.zeros_like(y["still"]), "fast": 20 * tf.stack([y["fast"][1], -y["fast"][0]])},
        y0,
        [0.0, 1.0],
        rtol=1e-7,
        atol=1e-7,
    ).ys
    np.testing.assert_allclose(ys["fast"][-1], [np.cos(20), -np.sin(20)], atol=1e-5)


# The same numbers everywhere


TWO_TIMES, FOUR_TIMES = [0.0, 3.0], [0.0, 1.0, 1.5, 3.0]


@pytest.mark.parametrize(
    "how, jit_compile, t",
    [
        (tf.function, False, TWO_TIMES),
        slow(tf.function, True, FOUR_TIMES),
        (tf.function(jit_compile=True), False, FOUR_TIMES),
        slow(eager, True, TWO_TIMES),  # the solvers of the next test are compiled in eager code
        (eager, "auto", FOUR_TIMES),
    ],
    ids=["graph", "graph, solve compiled", "compiled", "eager, solve compiled", "eager, auto"],
)
def test_numbers_are_those_of_eager_code(how, jit_compile, t):
    @how
    def run(y0):
        return solve(lotka_volterra, y0, t, jit_compile=jit_compile, rtol=1e-6)

    found, expected = run(tf.ones([2], tf.float64)), solve(lotka_volterra, tf.ones([2], tf.float64), t, rtol=1e-6)
    # Rounding: XLA fuses and reorders, and what that changes in an error estimate moves a step by as little.
    np.testing.assert_allclose(found.ys, expected.ys, rtol=1e-12)
    assert tf.nest.map_structure(int, found.stats) == tf.nest.map_structure(int, expected.stats)


@pytest.mark.parametrize("solver", ["euler", slow("bosh3"), slow("dopri8")])
def test_every_kind_of_solver_compiles(solver):
    options = {"solver": solver, "step_size": 0.1}
    found, expected = (solve(cosine, ONE, [0.0, 0.25, 1.0], jit_compile=jit, **options) for jit in (True, False))
    np.testing.assert_allclose(found.ys, expected.ys, rtol=1e-13)


def test_odeint_gives_the_states_of_solve():
    y0 = {"a": ONE}
    dynamics = lambda t, y: {"a": y["a"] * tf.cos(t)}
    ys = keras_ode.odeint(dynamics, y0, [0.0, 1.0], solver="bosh3", jit_compile=False)
    np.testing.assert_array_equal(ys["a"], solve(dynamics, y0, [0.0, 1.0], solver="bosh3").ys["a"])


# Times


@pytest.mark.parametrize("solver", graded(EXPLICIT, quick=["midpoint", "tsit5", "vern9"]))
@pytest.mark.parametrize("t", [[0.1, 0.3, 0.7], [0.7, 0.3, 0.1]], ids=["forward", "backward"])
def test_dynamics_is_never_called_outside_the_interval(solver, t):
    SEES_TIMES.take()
    solve(COUNTS_AND_SEES_TIMES, ONE, t, solver=solver, step_size=0.17 if SOLVERS[solver].error_order is None else None)
    assert SEES_TIMES.take() == (0.1, 0.7)


@hypothesis.settings(max_examples=12, deadline=None)
@hypothesis.given(
    start=st.floats(-100, 100, width=32, allow_subnormal=False), length=st.floats(1e-3, 20), forward=st.booleans(), rtol=st.sampled_from([1e-1, 1e-3, 1e-5])
)
@pytest.mark.parametrize("dtype", ["float32", slow("float64")])
def test_dynamics_sees_both_ends_exactly_and_nothing_beyond(dtype, start, length, forward, rtol):
    start, end = (np.dtype(dtype).type(x) for x in (start, start + length))
    dynamics = clocked(decay, dtype)
    solve(dynamics, tf.ones([1], dtype), [start, end] if forward else [end, start], rtol=rtol, atol=1e-3)
    assert dynamics.take() == (start, end)


def test_probe_for_the_first_step_stays_inside_too():
    start, end = 0.24, 2.94
    assert start + (end - start) > end  # by rounding
    dynamics = Clocked(lambda t, y: 1e-3 * y)  # so slow that the probe reaches the end
    solve(dynamics, ONE, [start, end])
    assert dynamics.take() == (start, end)


@pytest.mark.slow
def test_gradient_calls_the_dynamics_inside_the_interval_only():
    dynamics = Clocked(cosine)
    with tf.GradientTape() as tape:
        tape.watch(ONE)
        loss = tf.reduce_sum(solve(dynamics, ONE, [0.1, 0.3, 0.7], solver="bosh3").ys)
    tape.gradient(loss, ONE)
    assert dynamics.take() == (0.1, 0.7)


def test_field_that_is_undefined_beyond_the_end_can_be_solved_up_to_it():
    # y' = sqrt(1 - t) is NaN after t = 1.
    y = solve(lambda t, y: tf.sqrt(1 - t) * tf.ones_like(y), 0 * ONE, [0.0, 1.0], rtol=1e-6, atol=1e-6).ys[-1]
    np.testing.assert_allclose(y, [2 / 3], rtol=1e-5)


def test_times_are_returned_in_the_dtype_of_the_state():
    solution = solve(decay, tf.constant([1.0]), np.array([0, 1, 2]))
    assert solution.ts.dtype == tf.float32
    np.testing.assert_array_equal(solution.ts, [0, 1, 2])


@pytest.mark.slow
def test_number_of_times_may_be_unknown_when_the_graph_is_made():
    """In its gradient too, by the start and by the times."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float64)])
    def run(t):
        with tf.GradientTape() as tape:
            tape.watch([ONE, t])
            ys = solve(cosine, ONE, t, rtol=1e-8, atol=1e-8).ys[:, 0]
            end = ys[-1]
        return ys, *tape.gradient(end, [ONE, t])

    for t in ([0.0, 1.0], [0.0, 0.5, 1.0, 2.0]):
        ys, by_start, by_times = run(t)
        end = np.exp(np.sin(t[-1]))
        np.testing.assert_allclose(ys, np.exp(np.sin(t)), rtol=1e-7)
        np.testing.assert_allclose(by_start, [end], rtol=1e-6)
        np.testing.assert_allclose(by_times, [-end, *[0] * (len(t) - 2), np.cos(t[-1]) * end], rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_one_time_is_one_state_if_their_number_is_unknown_when_the_graph_is_made():
    run = tf.function(lambda t: solve(decay, ONE, t, solver="bosh3"), input_signature=[tf.TensorSpec([None], tf.float64)])
    for t in ([0.5], [0.5, 1.0]):
        solution = run(t)
        np.testing.assert_array_equal(solution.ts, t)
        np.testing.assert_allclose(solution.ys[:, 0], np.exp(0.5 - np.array(t)), rtol=1e-2)


@pytest.fixture(scope="module", params=[slow(True), False], ids=["compiled", "graph"])
def solve_at(request):
    """A solve whose three times are not known when it is traced."""
    return tf.function(
        lambda t: solve(cosine, ONE, t, rtol=1e-8, atol=1e-8),
        input_signature=[tf.TensorSpec([3], tf.float64)],
        jit_compile=request.param,
    )


def test_times_may_be_unknown_when_the_graph_is_made(solve_at):
    for t in ([0.0, 1.0, 2.0], [2.0, -0.5, -1.0]):
        np.testing.assert_allclose(solve_at(t).ys[:, 0], np.exp(np.sin(t) - np.sin(t[0])), rtol=1e-7)


@pytest.mark.parametrize("t", [[0.0, 2.0, 1.0], [0.0, 1.0, 1.0], [0.0, np.nan, 1.0], [0.0, 1.0, np.nan]])
def test_bad_times_that_only_the_graph_sees_give_nan(t, solve_at):
    solution = solve_at(t)
    assert int(solution.status) != Status.SUCCESS
    assert np.isnan(solution.ys[1:]).all()


def test_batch_may_be_unknown_when_the_graph_is_made():
    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float64)])
    def run(y0):
        return solve(decay, y0, [0.0, 0.5, 1.0], rtol=1e-8, atol=1e-8).ys

    for rows in (1, 3):
        np.testing.assert_allclose(run(tf.ones([rows, 2], tf.float64))[-1], np.full([rows, 2], np.exp(-1)), rtol=1e-7)


# Counting


@pytest.mark.parametrize("solver, number", [*((solver, 3) for solver in EXPLICIT), ("tsit5", 2), slow("dopri8", 2)])
def test_num_evaluations_is_the_number_of_calls(solver, number):
    COUNTS_AND_SEES_TIMES.take()
    step_size = 0.01 if SOLVERS[solver].error_order is None else None
    solution = solve(COUNTS_AND_SEES_TIMES, ONE, np.linspace(0, 3, number), solver=solver, step_size=step_size)
    assert int(solution.stats["num_evaluations"]) == COUNTS_AND_SEES_TIMES.take() > 10


def test_num_evaluations_counts_those_of_rejected_steps():
    dynamics = counting(lotka_volterra)
    dynamics.take()
    stats = solve(dynamics, tf.ones([2], tf.float64), [0.0, 3.0], step_size=3.0).stats
    assert int(stats["num_rejected"]) > 0
    assert int(stats["num_evaluations"]) == dynamics.take()


def test_accepted_and_rejected_steps_are_all_steps():
    stats = solve(counting(lotka_volterra), tf.ones([2], tf.float64), [0.0, 10.0], step_size=3.0).stats
    stats = tf.nest.map_structure(int, stats)
    # First same as last: one evaluation to start, six a step; a first step that is given costs nothing.
    assert stats["num_evaluations"] == 1 + 6 * stats["num_steps"]
    assert stats["num_steps"] == stats["num_accepted"] + stats["num_rejected"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("step_size, number", [(0.1, 10), (0.3, 4), (1 / 3, 3), (0.001, 1000), (1.0, 1), (7.0, 1)])
def test_constant_steps_are_counted_and_the_last_one_lands(dtype, step_size, number):
    dynamics = clocked(decay, dtype)
    solution = solve(dynamics, tf.ones([1], dtype), [0.0, 1.0], solver="euler", step_size=step_size)
    assert int(solution.stats["num_steps"]) == number
    assert dynamics.take() == (0, 1)
    expected = (1 - step_size) ** (number - 1) * (1 - (1 - step_size * (number - 1)))  # Euler's own
    assert float(solution.ys[-1, 0]) == pytest.approx(expected if number > 1 else 0, rel=1e-4, abs=1e-7)


def test_constant_controller_holds_the_steps_of_an_adaptive_solver():
    stats = solve(lotka_volterra, tf.ones([2], tf.float64), [0.0, 10.0], solver="tsit5", **CONSTANT).stats
    assert (int(stats["num_steps"]), int(stats["num_rejected"])) == (100, 0)


def test_step_size_is_the_first_step_of_an_adaptive_solve():
    # A linear solution: the first step of 0.01 succeeds, and the next is ten times as long, and so on to 1.11.
    solution = solve(lambda t, y: tf.ones_like(y), ONE, [0.0, 1.11], step_size=0.01)
    assert int(solution.stats["num_steps"]) == 3


# Closures and arguments


def test_solution_can_be_returned_from_a_graph():
    @tf.function
    def run(y0):
        return solve(decay, y0, [0.0, 1.0])

    solution = run(tf.constant([1.0]))
    assert isinstance(solution, keras_ode.Solution)
    assert int(solution.status) == Status.SUCCESS
    counts = {"num_steps", "num_accepted", "num_rejected", "num_evaluations"}
    assert set(solution.stats) == counts | {"stiffness"}


def test_args_reach_the_dynamics():
    args = (tf.constant(0.5, tf.float64), {"b": 0.5 * ONE})
    ys = solve(lambda t, y, k, b: -k * y + b["b"], 2 * ONE, [0.0, 2.0], args=args, rtol=1e-8, atol=1e-8).ys
    np.testing.assert_allclose(ys[-1], [1 + np.exp(-1)], rtol=1e-7)


@pytest.mark.parametrize("dtype", ["float32", slow("float64")])
def test_python_numbers_in_args_take_the_dtype_of_the_state(dtype):
    ys = solve(lambda t, y, k: -k * y, tf.ones([1], dtype), [0.0, 2.0], args=(0.5,), rtol=1e-6).ys
    np.testing.assert_allclose(ys[-1], [np.exp(-1)], rtol=1e-5)


def test_changed_args_are_seen():
    dynamics = lambda t, y, k: -k * y
    ends = [solve(dynamics, ONE, [0.0, 1.0], args=(tf.constant(k, tf.float64),), rtol=1e-6).ys[-1, 0] for k in (1, 2)]
    np.testing.assert_allclose(ends, np.exp([-1, -2]), rtol=1e-5)


CHANGES = {
    "Python number": (lambda: [1.0], lambda box: box.__setitem__(0, 2.0), lambda box: box[0]),
    "tensor": (lambda: [tf.constant(1.0)], lambda box: box.__setitem__(0, tf.constant(2.0)), lambda box: box[0]),
    "variable": (lambda: tf.Variable(1.0), lambda v: v.assign(2.0), lambda v: v),
    "untrained variable": (lambda: tf.Variable(1.0, trainable=False), lambda v: v.assign(2.0), lambda v: v),
    "array": (lambda: np.array(1.0, "float32"), lambda a: a.__setitem__((), 2.0), lambda a: tf.constant(a)),
}


@pytest.mark.parametrize(
    "kind, jit_compile",
    [
        *((kind, False) if kind != "untrained variable" else slow(kind, False) for kind in CHANGES),
        ("Python number", True),
        *(slow(kind, True) for kind in ("variable", "tensor", "untrained variable", "array")),
    ],
)
def test_change_in_the_closure_between_eager_calls_is_seen(kind, jit_compile):
    make, change, read = CHANGES[kind]
    box = make()
    dynamics = lambda t, y: -read(box) * y
    first = solve(dynamics, tf.constant([1.0]), [0.0, 1.0], jit_compile=jit_compile).ys
    change(box)
    second = solve(dynamics, tf.constant([1.0]), [0.0, 1.0], jit_compile=jit_compile).ys
    np.testing.assert_allclose([first[-1, 0], second[-1, 0]], np.exp([-1, -2]), rtol=1e-3)


def test_large_constants_in_the_closure_are_told_apart():
    values = (np.full(5000, 1.0), np.concatenate([np.full(4999, 1.0), [2.0]]))
    ends = [
        solve(lambda t, y: -tf.constant(v) * y, tf.ones([5000], tf.float64), [0.0, 1.0], rtol=1e-7).ys[-1, -1] for v in values
    ]
    np.testing.assert_allclose(ends, np.exp([-1, -2]), rtol=1e-4)


def test_options_may_change_between_eager_calls():
    calls = [
        {"rtol": 1e-3},
        {"rtol": 1e-8, "atol": 1e-8},
        {"solver": "bosh3"},
        {"step_size": 0.5},
        {"max_steps": 100},
        {"solver": "euler", "step_size": 0.01},
        {"solver": "euler", "step_size": 0.1},
    ]
    counts = [int(solve(cosine, ONE, [0.0, 1.0], **options).stats["num_evaluations"]) for options in calls]
    assert counts[0] < counts[1]
    assert counts[-2:] == [101, 11]


# Failures


def field_of_nan(t, y):
    return y * np.nan


def late_nan(t, y):
    """NaN from t = 0.5 on."""
    return y * tf.sqrt(0.5 - t)


def explosion(t, y):
    """From 1, y = 1 / (1 - t)."""
    return y * y


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinite_field_ends_the_solve_within_a_hundred_tries(value):
    value = tf.constant([value], tf.float64)
    solution = solve(lambda t, y, value: value, ONE, [0.0, 1.0], args=(value,), on_failure="nan")
    assert int(solution.status) == Status.NON_FINITE
    assert int(solution.stats["num_steps"]) <= 100


@pytest.mark.parametrize("norm", ["rms", "max"])
def test_state_that_overflows_while_its_slopes_are_finite_is_no_solution(norm):
    """The error of such a step is zero, and its scale infinite. From 3e38 with this slope, float32 ends at t = 0.4."""
    y0, slope = tf.constant([0.0, 3e38]), tf.constant([0.0, 1e38])
    solution = solve(lambda t, y, slope: slope, y0, [0.0, 1.0], args=(slope,), norm=norm, on_failure="nan")
    assert int(solution.status) in (Status.NON_FINITE, Status.STEP_TOO_SMALL)
    assert np.isnan(solution.ys[-1]).all()


OF_STEPS = [{}, {"step_size": 0.1}, CONSTANT, {"solver": "euler", "step_size": 0.1}]


@pytest.mark.parametrize(
    "how, dtype, options",
    [
        (eager, "float32", OF_STEPS[0]),
        nightly(eager, "float64", OF_STEPS[1]),
        (eager, "float32", OF_STEPS[2]),
        (eager, "float64", OF_STEPS[3]),
        *(nightly(eager, dtype, options) for dtype, options in zip(["float64", "float32"] * 2, OF_STEPS, strict=True)),
        slow(tf.function, "float64", {}),
        *(nightly(tf.function, dtype, options) for dtype, options in zip(["float64", "float32", "float64"], OF_STEPS[1:], strict=True)),
        slow(tf.function(jit_compile=True), "float64", {}),
        slow(tf.function(jit_compile=True), "float32", CONSTANT),
    ],
)
def test_field_of_nan_ends_the_solve_within_a_hundred_tries(how, dtype, options):
    @how
    def run():
        return solve(field_of_nan, tf.ones([2], dtype), [0.0, 0.3, 1.0], on_failure="nan", **options)

    solution = run()
    assert int(solution.status) == Status.NON_FINITE
    assert int(solution.stats["num_steps"]) <= 100
    assert np.isnan(solution.ys[1:]).all()


@pytest.mark.parametrize("options", [{}, CONSTANT], ids=["adaptive", "constant"])
def test_field_that_becomes_nan_ends_the_solve_within_a_hundred_tries(options):
    solution = solve(late_nan, ONE, [0.0, 0.3, 1.0], on_failure="nan", **options)
    assert int(solution.status) == Status.NON_FINITE
    assert int(solution.stats["num_steps"]) <= 100
    assert np.isnan(solution.ys[-1]).all()


@pytest.mark.parametrize("start", [np.nan, np.inf])
def test_start_that_is_not_finite_ends_the_solve_within_a_hundred_tries(start):
    solution = solve(decay, start * ONE, [0.0, 1.0], on_failure="nan")
    assert int(solution.status) == Status.NON_FINITE
    assert int(solution.stats["num_steps"]) <= 100


@pytest.mark.parametrize("options", [{"on_failure": "raise"}, {"on_failure": "auto"}, {}])
def test_eager_failure_raises_an_error_with_status_time_and_step_size(options):
    with pytest.raises(keras_ode.SolveError) as raised:
        solve(late_nan, ONE, [0.0, 1.0], **options)
    error = raised.value
    assert error.status == Status.NON_FINITE
    assert error.time == pytest.approx(0.5, abs=1e-6)
    assert 0 < error.step_size < 1e-6


@pytest.mark.parametrize(
    "dynamics, options, words",
    [
        (field_of_nan, {}, "NaN or infinite.*in the dynamics .* was NaN before the solve, in 1 of 1 elements"),
        (decay, {"max_steps": 3, **CONSTANT}, "after 3 steps: max_steps=3 was reached.*raise max_steps"),
        (lambda t, y: y * tf.sign(0.5 - t) / tf.abs(0.5 - t), {}, "t = 0.5"),
    ],
    ids=["NaN", "max_steps", "pole"],
)
def test_error_says_where_why_and_what_to_do(dynamics, options, words):
    with pytest.raises(keras_ode.SolveError, match=f"(?s){words}"):
        solve(dynamics, ONE, [0.0, 1.0], **options)


@pytest.fixture(scope="module", params=MODES[0], ids=MODES[1])
def blown_up(request):
    """A solve that cannot reach its end."""
    return request.param(lambda: solve(explosion, ONE, [0.0, 0.5, 0.9, 1.1, 2.0], on_failure="nan", rtol=1e-8, atol=1e-8))()


def test_solve_stops_where_the_solution_blows_up(blown_up):
    assert int(blown_up.status) in (Status.STEP_TOO_SMALL, Status.NON_FINITE)
    assert np.isnan(blown_up.ys[-1]).all()


@pytest.mark.parametrize("tolerance", [1e-4, 1e-6, 1e-8])
@pytest.mark.parametrize("solver", graded(["dopri5", "tsit5", "dopri8"], quick=["tsit5"], slow_ones=["dopri8"]))
def test_rejected_step_of_a_few_ulps_is_not_tried_again_for_ever(solver, tolerance):
    """Near a blow-up steps shrink to the resolution of time; one that rounds to the same length is no new try."""
    solution = solve(explosion, ONE, [0.0, 2.0], solver=solver, rtol=tolerance, atol=tolerance, on_failure="nan")
    assert int(solution.status) in (Status.STEP_TOO_SMALL, Status.NON_FINITE)


def test_states_reached_before_the_failure_are_kept(blown_up):
    np.testing.assert_allclose(blown_up.ys[:, 0], [1, 2, 10, np.nan, np.nan], rtol=1e-5)


def test_time_of_a_blow_up_is_reported():
    with pytest.raises(keras_ode.SolveError) as raised:
        solve(explosion, ONE, [0.0, 2.0], rtol=1e-8, atol=1e-8)
    assert raised.value.time == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("how", [eager, slow(tf.function), slow(tf.function(jit_compile=True))], ids=MODES[1])
def test_solve_stops_at_max_steps(how):
    @how
    def run():
        return solve(decay, ONE, [0.0, 0.25, 1.0], max_steps=5, on_failure="nan", **CONSTANT)

    solution = run()
    assert int(solution.status) == Status.MAX_STEPS
    assert int(solution.stats["num_steps"]) == 5
    np.testing.assert_allclose(solution.ys[:, 0], [1, np.exp(-0.25), np.nan], rtol=1e-6)


def test_max_steps_that_are_just_enough_are_enough():
    assert int(solve(decay, ONE, [0.0, 1.0], max_steps=10, **CONSTANT).status) == Status.SUCCESS


def test_step_that_cannot_meet_the_tolerance_is_never_accepted():
    """A jump that no step resolves in float32: the solve ends and says so, or ends within the tolerance's reach."""
    solution = solve(
        lambda t, y: 1e12 * tf.cos(1e12 * t) * tf.ones_like(y), tf.zeros([1]), [0.0, 1.0], rtol=1e-6, on_failure="nan"
    )
    assert int(solution.status) in (Status.STEP_TOO_SMALL, Status.MAX_STEPS)


def test_failure_in_a_graph_gives_nan_by_default():
    ys = tf.function(lambda: solve(field_of_nan, ONE, [0.0, 1.0]).ys)()
    assert np.isnan(ys[-1]).all()


def test_raise_is_refused_in_a_graph():
    with pytest.raises(ValueError, match="on_failure='raise' works in eager code only"):
        tf.function(lambda: solve(decay, ONE, [0.0, 1.0], on_failure="raise"))()


# Bad arguments


BAD_TIMES = {
    "repeated": ([0.0, 1.0, 1.0], r"strictly.*\[0\.,? 1\.,? 1\.\]"),
    "turning": ([0.0, 2.0, 1.0], r"strictly.*\[0\.,? 2\.,? 1\.\]"),
    "none": ([], r"two or more.*\[\]"),
    "a matrix": ([[0.0, 1.0]], r"two or more.*\(1, 2\)"),
    "NaN": ([0.0, np.nan], "finite.*nan"),
    "infinite": ([0.0, np.inf], "finite.*inf"),
    "words": (["now", "then"], "now"),
    "nothing": (None, "None"),
    "complex": ([0.0, 1j], "1j|1.j|complex"),
}


@pytest.mark.parametrize("kind", BAD_TIMES)
def test_bad_times_are_refused_with_what_was_received(kind):
    t, words = BAD_TIMES[kind]
    with pytest.raises((ValueError, TypeError), match=f"(?s){words}"):
        solve(decay, ONE, t)


@pytest.mark.parametrize("kind", ["repeated", "turning", "NaN"])
def test_bad_times_that_are_tensors_are_refused_with_what_was_received(kind):
    t, words = BAD_TIMES[kind]
    with pytest.raises(ValueError, match=f"(?s){words}"):
        solve(decay, ONE, tf.constant(t))


@pytest.mark.parametrize("kind", ["repeated", "turning", "NaN"])
def test_bad_times_are_refused_while_a_graph_is_made(kind):
    t, words = BAD_TIMES[kind]
    with pytest.raises(ValueError, match=f"(?s){words}"):
        tf.function(lambda: solve(decay, ONE, t).ys)()


@pytest.mark.parametrize(
    "y0, words",
    [
        (tf.constant([1, 2]), "int32"),
        ([1, 2], "int32"),
        (tf.constant([1], tf.int64), "int64"),
        (tf.constant([1.0], tf.float16), "float16"),
        (tf.constant([True]), "bool"),
        ({"a": tf.constant([1.0]), "b": tf.constant([1])}, "int32"),
        ({}, r"\{\}"),
        ("one", "string|one"),
        (None, "None"),
    ],
    ids=str,
)
def test_bad_state_is_refused_with_what_was_received(y0, words):
    with pytest.raises((ValueError, TypeError), match=f"(?s){words}"):
        solve(lambda t, y: y, y0, [0.0, 1.0])


@dataclasses.dataclass
class Pair:
    first: float = 1.0


@pytest.mark.parametrize("y0", [None, tf.sparse.eye(2), tf.ragged.constant([[1.0], [1.0, 2.0]]), Pair(), [None]], ids=str)
def test_state_of_a_kind_that_is_no_tensor_is_refused_in_a_sentence(y0):
    with pytest.raises(TypeError, match="y0 must be a float or complex tensor, or a tuple, list or dict"):
        solve(decay, y0, [0.0, 1.0])


@pytest.mark.parametrize(
    "dynamics, words",
    [
        (lambda y: tf.sparse.from_dense(y), "must return dense tensors.*SparseTensor"),
        (lambda y: Pair(), "must return dense tensors.*Pair"),
        (lambda y: np.sin(y), r"passes a tensor to NumPy.*tf.sin\(y\) for np.sin\(y\)"),
    ],
)
def test_derivative_of_a_kind_that_is_no_tensor_is_refused_in_a_sentence(dynamics, words):
    with pytest.raises(TypeError, match=words):
        solve(dynamics, ONE, [0.0, 1.0])


@pytest.mark.parametrize("y0", [slow([1.0, 2.0]), [[1.0, 2.0], [3.0, 4.0]], [np.float64(1.0), 2.0]], ids=str)
def test_list_of_numbers_is_one_state(y0):
    ys = solve(decay, y0, [0.0, 1.0]).ys
    np.testing.assert_allclose(ys[-1], np.exp(-1) * np.array(y0), rtol=1e-3)


def test_lists_of_numbers_in_a_nest_are_its_leaves():
    ys = solve(lambda y: {"a": -y["a"], "b": (y["b"][0],)}, {"a": [1.0, 2.0], "b": (ONE,)}, [0.0, 1.0]).ys
    np.testing.assert_allclose(ys["a"][-1], np.exp(-1) * np.array([1, 2]), rtol=1e-3)


def test_list_of_rows_of_different_lengths_is_refused():
    with pytest.raises(ValueError, match=r"rows of one length.*\[\[1.0\], \[1.0, 2.0\]\]"):
        solve(decay, [[1.0], [1.0, 2.0]], [0.0, 1.0])


@pytest.mark.parametrize(
    "dynamics, words",
    [
        (lambda t, y: y[:1], r"shape.*\(2,\).*\(1,\)"),
        (lambda t, y: tf.stack([y, y]), r"shape.*\(2,\).*\(2, 2\)"),
        (lambda t, y: tf.reduce_sum(y), r"shape.*\(2,\).*\(\)"),
        (lambda t, y: tf.cast(y, tf.float64), "dtype.*float32.*float64"),
        (lambda t, y: tf.cast(y, tf.int32), "dtype.*float32.*int32"),
        (lambda t, y: (y, y), "nest.*float32"),
        (lambda t, y: {"y": y}, "nest.*'y'"),
        (lambda t, y: None, "None"),
    ],
)
def test_bad_output_of_the_dynamics_is_refused_with_what_was_received(dynamics, words):
    with pytest.raises((ValueError, TypeError), match=f"(?s)dynamics.*{words}"):
        solve(dynamics, tf.constant([1.0, 2.0]), [0.0, 1.0])


@pytest.mark.parametrize("y0", [{"a": ONE, "b": ONE}], ids=["dict"])
@pytest.mark.parametrize("output", [lambda y: {"a": y["a"]}, lambda y: (y["a"], y["b"]), lambda y: y["a"]])
def test_output_in_another_nest_than_the_state_is_refused(y0, output):
    with pytest.raises(ValueError, match="(?s)must return the nested structure of the state.*'a'.*'b'.*Received"):
        solve(lambda t, y: output(y), y0, [0.0, 1.0])


def no_arguments():
    return ONE


def three_arguments(t, y, k):
    return -k * y


@pytest.mark.parametrize(
    "dynamics, args, words",
    [
        (no_arguments, (), r"no_arguments.*f\(t, y\).*Received a function with the arguments \(\)"),
        (three_arguments, (), r"three_arguments.*\(t, y, k\)"),
        (decay, (ONE,), r"decay.*1 more.*\(t, y\)"),
        (three_arguments, (ONE, ONE), r"three_arguments.*2 more.*\(t, y, k\)"),
        (lambda *, y: y, (), r"must take the state.*\(y\)"),
    ],
)
def test_dynamics_with_wrong_arguments_is_refused_with_what_was_received(dynamics, args, words):
    with pytest.raises(TypeError, match=f"(?s){words}"):
        solve(dynamics, ONE, [0.0, 1.0], args=args)


@pytest.mark.parametrize("dynamics", [None, "decay", 3.0])
def test_dynamics_that_cannot_be_called_is_refused_with_what_was_received(dynamics):
    with pytest.raises(TypeError, match=f"Received: {dynamics!r}"):
        solve(dynamics, ONE, [0.0, 1.0])


NAMES = {"solver": SOLVERS, "adjoint": ADJOINTS, "controller": CONTROLLERS}


@pytest.mark.parametrize("value", ["rk45", 5, None])
@pytest.mark.parametrize("option", NAMES)
def test_unknown_name_is_refused_with_the_known_ones(option, value):
    if value is None and option != "solver":
        pytest.skip("None is the default.")
    with pytest.raises(ValueError) as raised:
        solve(decay, ONE, [0.0, 1.0], **{option: value})
    message = str(raised.value)
    assert f"{option}={value!r}" in message
    assert all(repr(name) in message for name in NAMES[option])


BAD_OPTIONS = [
    *itertools.product(["rtol", "atol"], [-1e-3, np.nan, np.inf, "small", None]),
    *itertools.product(["step_size"], [0, 0.0, -0.1, np.nan, np.inf, "small"]),
    *itertools.product(["max_steps"], [0, -1, 1.5, None, True, "many"]),
    ("on_failure", "ignore"),
    ("jit_compile", "yes"),
    ("jit_compile", 1),
    ("args", 1.0),
]


@pytest.mark.parametrize("option, value", BAD_OPTIONS)
def test_bad_option_is_refused_with_what_was_received(option, value):
    with pytest.raises((ValueError, TypeError), match=rf"{option} must.*Received: ({option}=)?{value!r}"):
        solve(decay, ONE, [0.0, 1.0], **{option: value})


def test_tolerances_that_are_both_zero_are_refused():
    with pytest.raises(ValueError, match="must not both be zero. Received: rtol=0, atol=0.0"):
        solve(decay, ONE, [0.0, 1.0], rtol=0, atol=0.0)


@pytest.mark.parametrize("options", [{"rtol": 0, "atol": 1e-6}, {"rtol": 1e-6, "atol": 0}])
def test_one_tolerance_may_be_zero(options):
    np.testing.assert_allclose(solve(decay, ONE, [0.0, 1.0], **options).ys[-1], [np.exp(-1)], rtol=1e-5)


@pytest.mark.parametrize("atol", [0, tf.constant(0.0)])
def test_element_that_is_zero_needs_no_absolute_tolerance(atol):
    """Neither in the state nor among the cotangents."""
    start = tf.constant([1.0, 0.0])
    with tf.GradientTape() as tape:
        tape.watch(start)
        end = solve(decay, start, [0.0, 1.0], rtol=1e-5, atol=atol, jit_compile=False).ys[-1]
        first = end[0]
    np.testing.assert_allclose(end, [np.exp(-1), 0], rtol=1e-4)
    np.testing.assert_allclose(tape.gradient(first, start), [np.exp(-1), 0], rtol=1e-4)


@pytest.mark.parametrize("solver", ["euler", "rk4"])
def test_solver_without_error_estimate_asks_for_a_step_size(solver):
    with pytest.raises(ValueError, match="need a step_size.*Received: step_size=None"):
        solve(decay, ONE, [0.0, 1.0], solver=solver)


@pytest.mark.parametrize("solver", ["euler", "rk4"])
def test_solver_without_error_estimate_cannot_be_adaptive(solver):
    with pytest.raises(ValueError, match="does not estimate its error.*Received: solver=.*controller=PID"):
        solve(decay, ONE, [0.0, 1.0], solver=solver, controller="pid", step_size=0.1)


def test_error_in_the_dynamics_is_shown_as_it_is():
    def broken(t, y):
        raise KeyError("the user's own mistake")

    with pytest.raises(KeyError, match="the user's own mistake"):
        solve(broken, ONE, [0.0, 1.0])
