"""Equations `M y' = f(t, y)`: closed forms, the Bari test set, SciPy, and what is refused."""

import functools

import keras
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import tensorflow as tf

import keras_ode
from keras_ode import Status
from keras_ode.solvers import SOLVERS
from keras_ode.solvers.mass import MassMatrix
from tests.marks import graded, nightly
from tests.stiff import PROBLEMS

SOLVE_MASS = [name for name in SOLVERS if SOLVERS[name]().takes_mass_matrix]
SOLVE_ALGEBRAIC = [name for name in SOLVE_MASS if SOLVERS[name]().takes_algebraic_equations]
FIRST = np.diag([1.0, 0.0])


def solve(dynamics, y0, t, mass_matrix, **options):
    options = {"solver": "rodas5p", "jit_compile": False, **options}
    return keras_ode.solve(dynamics, tf.constant(y0, tf.float64), t, mass_matrix=mass_matrix, **options)


def robertson(t, y):
    a, b, c = tf.unstack(y, axis=-1)
    slow, fast, back = 0.04 * a, 3e7 * b * b, 1e4 * b * c
    return tf.stack([back - slow, slow - fast - back, a + b + c - 1], axis=-1)


def bell(t, y):
    """From (1, 0) the solution is x = 1 / (1 + t^2) and z = t x."""
    x, z = tf.unstack(y, axis=-1)
    return tf.stack([-2 * z * x, z + z**3 - t * x - (t * x) ** 3], axis=-1)


def decay(t, y, rate):
    """With M = diag(2, 0): x' = -rate x / 4, and z = rate x / 2."""
    x, z = tf.unstack(y, axis=-1)
    return tf.stack([z - rate * x, z - rate * x / 2], axis=-1)


HALF = np.diag([2.0, 0.0])


# The matrix itself


def test_projector_is_that_onto_the_left_null_space_and_small_numbers_are_no_zeros():
    assert not MassMatrix(np.diag([1.0, 1e-20])).is_singular
    np.testing.assert_array_equal(MassMatrix(np.diag([0.0, 3.0])).projector, np.diag([1.0, 0.0]))
    matrix = np.random.default_rng(0).normal(size=(4, 2)) @ np.random.default_rng(1).normal(size=(2, 4))
    projector = MassMatrix(matrix).projector
    np.testing.assert_allclose(projector @ matrix, 0, atol=1e-14)
    np.testing.assert_allclose(projector @ projector, projector, atol=1e-14)
    assert np.isclose(np.trace(projector), 2)


# Solutions


@pytest.mark.parametrize("name", ["rodas5p", nightly("kvaerno5")])
@pytest.mark.slow
def test_robertsons_reaction_with_a_conservation_law_ends_as_the_test_set_says(name):
    problem = PROBLEMS["robertson"]
    reference, steps = np.array(problem.reference), {1e-4: 150, 1e-6: 300, 1e-8: 700}
    for tolerance in steps:
        options = {"rtol": tolerance, "atol": tolerance * problem.atol, "solver": name}
        solution = solve(robertson, problem.y0, [0.0, problem.end], np.diag([1.0, 1, 0]), **options)
        errors = np.abs(solution.ys[-1] - reference) / (tolerance * (np.abs(reference) + problem.atol))
        assert errors.max() < 100 and int(solution.stats["num_steps"]) < steps[tolerance]
        np.testing.assert_allclose(tf.reduce_sum(solution.ys[-1]), 1, rtol=1e-12)


@pytest.mark.parametrize("name", graded(SOLVE_ALGEBRAIC, quick=["rodas5p"], slow_ones=["kvaerno5", "radau"]))
def test_error_of_an_equation_of_index_one_falls_with_the_order_of_the_method(name):
    expected = np.array([1, 1.5]) / 3.25
    errors = [
        np.abs(solve(bell, [1.0, 0.0], [0.0, 1.5], FIRST, solver=name, controller="constant", step_size=1.5 / n).ys[-1] - expected)
        for n in (16, 32, 64)
    ]
    assert np.all(np.log2(np.array(errors[:-1]) / errors[1:]) > SOLVERS[name].order - 0.25)


@pytest.mark.parametrize("name", graded(SOLVE_MASS, quick=["implicit_euler"], slow_ones=["rodas5p", "kencarp4"]))
def test_linear_equation_with_a_regular_matrix_is_solved_by_the_matrix_exponential(name):
    random = np.random.default_rng(0)
    mass, matrix, y0 = np.eye(3) + 0.3 * random.normal(size=(3, 3)), random.normal(size=(3, 3)), random.normal(size=(2, 3))
    expected = y0 @ scipy.linalg.expm(np.linalg.solve(mass, matrix)).T
    options = {"rtol": 1e-8, "atol": 1e-8} if SOLVERS[name].order > 3 else {"step_size": 0.005, "controller": "constant"}
    field = lambda t, y: tf.linalg.matmul(y, matrix, transpose_b=True)
    ys = solve(field, y0, [0.0, 0.5, 1.0], mass, solver=name, **options).ys
    np.testing.assert_allclose(ys[-1], expected, rtol={1: 5e-2, 2: 1e-4}.get(SOLVERS[name].order, 1e-6))
    half = y0 @ scipy.linalg.expm(0.5 * np.linalg.solve(mass, matrix)).T
    np.testing.assert_allclose(ys[1], half, rtol={1: 5e-2, 2: 1e-4}.get(SOLVERS[name].order, 1e-5))


@pytest.mark.slow
def test_general_singular_matrix_and_dense_output_agree_with_the_closed_form():
    """The equation `bell` with its equations and its unknowns mixed."""
    random = np.random.default_rng(0)
    left, right = np.eye(2) + 0.3 * random.normal(size=(2, 2)), np.eye(2) + 0.3 * random.normal(size=(2, 2))
    field = lambda t, y: tf.linalg.matvec(left, bell(t, tf.linalg.matvec(right, y)))
    start = np.linalg.solve(right, [1.0, 0.0])
    solution = solve(field, start, [0.0, 1.5], left @ FIRST @ right, rtol=1e-8, atol=1e-8, dense=True, max_steps=100)
    times = np.linspace(0, 1.5, 11)
    found = solution.evaluate(tf.constant(times)).numpy() @ right.T
    np.testing.assert_allclose(found, np.stack([1 / (1 + times**2), times / (1 + times**2)], axis=1), atol=1e-6)


@pytest.mark.slow
def test_pendulum_whose_force_is_algebraic_is_that_of_scipy():
    """The constraint twice differentiated by time: the force of the rod follows from position and velocity."""

    def pendulum(t, s):
        x, y, u, v, force = tf.unstack(s)
        return tf.stack([u, v, -force * x, -force * y - 9.81, u**2 + v**2 - force * (x**2 + y**2) - 9.81 * y])

    mass, start = np.diag([1.0, 1, 1, 1, 0]), [1.0, 0, 0, 0, 0.0]
    by_scipy = scipy.integrate.solve_ivp(lambda t, s: [s[1], -9.81 * np.sin(s[0])], (0, 2), [np.pi / 2, 0], rtol=1e-11, atol=1e-11)
    angle, speed = by_scipy.y[:, -1]
    x, y, u, v, force = solve(pendulum, start, [0.0, 2.0], mass, rtol=1e-8, atol=1e-8).ys[-1].numpy()
    np.testing.assert_allclose([x, y], [np.sin(angle), -np.cos(angle)], atol=1e-6)
    np.testing.assert_allclose(force, speed**2 + 9.81 * np.cos(angle), atol=1e-5)


# Rows, gradients and XLA


@functools.cache
def rows(adjoint, solver, jit_compile):
    """The end, the status and the gradients of the sum of the differential unknowns at the end."""

    def run(rate, y0, t):
        with tf.GradientTape() as tape:
            tape.watch((rate, y0, t))
            options = {"rtol": 1e-6, "atol": 1e-8, "max_steps": 400, "per_sample": True, "adjoint": adjoint, "solver": solver}
            solution = keras_ode.solve(decay, y0, t, args=(rate,), mass_matrix=HALF, **options)
            total = tf.reduce_sum(solution.ys[-1, :, 0])
        return solution.ys[-1], solution.status, tape.gradient(total, (rate, y0, t))

    return tf.function(run, autograph=False, jit_compile=jit_compile)


@pytest.mark.parametrize(
    ("adjoint", "solver", "jit_compile"),
    [
        (None, "rosenbrock23", False),
        nightly(None, "rodas5p", False),
        nightly(None, "kvaerno5", True),
        nightly("direct", "rodas5p", False),
    ],
)
@pytest.mark.slow
def test_rows_and_their_gradients_are_those_of_the_closed_form(adjoint, solver, jit_compile):
    rate = np.array([1.0, 3.0, 50.0])
    y0, t = np.stack([np.ones(3), rate / 2], axis=1), [0.0, 1.0]
    end, status, (by_rate, by_start, by_times) = rows(adjoint, solver, jit_compile)(*map(tf.constant, (rate, y0, np.array(t))))
    x = np.exp(-rate / 4)
    near = {"rodas5p": 1e-7, "kvaerno5": 1e-5, "rosenbrock23": 1e-4}[solver]
    np.testing.assert_allclose(end, np.stack([x, rate * x / 2], axis=1), atol=near)
    np.testing.assert_allclose(by_rate, -x / 4, atol=near)
    # The algebraic unknowns follow from the others: their first values have no influence.
    np.testing.assert_allclose(by_start, np.stack([x, 0 * x], axis=1), atol=near)
    np.testing.assert_allclose(by_times, [np.sum(rate * x / 4), -np.sum(rate * x / 4)], atol=near)
    assert set(status.numpy()) == {Status.SUCCESS}


@pytest.mark.slow
def test_row_that_begins_inconsistent_is_nan_with_its_status_and_its_neighbors_go_on():
    y0 = tf.constant([[1.0, 0.5], [1.0, 0.6], [1.0, 25.0]], tf.float64)
    rate, t = tf.constant([1.0, 3.0, 50.0], tf.float64), tf.constant([0.0, 1.0], tf.float64)
    end, status, _ = rows(None, "rosenbrock23", False)(rate, y0, t)
    assert list(status.numpy()) == [Status.SUCCESS, Status.INCONSISTENT, Status.SUCCESS]
    assert list(np.isfinite(end[:, 0])) == [True, False, True]


# Consistent states


def test_consistent_state_solves_the_algebraic_equations_and_has_their_derivatives():
    mass, y0 = np.array([[1.0, 1.0], [0.0, 0.0]]), tf.constant([0.9, 0.3], tf.float64)
    field = lambda t, y, p: tf.stack([y[0], y[0] ** 2 - p * t])
    p = tf.constant(2.0, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch((p, y0))
        y = keras_ode.consistent_state(field, y0, 2.0, mass, args=(p,))
        second = y[1]
    np.testing.assert_allclose(y, [2.0, -0.8], rtol=1e-12)
    by_p, by_y0 = tape.gradient(second, (p, y0))
    np.testing.assert_allclose(by_p, -0.5, rtol=1e-12)
    np.testing.assert_allclose(by_y0, [1.0, 1.0], rtol=1e-12)


def test_consistent_state_is_one_at_a_time_in_double_precision():
    field = lambda t, y: tf.stack([-y[0], y[1] - t])
    assert keras_ode.consistent_state(field, tf.constant([1.0, 0.0], tf.float64), 0.1, FIRST)[1] == 0.1


def test_consistent_state_that_does_not_exist_is_refused_with_its_residual():
    field = lambda t, y: tf.stack([y[0], y[1] ** 2 + 1])
    with pytest.raises(ValueError, match="no solution of the algebraic equations.*residual.*Received: y0=array"):
        keras_ode.consistent_state(field, tf.constant([1.0, 0.3], tf.float64), 0.0, FIRST)


@pytest.mark.slow
def test_inconsistent_start_is_refused_with_its_residual_and_the_remedy():
    with pytest.raises(ValueError, match=r"residual is 0\.002.* tolerances away.*keras_ode.consistent_state"):
        solve(bell, [1.0, 2e-3], [0.0, 1.5], FIRST, rtol=1e-6)
    start = keras_ode.consistent_state(bell, tf.constant([1.0, 2e-3], tf.float64), 0.0, FIRST)
    np.testing.assert_allclose(solve(bell, start, [0.0, 1.5], FIRST, rtol=1e-6).ys[-1], np.array([1, 1.5]) / 3.25, atol=1e-5)


def test_equation_of_index_two_is_refused():
    """`x' = z, 0 = x - sin t` does not determine z but by a derivative."""
    field = lambda t, y: tf.stack([y[1], y[0] - tf.sin(t)])
    with pytest.raises(ValueError, match="of index 2 or higher. Differentiate"):
        solve(field, [0.0, 1.0], [0.0, 1.0], FIRST)


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mass_matrix": [1.0, 2.0]}, r"square matrix, shape \[D, D\].*of shape \(2,\)"),
        ({"mass_matrix": np.ones((2, 3))}, r"square matrix.*of shape \(2, 3\)"),
        ({"mass_matrix": np.eye(3)}, r"\[D, D\] for a state \[..., D\].*shape \(3, 3\) and a state of shape \(2,\)"),
        ({"mass_matrix": [[1.0, np.nan], [0.0, 1.0]]}, "must be finite"),
        ({"mass_matrix": FIRST, "solver": "tsit5"}, "Tsit5 does not solve equations with a mass matrix. Use solver='rodas5p'"),
        ({"mass_matrix": 2 * np.eye(2), "solver": "tsit5"}, r"or let the dynamics return M\^-1 f"),
        ({"mass_matrix": FIRST, "solver": "implicit_midpoint", "step_size": 0.1}, "some equations are algebraic"),
        ({"mass_matrix": FIRST, "adjoint": "interpolating"}, "use adjoint='checkpointed' or 'direct'"),
        ({"mass_matrix": FIRST, "jump_times": [0.5]}, "cannot be combined with jump_times"),
        ({"mass_matrix": FIRST, "event": keras_ode.Event(lambda t, y: y[0])}, "cannot be combined with event"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        solve(bell, [1.0, 0.0], [0.0, 1.0], **options)


def test_state_of_several_tensors_and_matrix_that_is_not_constant_are_refused():
    y0 = (tf.ones([2]), tf.ones([2]))
    with pytest.raises(ValueError, match="must be one tensor.*2 leaves"):
        keras_ode.solve(lambda t, y: y, y0, [0.0, 1.0], solver="rodas5p", mass_matrix=np.eye(2))
    run = tf.function(lambda m: keras_ode.solve(bell, tf.ones([2]), [0.0, 1.0], solver="rodas5p", mass_matrix=m).ys)
    with pytest.raises(TypeError, match="mass_matrix must be constant"):
        run(tf.eye(2))


# The layer


def layer_with_matrix():
    matrix = np.array([[2.0, 1.0], [0.0, 1.0]])
    return keras_ode.ODELayer(keras.layers.Dense(2), solver="rosenbrock23", rtol=1e-4, mass_matrix=matrix)


def test_layer_keeps_its_matrix_in_its_configuration():
    layer = layer_with_matrix()
    assert type(layer.adjoint).__name__ == "Checkpointed"
    again = keras_ode.ODELayer.from_config(layer.get_config())
    assert again.get_config()["mass_matrix"] == [[2.0, 1.0], [0.0, 1.0]]


@pytest.mark.slow
def test_layer_trains_through_its_matrix():
    layer = layer_with_matrix()
    y0 = tf.constant([[1.0, 2.0], [0.5, -1.0]])
    with tf.GradientTape() as tape:
        end = layer(y0)
    matrix = layer.dynamics.kernel.numpy() @ np.linalg.inv([[2.0, 1.0], [0.0, 1.0]]).T
    np.testing.assert_allclose(end, y0 @ scipy.linalg.expm(matrix), atol=1e-3)
    assert np.abs(tape.gradient(end, layer.dynamics.kernel)).max() > 0


@pytest.mark.slow
def test_steady_state_is_that_of_the_field_whatever_the_matrix():
    field = lambda t, y, p: tf.stack([p - y[0] * y[1], y[1] - 2 * y[0]])
    p = tf.constant(8.0, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(p)
        event = keras_ode.SteadyState()
        end = solve(field, [1.0, 2.0], [0.0, np.inf], FIRST, args=(p,), event=event, rtol=1e-8, atol=1e-8).event_state
        first = end[0]
    np.testing.assert_allclose(end, [2.0, 4.0], rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(first, p), 1 / 8, rtol=1e-6)


@pytest.mark.parametrize("size", [1e-3, pytest.param(1e3, marks=pytest.mark.slow)])
def test_steady_state_does_not_depend_on_the_size_of_the_matrix(size):
    end = solve(lambda y: size * (1 - y), [0.1], np.inf, [[size]], event=keras_ode.SteadyState(), solver="rosenbrock23").event_state
    np.testing.assert_allclose(end, [1], atol=2e-3)
