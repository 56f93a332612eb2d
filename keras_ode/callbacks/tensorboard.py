"""Summaries for TensorBoard. Writing them does not require TensorBoard."""

import numpy as np
import tensorflow as tf

_BINS = 30
# The classes of data that TensorBoard's plugins draw.
_DATA_CLASSES = {"scalars": 1, "histograms": 2}


class Summaries:
    """Writes summaries to the directory `log_dir`."""

    def __init__(self, log_dir):
        self._writer = tf.summary.create_file_writer(str(log_dir))

    def write(self, step, scalars, records):
        """Writes scalars by name, and histograms of the step sizes and errors of the records, for one training step."""
        with self._writer.as_default(step=step):
            for name, value in scalars.items():
                tf.summary.write(name, tf.constant(value, tf.float32), metadata=_metadata("scalars"))
            for layer, direction in sorted({(record.layer, record.direction) for record in records}):
                chosen = [r for r in records if (r.layer, r.direction) == (layer, direction)]
                for what in ("step_size", "error"):
                    values = np.abs(np.concatenate([getattr(record, what) for record in chosen]))
                    _write_histogram(f"{layer}/{direction}_{what}", values)
        self._writer.flush()


def _write_histogram(name, values):
    """Writes a histogram of the finite values in bins of equal width.

    If there are none, it writes nothing: the errors are NaN for a solver that does not estimate them.
    """
    finite = values[np.isfinite(values)]
    if finite.size:
        counts, edges = np.histogram(finite, bins=_BINS)
        table = tf.constant(np.stack([edges[:-1], edges[1:], counts], axis=1))
        tf.summary.write(name, table, metadata=_metadata("histograms"))


def _metadata(plugin):
    metadata = tf.compat.v1.SummaryMetadata()
    metadata.plugin_data.plugin_name = plugin
    metadata.data_class = _DATA_CLASSES[plugin]
    return metadata
