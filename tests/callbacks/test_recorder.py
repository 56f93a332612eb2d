"""`SolverStepRecorder`: what is recorded of each solve, and that recording changes nothing."""

import csv
import functools
import json
import re
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ode
from keras_ode.callbacks import SolveRecord, SolverStepRecorder
from keras_ode.callbacks.tensorboard import Summaries
from tests.marks import nightly, slow
from tests.references import Counting
from tests.seeds import seed

X = np.random.default_rng(0).normal(size=(32, 2)).astype("float32")
Y = X[:, :1] * X[:, 1:]
CONSTANT = ("euler", "heun", "rk4")
SPAN = (0.5, 2.5)


def make_model(dtype="float32", compile=True, **options):
    """A layer that learns before the solve, so that every solve has a backward pass, and one behind it.

    The solver has few stages, and so is traced fast: `counted` has the others. Where any backward solve will do, tests ask
    for that of "backsolve", which is traced faster than the one of "interpolating".
    """
    seed(1)
    dynamics = keras.Sequential([keras.layers.Dense(8, "tanh", dtype=dtype), keras.layers.Dense(2, dtype=dtype)])
    options = {"t": SPAN, "solver": "bosh3", "rtol": 1e-4, "jit_compile": False, "name": "flow", "dtype": dtype, **options}
    model = keras.Sequential(
        [
            keras.Input([2], dtype=dtype),
            keras.layers.Dense(2, dtype=dtype),
            keras_ode.ODELayer(dynamics, **options),
            keras.layers.Dense(1, dtype=dtype),
        ]
    )
    if compile:
        model.compile(keras.optimizers.Adam(0.02), "mse", jit_compile=False)
    return model


def fit(model, recorder, epochs=1, **options):
    options = {"batch_size": 8, "verbose": 0, "shuffle": False, **options}
    return model.fit(X, Y, epochs=epochs, callbacks=[recorder], **options)


def only(records, **wanted):
    return [r for r in records if all(getattr(r, name) == value for name, value in wanted.items())]


@functools.cache
def counted(solver, adjoint, per_sample, times):
    """One training step and one evaluation with a dynamics that counts: the records, and counts and logs of each pass."""
    count = Counting(lambda t, y: tf.sin(y[..., ::-1]) * tf.cos(3 * t))
    constant = solver in CONSTANT
    seed(1)
    layer = keras_ode.ODELayer(
        count,
        t=times,
        solver=solver or "bosh3",
        adjoint=adjoint,
        rtol=1e-5,
        controller="constant" if constant else None,
        step_size=0.15 if constant else None,
        per_sample=per_sample,
        jit_compile=False,
        name="flow",
    )
    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(2), layer])
    model.compile("sgd", "mse", jit_compile=False)
    recorder = SolverStepRecorder()
    count.take()
    evaluated = model.evaluate(X[:8], X[:8], callbacks=[recorder], verbose=0, return_dict=True)
    forward = count.take()
    trained = model.fit(X[:8], X[:8], callbacks=[recorder], verbose=0).history
    return recorder.records, forward, count.take() - forward, evaluated, {k: v[0] for k, v in trained.items()}


# Solvers with and without first same as last, with stages for the interpolant alone, and without an error estimate; every
# adjoint; steps of rows; back in time.
BACK = (2.5, 1.0, 0.5)
RK4, REPLAYED = ("rk4", "interpolating", False, SPAN), (None, "checkpointed", False, SPAN)
CASES = [REPLAYED]
SLOW_CASES = [RK4, ("dopri8", "interpolating", False, BACK), (None, "backsolve", True, SPAN), ("tsit5", "interpolating", True, SPAN)]
NIGHTLY_CASES = [
    *((solver, "interpolating", False, SPAN) for solver in ("heun", "tsit5", "euler")),
    ("bosh3", "backsolve", False, BACK),
    ("tsit5", "checkpointed", False, SPAN),
    (None, "interpolating", True, SPAN),
    (None, "backsolve", False, SPAN),
    (None, "checkpointed", True, SPAN),
    (None, "interpolating", False, BACK),
]
EVERY = pytest.mark.parametrize("case", [*CASES, *map(slow, SLOW_CASES), *map(nightly, NIGHTLY_CASES)], ids=str)


@EVERY
@pytest.mark.slow
def test_accepted_steps_tile_the_interval(case):
    times = case[-1]
    for record in counted(*case)[0]:
        start, end = (times[0], times[-1]) if record.direction == "forward" else (times[-1], times[0])
        t, size = record.t[record.accepted], record.step_size[record.accepted]
        # A few units in the last place of float32 at times about 2.
        np.testing.assert_allclose([start, *(t + size)], [*t, end], rtol=0, atol=1e-6)


@EVERY
def test_nfe_is_how_often_the_dynamics_was_called(case):
    _, forward, _, evaluated, trained = counted(*case)
    assert evaluated["flow_nfe"] == trained["flow_nfe"] == forward


@EVERY
def test_nfe_backward_is_how_often_the_backward_pass_called_the_dynamics(case):
    _, _, backward, evaluated, trained = counted(*case)
    assert trained["flow_nfe_backward"] == backward > 0
    assert evaluated["flow_nfe_backward"] == 0


@EVERY
def test_steps_are_rejected_where_their_error_is_above_one(case):
    for record in counted(*case)[0]:
        if case[0] in CONSTANT:
            assert record.accepted.all()
        elif not (case[1] == "checkpointed" and record.direction == "backward"):
            np.testing.assert_array_equal(record.accepted, record.error <= 1)


@pytest.mark.slow
@pytest.mark.parametrize("per_sample", [nightly(False), True])
def test_a_record_has_the_steps_that_the_solve_counts(per_sample):
    model = make_model(per_sample=per_sample, rtol=1e-6)
    recorder = SolverStepRecorder()
    model.predict(X, callbacks=[recorder], verbose=0)
    layer = model.layers[1]
    stats = layer.solve(model.layers[0](X)).stats
    assert [r.accepted.size for r in recorder.records] == np.ravel(stats["num_steps"]).tolist()
    assert [int(r.accepted.sum()) for r in recorder.records] == np.ravel(stats["num_accepted"]).tolist()
    assert recorder.means["flow_rejected"] == np.mean(stats["num_rejected"])


def test_methods_without_an_error_estimate_have_none():
    assert all(np.isnan(record.error).all() for record in counted(*RK4)[0])


def test_replayed_steps_are_the_forward_ones_from_the_last_to_the_first():
    records = counted(*REPLAYED)[0]
    forward, backward = records[-2], records[-1]
    accepted = forward.step_size[forward.accepted]
    # The times are kept, not the sizes: their differences are rounded.
    np.testing.assert_allclose(-backward.step_size[::-1], accepted, rtol=0, atol=1e-6)
    assert np.isnan(backward.error).all()


@pytest.fixture(scope="module")
def eager():
    """Eager training of four batches, in double precision, with its records."""
    return trained("eager")


def trained(how):
    model = make_model("float64", compile=False)
    recorder = SolverStepRecorder(every="batch")
    options = {"eager": {"run_eagerly": True}, "graph": {"jit_compile": False}, "XLA": {"jit_compile": True}}
    options["executions"] = {"jit_compile": False, "steps_per_execution": 3}
    model.compile("sgd", "mse", **options[how])
    fit(model, recorder)
    return recorder.records


@pytest.mark.parametrize("how", [nightly("graph"), nightly("XLA"), "executions"])
@pytest.mark.slow
def test_compiled_training_records_what_eager_training_does(eager, how):
    records = trained(how)
    assert len(records) == len(eager) == 8
    for record, expected in zip(records, eager, strict=True):
        assert record[:5] == expected[:5]
        # Double precision; what is small among the errors is a difference of larger numbers.
        np.testing.assert_allclose(record.t, expected.t, rtol=1e-7)
        np.testing.assert_allclose(record.step_size, expected.step_size, rtol=1e-7)
        np.testing.assert_allclose(record.error, expected.error, rtol=1e-6, atol=1e-9)
        np.testing.assert_array_equal(record.accepted, expected.accepted)


@pytest.fixture(scope="module")
def two_epochs(tmp_path_factory):
    """Two epochs with everything on, and what other callbacks see."""
    path = tmp_path_factory.mktemp("run")
    model = make_model()
    number = len(model.variables)
    recorder = SolverStepRecorder(every=2, log_dir=path / "logs")
    watch = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(len(model.variables)))
    seen = []
    callbacks = [
        keras.callbacks.EarlyStopping(monitor="flow_nfe", patience=5),
        keras.callbacks.CSVLogger(path / "log.csv"),
        keras.callbacks.ModelCheckpoint(path / "recorded.keras"),
        watch,
        recorder,
    ]
    model.fit(X, Y, batch_size=8, epochs=2, verbose=0, shuffle=False, callbacks=callbacks, validation_data=(X, Y))
    return model, recorder, path, (number, seen)


@pytest.mark.slow
def test_every_second_batch_is_recorded(two_epochs):
    _, recorder, _, _ = two_epochs
    found = [(r.epoch, r.batch, r.direction) for r in recorder.records]
    assert found == [(e, b, d) for e in (0, 1) for b in (1, 3) for d in ("forward", "backward")]


def test_logs_are_in_the_history(two_epochs):
    history = two_epochs[0].history.history
    for name in ("flow_nfe", "flow_nfe_backward", "flow_rejected", "flow_failures"):
        assert len(history[name]) == len(history["val_" + name]) == 2


def test_other_callbacks_see_the_logs_whatever_their_order(two_epochs):
    stopping, _, path, _ = two_epochs
    with open(path / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["flow_nfe"]) for row in rows] == stopping.history.history["flow_nfe"]


@pytest.mark.slow
def test_early_stopping_monitors_evaluations_and_direct_adjoint_has_no_backward_solve():
    model = make_model(adjoint="direct", max_steps=32)  # traced fast: it has no backward solve
    stopping = keras.callbacks.EarlyStopping(monitor="flow_nfe", min_delta=1000, patience=2)
    recorder = SolverStepRecorder()
    model.fit(X, Y, batch_size=32, epochs=5, verbose=0, callbacks=[stopping, recorder])
    assert len(model.history.epoch) == 3
    assert [r.direction for r in recorder.records] == ["forward"] * 3
    assert recorder.means["flow_nfe_backward"] == 0


def test_recording_adds_no_weight(two_epochs):
    number, during = two_epochs[-1]
    assert during == [number, number]


def test_a_file_saved_while_recording_is_as_ever(two_epochs, tmp_path):
    model, _, path, _ = two_epochs
    model.save(tmp_path / "plain.keras")
    assert contents(path / "recorded.keras") == contents(tmp_path / "plain.keras")


def contents(path):
    """The configuration and the weights' names and values in a saved file."""
    with zipfile.ZipFile(path) as file:
        config = json.loads(file.read("config.json"))
        with file.open("model.weights.h5") as weights, h5py.File(weights) as h5:
            found = {}
            h5.visititems(lambda name, x: found.update({name: x[()].tobytes()} if isinstance(x, h5py.Dataset) else {name: ""}))
    return config, found


def events(log_dir):
    """What TensorBoard reads: the name of the plugin that draws it, and the value, by step and tag."""
    (file,) = log_dir.iterdir()
    summaries = [(e.step, v) for e in tf.compat.v1.train.summary_iterator(str(file)) for v in e.summary.value]
    plugins = {v.tag: v.metadata.plugin_data.plugin_name for _, v in summaries if v.metadata.plugin_data.plugin_name}
    return {(step, v.tag): (plugins[v.tag], tf.make_ndarray(v.tensor)) for step, v in summaries}


def test_tensorboard_gets_the_logs_of_each_epoch_as_scalars(two_epochs):
    _, recorder, path, _ = two_epochs
    found = {key: value for key, (plugin, value) in events(path / "logs").items() if plugin == "scalars"}
    logs = [(prefix, log) for prefix in ("", "val_") for log in ("nfe", "nfe_backward", "rejected", "failures")]
    expected = {(e, f"flow/{p}{log}"): np.float32(recorder.history[e][f"{p}flow_{log}"]) for e in (0, 1) for p, log in logs}
    assert found == expected


def test_tensorboard_gets_histograms_of_the_steps_of_each_epoch(two_epochs):
    _, recorder, path, _ = two_epochs
    found = {key: value for key, (plugin, value) in events(path / "logs").items() if plugin == "histograms"}
    for epoch in (0, 1):
        for direction in ("forward", "backward"):
            records = only(recorder.records, epoch=epoch, direction=direction)
            for what in ("step_size", "error"):
                values = np.abs(np.concatenate([getattr(r, what) for r in records]))
                left, right, count = found.pop((epoch, f"flow/{direction}_{what}")).T
                np.testing.assert_allclose([left[0], right[-1]], [values.min(), values.max()])
                np.testing.assert_array_equal(count, np.histogram(values, np.append(left, right[-1]))[0])
    assert not found


def test_tensorboard_itself_reads_what_is_written(two_epochs):
    """Its reader tells scalars from histograms by their metadata."""
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    _, recorder, path, _ = two_epochs
    reader = loading.EventAccumulator(str(path / "logs")).Reload()
    assert {"flow/nfe", "flow/failures", "flow/forward_step_size"} <= set(reader.Tags()["tensors"])
    nfe = [tf.make_ndarray(event.tensor_proto) for event in reader.Tensors("flow/nfe")]
    assert nfe == [logs["flow_nfe"] for logs in recorder.history]
    assert reader.SummaryMetadata("flow/forward_step_size").plugin_data.plugin_name == "histograms"


def test_csv_has_a_line_for_each_step(two_epochs):
    _, recorder, path, _ = two_epochs
    recorder.to_csv(path / "steps.csv")
    with open(path / "steps.csv") as file:
        rows = list(csv.DictReader(file))
    np.testing.assert_array_equal([np.float32(row["step_size"]) for row in rows], np.concatenate([r.step_size for r in recorder.records]))


@pytest.mark.slow
def test_evaluation_after_an_interrupted_fit_is_recorded():
    class Interrupt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    layer = keras_ode.ODELayer(keras.layers.Dense(2), solver="bosh3", jit_compile=False)
    model, x = keras.Sequential([keras.Input([2]), layer]), np.ones([4, 2], "float32")
    model.compile("sgd", "mse", jit_compile=False)
    recorder = SolverStepRecorder()
    with pytest.raises(KeyboardInterrupt):
        model.fit(x, x, callbacks=[recorder, Interrupt()], verbose=0)
    assert not recorder.records
    model.evaluate(x, x, callbacks=[recorder], verbose=0)
    assert [record.direction for record in recorder.records] == ["forward"] and recorder.means
    assert layer._recorder is None


def test_the_layer_is_left_as_it_was(two_epochs):
    model = two_epochs[0]
    assert model.layers[1]._recorder is None
    assert not any("flow" in metric.name for metric in model.metrics)


@functools.cache
def four_batches(adjoint, jit_compile):
    """A trained model and the recorder of its four batches."""
    model, recorder = make_model(adjoint=adjoint), SolverStepRecorder(every="batch")
    model.compile(keras.optimizers.Adam(0.02), "mse", jit_compile=jit_compile)
    fit(model, recorder)
    return model, recorder


@pytest.mark.parametrize("adjoint, jit_compile", [("interpolating", False), ("interpolating", True)])
@pytest.mark.slow
def test_recording_changes_no_bit_of_what_is_learned(adjoint, jit_compile):
    recorded, _ = four_batches(adjoint, jit_compile)
    plain = make_model(adjoint=adjoint)
    plain.compile(keras.optimizers.Adam(0.02), "mse", jit_compile=jit_compile)
    plain.fit(X, Y, batch_size=8, epochs=1, verbose=0, shuffle=False)
    assert [w.tobytes() for w in recorded.get_weights()] == [w.tobytes() for w in plain.get_weights()]


@pytest.mark.slow
def test_a_compiled_program_holds_a_buffer_only_while_recording():
    model = make_model()
    recorder = SolverStepRecorder(capacity=76)

    def program():
        def step(x):
            with tf.GradientTape() as tape:
                y = model(x)
            return tape.gradient(y, model.trainable_variables)

        return tf.function(step, jit_compile=True).experimental_get_compiler_ir(tf.constant(X))(stage="hlo")

    before = program()
    recorder.set_model(model)
    during = program()
    recorder.on_train_end()
    assert "f32[79,4]" in during  # a row for each of 76 steps, one for all later ones, and two for the recorder
    assert "f32[79,4]" not in before
    # The numbers in names go on from those of all programs before.
    assert len(re.sub("[0-9]+", "", program())) == len(re.sub("[0-9]+", "", before))


@pytest.mark.slow
def test_steps_beyond_the_capacity_are_counted():
    model = make_model()
    recorder, all_steps = SolverStepRecorder(capacity=3), SolverStepRecorder()
    model.evaluate(X, Y, callbacks=[recorder], verbose=0)
    model.evaluate(X, Y, callbacks=[all_steps], verbose=0)
    (record,), (whole,) = recorder.records, all_steps.records
    assert record.dropped == whole.t.size - 3 > 0
    np.testing.assert_array_equal(record.step_size, whole.step_size[:3])


@pytest.mark.slow
def test_samples_beyond_those_kept_are_counted():
    model = make_model(per_sample=True, adjoint="backsolve")
    recorder = SolverStepRecorder(samples=5)
    fit(model, recorder)
    for direction in ("forward", "backward"):
        records = only(recorder.records, direction=direction)
        assert [r.sample for r in records] == [0, 1, 2, 3, 4]
        assert {r.num_samples for r in records} == {8}


@pytest.mark.slow
def test_last_batch_of_fewer_samples_than_are_kept():
    recorder = SolverStepRecorder(every="batch", samples=20)
    make_model(per_sample=True).predict(X, batch_size=30, callbacks=[recorder], verbose=0)
    assert [len(only(recorder.records, batch=b)) for b in (0, 1)] == [20, 2]


@pytest.mark.slow
def test_probe_is_solved_at_the_end_of_each_epoch():
    model = make_model(adjoint="backsolve")
    recorder, after = SolverStepRecorder(probe=X[:4]), SolverStepRecorder()
    fit(model, recorder, epochs=2)
    model.predict(X[:4], callbacks=[after], verbose=0)
    assert [(r.epoch, r.direction) for r in recorder.records] == [(e, d) for e in (0, 1) for d in ("forward", "backward")]
    np.testing.assert_allclose(recorder.records[2].step_size, after.records[0].step_size, rtol=1e-5)


@pytest.mark.slow
def test_layers_of_nested_models_are_recorded_by_name():
    inner = make_model(t=(0.0, 0.5))
    x = keras.Input([2])
    outer = keras.Model(x, inner(keras_ode.ODELayer(lambda t, y: -y, name="decay", solver="bosh3", jit_compile=False)(x)))
    outer.compile("sgd", "mse", jit_compile=False)
    recorder, one = SolverStepRecorder(), SolverStepRecorder(layers=["decay"])
    outer.evaluate(X, Y, callbacks=[recorder], verbose=0)
    outer.evaluate(X, Y, callbacks=[one], verbose=0)
    assert sorted(r.layer for r in recorder.records) == ["decay", "flow"]
    assert [r.layer for r in one.records] == ["decay"]
    assert {"decay_nfe", "flow_nfe"} <= set(recorder.means)


@keras.saving.register_keras_serializable(package="tests")
class Cell(keras.layers.Layer):
    """A recurrent cell that solves an equation between its inputs."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.state_size = 2
        self.flow = keras_ode.ODELayer(keras.layers.Dense(2, activation="tanh"), solver="bosh3", jit_compile=False, name="flow")
        self.mix = keras.layers.Dense(2)

    def build(self, shape):
        self.flow.build(shape)
        self.mix.build(shape)

    def call(self, x, states):
        y = self.flow(states[0]) + self.mix(x)
        return y, [y]


@pytest.mark.slow
def test_layer_inside_a_recurrent_one_is_recorded():
    model = keras.Sequential([keras.Input([5, 2]), keras.layers.RNN(Cell()), keras.layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=False)
    recorder = SolverStepRecorder()
    model.fit(np.repeat(X[:, None], 5, axis=1), Y, verbose=0, callbacks=[recorder])
    assert [r.direction for r in recorder.records] == ["forward", "backward"]
    assert recorder.means["flow_nfe"] > 0
    assert recorder.means["flow_nfe_backward"] > 0


@pytest.mark.slow
def test_both_passes_of_a_failed_solve_are_one_failure(tmp_path):
    recorder = SolverStepRecorder(log_dir=tmp_path)
    fit(make_model(max_steps=2), recorder)
    assert recorder.means["flow_failures"] == 1
    assert events(tmp_path)[0, "flow/failures"] == ("scalars", 1)


def test_histograms_leave_out_what_is_not_a_number(tmp_path):
    sizes, nothing = np.array([0.1, np.nan, 0.3]), np.full([3], np.nan)
    record = SolveRecord("flow", 0, 0, "forward", None, nothing, sizes, nothing, nothing == 0, 0, 1)
    Summaries(tmp_path).write(0, {}, [record])
    found = events(tmp_path)
    assert list(found) == [(0, "flow/forward_step_size")]
    assert found[0, "flow/forward_step_size"][1][:, 2].sum() == 2


@pytest.mark.parametrize(
    "strategy", [nightly(tf.distribute.OneDeviceStrategy), tf.distribute.MirroredStrategy]
)
@pytest.mark.slow
def test_training_under_a_strategy_is_recorded(strategy):
    with strategy("/cpu:0" if strategy is tf.distribute.OneDeviceStrategy else ["/cpu:0"]).scope():
        model = make_model(adjoint="backsolve")
    recorder, (_, plain) = SolverStepRecorder(every="batch"), four_batches("backsolve", False)
    fit(model, recorder)
    assert len(recorder.records) == 8
    assert recorder.means["flow_nfe"] == plain.means["flow_nfe"]
    assert recorder.means["flow_nfe_backward"] == plain.means["flow_nfe_backward"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": "step"}, "every must be"),
        ({"every": 0}, "every must be"),
        ({"capacity": 0}, "capacity must be"),
        ({"samples": 1.5}, "samples must be"),
        ({"every": "batch", "probe": X}, "leave every='epoch'"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SolverStepRecorder(**options)


def test_layer_that_is_not_in_the_model_is_refused():
    with pytest.raises(ValueError, match=r"ODELayers, \['flow'\].*layers=\['flux'\]"):
        SolverStepRecorder(layers=["flux"]).set_model(make_model())


def test_layer_with_jumps_is_refused():
    layer = keras_ode.ODELayer(lambda y: -y, jump_times=[0.5], name="flow")
    with pytest.raises(ValueError, match=r"jump_times solves each segment separately.*'flow' has jump_times=\(0.5,\)"):
        SolverStepRecorder().set_model(keras.Sequential([keras.Input([2]), layer]))


def test_picture_of_steps_draws_each_record(two_epochs):
    _, recorder, _, _ = two_epochs
    figure = recorder.plot()
    sizes, errors = figure.axes[0], figure.axes[2]
    drawn = np.sort(np.concatenate([line.get_ydata() for line in sizes.lines]))
    np.testing.assert_array_equal(drawn, np.sort(np.concatenate([r.step_size for r in only(recorder.records, direction="forward")])))
    assert sizes.get_ylabel() and errors.get_ylabel() and errors.get_xlabel()


def test_picture_of_evaluations_draws_both_passes(two_epochs):
    _, recorder, _, _ = two_epochs
    (axis,) = recorder.plot_nfe().axes
    assert [line.get_label() for line in axis.lines] == ["flow, forward", "flow, backward"]
    assert axis.lines[0].get_ydata().tolist() == [logs["flow_nfe"] for logs in recorder.history]


def test_pictures_of_nothing_are_refused():
    for plot in (SolverStepRecorder().plot, SolverStepRecorder().plot_nfe):
        with pytest.raises(ValueError, match="pass the recorder to fit"):
            plot()
