"""States of many unknowns: GMRES against NumPy, and implicit solvers that form no matrix against closed forms and SciPy."""

import functools

import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import scipy.sparse
import tensorflow as tf

import keras_ode
from keras_ode import Status, dynamics, vector_field
from keras_ode.solvers import krylov, systems
from tests.marks import nightly, slow


def heat(t, y, k):
    """The heat equation, with zeros at both ends; k is the conductivity times the number of points squared."""
    padded = tf.pad(y, [[0, 0]] * (y.shape.rank - 1) + [[1, 1]])
    return k * (padded[..., 2:] - 2 * padded[..., 1:-1] + padded[..., :-2])


def heat_matrix(n):
    return scipy.sparse.diags([1.0, -2.0, 1.0], [-1, 0, 1], shape=(n, n), format="csc")


def bump(n):
    return np.exp(-0.5 * np.linspace(-5, 5, n) ** 2)


# The iteration alone


def matrices(*, rows=3, size=50, spread=1.0):
    return np.eye(size) + spread * np.random.default_rng(0).normal(size=(rows, size, size)) / np.sqrt(size) / 2


@pytest.mark.parametrize("jit_compile", [False, slow(True)])
def test_solutions_are_those_of_numpy_over_several_subspaces(jit_compile):
    matrix, right = matrices(spread=1.8), np.random.default_rng(1).normal(size=(3, 50))
    right[1] = 0
    times = lambda x: tf.linalg.matvec(tf.constant(matrix), x)
    found = tf.function(lambda b: krylov.gmres(times, b, 1e-10), jit_compile=jit_compile)(tf.constant(right))
    np.testing.assert_allclose(found, np.linalg.solve(matrix, right[..., None])[..., 0], atol=1e-8)


def test_subspace_that_holds_the_solution_ends_the_iteration_exactly():
    """Two eigenvalues: the second vector completes the subspace."""
    diagonal = np.repeat([1.0, 3.0], 20)
    found = krylov.gmres(lambda x: diagonal * x, tf.ones([1, 40], tf.float64), 1e-14)
    np.testing.assert_allclose(found[0], 1 / diagonal, rtol=1e-13)


def test_rows_without_a_solution_are_nan_and_others_are_not():
    """A singular matrix; and a cyclic shift, whose residual stays as it is until the subspace is the whole space."""
    singular, shift, regular = np.diag([0.0] + [1.0] * 49), np.roll(np.eye(50), 1, axis=0), np.eye(50)
    stacked = tf.constant(np.stack([singular, shift, regular]))
    right = np.zeros((3, 50))
    right[:, 0] = 1
    found = krylov.gmres(lambda x: tf.linalg.matvec(stacked, x), tf.constant(right), 1e-10)
    assert list(np.isfinite(found).all(axis=1)) == [False, False, True]


# Solvers


@pytest.mark.slow
def test_ten_thousand_unknowns_are_solved_without_a_matrix_of_them():
    """Five steps of Euler's implicit method; a matrix of these would have 800 MB."""
    n, k = 10_000, 10.0
    options = {"solver": "implicit_euler", "step_size": 1.0, "jit_compile": False}
    end = keras_ode.odeint(heat, tf.constant(bump(n)), [0.0, 5.0], args=(tf.constant(k, tf.float64),), **options)[-1]
    expected, step = bump(n), scipy.sparse.linalg.splu(scipy.sparse.eye(n, format="csc") - k * heat_matrix(n))
    for _ in range(5):
        expected = step.solve(expected)
    np.testing.assert_allclose(end, expected, atol=1e-6)


@pytest.mark.slow
def test_gradient_of_steps_of_rows_by_gmres_is_that_of_the_closed_form():
    n, k = 150, tf.constant([[3.0], [1.0]], tf.float64)
    y0, weights = tf.constant(np.tile(bump(n), (2, 1))), bump(n) ** 2
    with tf.GradientTape() as tape:
        tape.watch((k, y0))
        options = {"solver": "implicit_euler", "step_size": 0.5, "jit_compile": False, "adjoint": "checkpointed", "per_sample": True}
        loss = tf.reduce_sum(weights * keras_ode.odeint(heat, y0, [0.0, 1.0], args=(k,), **options)[-1])
    by_k, by_y0 = tape.gradient(loss, (k, y0))

    def end(k, y):
        inverse = np.linalg.inv(np.eye(n) - 0.5 * k * heat_matrix(n).toarray())
        return inverse @ (inverse @ y)

    for row, k in enumerate([3.0, 1.0]):
        difference = (weights @ end(k + 1e-4, bump(n)) - weights @ end(k - 1e-4, bump(n))) / 2e-4
        np.testing.assert_allclose(by_k[row, 0], difference, rtol=1e-6)
        np.testing.assert_allclose(by_y0[row], end(k, weights), atol=1e-8)  # the matrix is symmetric


@pytest.mark.slow
def test_linear_system_that_is_not_solved_ends_in_not_converged():
    """A fast advection once around: its residuals stay as they are until the subspace is the whole space."""
    field = lambda t, y: -1e6 * tf.roll(y, 1, axis=0)
    y0 = tf.one_hot(0, 200, dtype=tf.float64)
    options = {"step_size": 1.0, "jit_compile": False, "on_failure": "nan"}
    for solver in ("implicit_euler", "rosenbrock23"):
        solution = keras_ode.solve(field, y0, [0.0, 1.0], solver=solver, controller="constant", **options)
        assert int(solution.status) == Status.NOT_CONVERGED and np.isnan(solution.ys[-1]).all()


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["kvaerno3", "rodas5p"])
def test_small_unknowns_beside_large_ones_are_as_accurate(solver):
    """Half of the unknowns are a trillion times as small, and so are their tolerances."""
    n = 70
    size = np.repeat([1.0, 1e-12], n)
    field = lambda t, y: tf.concat([heat(t, y[:n], 10.0), heat(t, y[n:], 20.0)], axis=0)
    y0 = size * np.tile(bump(n), 2)
    end = keras_ode.odeint(field, tf.constant(y0), [0.0, 1.0], solver=solver, rtol=1e-5, atol=1e-17, jit_compile=False)[-1]
    expected = [scipy.linalg.expm(k * heat_matrix(n).toarray()) @ bump(n) for k in (10.0, 20.0)]
    np.testing.assert_allclose(end / size, np.concatenate(expected), atol=1e-4)


# A diffusion with a reaction, and its algebraic form


def brusselator(n):
    """Lefever and Prigogine's reaction with diffusion, `[2, n]`; its first state."""
    width, x = 1 / (n + 1), np.arange(1, n + 1) / (n + 1)

    def field(t, y):
        padded = tf.pad(y - [[1.0], [3.0]], [[0, 0], [1, 1]])
        diffusion = 0.02 / width**2 * (padded[:, 2:] - 2 * padded[:, 1:-1] + padded[:, :-2])
        u, v = tf.unstack(y)
        return tf.stack([1 + u * u * v - 4 * u, 3 * u - u * u * v]) + diffusion

    return field, np.stack([1 + np.sin(2 * np.pi * x), np.full(n, 3.0)])


def brusselator_by_scipy(n, end):
    _, y0 = brusselator(n)
    matrix = 0.02 * (n + 1) ** 2 * heat_matrix(n)

    def field(t, y):
        u, v = y.reshape(2, n)
        return np.concatenate([1 + u * u * v - 4 * u + matrix @ (u - 1), 3 * u - u * u * v + matrix @ (v - 3)])

    pattern = scipy.sparse.kron(np.ones((2, 2)), heat_matrix(n))
    return scipy.integrate.solve_ivp(
        field, (0, end), y0.ravel(), "Radau", rtol=1e-9, atol=1e-9, jac_sparsity=pattern
    ).y[:, -1].reshape(2, n)


@pytest.mark.parametrize("solver", ["kvaerno3", *map(nightly, ("rodas5p", "kvaerno5", "kencarp4"))])
@pytest.mark.slow
def test_brusselator_is_that_of_scipy(solver):
    n = 80
    assert 2 * n > systems.MOST_DENSE
    field, y0 = brusselator(n)
    solution = keras_ode.solve(field, tf.constant(y0), [0.0, 1.0], solver=solver, rtol=1e-5, atol=1e-5, jit_compile=False)
    np.testing.assert_allclose(solution.ys[-1], brusselator_by_scipy(n, 1.0), atol=1e-4)
    assert int(solution.stats["num_steps"]) < 60


# How many unknowns have a matrix, how many columns of it are written out, and of how many steps there is room: with as many, the
# second solve would be the function that was kept of the first.
WAYS = {"unrolled": (100, 100, 60), "loop": (100, 4, 61), "gmres": (4, 4, 62)}


@pytest.mark.parametrize("rows", [slow(False), True])
def test_jacobian_whose_columns_are_found_in_a_loop_is_that_written_out(monkeypatch, rows):
    y0 = (tf.constant(np.random.default_rng(0).normal(size=(2, 3))), tf.constant([[1.0], [2.0]], tf.float64))
    function = lambda t, y: (y[0] * y[1] + t * y[0] ** 3, tf.reduce_sum(y[0], axis=1, keepdims=True) * y[1])
    found = []
    for limit in (100, 2):
        monkeypatch.setattr(vector_field, "_MOST_UNROLLED", limit)
        t = tf.constant(2.0, tf.float64)
        field = dynamics.close(function, t, y0, (), None, None, None)
        found.append(field.jacobian(t, y0, field.parameters, rows))
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-12)
    for a, b in zip(found[1][1], found[0][1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "solver", "adjoint", "jit_compile"),
    [
        nightly("gmres", "rosenbrock23", "interpolating", False),
        nightly("gmres", "rosenbrock23", "direct", False),
        ("gmres", "rosenbrock23", "checkpointed", True),
        nightly("gmres", "kvaerno3", "checkpointed", False),  # the rows above, by Euler's method, are solved by GMRES too
        nightly("loop", "rosenbrock23", "direct", False),
    ],
)
def test_solution_and_gradients_are_those_by_a_matrix_that_is_written_out(way, solver, adjoint, jit_compile):
    expected = solution_and_gradients("unrolled", solver, adjoint, False)
    for a, b in zip(solution_and_gradients(way, solver, adjoint, jit_compile), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@functools.cache
def solution_and_gradients(way, solver, adjoint, jit_compile):
    k, y0, t = tf.constant(100.0, tf.float64), tf.constant(bump(12)), tf.constant([0.0, 0.1], tf.float64)

    most_dense, most_unrolled, max_steps = WAYS[way]
    field = lambda t, y, k: heat(t, y, k) + tf.sin(3 * t) * y * y

    def differentiated(k, y0, t):
        with tf.GradientTape() as tape:
            tape.watch((k, y0, t))
            options = {"rtol": 1e-4, "atol": 1e-4, "max_steps": max_steps, "adjoint": adjoint, "solver": solver}
            end = keras_ode.odeint(field, y0, t, args=(k,), **options)[-1]
            loss = tf.reduce_sum(end * np.arange(1.0, 13))
        return end, *tape.gradient(loss, (k, y0, t))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(systems, "MOST_DENSE", most_dense)
        patch.setattr(vector_field, "_MOST_UNROLLED", most_unrolled)
        return tf.function(differentiated, autograph=False, jit_compile=jit_compile)(k, y0, t)


@pytest.mark.slow
def test_gradient_of_a_steady_state_of_many_unknowns_is_that_of_the_closed_form():
    n, source = 150, tf.constant(2.0, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(source)
        options = {"event": keras_ode.SteadyState(), "solver": "kvaerno3", "rtol": 1e-6, "atol": 1e-6, "jit_compile": False}
        field = lambda t, y, source: heat(t, y, 1000.0) - y + source
        y0 = tf.zeros([n], tf.float64)
        middle = keras_ode.solve(field, y0, [0.0, np.inf], args=(source,), **options).event_state[n // 2]
    expected = np.linalg.solve(np.eye(n) - 1000 * heat_matrix(n).toarray(), np.ones(n))[n // 2]
    np.testing.assert_allclose(tape.gradient(middle, source), expected, rtol=1e-6)


@pytest.mark.slow
def test_algebraic_unknowns_among_many_are_those_of_the_equation_without_them():
    """`u' = diffusion - z`, where `z = u^2`."""
    n = 100

    def algebraic(t, y):
        u, z = y[:n], y[n:]
        return tf.concat([heat(t, u, 10.0) - z, z - u * u], axis=0)

    mass, start = np.diag(np.repeat([1.0, 0.0], n)), np.concatenate([bump(n), bump(n) ** 2])
    options = {"solver": "rosenbrock23", "rtol": 1e-5, "atol": 1e-5, "jit_compile": False}
    end = keras_ode.odeint(algebraic, tf.constant(start), [0.0, 1.0], mass_matrix=mass, **options)[-1]
    expected = scipy.integrate.solve_ivp(
        lambda t, u: 10 * heat_matrix(n) @ u - u * u, (0, 1), bump(n), "Radau", rtol=1e-9, atol=1e-9
    ).y[:, -1]
    np.testing.assert_allclose(end, np.concatenate([expected, expected**2]), atol=1e-3)
