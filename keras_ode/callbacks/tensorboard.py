"""Summaries for TensorBoard. Writing them does not require TensorBoard."""

import numpy as np
import tensorflow as tf

_BINS = 30
# The classes of data that TensorBoard's plugins draw.
_DATA_CLASSES = {"scalars": 1, "histograms": 2}


class Summaries:
    """Writes summaries to a directory."""

    def __init__(self, log_dir):
        self._writer = tf.summary.create_file_writer(str(log_dir))

    def write(self, step, scalars, records):
        """Writes scalars by name, and histograms of the step sizes of the records, for one step of training."""
        with self._writer.as_default(step=step):
            for name, value in scalars.items():
                tf.summary.write(name, tf.constant(value, tf.float32), metadata=_metadata("scalars"))
            for name in sorted({(record.layer, record.direction) for record in records}):
                sizes = np.abs(np.concatenate([r.step_size for r in records if (r.layer, r.direction) == name]))
                counts, edges = np.histogram(sizes, bins=_BINS)
                table = tf.constant(np.stack([edges[:-1], edges[1:], counts], axis=1))
                tf.summary.write("/".join(name) + "_step_size", table, metadata=_metadata("histograms"))
        self._writer.flush()


def _metadata(plugin):
    metadata = tf.compat.v1.SummaryMetadata()
    metadata.plugin_data.plugin_name = plugin
    metadata.data_class = _DATA_CLASSES[plugin]
    return metadata
