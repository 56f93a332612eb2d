import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.integrate import solve_ivp
from scipy.interpolate import CubicHermiteSpline, CubicSpline

import keras_ode
from keras_ode.paths import CubicPath, LinearPath
from tests.marks import nightly, slow

KNOTS = np.array([0.0, 0.4, 1.0, 1.3, 2.0])
RNG = np.random.default_rng(0)
VALUES = RNG.normal(size=(5, 2))
BATCH = RNG.normal(size=(3, 5, 2))
ASKED = np.linspace(0.0, 2.0, 23)
NAN = np.nan
GAPS = np.array([[NAN, 1.0], [0.5, NAN], [NAN, NAN], [-1.0, 2.0], [0.3, NAN]])
MAKERS = {
    "linear": LinearPath,
    "natural": CubicPath,
    "hermite": lambda times, values: CubicPath(times, values, kind="hermite"),
}


def reference(kind, times, values):
    """A curve through one channel, from SciPy; the first and the last value are there."""
    if kind == "natural":
        return CubicSpline(times, values, bc_type="natural")
    rates = np.diff(values) / np.diff(times)
    if kind == "hermite":
        return CubicHermiteSpline(times, values, np.concatenate([rates[:1], rates]))
    return lambda t, nu=0: np.interp(t, times, values) if nu == 0 else rates[np.searchsorted(times[1:-1], t, side="right")]


@pytest.mark.parametrize("kind", MAKERS)
def test_values_and_derivatives_are_those_of_scipy(kind):
    path = MAKERS[kind](KNOTS, VALUES)
    for channel, (value, slope) in enumerate(zip(path.evaluate(ASKED).numpy().T, path.derivative(ASKED).numpy().T, strict=True)):
        curve = reference(kind, KNOTS, VALUES[:, channel])
        np.testing.assert_allclose(value, curve(ASKED), atol=1e-12)
        np.testing.assert_allclose(slope, curve(ASKED, 1), atol=1e-12)
    np.testing.assert_array_equal(path.knots, KNOTS)


@pytest.mark.parametrize("kind", MAKERS)
def test_missing_values_are_on_the_curve_through_the_observed_ones(kind):
    path = MAKERS[kind](KNOTS, GAPS)
    seen = [([0, 1, 3, 4], [0.5, 0.5, -1.0, 0.3]), ([0, 3, 4], [1.0, 2.0, 2.0])]  # with the ends, which are held
    for channel, (which, values) in enumerate(seen):
        curve = reference(kind, KNOTS[which], np.array(values))
        np.testing.assert_allclose(path.evaluate(ASKED)[:, channel], curve(ASKED), atol=1e-12)
        np.testing.assert_allclose(path.derivative(ASKED)[:, channel], curve(ASKED, 1), atol=1e-12)


@pytest.mark.parametrize("kind", MAKERS)
def test_one_observation_is_held(kind):
    path = MAKERS[kind](KNOTS, [NAN, NAN, 3.0, NAN, NAN])
    np.testing.assert_allclose(path.evaluate(ASKED), np.full(23, 3.0), atol=1e-12)


@pytest.mark.parametrize("kind", MAKERS)
def test_values_at_the_ends_are_held_outside(kind):
    path = MAKERS[kind](KNOTS, VALUES)
    np.testing.assert_allclose(path.evaluate([-5.0, 9.0]), VALUES[[0, -1]], atol=1e-12)
    np.testing.assert_array_equal(path.derivative([-5.0, 9.0]), np.zeros([2, 2]))
    assert np.isnan(path.evaluate(NAN)).all() and np.isnan(path.derivative(NAN)).all()


def test_slope_at_a_knot_is_that_of_the_piece_to_the_right():
    path = LinearPath(KNOTS, VALUES)
    rates = np.diff(VALUES, axis=0) / np.diff(KNOTS)[:, None]
    np.testing.assert_allclose(path.derivative(KNOTS), rates[[0, 1, 2, 3, 3]], atol=1e-12)


def test_hermite_curve_up_to_a_value_does_not_depend_on_later_ones():
    changed = VALUES.copy()
    changed[3:] += 1
    before = ASKED[ASKED <= KNOTS[2]]
    ends = [CubicPath(KNOTS, values, kind="hermite").evaluate(before) for values in (VALUES, changed)]
    np.testing.assert_array_equal(*ends)


@pytest.mark.parametrize(
    "values, t_shape, shape",
    [
        (VALUES[:, 0], (), ()),
        (VALUES[:, 0], (3,), (3,)),
        (VALUES[:, 0], (3, 1), (3, 1)),
        (VALUES, (), (2,)),
        (VALUES, (7,), (7, 2)),
        (VALUES, (3, 1), (3, 2)),
        (VALUES, (3, 1, 1), (3, 1, 2)),
        (BATCH, (), (3, 2)),
        (BATCH, (3,), (3, 2)),
        (BATCH, (3, 1), (3, 2)),
        (BATCH, (3, 1, 1), (3, 1, 2)),
        (BATCH, (3, 4), (3, 4, 2)),
        (BATCH, (1, 4), (3, 4, 2)),
    ],
)
def test_shape_broadcasts_as_that_of_the_time_does(values, t_shape, shape):
    path = CubicPath(KNOTS, values)
    t = tf.fill(t_shape, tf.constant(0.7, tf.float64))
    assert path.evaluate(t).shape == path.derivative(t).shape == shape
    traced = tf.function(path.evaluate, autograph=False).get_concrete_function(tf.TensorSpec([None, *t_shape[1:]] if t_shape else []))
    assert traced.output_shapes.is_compatible_with(shape) and traced.output_shapes.rank == len(shape)


def test_rows_have_their_own_times():
    times = KNOTS + np.array([[0.0], [1.0], [-2.0]])
    times[1] *= 2
    asked = RNG.uniform(-2.0, 6.0, size=(3, 4))
    values = np.where(RNG.uniform(size=BATCH.shape) < 0.3, NAN, BATCH)
    values[:, 2] = 1.0
    for make in MAKERS.values():
        path = make(times, values)
        for read in ("evaluate", "derivative"):
            alone = [getattr(make(a, b), read)(t) for a, b, t in zip(times, values, asked, strict=True)]
            np.testing.assert_allclose(getattr(path, read)(asked), alone, atol=1e-10)


@pytest.mark.parametrize("kind", MAKERS)
def test_gradients_are_those_of_differences(kind):
    times, t = tf.constant(KNOTS), tf.constant([-1.0, 0.2, 1.1, 1.9, 3.0], tf.float64)

    def read(times, values, t):
        path = MAKERS[kind](times, values)
        return path.evaluate(t) + tf.sin(path.derivative(t))

    with tf.GradientTape() as tape:
        sources = (times, tf.constant(GAPS), t)
        tape.watch(sources)
        loss = tf.reduce_sum(read(*sources))
    for i, gradient in enumerate(tape.gradient(loss, sources)):
        direction = RNG.normal(size=gradient.shape)
        moved = [read(*(x + sign * 1e-6 * direction * (i == j) if i == j else x for j, x in enumerate(sources))) for sign in (1, -1)]
        np.testing.assert_allclose(
            tf.reduce_sum(gradient * direction), tf.reduce_sum(moved[0] - moved[1]) / 2e-6, rtol=1e-6, atol=1e-8
        )


@pytest.mark.parametrize("kind", MAKERS)
def test_nests_take_a_path_apart_and_put_it_together(kind):
    path = MAKERS[kind](KNOTS, VALUES)
    for nest in (tf.nest, keras.tree):
        again = nest.pack_sequence_as((path,), nest.flatten((path,)))[0]
        assert type(again) is type(path) and isinstance(again, LinearPath if kind == "linear" else CubicPath)
        np.testing.assert_array_equal(again.evaluate(ASKED), path.evaluate(ASKED))
        nothing = nest.map_structure(lambda x: None, path)
        assert type(nothing) is type(path)
    returned = tf.function(lambda path: path)(path)
    assert type(returned) is type(path)


@pytest.mark.slow
def test_path_made_in_a_compiled_function_is_that_of_eager_code():
    @tf.function(jit_compile=True)
    def read(times, values, t):
        with tf.GradientTape() as tape:
            tape.watch(values)
            path = CubicPath(times, values)
            results = path.evaluate(t) + path.derivative(t)
        return results, tape.gradient(results, values)

    arguments = [tf.constant(x, tf.float32) for x in (KNOTS, GAPS, ASKED)]
    compiled, eager = read(*arguments), read.python_function(*arguments)
    for a, b in zip(tf.nest.flatten(compiled), tf.nest.flatten(eager), strict=True):
        assert a.dtype == tf.float32
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_result_has_the_dtype_of_the_time():
    path = LinearPath(KNOTS.astype("float32"), VALUES.astype("float32"))
    assert path.evaluate(tf.constant(0.5, tf.float64)).dtype == tf.float64
    assert path.evaluate(0.5).dtype == tf.float32
    # A time right before a knot is not rounded onto it.
    before = np.nextafter(np.float64(np.float32(0.4)), 0)
    np.testing.assert_allclose(path.derivative(tf.constant(before))[0], (VALUES[1, 0] - VALUES[0, 0]) / 0.4, rtol=1e-6)


@pytest.mark.parametrize(
    "times, values, words",
    [
        ([0.0, 1.0, 1.0], [1.0, 2.0, 3.0], r"strictly increasing.*\[0\.0, 1\.0, 1\.0\]"),
        ([0.0, NAN], [1.0, 2.0], "finite"),
        ([0.0], [1.0], r"two or more times. Received: times=\[0\.0\]"),
        ([0.0, 1.0, 2.0], [1.0, 2.0], r"as many times as values.*\(3,\).*\(2,\)"),
        ([[0.0, 1.0]], [1.0, 2.0], r"times must have the shape.*\(1, 2\)"),
        ([0.0, 1.0], 1.0, r"values must have the shape.*\(\)"),
        ([0.0, 1.0], [[1.0, NAN], [2.0, NAN]], r"at least one observation.*1 of 2 channels, the first at \[1\]"),
        ([1e8, 1e8 + 1], np.ones([2], "float32"), "rounded to float32"),
    ],
)
def test_wrong_input_is_refused_with_what_was_received(times, values, words):
    for make in MAKERS.values():
        with pytest.raises(ValueError, match=words):
            make(times, values)


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="'natural', 'hermite'.*kind='akima'"):
        CubicPath(KNOTS, VALUES, kind="akima")


def test_times_of_another_batch_are_refused():
    with pytest.raises(ValueError, match=r"3 rows.*\(4, 1\)"):
        LinearPath(KNOTS, BATCH).evaluate(np.zeros([4, 1]))


def test_what_a_graph_cannot_refuse_is_nan():
    traced = tf.function(lambda times, values: CubicPath(times, values).evaluate(0.5))
    values = VALUES.copy()
    values[:, 1] = NAN
    np.testing.assert_array_equal(np.isnan(traced(KNOTS, tf.constant(values))), [False, True])
    assert np.isnan(traced(tf.constant(KNOTS[::-1].copy()), tf.constant(VALUES))).all()


def test_path_cast_to_half_precision_is_refused():
    path = tf.nest.map_structure(lambda x: tf.cast(x, tf.bfloat16), LinearPath(KNOTS, VALUES))
    with pytest.raises(TypeError, match="bfloat16.*dtype='float32'"):
        path.evaluate(tf.constant(0.5, tf.bfloat16))


def test_path_of_keras_tensors_is_read_in_the_dynamics_only():
    with pytest.raises(TypeError, match="in args.*Received: <KerasTensor"):
        LinearPath(KNOTS, keras.Input([5, 2])).evaluate(0.0)


def test_variable_beside_keras_tensors_is_refused():
    with pytest.raises(TypeError, match="gradient with respect to a variable would be lost.*times=<tf.Variable"):
        LinearPath(tf.Variable(KNOTS), keras.Input([5, 2]))


def forced(t, y, path):
    return tf.stack([y[1], path.evaluate(t) - y[0]])


def forced_end(times, values, make):
    """The end of `y'' = u(t) - y` from `(1, 0)`, from SciPy, piece by piece."""
    curve, y = reference(make, times, values), np.array([1.0, 0.0])
    for piece in zip(times[:-1], times[1:], strict=True):
        y = solve_ivp(lambda t, y: [y[1], curve(t) - y[0]], piece, y, rtol=1e-10, atol=1e-12).y[:, -1]
    return y


@pytest.mark.slow
def test_forced_oscillator_ends_as_with_scipy_and_has_its_gradient_by_the_values():
    """The end is linear in the values, so that differences are exact."""
    y0, values = tf.constant([1.0, 0.0], tf.float64), tf.constant(VALUES[:, 0])
    with tf.GradientTape() as tape:
        tape.watch(values)
        path = LinearPath(KNOTS, values)
        options = {"jump_times": path.knots, "rtol": 1e-9, "atol": 1e-9, "jit_compile": False}
        last = keras_ode.solve(forced, y0, [0.0, 2.0], args=(path,), **options).ys[-1]
        loss = last[0]
    start = forced_end(KNOTS, VALUES[:, 0], "linear")
    np.testing.assert_allclose(last, start, atol=1e-8)
    ends = [forced_end(KNOTS, VALUES[:, 0] + move, "linear")[0] for move in np.eye(5)]
    np.testing.assert_allclose(tape.gradient(loss, values), np.array(ends) - start[0], atol=1e-7)


@pytest.mark.parametrize("jit_compile", [False, nightly(True)])
@pytest.mark.slow
def test_controlled_equation_has_its_closed_form_in_every_row(jit_compile):
    """`dz = a z dX` ends at `z(0) exp(a (X(T) - X(0)))`, whatever the path in between; rows have their own times."""
    times = tf.constant(KNOTS + np.array([[0.0], [1.0], [-2.0]]), tf.float32)
    values, rate = tf.constant(BATCH[..., :1], tf.float32), tf.Variable(0.7)
    spans = tf.stack([times[:, 0], times[:, -1]], axis=1)

    @tf.function(jit_compile=jit_compile)
    def run(times, values):
        with tf.GradientTape() as tape:
            tape.watch(values)
            args = (CubicPath(times, values),)
            field = lambda t, z, path: rate * z * path.derivative(t)
            end = keras_ode.solve(field, tf.ones([3, 1]), spans, args=args, per_sample=True, rtol=1e-5, jit_compile=False).ys[-1]
        return end, tape.gradient(end, (values, rate))

    end, (by_values, by_rate) = run(times, values)
    change = values[:, -1] - values[:, 0]
    expected = tf.exp(0.7 * change)
    np.testing.assert_allclose(end, expected, rtol=1e-3)
    np.testing.assert_allclose(by_rate, tf.reduce_sum(change * expected), rtol=3e-3)
    inner = tf.zeros([3, 3, 1])
    exact = tf.concat([-0.7 * expected[:, None], inner, 0.7 * expected[:, None]], axis=1)
    np.testing.assert_allclose(by_values, exact, atol=5e-3)


def test_rows_jump_at_knots_of_their_own():
    """Between knots the slope of a linear path is constant, so that steps are limited by nothing but the knots."""
    times = KNOTS + np.array([[0.0], [1.0], [-2.0]])
    path = LinearPath(times, BATCH[..., :1])
    solution = keras_ode.solve(
        lambda t, y, path: path.derivative(t),
        tf.zeros([3, 1], tf.float64),
        times[:, [0, -1]],
        args=(path,),
        jump_times=path.knots,
        per_sample=True,
        jit_compile=False,
    )
    np.testing.assert_allclose(solution.ys[-1], BATCH[:, -1, :1] - BATCH[:, 0, :1], atol=1e-9)
    np.testing.assert_array_equal(solution.stats["num_rejected"], [0, 0, 0])


@keras.saving.register_keras_serializable("paths")
class Controlled(keras.layers.Layer):
    """`dz = W z dX` as a layer."""

    def build(self, shape):
        self.dense = keras.layers.Dense(2, use_bias=False)
        self.dense.build(shape)

    def call(self, t, z, path):
        return self.dense(z) * path.derivative(t)


@keras.saving.register_keras_serializable("paths")
class Follow(keras.layers.Layer):
    """The end of the controlled equation along a series."""

    def __init__(self, ode=None, **kwargs):
        super().__init__(**kwargs)
        self.ode = ode or keras_ode.ODELayer(Controlled(), t=[0.0, 2.0], rtol=1e-5, jit_compile=False)

    def call(self, series):
        return self.ode(tf.ones([3, 2]), args=(CubicPath(KNOTS, series),))

    def compute_output_shape(self, shape):
        return (3, 2)

    def get_config(self):
        return {**super().get_config(), "ode": keras.saving.serialize_keras_object(self.ode)}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "ode": keras.saving.deserialize_keras_object(config["ode"])})


@pytest.mark.slow
def test_layer_takes_a_path_in_its_args_and_is_saved(tmp_path):
    series = BATCH[..., :1].astype("float32")
    inputs = keras.Input([5, 1])
    model = keras.Model(inputs, Follow()(inputs))
    end = model(series)
    change = series[:, -1] - series[:, 0]
    matrix = tf.linalg.expm(change[:, None] * model.layers[-1].ode.dynamics.dense.kernel)
    np.testing.assert_allclose(end, tf.linalg.matvec(matrix, tf.ones([3, 2]), transpose_a=True), atol=2e-3)
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(series), end)


def follower(by_row):
    """A functional model that follows a path of its inputs; inputs; and where that ends, by the closed form."""
    layer = keras_ode.ODELayer(Controlled(), t=[0.0, 2.0], rtol=1e-6, jit_compile=False, per_sample=by_row)
    start, series, times = keras.Input([2]), keras.Input([5, 1]), keras.Input([5])
    path = LinearPath(times if by_row else KNOTS, series)
    end = layer(start, args=(path,), **({"jump_times": path.knots} if by_row else {}))
    model = keras.Model([start, series, times] if by_row else [start, series], end)
    values = BATCH[..., :1].astype("float32")
    inputs = [np.ones([3, 2], "float32"), values, np.stack([KNOTS] * 3).astype("float32")][: len(model.inputs)]
    matrix = tf.linalg.expm((values[:, -1] - values[:, 0])[:, None] * layer.dynamics.dense.kernel)
    return model, inputs, tf.linalg.matvec(matrix, tf.ones([3, 2]), transpose_a=True)


@pytest.mark.parametrize("by_row", [slow(False), True])
def test_functional_model_follows_a_path_of_its_inputs_and_is_saved(by_row, tmp_path):
    model, inputs, expected = follower(by_row)
    end = model(inputs)
    np.testing.assert_allclose(end, expected, atol=1e-3)
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(inputs), end)
    copy = keras.Model.from_config(model.get_config())  # which has to build its layers itself
    copy.set_weights(model.get_weights())
    np.testing.assert_array_equal(copy(inputs), end)


@pytest.mark.slow
def test_functional_model_of_a_path_is_exported(tmp_path):
    model, inputs, expected = follower(True)
    model.export(str(tmp_path / "exported"), verbose=False)
    served = tf.saved_model.load(str(tmp_path / "exported"))
    np.testing.assert_allclose(served.serve(inputs), expected, rtol=1e-4)
