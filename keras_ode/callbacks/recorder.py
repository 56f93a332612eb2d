"""The callback that records what solvers do."""

import csv
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_ode.callbacks.tape import DIRECTIONS, Tape
from keras_ode.layers.ode import ODELayer


class SolveRecord(NamedTuple):
    """The steps of one solve; of one sample's solve where the layer is `per_sample`.

    Attributes:
        layer: The name of the layer.
        epoch, batch: Which, from 0 on. Those of a probe are of the epoch's last batch.
        direction: `"forward"` or `"backward"`.
        sample: The row of the batch, or `None` where all share their steps.
        t: Where each tried step starts, `[N]`.
        step_size: Its signed size, in the units of `t`.
        error: Its scaled error: at most 1 is accepted, unless steps are constant. NaN where none is estimated.
        accepted: Whether it was accepted.
        dropped: How many steps were tried after those kept, beyond the capacity.
        num_samples: How many samples the batch had; those beyond the recorder's `samples` have no record.
    """

    layer: str
    epoch: int
    batch: int
    direction: str
    sample: int | None
    t: np.ndarray
    step_size: np.ndarray
    error: np.ndarray
    accepted: np.ndarray
    dropped: int
    num_samples: int


class SolverStepRecorder(keras.callbacks.Callback):
    def __init__(self, every="epoch", capacity=512, layers=None, log_dir=None, probe=None, samples=32):
        super().__init__()
        _check(every, capacity, samples)
        self.every, self.capacity, self.samples = every, capacity, samples
        self.layers, self.log_dir, self.probe = layers, log_dir, probe
        self.records = []
        self._tapes = []
        self._fits = False
        self._epoch = 0
        self._batches = range(1)
        # Keras then need not wait for every batch.
        self.async_safe = every == "epoch"

    # What Keras calls.

    def set_model(self, model):
        self._detach()
        super().set_model(model)
        self._attach()

    def on_train_begin(self, logs=None):
        self._fits = True

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        self._rewind()

    def on_train_batch_begin(self, batch, logs=None):
        self._begin_batches(batch)

    def on_train_batch_end(self, batch, logs=None):
        self._end_batches(batch)

    def on_epoch_end(self, epoch, logs=None):
        if self.every == "epoch":
            self._collect()

    def on_train_end(self, logs=None):
        self._fits = False
        self._detach()

    def _begin_batches(self, batch):
        self._batches = range(batch, batch + 1)
        if self.every != "epoch":
            self._rewind()

    def _end_batches(self, batch):
        self._batches = range(self._batches.start, batch + 1)
        if self.every != "epoch" and any(self._is_due(n) for n in self._batches):
            self._collect()

    def _is_due(self, batch):
        return self.every in ("batch", "epoch") or (batch + 1) % self.every == 0

    # Layers.

    def _attach(self):
        found = _ode_layers(self.model, self.layers)
        slots = 1 if self.every == "epoch" else int(self.model.steps_per_execution)
        with self.model.distribute_strategy.scope():
            self._tapes = [Tape(layer, label, self.capacity, self.samples, slots) for label, layer in found.items()]
        for tape in self._tapes:
            tape.layer._recorder = tape
            tape.layer._metrics.append(tape.totals)
        _forget_functions(self.model)

    def _detach(self):
        for tape in self._tapes:
            tape.layer._recorder = None
            tape.layer._metrics.remove(tape.totals)
        if self._tapes:
            _forget_functions(self.model)
        self._tapes = []

    def _rewind(self):
        for tape in self._tapes:
            tape.rewind()

    # Records.

    def _collect(self):
        for tape in self._tapes:
            solves = tape.read()
            for direction in DIRECTIONS:
                calls, kept = solves[direction]
                by_batch = {self._batch_of(calls - len(kept) + i, calls): solve for i, solve in enumerate(kept)}
                for batch, solve in by_batch.items():
                    if self._is_due(batch):
                        self._add(tape, direction, batch, *solve)

    def _batch_of(self, call, calls):
        """The batch that made a call, if each made as many; of the last epoch's, the last."""
        if self.every == "epoch":
            return self._batches[-1]
        return self._batches[call * len(self._batches) // calls]

    def _add(self, tape, direction, batch, counts, rows):
        *counts, num_samples = counts.tolist()
        for sample, count in enumerate(counts):
            if count < 0:
                break
            t, step_size, error, accepted = rows[:count, sample].T
            self.records.append(
                SolveRecord(
                    layer=tape.label,
                    epoch=self._epoch,
                    batch=batch,
                    direction=direction,
                    sample=sample if tape.layer.per_sample else None,
                    t=t,
                    step_size=step_size,
                    error=error,
                    accepted=accepted > 0,
                    dropped=max(0, count - self.capacity),
                    num_samples=num_samples,
                )
            )


def _check(every, capacity, samples):
    if every not in ("epoch", "batch") and not _is_count(every):
        raise ValueError(f"every must be 'epoch', 'batch' or a number of batches. Received: every={every!r}")
    for name, value in (("capacity", capacity), ("samples", samples)):
        if not _is_count(value):
            raise ValueError(f"{name} must be a positive whole number. Received: {name}={value!r}")


def _is_count(value):
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _ode_layers(model, wanted):
    """The model's `ODELayer`s by their labels: names, made unique."""
    found = {}
    for layer in model._flatten_layers():
        if isinstance(layer, ODELayer) and not any(layer is other for other in found.values()):
            label, count = layer.name, 1
            while label in found:
                label, count = f"{layer.name}_{count}", count + 1
            found[label] = layer
    if wanted is None:
        return found
    return found


def _forget_functions(model):
    """Makes Keras trace the model again."""
    model.train_function = model.test_function = model.predict_function = None
