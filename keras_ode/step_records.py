"""The steps that were tried, for callbacks that record them."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_ode import tree


class StepRecord(NamedTuple):
    """The steps that were tried: a row for each iteration of the loop.

    Attributes:
        num_steps: How many, `[S]` for the samples that are kept; `()` where all samples share their steps, one each iteration.
        num_rows: The number of iterations, a scalar.
        rows: `[capacity + 1, 4]` or `[capacity + 1, S, 4]`: where each step starts, its signed size, its scaled error (NaN
            where the method estimates none), and 1 where it was accepted, 0 where it was rejected, and -1 where the sample
            tried no step. Neither the last row nor those from `num_rows` on are read.
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
    """Observes the steps that are tried: `record` returns the first `capacity` of them as a `StepRecord`.

    The loop runs each operation of `see` in every step, so there are as few as possible: the rows of all samples are written
    together, and times are converted when they are read. TensorFlow's own kernels append rows to a list, which needs neither an
    index nor a counter; XLA writes them into a buffer in place.

    Args:
        recorder: What asks for them: of the first `recorder.samples` samples in the first `recorder.capacity` iterations.
        like: A scalar of the solve, or `[B]`.
        before: What `see` returned last in an earlier loop, to go on from.
        differentiable: Whether the loop is differentiated.
    """

    def __init__(self, recorder, like, before=None, differentiable=False):
        self.capacity, self.samples = recorder.capacity, recorder.samples
        self.before, self.differentiable = before, differentiable
        self.per_sample = like.shape.rank > 0
        self.appends = tree.writes_in_place() and not differentiable
        self.like = self._kept(like)

    def start(self):
        if self.before is not None:
            return self.before
        row = tf.stack([tf.zeros_like(self.like)] * 4, axis=-1)
        if self.appends:
            return tf.raw_ops.EmptyTensorList(element_shape=tf.shape(row), max_num_elements=-1, element_dtype=row.dtype)
        room = tree.repeat if self.differentiable else tree.room
        num_steps = tf.zeros_like(self.like, dtype=tf.int32) if self.per_sample else ()
        return StepRecord(num_steps, tf.constant(0), room(row, self.capacity + 1))

    def see(self, state, trial):
        error, outcome = trial.error, tf.cast(trial.accept, trial.error.dtype)
        if trial.step.error is None:
            error = tf.fill(tf.shape(error), tf.constant(np.nan, error.dtype))
        if self.per_sample:  # else the loop only goes on while the one solve runs
            outcome = tree.select(trial.running, outcome, -1)
        row = self._kept(tf.stack([trial.interval.start, trial.interval.size, error, outcome], axis=-1))
        if self.appends:
            return tf.raw_ops.TensorListPushBack(input_handle=state, tensor=row)
        num_steps = state.num_steps + tf.cast(self._kept(trial.running), tf.int32) if self.per_sample else ()
        put = tree.put if self.differentiable else tree.put_in_place
        rows = put(state.rows, tf.minimum(state.num_rows, self.capacity), row)
        return StepRecord(num_steps, state.num_rows + 1, rows)

    def record(self, state):
        """The `StepRecord` of what `see` returned last."""
        if not self.appends:
            return state
        num_rows, num_steps = tf.raw_ops.TensorListLength(input_handle=state), ()
        if self.per_sample:
            outcomes = self._stacked(state, num_rows)[..., 3]
            num_steps = tf.reduce_sum(tf.cast(outcomes >= 0, tf.int32), axis=0)
        size = self.capacity + 1  # A longer list is cut, and a shorter one filled with zeros.
        return StepRecord(num_steps, num_rows, self._stacked(tf.raw_ops.TensorListResize(input_handle=state, size=size), size))

    def _stacked(self, rows, count):
        """The rows of a list: with a shape that is known as far as that of `like`."""
        shape, num_elements = [-1 if n is None else n for n in self.like.shape], -1 if tf.is_tensor(count) else count
        return tf.raw_ops.TensorListStack(
            input_handle=rows, element_shape=[*shape, 4], element_dtype=self.like.dtype, num_elements=num_elements
        )

    def _kept(self, values):
        """Those of the samples that are kept, of values of all samples; what all samples share as it is."""
        return values[: self.samples] if self.per_sample else values


def step_observers(recorder, like, **options):
    """`RecordSteps` where a recorder asks for steps: a tuple of one or none."""
    return (RecordSteps(recorder, like, **options),) if recorder is not None and recorder.capacity else ()
