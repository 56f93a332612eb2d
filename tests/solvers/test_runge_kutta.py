"""Steps and their transposes: those of linear equations in closed form, and interpolation against its definition."""

import numpy as np
import pytest
import tensorflow as tf

from keras_ode import tree
from keras_ode.solvers import SOLVERS
from keras_ode.solvers.base import Field, Interval, Stage
from keras_ode.solvers.explicit import RK4
from keras_ode.solvers.linear import Linearization
from tests.references import MATRIX, SOLVERS_OF_ANY_STATE, START

H = 0.3


def interval(size):
    start, size = tf.constant(1.0, tf.float64), tf.constant(size, tf.float64)
    return Interval(start, start + size, size, tf.constant(0.0, tf.float64), tf.abs(size))


class Linear(Field):
    """`y' = s A y` at `s = 1`, with the products of its Jacobians by `y` and by `s`; counts them."""

    rows = False

    def __init__(self):
        self.parameters, self.pushed = (tf.constant(1.0, tf.float64),), 0

    def __call__(self, t, y, with_integrand=True):
        return Stage((self.parameters[0] * tf.linalg.matvec(tf.constant(MATRIX), y[0]),))

    def vjp(self, t, point, cotangent):
        self.pushed += 1
        value = tf.linalg.matvec(tf.constant(MATRIX), point[0])
        by_y = tf.linalg.matvec(tf.constant(MATRIX), cotangent[0], transpose_a=True)
        return (by_y,), (tf.reduce_sum(value * cotangent[0]),)

    def linearize(self, t, y, exact=False):
        return Linearization(self.parameters[0] * tf.constant(MATRIX)[None], None, 0)

    def inlined(self):
        field = Linear()
        field.derivatives = 1
        return field


def step_of(solver, y, size):
    """A dense step."""
    carry, _ = solver.start(Linear(), interval(size).start, y)
    return solver.step(Linear(), interval(size), y, carry, with_dense=True)


def pulled_back(solver, y, size, outputs, field=None):
    """The cotangents of the start and of `s`, and the evaluations."""
    step, zero = step_of(solver, y, size), tf.zeros([], tf.float64)
    carry = solver.start(Linear(), interval(size).start, y)[0] if solver.remembers else ()
    of_y, of_carry, of_parameters, count = solver.pullback(
        field or Linear(), interval(size), y, carry, solver.memory(step), outputs, True, tree.zeros_like(y), (zero,)
    )
    if solver.remembers:
        with tf.GradientTape() as tape:
            tape.watch(y)
            carry, _ = solver.start(Linear(), interval(size).start, y)
        of_y = tree.add(of_y, tape.gradient(tf.nest.flatten(carry), y, of_carry))
    return of_y[0], of_parameters[0], count


def growth(z):
    """The stability function of the classical method: Taylor's polynomial of the exponential."""
    return np.eye(3) + z + z @ z / 2 + z @ z @ z / 6 + z @ z @ z @ z / 24


@pytest.mark.parametrize("size", [H, -H])
def test_cotangent_of_a_step_of_a_linear_equation_is_by_the_transposed_stability_function(size):
    y, a = (tf.constant(START),), np.array([0.3, -1.0, 2.0])
    of_y, of_scale, count = pulled_back(RK4(), y, size, lambda step: (step.y, (tf.constant(a),)))
    np.testing.assert_allclose(of_y, growth(size * MATRIX).T @ a, rtol=1e-12)
    # By the scale s of the matrix: the derivative of a^T R(s h A) y at s = 1, by a complex step.
    by_scale = (a @ growth((1 + 1e-30j) * size * MATRIX) @ START).imag / 1e-30
    np.testing.assert_allclose(of_scale, by_scale, rtol=1e-12)
    assert count == 4


def test_stage_that_nothing_depends_on_is_not_pushed():
    field = Linear()
    pulled_back(RK4(), (tf.constant(START),), H, lambda step: (step.stages[0], (tf.ones([3], tf.float64),)), field)
    assert field.pushed == 1


@pytest.mark.parametrize("name", SOLVERS_OF_ANY_STATE)
def test_cotangent_of_a_step_is_by_the_transposed_matrix_of_the_step(name):
    """A step of a linear equation is linear: its matrix is found column by column."""
    solver, a, b = SOLVERS[name](), np.array([0.3, -1.0, 2.0]), np.array([1.0, 0.5, -2.0])
    middle = lambda step, y: solver.interpolate(step.stages, interval(H).size, y, tf.constant(0.4, tf.float64))[0]
    steps = [(step_of(solver, (y,), H), (y,)) for y in tf.eye(3, dtype=tf.float64)]
    matrix, at_middle = np.transpose([s.y[0] for s, _ in steps]), np.transpose([middle(s, y) for s, y in steps])
    y = (tf.constant(START),)
    outputs = lambda step: ((*step.y, middle(step, step.start)), (tf.constant(a), tf.constant(b)))
    of_y, *_ = pulled_back(solver, y, H, outputs)
    np.testing.assert_allclose(of_y, matrix.T @ a + at_middle.T @ b, rtol=1e-10)
    assert len(steps[0][0].stages) == solver.num_stages(True)


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
