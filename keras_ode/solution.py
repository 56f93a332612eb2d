"""What a solve returns."""

from typing import Any, NamedTuple

import tensorflow as tf


class Solution(NamedTuple):
    """The result of `keras_ode.solve`: a nest of tensors that a `tf.function` can return.

    Attributes:
        ts: The times asked for, shape `[T]` (`[B, T]` where every sample has its own).
        ys: The states at these times: the nest of `y0`, each leaf of shape `[T, *leaf.shape]`. States that a failed
            solve did not reach are NaN.
        stats: A dict of int32 tensors, scalars or `[B]` with `per_sample=True`: `num_steps` (steps tried),
            `num_accepted`, `num_rejected`, `num_evaluations` (calls of the dynamics).
        status: int32, scalar or `[B]`: a value of `keras_ode.Status`.
    """

    ts: tf.Tensor
    ys: Any
    stats: dict
    status: tf.Tensor
