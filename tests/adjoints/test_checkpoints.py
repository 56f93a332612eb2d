"""Which states are kept in a fixed number of slots, and how often steps are taken again."""

import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

import keras_ode
from keras_ode.adjoints.checkpoints import plan
from tests.marks import nightly


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(st.integers(1, 40), st.integers(1, 700))
def test_every_stride_th_state_is_in_a_slot_of_its_own(capacity, num_steps):
    slots, strides = plan(capacity, 700)
    held = {}
    for n in range(num_steps):
        if slots[n] < capacity:
            held[slots[n]] = n
    stride = strides[num_steps - 1]
    # The least power of two with which so many steps fit.
    assert stride == 2 ** max(0, math.ceil(math.log2(num_steps / capacity)))
    wanted = range(0, num_steps, stride)
    assert len(wanted) <= capacity
    assert [held[slots[n]] for n in wanted] == list(wanted)


@pytest.mark.parametrize("capacity", [1, 3, 32])
def test_slots_that_suffice_are_filled_in_their_order(capacity):
    slots, strides = plan(capacity, 50)
    np.testing.assert_array_equal(slots[:capacity], np.arange(capacity))
    np.testing.assert_array_equal(strides[:capacity], 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "jit_compile, per_sample", [(False, True), (True, False), nightly(False, False), nightly(True, True)]
)
def test_gradients_by_large_and_small_leaves_together_are_those_of_the_closed_form(per_sample, jit_compile):
    """Coefficients of large leaves are kept one by one."""
    y0 = tf.constant(np.linspace(0.5, 2, 2 * 4096, dtype="float32").reshape(2, 4096)), tf.constant([[1.0], [3.0]])

    @tf.function(jit_compile=jit_compile)
    def gradients(y0):
        with tf.GradientTape() as tape:
            tape.watch(y0)
            end = keras_ode.solve(
                lambda t, y: (-(y[0] ** 3), -y[1]), y0, [0.0, 0.5, 1.0], rtol=1e-6, atol=1e-6, per_sample=per_sample,
                adjoint=keras_ode.adjoints.Interpolating(checkpoints=4), jit_compile=False,
            ).ys  # fmt: skip
            total = sum(tf.reduce_sum(leaf[-1]) for leaf in end)
        return tape.gradient(total, y0)

    large, small = gradients(y0)
    np.testing.assert_allclose(large, (1 + 2 * y0[0].numpy() ** 2) ** -1.5, rtol=1e-4)
    np.testing.assert_allclose(small, np.full([2, 1], np.exp(-1)), rtol=1e-4)
