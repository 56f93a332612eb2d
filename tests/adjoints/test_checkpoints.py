"""Which states are kept in a fixed number of slots, and how often steps are taken again."""

import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from keras_ode.adjoints.checkpoints import plan


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
