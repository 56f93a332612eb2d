"""How far a state that was found backward is from where it should be."""

import tensorflow as tf

from keras_ode import tree


def distance(y, stored, largest, tolerance, like):
    """The distance of two states as error control measures it, relative to the tolerance: at most one, a number like `like`.

    Args:
        y, stored: Their leaves.
        largest: The largest magnitude that each element had on the way: one that passes through zero, or starts there, is not
            compared with zero.
        tolerance: The `Tolerance`.
    """
    least = tf.math.divide_no_nan(tolerance.atol, tolerance.rtol)
    ratios = [
        tf.math.divide_no_nan(tf.abs(a - b), p + tf.cast(least, p.dtype)) for a, b, p in zip(y, stored, largest, strict=True)
    ]
    # What overflows is as far away as can be.
    return tree.rms([tf.where(ratio < 1, ratio, 1) for ratio in ratios], like)
