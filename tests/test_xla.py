"""What XLA cannot compile runs in a plain graph by default, and is named where the user asks for XLA."""

import numpy as np
import pytest
import tensorflow as tf

import keras_ode
from keras_ode import execution
from keras_ode.xla import why_not_compiled
from tests.marks import slow

Y0 = tf.constant([1.0, 2.0])
ONE = tf.Variable(1.0)
MATRIX = tf.sparse.from_dense([[-1.0, 0.0], [0.0, -1.0]])


def sparse(t, y):
    return ONE * tf.sparse.sparse_dense_matmul(MATRIX, y[:, None])[:, 0]


def segments(t, y):
    return -ONE * tf.math.segment_sum(tf.stack([y[0], y[1] / 2, y[1] / 2]), [0, 1, 1])


def python(t, y):
    return -ONE * tf.ensure_shape(tf.py_function(lambda y: y, [y], tf.float32), [2])


def printing(t, y):
    tf.print("", end="", output_stream="file:///dev/null")
    return -ONE * y


def loop(t, y):
    return -ONE * tf.while_loop(lambda i, x: i < 2, lambda i, x: (i + 1, x + y / 2), (0, tf.zeros_like(y)))[1]


def nested(t, y):
    return tf.cond(t < 9.0, lambda: segments(t, y), lambda: y)


FIELDS = [
    (sparse, "SparseTensorDenseMatMul"),
    (segments, "SegmentSum"),
    (python, "EagerPyFunc"),
    (printing, "PrintV2"),
    (loop, "tf.while_loop without maximum_iterations"),
    (nested, "SegmentSum"),
]
HOW = pytest.mark.parametrize("how", [lambda f: f, tf.function], ids=["eager", "graph"])


def check_solve_and_gradient(how, field):
    """y' = -y, by default options: y(1) = y0 / e."""

    @how
    def solve():
        with tf.GradientTape() as tape:
            end = keras_ode.odeint(field, Y0, [0.0, 1.0])[-1]
        return end, tape.gradient(end, ONE)

    end, gradient = solve()
    np.testing.assert_allclose(end, Y0 * np.exp(-1), rtol=1e-3)
    np.testing.assert_allclose(gradient, -3 * np.exp(-1), rtol=1e-2)


# A loop is differentiated in the next test.
@pytest.mark.slow
@pytest.mark.parametrize("field", [sparse, *map(slow, (segments, printing, loop))])
def test_field_that_xla_cannot_compile_is_solved_and_differentiated(field):
    check_solve_and_gradient(lambda f: f, field)


@pytest.mark.slow
def test_field_whose_gradient_xla_cannot_compile_trains_in_a_graph():
    check_solve_and_gradient(tf.function, loop)


@pytest.mark.parametrize("field", [python, nested])
def test_field_that_xla_cannot_compile_is_solved(field):
    np.testing.assert_allclose(keras_ode.odeint(field, Y0, [0.0, 1.0])[-1], Y0 * np.exp(-1), rtol=1e-3)


@HOW
@pytest.mark.parametrize("field, words", FIELDS)
def test_asking_for_xla_names_the_operation(field, words, how):
    with pytest.raises(ValueError, match=f"XLA cannot compile this solve because of .*{words}.*Received: jit_compile=True"):
        how(lambda: keras_ode.odeint(field, Y0, [0.0, 1.0], jit_compile=True))()


def test_strings_among_the_arguments_are_solved():
    def field(t, y, unit):
        return tf.where(unit == "s", -y, -60 * y)

    ys = keras_ode.odeint(field, Y0, [0.0, 1.0], args=(tf.constant("s"),))
    np.testing.assert_allclose(ys[-1], Y0 * np.exp(-1), rtol=1e-3)
    with pytest.raises(ValueError, match="a tensor of strings"):
        keras_ode.odeint(field, Y0, [0.0, 1.0], args=(tf.constant("s"),), jit_compile=True)


def test_compiler_that_fails_is_asked_once(monkeypatch):
    """What the check does not know of: the second solve, which is to be compiled, falls back, and the next does not try again."""
    monkeypatch.setattr("keras_ode.programs.STEPS_BEFORE_COMPILING", 1)
    built, original = [], execution._function
    monkeypatch.setattr(execution, "_function", lambda *a: (built.append(a[1].may_compile), original(*a))[1])
    monkeypatch.setattr("keras_ode.vector_field.why_not_compiled", lambda graph, fingerprint: None)
    field = lambda t, y: -2 * tf.math.segment_sum(y, [0, 1])
    for expected in ([True], [True, False], [True, False]):
        ys = keras_ode.odeint(field, Y0, [0.0, 1.0])
        np.testing.assert_allclose(ys[-1], Y0 * np.exp(-2), rtol=1e-3)
        assert built == expected
    with pytest.raises(ValueError, match="XLA cannot compile this solve because of"):
        keras_ode.odeint(field, Y0, [0.0, 1.0], jit_compile=True)


def test_what_xla_compiles_is_known_as_such():
    def bounded(x):
        tf.debugging.assert_positive(x)
        tf.math.segment_sum(x, [0, 1])  # unused
        x = tf.while_loop(lambda i, x: i < 2, lambda i, x: (i + 1, x * x), (0, x), maximum_iterations=2)[1]
        return tf.map_fn(tf.tanh, tf.linalg.cholesky(tf.linalg.diag(x)))

    assert why_not_compiled(tf.function(bounded).get_concrete_function(tf.TensorSpec([2])).graph, "bounded") is None


def test_kernels_of_xla_can_be_looked_up():
    """The lookup is private to TensorFlow: this fails first where an upgrade takes it away."""
    known = tf.function(lambda x: tf.matmul(x, x)).get_concrete_function(tf.TensorSpec([2, 2]))
    unknown = tf.function(lambda x: tf.py_function(tf.identity, [x], tf.float32)).get_concrete_function(tf.TensorSpec([2]))
    assert why_not_compiled(known.graph, "known") is None
    assert "EagerPyFunc" in why_not_compiled(unknown.graph, "unknown")
