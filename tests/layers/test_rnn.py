"""A recurrent network whose state flows between observations."""

import keras
import numpy as np
import pytest
import scipy.linalg
import tensorflow as tf

from keras_ode.layers import ODERNN, TimeDense
from keras_ode.regularizers import random_end_time
from tests.marks import slow

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(3, 5, 2)).astype("float32")
TIMES = np.array([0.0, 0.1, 0.5, 0.6, 1.2], "float32")
OWN_TIMES = np.cumsum(RANDOM.uniform(0.1, 0.5, size=(3, 5)), axis=1).astype("float32")
A = np.array([[-0.5, 0.4, 0.0], [-0.3, -0.2, 0.1], [0.2, 0.0, -0.1]])
ONLY_FIRST = np.arange(5) == np.zeros([3, 1])


def linear(cell=None, **options):
    """An ODE-RNN of three units between whose observations `h' = h A`."""
    options = {"rtol": 1e-5, "atol": 1e-6, "jit_compile": False, **options}
    layer = ODERNN(cell or keras.layers.GRUCell(3), keras.layers.Dense(3, use_bias=False), **options)
    layer.build((None, 5, 2))
    layer.dynamics.set_weights([A])
    return layer


def test_layer_from_its_config_takes_times_of_each_row_too():
    options = {"solver": "euler", "step_size": 0.25, "adjoint": "direct", "max_steps": 8, "jit_compile": False}
    layer = ODERNN(keras.layers.GRUCell(3), TimeDense(3), go_backwards=True, per_sample=True, **options)
    again = ODERNN.from_config(layer.get_config())
    for one in (layer, again):
        one.build((None, 5, 2))
    again.set_weights(layer.get_weights())
    np.testing.assert_array_equal(again(X, t=OWN_TIMES), layer(X, t=OWN_TIMES))


@pytest.mark.parametrize("times", [TIMES, OWN_TIMES], ids=["times of all", "times of each"])
def test_state_flows_where_nothing_is_observed(times):
    layer = linear(per_sample=times.ndim == 2, return_sequences=True)
    states = layer(X, t=times, mask=ONLY_FIRST).numpy()
    after_first = layer.cell(X[:, 0], np.zeros([3, 3], "float32"))[0].numpy()
    elapsed = np.broadcast_to(times - times[..., :1], (3, 5))
    expected = [[after_first[b] @ scipy.linalg.expm(A * elapsed[b, i]) for i in range(5)] for b in range(3)]
    np.testing.assert_allclose(states, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("cell, layer", [
    (keras.layers.GRUCell, keras.layers.GRU),
    (keras.layers.LSTMCell, keras.layers.LSTM),
    slow(keras.layers.SimpleRNNCell, keras.layers.SimpleRNN),
])
@pytest.mark.parametrize("go_backwards", [slow(False), True])
def test_without_motion_it_is_a_recurrent_layer(cell, layer, go_backwards):
    ode_rnn = linear(cell(3), go_backwards=go_backwards, return_sequences=True)
    ode_rnn.dynamics.set_weights([0 * A])
    plain = layer(3, go_backwards=go_backwards, return_sequences=True)
    plain.build((None, 5, 2))
    plain.set_weights(ode_rnn.cell.get_weights())
    mask = np.array([[1, 1, 0, 1, 1]] * 3, bool)
    observed = mask[0][::-1] if go_backwards else mask[0]
    expected = plain(X, mask=mask).numpy()[:, observed]
    np.testing.assert_allclose(ode_rnn(X, t=TIMES, mask=mask).numpy()[:, observed], expected, rtol=1e-4, atol=1e-5)


def test_going_backwards_is_going_forward_through_the_reversed_series():
    forward, backward = linear(), linear(go_backwards=True)
    backward.set_weights(forward.get_weights())
    np.testing.assert_allclose(backward(X, t=TIMES), forward(X[:, ::-1], t=TIMES[::-1].copy()), rtol=1e-5)


@pytest.mark.parametrize("go_backwards", [slow(False), True])
def test_padding_a_series_changes_nothing(go_backwards):
    layer = linear(per_sample=True, go_backwards=go_backwards)
    padded = np.concatenate([X, np.full([3, 2, 2], np.nan, "float32")], axis=1)
    times = np.concatenate([OWN_TIMES, OWN_TIMES[:, -1:], OWN_TIMES[:, -1:]], axis=1)
    mask = np.broadcast_to(np.arange(7) < 5, (3, 7))
    np.testing.assert_allclose(layer(padded, t=times, mask=mask), layer(X, t=OWN_TIMES), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_gradient_in_a_graph_is_that_of_differences():
    layer = linear()
    weight = layer.dynamics.trainable_variables[0]

    @tf.function
    def gradient():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(X, t=TIMES))
        return tape.gradient(loss, weight.value)

    found = gradient().numpy()[0, 1]
    values = []
    for shift in (-0.05, 0.05):
        shifted = A.copy()
        shifted[0, 1] += shift
        layer.dynamics.set_weights([shifted])
        values.append(float(tf.reduce_sum(layer(X, t=TIMES))))
    # A central difference of this width, in single precision, is good to a hundredth.
    np.testing.assert_allclose(found, (values[1] - values[0]) / 0.1, rtol=0.01)


def test_symbolic_output_has_its_shape():
    layer = ODERNN(keras.layers.GRUCell(4), TimeDense(4), return_sequences=True)
    assert layer(keras.Input([5, 2]), t=TIMES).shape == (None, 5, 4)


@pytest.mark.slow
def test_dropout_of_the_cell_works_in_every_trace():
    """Cells keep its mask from step to step, a tensor of one graph."""
    layer = ODERNN(keras.layers.GRUCell(4, dropout=0.5), keras.layers.Dense(4, activation="tanh"), t=[0.0, 1.0], jit_compile=False)
    once, again = (layer(tf.ones([3, 2, 2]), training=True) for _ in range(2))
    assert layer(tf.ones([2, 2, 2]), training=True).shape == [2, 4]
    assert not np.array_equal(once, again)


def test_random_times_are_refused():
    with pytest.raises(ValueError, match="none can be random.*Received: t="):
        ODERNN(keras.layers.GRUCell(4), keras.layers.Dense(4), t=random_end_time())


def drop_out(layer):
    layer.cell.dropout = 0.9


def take_short_steps(layer):
    layer.ode.step_size = 0.01


def freeze_its_statistics(layer):
    layer.dynamics.layers[0].trainable = False


@pytest.mark.parametrize("change", [drop_out, take_short_steps, slow(freeze_its_statistics)])
def test_setting_that_changes_between_eager_calls_counts(change):
    def network():
        return keras.Sequential([keras.layers.BatchNormalization(), keras.layers.Dense(3)])

    used, fresh = (
        ODERNN(keras.layers.GRUCell(3, seed=0), network(), solver="euler", step_size=0.5, adjoint="direct", max_steps=20, jit_compile=False)
        for _ in range(2)
    )
    fresh.build((None, 2, 2))
    used(X[:, :2], t=TIMES[:2], training=True)
    fresh.set_weights(used.get_weights())
    change(used), change(fresh)
    found, expected = (layer(X[:, :2], t=TIMES[:2], training=True) for layer in (used, fresh))
    np.testing.assert_array_equal(found, expected)
    for a, b in zip(used.get_weights(), fresh.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_penalties_are_refused():
    with pytest.raises(ValueError, match="penalties cannot leave the loop over the observations. Received: regularizer='kinetic'"):
        linear(regularizer="kinetic")


def test_stack_of_cells_is_refused():
    with pytest.raises(ValueError, match="stack ODERNN layers instead of their cells. Received: <StackedRNNCells"):
        linear(keras.layers.StackedRNNCells([keras.layers.GRUCell(3), keras.layers.GRUCell(5)]))


def test_what_is_no_cell_is_refused():
    with pytest.raises(TypeError, match="cell must be a cell of a recurrent layer"):
        ODERNN(keras.layers.Dense(3), keras.layers.Dense(3))


def test_times_far_from_zero_are_subtracted_before_they_are_rounded():
    times, x = np.array([0.0, 50.0, 150.0]), tf.random.normal([2, 3, 2], seed=1)
    layer = ODERNN(keras.layers.GRUCell(4), lambda y: -y / 100, rtol=1e-5, jit_compile=False)
    near, far = layer(x, t=tf.constant(times, tf.float32)), layer(x, t=1.7e9 + times)
    np.testing.assert_allclose(far, near, rtol=1e-4)


def test_mask_of_the_input_is_that_of_the_observations():
    """In the call, where nothing is observed, and of the output only where it is a sequence."""
    padded = np.where(ONLY_FIRST[..., None], X, 0)
    masked = keras.layers.Masking()(padded)
    layer = linear(return_sequences=True)
    states = layer(masked, t=TIMES)
    np.testing.assert_allclose(states, layer(X, t=TIMES, mask=ONLY_FIRST), rtol=1e-5)
    np.testing.assert_array_equal(states._keras_mask, ONLY_FIRST)
    backward = linear(return_sequences=True, go_backwards=True)
    np.testing.assert_array_equal(backward(masked, t=TIMES)._keras_mask, ONLY_FIRST[:, ::-1])


@pytest.mark.slow
def test_model_with_masking_before_trains():
    inputs = keras.Input([5, 2])
    model = keras.Model(inputs, linear(t=TIMES, solver="bosh3")(keras.layers.Masking()(inputs)))
    model.compile("sgd", "mse", jit_compile=False)
    assert np.isfinite(model.fit(X, np.zeros([3, 3]), verbose=0).history["loss"]).all()


@pytest.mark.slow
def test_series_goes_on_from_its_states():
    """Two parts are the whole, if the state has been carried to where the second begins."""
    for cell in (keras.layers.GRUCell(3), keras.layers.LSTMCell(3)):
        layer = linear(cell, return_state=True)
        _, *states = layer(X[:, :3], t=TIMES[:3])
        flowed = layer.ode(states[0], t=TIMES[2:4])
        output, *_ = layer(X[:, 3:], t=TIMES[3:], initial_state=[flowed, *states[1:]])
        np.testing.assert_allclose(output, layer(X, t=TIMES)[0], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_initial_state_gets_its_gradient():
    layer, start = linear(adjoint="backsolve"), tf.ones([3, 3])
    with tf.GradientTape() as tape:
        tape.watch(start)
        end = layer(X, t=TIMES, mask=np.zeros([3, 5], bool), initial_state=start)
    # Nothing is observed: the end is start expm(A T).
    np.testing.assert_allclose(tape.gradient(end, start)[0], scipy.linalg.expm(1.2 * A).sum(axis=1), rtol=1e-3)


def test_states_that_the_cell_does_not_have_are_refused():
    with pytest.raises(ValueError, match="as many parts as the cell has states, 2. Received: 1"):
        linear(keras.layers.LSTMCell(3))(X, t=TIMES, initial_state=tf.ones([3, 3]))


def test_missing_times_are_asked_for():
    with pytest.raises(ValueError, match="needs the times of the observations"):
        linear()(X)
    with pytest.raises(ValueError, match="one time for each observation. Received: 4 times"):
        linear()(X, t=TIMES[:4])


@pytest.mark.parametrize("padded", [[0.5, 0.2, 1.2, 1.2, 1.2], [0.2, 0.5, 1.2, 0.0, 0.0]], ids=["unsorted", "padded with zeros"])
def test_times_out_of_order_are_refused_and_nan_in_graphs(padded):
    layer = linear(per_sample=True)
    times = np.stack([OWN_TIMES[0], padded, OWN_TIMES[2]]).astype("float32")
    with pytest.raises(ValueError, match=r"pad it by repeating its last time. Received: t=array"):
        layer(X, t=times)
    states = tf.function(lambda t: layer(X, t=t))(tf.constant(times))
    np.testing.assert_array_equal(np.isnan(states).all(axis=1), [False, True, False])
    np.testing.assert_array_equal(np.isnan(states).any(axis=1), [False, True, False])


def test_bidirectional_layer_reads_in_both_directions():
    layer = linear(return_sequences=True, t=TIMES)
    both = keras.layers.Bidirectional(layer)
    output = both(X)
    forward, backward = both.forward_layer, both.backward_layer
    np.testing.assert_allclose(output[..., :3], forward(X), rtol=1e-5)
    np.testing.assert_allclose(output[..., 3:], backward(X)[:, ::-1], rtol=1e-5)


def test_states_before_observations_are_those_that_flowed_there():
    before, after = linear(return_sequences=True, return_before=True), linear(return_sequences=True)
    before.set_weights(after.get_weights())
    states, known = before(X, t=TIMES, initial_state=tf.ones([3, 3])), after(X, t=TIMES, initial_state=tf.ones([3, 3])).numpy()
    np.testing.assert_array_equal(states[:, 0], np.ones([3, 3]))
    expected = [known[:, i] @ scipy.linalg.expm(A * (TIMES[i + 1] - TIMES[i])) for i in range(4)]
    np.testing.assert_allclose(states[:, 1:], np.stack(expected, axis=1), rtol=1e-3, atol=1e-5)
    assert ODERNN.from_config(before.get_config()).return_before


# States at times of one's own

OUTPUT_TIMES = np.array([0.05, 0.1, 0.3, 0.55, 2.0], "float32")
OWN_OUTPUT_TIMES = OWN_TIMES[:, :1] + np.array([[0.0, 0.2, 0.9], [0.1, 0.3, 4.0], [0.5, 0.6, 0.7]], "float32")


def by_hand(layer, times, outputs, before=False):
    """The states at output times of each row: one solve for each piece between an observation and the next."""
    rows = []
    for row in range(len(X)):
        t, wanted, found = times[row], outputs[row], []
        h = np.zeros([1, 3], "float32")
        for i in range(len(t)):
            if before and t[i] in wanted:
                found.append(h[0])
            h = layer.cell(X[row : row + 1, i], h)[0].numpy()
            end = t[i + 1] if i + 1 < len(t) else np.inf
            within = [s for s in wanted if (t[i] < s if before else t[i] <= s) and s < end]
            for s in within:
                found.append((h @ scipy.linalg.expm(A * (s - t[i])))[0])
            if i + 1 < len(t):
                h = (h @ scipy.linalg.expm(A * (end - t[i]))).astype("float32")
        rows.append(found)
    return np.array(rows)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("own", [False, True], ids=["times of all", "times of each"])
def test_states_at_output_times_are_those_of_solves_piece_by_piece(own, before):
    times, outputs = (OWN_TIMES, OWN_OUTPUT_TIMES) if own else (TIMES, OUTPUT_TIMES)
    layer = linear(per_sample=own, return_sequences=True, return_before=before)
    states = layer(X, t=times, output_times=outputs)
    of_rows = [np.broadcast_to(x, (3, x.shape[-1])) for x in (times, outputs)]
    np.testing.assert_allclose(states, by_hand(layer, *of_rows, before=before), rtol=1e-3, atol=1e-5)


def test_output_times_back_in_time_are_those_of_the_mirrored_series():
    forward, backward = linear(return_sequences=True), linear(return_sequences=True, go_backwards=True)
    backward.set_weights(forward.get_weights())
    outputs = np.array([-1.0, 0.1, 0.55], "float32")
    found = backward(X, t=TIMES, output_times=outputs)
    expected = forward(X[:, ::-1], t=TIMES[::-1].copy(), output_times=outputs[::-1].copy())
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_last_output_time_alone_and_its_gradient():
    layer, times = linear(), tf.constant([0.7, 2.0])
    with tf.GradientTape() as tape:
        tape.watch(times)
        state = layer(X, t=TIMES, output_times=times)
    np.testing.assert_allclose(state, linear_flow(layer(X, t=TIMES).numpy(), 0.8), rtol=1e-3, atol=1e-5)
    slope = (state.numpy() @ A).sum()  # h' = h A
    np.testing.assert_allclose(tape.gradient(state, times), [0.0, slope], rtol=1e-2, atol=1e-4)


def linear_flow(state, duration):
    return state @ scipy.linalg.expm(A * duration)


@pytest.mark.slow
def test_model_with_output_times_is_saved_and_exported(tmp_path):
    series, times, outputs = keras.Input([5, 2]), keras.Input([5]), keras.Input([3])
    dense = keras.layers.Dense(3, activation="tanh")
    layer = ODERNN(keras.layers.GRUCell(3), dense, return_sequences=True, per_sample=True, jit_compile=False)
    found = layer(keras.layers.Masking()(series), t=times, output_times=outputs)
    assert found.shape == (None, 3, 3) and found._keras_mask.shape == (None, 3)
    model = keras.Model([series, times, outputs], found)
    inputs = [X, OWN_TIMES, OWN_OUTPUT_TIMES]
    expected = model.predict(inputs, verbose=0)
    np.testing.assert_allclose(layer(*inputs[:1], t=OWN_TIMES, output_times=OWN_OUTPUT_TIMES), expected, rtol=1e-4, atol=1e-5)
    model.save(tmp_path / "model.keras")
    np.testing.assert_allclose(keras.models.load_model(tmp_path / "model.keras").predict(inputs, verbose=0), expected, rtol=1e-4)
    model.export(tmp_path / "exported", verbose=False)
    exported = tf.saved_model.load(tmp_path / "exported")
    np.testing.assert_allclose(exported.serve([tf.constant(x) for x in inputs]), expected, rtol=1e-4)
    model.compile("sgd", "mse", jit_compile=True)
    assert np.isfinite(model.fit(inputs, np.zeros([3, 3, 3]), verbose=0).history["loss"]).all()


@pytest.mark.slow
def test_output_times_of_the_layer_are_in_its_config_and_its_masks():
    layer = linear(t=TIMES, output_times=[0.0, 2.0], return_sequences=True)
    again = ODERNN.from_config(layer.get_config())
    again.build((None, 5, 2))
    again.set_weights(layer.get_weights())
    masked = keras.layers.Masking()(X)
    states = layer(masked)
    np.testing.assert_array_equal(again(masked), states)
    np.testing.assert_allclose(states, layer(X, output_times=[0.0, 2.0]))
    assert states._keras_mask.shape == (3, 2) and layer(keras.Input([5, 2])).shape == (None, 2, 3)
    assert layer(keras.Input([5, 2]), output_times=[0.0, 1.0, 2.0]).shape == (None, 3, 3)
    both = keras.layers.Bidirectional(linear(t=TIMES, output_times=[0.0, 1.2], return_sequences=True))
    both.backward_layer.set_weights(both.forward_layer.get_weights())
    np.testing.assert_allclose(both(X)[..., 3:], both.backward_layer(X)[:, ::-1], rtol=1e-5)


@pytest.fixture(scope="module")
def states_at():
    """A layer, and its states at two output times that are known when the graph runs."""
    layer = linear(return_sequences=True)
    return layer, tf.function(lambda s: layer(X, t=TIMES, output_times=s))


@pytest.mark.parametrize("outputs", [[-0.1, 1.0], [0.5, 0.5], [1.0, 0.5]], ids=str)
def test_output_times_that_make_no_sense_are_refused_and_nan_in_graphs(states_at, outputs):
    layer, in_graph = states_at
    with pytest.raises(ValueError, match="none may come before the first observation. Received: output_times=array"):
        layer(X, t=TIMES, output_times=outputs)
    states = in_graph(tf.constant(outputs))
    assert np.isnan(states[:, 1]).all()
    if outputs[0] > 0:
        np.testing.assert_allclose(states[:, :1], layer(X, t=TIMES, output_times=outputs[:1]), rtol=1e-4, atol=1e-5)


def test_output_times_of_a_wrong_kind_are_refused():
    layer = linear(return_sequences=True)
    with pytest.raises(ValueError, match=r"\[B, K\] with per_sample=True. Received: output_times of shape \(3, 3\)"):
        layer(X, t=TIMES, output_times=OWN_OUTPUT_TIMES)
    for wrong in ([1.0, 0.5, 2.0], [], "soon"):
        with pytest.raises(ValueError, match="must be a list of strictly monotone numbers. Received"):
            linear(output_times=wrong)
    with pytest.raises(TypeError, match="must be numbers: pass tensors in the call"):
        linear(output_times=tf.constant([0.0]))
