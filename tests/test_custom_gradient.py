"""Traces leave memory when nothing refers to them any more."""

import gc

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework.func_graph import FuncGraph

import keras_ode
from tests.marks import nightly


def _graphs():
    gc.collect()
    return sum(isinstance(x, FuncGraph) for x in gc.get_objects())


@pytest.mark.parametrize("jit_compile", [False, nightly("auto")])
@pytest.mark.slow
def test_a_forgotten_function_leaves_no_graphs(jit_compile):
    def decayed(rate):
        @tf.function
        def value_and_gradient(y):
            with tf.GradientTape() as tape:
                tape.watch(y)
                value = keras_ode.solve(lambda t, y: -rate * y, y, [0.0, 1.0], jit_compile=jit_compile).ys[-1]
            return value, tape.gradient(value, y)

        return value_and_gradient(tf.constant(1.0))

    decayed(tf.constant(1.0))
    before = _graphs()
    value, gradient = decayed(tf.constant(1.0))
    np.testing.assert_allclose([value, gradient], np.exp(-1.0), rtol=1e-3)  # the default tolerance
    assert _graphs() <= before
