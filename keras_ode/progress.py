"""A progress bar for one long solve in eager code."""

import functools

import keras
import numpy as np
import tensorflow as tf

# Seconds between two looks at the solve.
_INTERVAL = 0.1
_VALUES = ("t", "step_size")


def progress_bar(times, jit_compile):
    """The `ProgressBar` of a solve from the first of `times` to the last: a context."""
    if not tf.executing_eagerly():
        raise ValueError("progress=True works in eager code only: leave it out inside a tf.function and in a model's fit.")
    if jit_compile is True:
        raise ValueError("XLA cannot compile a progress bar: leave jit_compile=True out. Received: progress=True")
    bar = _bar()
    bar.start, bar.end = times[0].numpy(), times[-1].numpy()
    return bar


@functools.cache
def _bar():
    # One for all solves: so the next solve of the same field finds its compiled function again.
    return ProgressBar()


class ProgressBar:
    """Keras' progress bar, in percent of the time of a solve; with samples of their own, of the slowest.

    Attributes:
        on_step: The function to call at each tried step.
    """

    def __init__(self):
        self.on_step = tf.function(self._see)
        self._due = tf.Variable(0.0, dtype=tf.float64, trainable=False)

    def __enter__(self):
        self._due.assign(0)
        self._percent = 0.0
        self._bar = keras.utils.Progbar(100, stateful_metrics=_VALUES, unit_name="percent")
        return self

    def __exit__(self, *_):
        self._bar.update(self._percent, finalize=True)

    def show(self, time, step_size):
        """Draws how far the solve has come."""
        part = np.min(np.abs(time - self.start) / np.maximum(np.abs(self.end - self.start), np.finfo(time.dtype).tiny))
        self._percent = float(np.floor(1000 * part) / 10)
        values = zip(_VALUES, (float(np.min(time)), float(np.min(step_size))), strict=True)
        self._bar.update(self._percent, values, finalize=False)

    def _see(self, info):
        now = tf.timestamp()
        if now >= self._due:
            self._due.assign(now + _INTERVAL)
            tf.py_function(lambda *seen: self.show(*(x.numpy() for x in seen)), [info.t, info.step_size], [])
