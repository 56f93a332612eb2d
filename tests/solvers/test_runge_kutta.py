"""Steps and their transposes: those of linear equations in closed form, and interpolation against its definition."""

import numpy as np
import pytest
import tensorflow as tf

from keras_ode.solvers import SOLVERS
from keras_ode.solvers.base import Interval, Stage
from keras_ode.solvers.explicit import RK4
from tests.references import MATRIX, START

H = 0.3


def interval(size):
    start, size = tf.constant(1.0, tf.float64), tf.constant(size, tf.float64)
    return Interval(start, start + size, size, tf.constant(0.0, tf.float64), tf.abs(size))


def step_of(solver, y, size):
    """A dense step of `y' = A y`."""

    def field(t, y, with_integrand=True):
        return Stage((tf.linalg.matvec(tf.constant(MATRIX), y[0]),))

    carry, _ = solver.start(field, interval(size).start, y)
    return solver.step(field, interval(size), y, carry, with_dense=True)


def push(t, point, cotangent):
    """The products of `y' = s A y` with the Jacobians by `y` and, at `s = 1`, by `s`."""
    value = tf.linalg.matvec(tf.constant(MATRIX), point[0])
    by_y = tf.linalg.matvec(tf.constant(MATRIX), cotangent[0], transpose_a=True)
    return (by_y,), (tf.reduce_sum(value * cotangent[0]),)


def growth(z):
    """The stability function of the classical method: Taylor's polynomial of the exponential."""
    return np.eye(3) + z + z @ z / 2 + z @ z @ z / 6 + z @ z @ z @ z / 24


@pytest.mark.parametrize("size", [H, -H])
def test_transposed_step_of_a_linear_equation_is_the_transposed_stability_function(size):
    solver, y, a = RK4(), (tf.constant(START),), np.array([0.3, -1.0, 2.0])
    stages = step_of(solver, y, size).stages[:4]
    # The classical method weighs its stages by h/6, h/3, h/3 and h/6.
    of_stages = [(tf.constant(size * b * a),) for b in (1 / 6, 1 / 3, 1 / 3, 1 / 6)]
    of_y, of_scale, count = solver.transposed_step(
        push, interval(size), y, stages, of_stages, (tf.constant(a),), (tf.constant(0.0, tf.float64),)
    )

    np.testing.assert_allclose(of_y[0], growth(size * MATRIX).T @ a, rtol=1e-12)
    # By the scale s of the matrix: the derivative of a^T R(s h A) y at s = 1, by a complex step.
    by_scale = (a @ growth((1 + 1e-30j) * size * MATRIX) @ START).imag / 1e-30
    np.testing.assert_allclose(of_scale[0], by_scale, rtol=1e-12)
    assert count == 4


def test_stage_that_nothing_depends_on_is_not_pushed():
    solver, y = RK4(), (tf.constant(START),)
    stages = step_of(solver, y, H).stages[:4]
    of_stages = [(tf.ones([3], tf.float64),), None, None, None]
    zero = tf.constant(0.0, tf.float64)
    *_, count = solver.transposed_step(push, interval(H), y, stages, of_stages, (tf.constant(START),), (zero,))
    assert count == 1


@pytest.mark.parametrize("name", SOLVERS)
def test_assembled_step_is_the_step(name):
    solver, y = SOLVERS[name](), (tf.constant(START),)
    step = step_of(solver, y, H)
    again = solver.assemble(interval(H), y, step.stages)
    np.testing.assert_array_equal(again.y[0], step.y[0])
    assert len(step.stages) == solver.num_stages(True)
    if step.error is not None:
        np.testing.assert_array_equal(again.error[0], step.error[0])


@pytest.mark.parametrize("by_sample", [False, True])
@pytest.mark.parametrize("name", SOLVERS)
def test_transposed_interpolation_has_the_products_of_interpolation(name, by_sample):
    """`<interpolate(y, k), g> = <y, of_y> + sum_i <k_i, of_k_i>`, for all `g`."""
    solver, random = SOLVERS[name](), np.random.default_rng(0)
    count, shape = 20, (3, 2)
    y = tf.constant(random.normal(size=shape))
    stages = [(tf.constant(random.normal(size=shape)),) for _ in range(solver.num_stages(True))]
    theta = tf.constant(random.uniform(size=(count, *shape[:1] * by_sample)))
    size = tf.constant(random.uniform(0.5, 1, size=shape[:1] * by_sample))
    among = tf.constant(random.uniform(size=theta.shape) < 0.7)
    g = random.normal(size=(count, *shape))

    states = solver.interpolate(stages, size, (y,), theta)[0]
    of_y, of_stages = solver.transposed_interpolate(size, theta, among, (tf.constant(g),))

    chosen = among.numpy().reshape(*among.shape, *[1] * (3 - among.ndim))
    product = np.sum(chosen * states * g)
    parts = [np.sum(y * of_y[0]), *(np.sum(k * of_k) for (k,), (of_k,) in zip(stages, of_stages, strict=True))]
    np.testing.assert_allclose(product, sum(parts), rtol=1e-10)
