"""Arithmetic on leaves, against NumPy."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

from keras_ode import tree

FEW = hypothesis.settings(max_examples=50, deadline=None)
NUMBERS = st.floats(-1e6, 1e6)
# What numbers of a whole solve, and of its rows, are like.
SHARED, ROWS = tf.TensorSpec([], tf.float64), tf.TensorSpec([None], tf.float64)


def leaves(count=2, dtype="float64"):
    """Trees of two leaves of any shapes, some of them with no elements; the same shapes in each."""
    shapes = st.tuples(*[hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)] * 2)
    arrays = lambda shape: hnp.arrays(dtype, shape, elements=NUMBERS)
    return shapes.flatmap(lambda pair: st.tuples(*[st.tuples(*map(arrays, pair))] * count))


def rows(count=2):
    """Trees of two leaves with as many rows."""
    shapes = st.integers(1, 4).flatmap(
        lambda size: st.tuples(*[hnp.array_shapes(min_dims=0, max_dims=2, max_side=3).map(lambda s: (size, *s))] * 2)
    )
    return shapes.flatmap(lambda pair: st.tuples(*[st.tuples(*(hnp.arrays("float64", s, elements=NUMBERS) for s in pair))] * count))


def tensors(arrays):
    return tuple(tf.constant(x) for x in arrays)


def assert_equal(found, expected, rtol=1e-12):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-9)


@FEW
@hypothesis.given(leaves(3), st.tuples(*[NUMBERS] * 3))
def test_weighted_sum_is_the_sum_of_every_leaf(trees, weights):
    hypothesis.assume(any(weights))
    expected = [sum(w * x for w, x in zip(weights, leaf, strict=True)) for leaf in zip(*trees, strict=True)]
    for found, value in zip(tree.weighted_sum(weights, [tensors(t) for t in trees]), expected, strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-12, atol=1e-3)


@pytest.mark.parametrize("weight", [0.1, 1 / 3, -44 / 45])
def test_weights_keep_double_precision(weight):
    ones = (tf.ones([2], tf.float64),)
    zeros = tree.zeros_like(ones)
    for found in (tree.weighted_sum((weight, 0.0), [ones] * 2), tree.scale(weight, ones), tree.add_scaled(zeros, weight, ones)):
        np.testing.assert_array_equal(found[0], np.full(2, weight))


def test_terms_of_weight_zero_are_not_computed():
    """So that a stage that is not finite cannot enter through a weight of zero."""
    found = tree.weighted_sum((0.0, 2.0), [(tf.constant([np.nan]),), (tf.constant([1.0]),)])
    np.testing.assert_array_equal(found[0], [2])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sums_keep_the_dtype_of_each_leaf(dtype):
    leaf = (tf.ones([2], dtype),)
    assert tree.weighted_sum((0.5, 0.25, 3), [leaf] * 3)[0].dtype == dtype
    assert tree.tensor_weighted_sum((tf.constant(0.5, tf.float64),), [leaf])[0].dtype == dtype
    assert tree.add_scaled(leaf, tf.constant(0.5, tf.float64), leaf)[0].dtype == dtype
    assert tree.scale(tf.constant(0.5, tf.float64), leaf)[0].dtype == dtype


@FEW
@hypothesis.given(rows(2), st.data())
def test_scale_by_sample_scales_rows(trees, data):
    size = len(trees[0][0])
    factors = data.draw(hnp.arrays("float64", size, elements=NUMBERS))
    by_row = [np.reshape(factors, [size] + [1] * (x.ndim - 1)) for x in trees[0]]
    expected = [y + f * x for f, x, y in zip(by_row, *trees, strict=True)]
    assert_equal(tree.add_scaled(tensors(trees[1]), tf.constant(factors), tensors(trees[0])), expected, rtol=1e-9)


@FEW
@hypothesis.given(rows(2), st.data())
def test_where_by_sample_selects_rows(trees, data):
    size = len(trees[0][0])
    condition = data.draw(hnp.arrays("bool", size))
    found = tree.where(tf.constant(condition), tensors(trees[0]), tensors(trees[1]))
    for leaf, a, b in zip(found, *trees, strict=True):
        np.testing.assert_array_equal(leaf, [x if c else y for c, x, y in zip(condition, a, b, strict=True)])


@FEW
@hypothesis.given(leaves(2), st.booleans())
def test_where_by_scalar_selects_trees(trees, condition):
    found = tree.where(tf.constant(condition), tensors(trees[0]), tensors(trees[1]))
    for leaf, expected in zip(found, trees[0 if condition else 1], strict=True):
        np.testing.assert_array_equal(leaf, expected)


def test_where_keeps_what_is_not_finite_on_the_other_side_out():
    found = tree.where(tf.constant(False), (tf.constant([np.nan, np.inf]),), (tf.constant([1.0, 2.0]),))
    np.testing.assert_array_equal(found[0], [1, 2])


@FEW
@hypothesis.given(leaves(1))
def test_rms_is_over_all_elements_of_all_leaves(trees):
    flat = np.concatenate([x.ravel() for x in trees[0]])
    expected = np.sqrt(np.mean(flat**2)) if flat.size else 0
    assert float(tree.rms(tensors(trees[0]), SHARED)) == pytest.approx(expected, rel=1e-12)


@FEW
@hypothesis.given(rows(1))
def test_rms_by_sample_is_that_of_every_row(trees):
    flat = [np.concatenate([x[i].ravel() for x in trees[0]]) for i in range(len(trees[0][0]))]
    expected = [np.sqrt(np.mean(row**2)) for row in flat]
    # TensorFlow takes squares below the smallest normal number for zero.
    np.testing.assert_allclose(tree.rms(tensors(trees[0]), ROWS), expected, rtol=1e-12, atol=1e-153)


def test_rms_counts_elements_that_only_the_run_knows():
    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float64)])
    def run(x):
        return tree.rms((x,), SHARED), tree.rms((x,), ROWS)

    shared, by_sample = run(np.array([[3.0, 4.0], [0.0, 0.0]]))
    assert float(shared) == pytest.approx(2.5)
    np.testing.assert_allclose(by_sample, [np.sqrt(12.5), 0])


def test_rms_of_no_elements_that_only_the_run_knows_is_zero():
    rms = tf.function(lambda x: tree.rms((x,), SHARED), input_signature=[tf.TensorSpec([None, 2], tf.float64)])
    assert float(rms(np.zeros([0, 2]))) == 0


@FEW
@hypothesis.given(rows(1), st.data())
def test_one_element_that_is_not_finite_shows_in_its_row_alone(trees, data):
    size = len(trees[0][0])
    row, bad = data.draw(st.integers(0, size - 1)), data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    first, second = (x.copy() for x in trees[0])
    second[row, ...] = bad
    found = tree.is_finite(tensors((first, second)), ROWS)
    assert found.numpy().tolist() == [i != row for i in range(size)]
    assert not bool(tree.is_finite(tensors((first, second)), SHARED))


@pytest.mark.parametrize("shape", [[4], [4, 2], [4, 2, 3]])
def test_expand_makes_samples_broadcast(shape):
    assert tree.expand(tf.zeros([4]), tf.zeros(shape)).shape == [4] + [1] * (len(shape) - 1)


@pytest.mark.parametrize("shape", [[], [4], [4, 2]])
def test_expand_leaves_scalars_alone(shape):
    assert tree.expand(tf.constant(1.0), tf.zeros(shape)).shape == []


@FEW
@hypothesis.given(st.data(), st.booleans())
def test_what_is_put_is_taken_and_nothing_else_changes(data, by_sample):
    buffer = np.arange(24.0).reshape(4, 3, 2)
    slot = st.integers(0, 3)
    index = np.array(data.draw(st.tuples(slot, slot, slot)) if by_sample else data.draw(slot), "int32")
    value = -np.arange(6.0).reshape(3, 2) - 1
    new = tree.put(tf.constant(buffer), tf.constant(index), tf.constant(value))
    np.testing.assert_array_equal(tree.take(new, tf.constant(index)), value)
    assert np.sum(new != buffer) == 6


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("terms", [3, 40])
def test_tensordot_is_that_of_numpy(terms, jit_compile):
    random = np.random.default_rng(0)
    a, b = random.normal(size=(5, terms)).astype("float32"), random.normal(size=(terms, 4, 2)).astype("float32")
    found = tf.function(tree.tensordot, jit_compile=jit_compile)(tf.constant(a), tf.constant(b))
    # Rounding of float32, of which each term has one.
    np.testing.assert_allclose(found, np.tensordot(a.astype("float64"), b, axes=1), atol=1e-6 * terms)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_rows_put_in_place_in_a_loop_are_those_put(jit_compile):
    @tf.function(jit_compile=jit_compile)
    def squares():
        buffer = tree.room(tf.zeros([2]), 11)
        rows = lambda i: tf.cast(tf.stack([i, i + 1])[:, None], tf.float32) * tf.ones([2])
        put = lambda i, b: (i + 1, tree.put_rows_in_place(b, i, rows(i)))
        return tree.while_loop(lambda i, _: i < 10, put, (tf.constant(0), buffer))[1]

    expected = np.repeat(np.arange(11.0)[:, None], 2, axis=1)
    np.testing.assert_array_equal(squares(), expected)
    np.testing.assert_array_equal(squares(), expected)
