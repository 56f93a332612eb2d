"""The callback that records the steps of solvers."""

import csv
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_ode import internals
from keras_ode.callbacks import pictures
from keras_ode.callbacks.layers import find_layers
from keras_ode.callbacks.tape import Tape
from keras_ode.callbacks.tensorboard import Summaries
from keras_ode.graphs import traced
from keras_ode.layers import ODELayer
from keras_ode.typing import TensorsLike

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class SolveRecord(NamedTuple):
    """The steps of one solve, or of the solve of one sample if the layer is `per_sample`.

    `SolverStepRecorder.records` is a list of these. Arrays are NumPy arrays with one entry for each of the `N` tried steps.

    Attributes:
        layer: The name of the layer.
        epoch, batch: The epoch and the batch, counted from 0. The record of a probe has the last batch of its epoch.
        direction: `"forward"` or `"backward"`.
        sample: The row of the batch, or `None` if all rows share their steps.
        t: The time at which each step starts, `[N]`.
        step_size: The size of each step, `[N]`, in the units of `t`. It is negative if time runs backward.
        error: The scaled error of each step, `[N]`. An adaptive solver accepts a step whose scaled error is at most 1. NaN if
            the solver does not estimate its error.
        accepted: Whether each step was accepted, bool `[N]`.
        dropped: The number of tried steps that were not stored because they exceeded the `capacity` of the recorder.
        num_samples: The number of samples in the batch, or `1` if all rows share their steps. Samples beyond the recorder's
            limit `samples` have no record.

    Example:

    >>> layer = keras_ode.ODELayer(keras.layers.Dense(2), name="flow")
    >>> model = keras.Sequential([keras.Input([2]), layer])
    >>> model.compile("sgd", "mse")
    >>> recorder = keras_ode.callbacks.SolverStepRecorder()
    >>> x = np.ones([4, 2])
    >>> history = model.fit(x, x, callbacks=[recorder], verbose=0)
    >>> [(record.layer, record.direction) for record in recorder.records]
    [('flow', 'forward'), ('flow', 'backward')]
    """

    layer: str
    epoch: int
    batch: int
    direction: Literal["forward", "backward"]
    sample: int | None
    t: np.ndarray
    step_size: np.ndarray
    error: np.ndarray
    accepted: np.ndarray
    dropped: int
    num_samples: int


class SolverStepRecorder(keras.callbacks.Callback):
    """Records each step that the model's `ODELayer`s try, forward and backward, in `fit`, `evaluate` and `predict`.

    For every layer, the logs contain `<layer>_nfe` and `<layer>_nfe_backward` (evaluations of the dynamics in a forward and
    in a backward solve), `<layer>_rejected` (steps that a forward solve rejected) and `<layer>_failures` (failed forward and
    backward solves), as means over the batches of the epoch. You see them in the progress bar and in `History`, and other
    callbacks can monitor them. If every sample has its own steps, the evaluations are those of the slowest sample, the rejected
    steps are the mean over the samples, and the failures are the sum over the samples.

    Pass the recorder before callbacks that call the model, as `predict` at the end of an epoch does: it would record their solves
    instead of those of the last batch.

    A recorder does not change the results of the model, but it makes Keras trace the model once more. If there is no recorder
    in `callbacks`, nothing is recorded and the compiled program is not affected.

    Args:
        every: Which solves to record step by step. `"epoch"` (the default) records the last batch of each epoch, `"batch"`
            records every batch, and a number `n` records every `n`-th batch.
        capacity: The maximum number of steps to store for a solve. Further steps are counted, but not stored. If every sample
            has its own steps, the steps that all samples try at once count as one. Defaults to `512`.
        layers: A list of the `ODELayer`s to record, or of their names. Defaults to all `ODELayer`s of the model.
        log_dir: The directory in which `fit` writes the logs, and histograms of step sizes and errors, for TensorBoard.
            Defaults to `None`, which writes nothing.
        probe: An input of the model. At the end of each epoch, the recorder solves it forward, and backward from the sum of the
            outputs, and records these solves instead of those of the batches, so that you can compare epochs. Defaults to
            `None`.
        samples: The maximum number of rows of a batch to store for a `per_sample` layer. Defaults to `32`.

    Attributes:
        records: A list of `SolveRecord`s.
        history: The logs of the recorder for every epoch of `fit`, a list of dictionaries.
        means: The logs of the recorder for the last epoch, or for the last `evaluate` or `predict`.

    Some solves have no records. Validation in `fit` has only logs. With `adjoint="direct"` there is no backward solve to
    record. If a layer is called several times per batch, only the last call has records, while the logs are means over all
    calls. With `adjoint="checkpointed"`, the backward steps are the accepted forward steps, which are computed again. Under
    `tf.distribute`, the records are those of the first replica.

    Example:

    >>> dynamics = keras.Sequential([keras.layers.Dense(16, activation="tanh"), keras.layers.Dense(2)])
    >>> model = keras.Sequential([keras_ode.ODELayer(dynamics, name="flow"), keras.layers.Dense(1)])
    >>> model.compile("adam", "mse")
    >>> recorder = keras_ode.callbacks.SolverStepRecorder()
    >>> history = model.fit(tf.ones([32, 2]), tf.ones([32, 1]), callbacks=[recorder], verbose=0)
    >>> print(*(f"{record.layer} {record.direction}" for record in recorder.records), sep=", ")
    flow forward, flow backward
    """

    def __init__(
        self,
        every: int | Literal["epoch", "batch"] = "epoch",
        capacity: int = 512,
        layers: Sequence[str | ODELayer] | None = None,
        log_dir: str | os.PathLike[str] | None = None,
        probe: TensorsLike | None = None,
        samples: int = 32,
    ) -> None:
        super().__init__()
        _check(every, capacity, samples, probe)
        self.every, self.capacity, self.samples = every, capacity, samples
        self.layers, self.log_dir, self.probe = layers, log_dir, probe
        self.records: list[SolveRecord] = []
        self.history: list[dict[str, float]] = []
        self.means: dict[str, float] = {}
        self.async_safe = every == "epoch"  # Keras then need not wait for every batch.
        self._tapes: list[Tape] = []
        self._probe_tapes: list[Tape] = []
        self._probing = None
        self._fits = False
        self._epoch, self._batches = 0, range(1)
        self._summaries, self._num_written = None, 0

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Writes the records to a CSV file at `path`, with a header and one line for each tried step."""
        columns = ("layer", "epoch", "batch", "direction", "sample", "dropped", "t", "step_size", "error", "accepted")
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            for record in self.records:
                shared, steps = [getattr(record, c) for c in columns[:6]], [getattr(record, c) for c in columns[6:9]]
                writer.writerows([*shared, *step] for step in zip(*steps, record.accepted.astype(int), strict=True))

    def plot(self) -> "Figure":
        """Draws the step sizes and the scaled errors of the records against time.

        Returns:
            The Matplotlib figure.

        Raises:
            ValueError: If there are no records yet.
        """
        return pictures.plot_steps(self.records)

    def plot_nfe(self) -> "Figure":
        """Draws the mean number of evaluations of the dynamics in each epoch of `fit`, and returns the Matplotlib figure."""
        return pictures.plot_nfe(self.history)

    # What Keras calls.

    def set_model(self, model):
        self._detach()
        self._fits = False  # a fit that was interrupted has not ended
        super().set_model(model)
        self._attach()

    def on_train_begin(self, logs=None):
        self._fits = True
        if self.log_dir is not None:
            self._summaries, self._num_written = Summaries(self.log_dir), len(self.records)

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        self._rewind()

    def on_train_batch_begin(self, batch, logs=None):
        self._begin_batches(batch)

    def on_train_batch_end(self, batch, logs=None):
        self._end_batches(batch)

    def on_epoch_end(self, epoch, logs=None):
        if self.probe is not None:
            self._solve_probe()
        self._collect()
        self.means = self._own(logs)
        self.history.append({"epoch": epoch, **self.means})
        if self._summaries is not None:
            self._summaries.write(epoch, self._by_tag(), self.records[self._num_written :])
            self._num_written = len(self.records)

    def on_train_end(self, logs=None):
        self._fits = False
        self._detach()

    def on_test_begin(self, logs=None):
        if self._fits:
            self._collect()  # before validation writes over it

    def on_test_batch_begin(self, batch, logs=None):
        if not self._fits:
            self._begin_batches(batch)

    def on_test_batch_end(self, batch, logs=None):
        if not self._fits:
            self._end_batches(batch)

    def on_test_end(self, logs=None):
        if self._fits:
            self._rewind()
        else:
            self._finish(logs)

    def on_predict_begin(self, logs=None):
        for tape in self._tapes:
            tape.totals.reset_state()

    def on_predict_batch_begin(self, batch, logs=None):
        self._begin_batches(batch)

    def on_predict_batch_end(self, batch, logs=None):
        self._end_batches(batch)

    def on_predict_end(self, logs=None):
        logs = {} if logs is None else logs
        for tape in self._tapes:
            logs.update({name: float(mean) for name, mean in tape.totals.result().items()})
        self._finish(logs)

    def _begin_batches(self, batch):
        self._batches = range(batch, batch + 1)
        if self.every != "epoch":
            self._rewind()

    def _end_batches(self, batch):
        if batch < self._batches.start:  # asynchronous, told of when the next had begun
            return
        self._batches = range(self._batches.start, batch + 1)
        if self.every != "epoch" and any(self._is_due(n) for n in self._batches):
            self._collect()

    def _finish(self, logs):
        self._collect()
        self.means = self._own(logs)
        self._detach()

    def _own(self, logs):
        """Returns those of the logs that come from the recorder."""
        names = {name for tape in self._tapes for name in tape.totals.names}
        return {name: value for name, value in (logs or {}).items() if name.removeprefix("val_") in names}

    def _by_tag(self):
        """Returns the means by their tags in TensorBoard, which groups tags by the part before the slash."""
        tags = {name: (tape.label, name.removeprefix(f"{tape.label}_")) for tape in self._tapes for name in tape.totals.names}
        tags = {f"{prefix}{name}": f"{label}/{prefix}{log}" for name, (label, log) in tags.items() for prefix in ("", "val_")}
        return {tags[name]: value for name, value in self.means.items()}

    # Layers and their tapes.

    def _attach(self):
        found = _ode_layers(self.model, self.layers)
        slots = 1 if self.every == "epoch" else int(self.model.steps_per_execution)
        capacity = self.capacity if self.probe is None else 0
        with self.model.distribute_strategy.scope():
            self._tapes = [Tape(layer, label, capacity, self.samples, slots) for label, layer in found.items()]
            if self.probe is not None:
                self._probe_tapes = [Tape(layer, label, self.capacity, self.samples, 1) for label, layer in found.items()]
        for tape in self._tapes:
            tape.layer._recorder = tape
            internals.own_metrics(tape.layer).append(tape.totals)
        self._probing = None
        _forget_functions(self.model)

    def _detach(self):
        for tape in self._tapes:
            tape.layer._recorder = None
            internals.own_metrics(tape.layer).remove(tape.totals)
        if self._tapes:
            _forget_functions(self.model)
        self._tapes, self._probe_tapes, self._probing = [], [], None

    def _rewind(self):
        for tape in (*self._tapes, *self._probe_tapes):
            tape.rewind()

    def _solve_probe(self):
        """Solves the probe forward and backward, and records it on separate tapes."""
        if self._probing is None:
            self._probing = _probing(self.model)
        for tape in self._probe_tapes:
            tape.layer._recorder = tape
        try:
            self._probing(tf.nest.map_structure(tf.convert_to_tensor, self.probe))
        finally:
            for tape in self._tapes:
                tape.layer._recorder = tape

    # Records.

    def _collect(self):
        """Makes records of what the tapes hold, batch by batch."""
        found = []
        for tape in (*self._tapes, *self._probe_tapes):
            for direction, (calls, kept) in tape.read().items():
                batches = [self._batch_of(calls - len(kept) + i, calls) for i in range(len(kept))]
                # Of several calls in a batch, the last.
                for batch, (counts, rows) in dict(zip(batches, kept, strict=True)).items():
                    if self._is_due(batch):
                        found += self._records(tape, direction, batch, counts, rows)
        self.records += sorted(found, key=lambda record: record.batch)
        self._rewind()

    def _batch_of(self, call, calls):
        """Returns the batch to which a call belongs, if all batches made equally many calls. With `"epoch"`, the last batch."""
        return self._batches[-1] if self.every == "epoch" else self._batches[call * len(self._batches) // calls]

    def _is_due(self, batch):
        return self.every in ("batch", "epoch") or (batch + 1) % self.every == 0

    def _records(self, tape, direction, batch, counts, rows):
        for sample, (count, num_samples, _) in enumerate(counts.tolist()):
            if count >= 0:
                t, step_size, error, outcome = rows[rows[:, sample, 3] >= 0, sample].T
                yield SolveRecord(
                    layer=tape.label,
                    epoch=self._epoch,
                    batch=batch,
                    direction=direction,
                    sample=sample if tape.layer.per_sample else None,
                    t=t,
                    step_size=step_size,
                    error=error,
                    accepted=outcome > 0,
                    dropped=count - t.size,
                    num_samples=num_samples,
                )


def _check(every, capacity, samples, probe):
    if every not in ("epoch", "batch") and not _is_count(every):
        raise ValueError(f"every must be 'epoch', 'batch' or a number of batches. Received: every={every!r}")
    for name, value in (("capacity", capacity), ("samples", samples)):
        if not _is_count(value):
            raise ValueError(f"{name} must be a positive whole number. Received: {name}={value!r}")
    if probe is not None and every != "epoch":
        raise ValueError(f"A probe is solved at the end of each epoch: leave every='epoch'. Received: every={every!r}")


def _is_count(value):
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _ode_layers(model, wanted):
    """Returns a dictionary from labels to the `ODELayer`s to record."""
    chosen = find_layers(model, wanted)
    for label, layer in chosen.items():
        if layer.jump_times:
            raise ValueError(
                "A layer with jump_times solves each segment separately, which cannot be recorded as one solve: leave it out of "
                f"layers. Received: layers={wanted!r}, where {label!r} has jump_times={layer.jump_times}"
            )
    return chosen


def _forget_functions(model):
    """Makes Keras trace the model again in the next `fit`, `evaluate` or `predict`."""
    model.train_function = model.test_function = model.predict_function = None


def _probing(model):
    """Returns a function that solves an input forward, and backward from the sum of the outputs."""

    def step(x):
        with tf.GradientTape() as tape:
            tape.watch([leaf for leaf in tf.nest.flatten(x) if leaf.dtype.is_floating])
            total = tf.add_n([tf.reduce_sum(tf.cast(leaf, "float32")) for leaf in tf.nest.flatten(model(x, training=False))])
        tape.gradient(total, [*model.trainable_weights, *(leaf for leaf in tf.nest.flatten(x) if leaf.dtype.is_floating)])

    return traced(lambda x: model.distribute_strategy.run(step, args=(x,)), model.jit_compile)
