"""The steps that were tried, for callbacks that record them."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_ode import tree

# The last rows of a record, in which a recorder writes what else there is to know of a solve.
NUM_NOTES = 2


def length(capacity):
    """The number of rows of a record: for the first `capacity` steps, one that all later steps share, and the recorder's."""
    return capacity + 1 + NUM_NOTES


class StepRecord(NamedTuple):
    """The steps that were tried: a row for each iteration of the loop.

    Attributes:
        num_steps: How many, `[S]` for the samples that are kept; `()` where all samples share their steps, one each iteration.
        num_rows: The number of iterations until the last of the samples that are kept is done, a scalar.
        rows: `[length(capacity), 4]` or `[length(capacity), S, 4]`: where each step starts, its signed size, its scaled error (NaN
            where the method estimates none), and 1 where it was accepted, 0 where it was rejected, and -1 where the sample
            tried no step. Only the rows of the first `capacity` steps are read.
        clock: `()`, or the first and the last time of a clock, and how much later the last is, `[3]` or `[S, 3]`: then the rows
            have the time since its start, which is to be converted when they are read.
    """

    num_steps: tf.Tensor | tuple
    num_rows: tf.Tensor
    rows: tf.Tensor
    clock: tf.Tensor | tuple = ()

    def on_clock(self, clock):
        """The steps of a loop whose time is that since the start of a `Clock`."""
        times = tf.stack([clock.start, clock.end, clock.span], axis=-1)
        return self._replace(clock=times[: tf.shape(self.num_steps)[0]] if times.shape.rank == 2 else times)


class RecordSteps:
    """Observes the steps that are tried: `record` returns the first `recorder.capacity` of them as a `StepRecord`.

    The loop runs each operation of `see` in every step, so there are as few as possible, and nothing is carried but the rows: those
    of all samples are written together, in place, the loop's own number of steps counts them, and times are converted when they are
    read.

    Args:
        recorder: What asks for them: of the first `recorder.samples` samples in the first `recorder.capacity` iterations.
        like: A scalar of the solve, or `[B]`.
        clock: The `Clock` of the loop, to record times since its start. Defaults to the loop's own times.
        before: A `StepRecord` to go on from.
        differentiable: Whether the loop is differentiated.
    """

    def __init__(self, recorder, like, clock=None, before=None, differentiable=False):
        self.clock, self.capacity, self.samples, self.differentiable = clock, recorder.capacity, recorder.samples, differentiable
        self.per_sample = like.shape.rank > 0
        self._put = tree.put if differentiable else tree.put_in_place
        self.before = self._empty(self._kept(like)) if before is None else before

    def _empty(self, like):
        row = tf.stack([tf.zeros_like(like)] * 4, axis=-1)
        rows = (tree.repeat if self.differentiable else tree.room)(row, length(self.capacity))
        return StepRecord(tf.zeros_like(like, dtype=tf.int32) if self.per_sample else (), 0, rows)

    def start(self):
        return self.before.rows

    def see(self, rows, trial):
        interval, error, outcome = trial.interval, trial.error, tf.cast(trial.accept, trial.error.dtype)
        begin, size = interval.start, interval.size
        if self.clock is not None:
            begin, size = interval.since, interval.until - interval.since
        if trial.step.error is None:
            error = tf.fill(tf.shape(error), tf.constant(np.nan, error.dtype))
        if self.per_sample:
            outcome = tree.select(trial.running, outcome, -1)
        row = self._kept(tf.stack([begin, size, error, outcome], axis=-1))
        return self._put(rows, tf.minimum(self._num_rows(trial.number), self.capacity), row)

    def record(self, rows, num_steps):
        """The `StepRecord` of what `see` returned last, in a loop of so many steps."""
        tried = self.before.num_steps + self._kept(num_steps) if self.per_sample else ()
        record = StepRecord(tried, self._num_rows(num_steps), rows)
        return record if self.clock is None else record.on_clock(self.clock)

    def _num_rows(self, num_steps):
        """The number of rows after so many steps in this loop, of which a sample that still runs has tried the most."""
        number = tf.reduce_max(self._kept(num_steps)) if self.per_sample else num_steps
        return self.before.num_rows + number if tf.is_tensor(self.before.num_rows) else number

    def _kept(self, values):
        """Those of the samples that are kept, of values of all samples; what all samples share as it is."""
        return values[: self.samples] if self.per_sample else values


def step_observers(recorder, like, **options):
    """`RecordSteps` where a recorder asks for steps: a tuple of one or none."""
    return (RecordSteps(recorder, like, **options),) if recorder is not None and recorder.capacity else ()
