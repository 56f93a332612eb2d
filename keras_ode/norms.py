"""How large the error of a step is, as one number: norms of scaled errors.

A norm is a function `norm(leaves, like)` that reduces leaves to a number like `like`, as `tree.rms` does: see `keras_ode.tree`.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_ode import tree
from keras_ode.dynamics import close_scalar
from keras_ode.signature import name_of
from keras_ode.vector_field import PureFunction

NORMS = {"rms": tree.rms, "max": tree.peak}


def check_norm(norm):
    """Refuses what is neither a name nor a function."""
    if not (callable(norm) or isinstance(norm, str) and norm in NORMS):
        raise ValueError(
            f"norm must be one of {', '.join(map(repr, NORMS))}, or a function norm(errors) that returns one number for the "
            f"scaled errors, a nested structure like the state. Received: norm={norm!r}"
        )


def checked_norm(norm, times, y):
    """The norm of a name or of a user's function, for states like `y` and each of the times."""
    check_norm(norm)
    return _closed(norm, times[0], y) if callable(norm) else NORMS[norm]


class ClosedNorm(NamedTuple):
    """A norm of the user's, whose `parameters` (what it reads from outside) are explicit.

    Where there are more leaves than the state has, as in an equation of the state and its cotangent, it is the largest of those
    of the parts.
    """

    function: PureFunction
    parameters: tuple
    num_leaves: int

    def __call__(self, leaves, like):
        leaves, time = tuple(map(tf.stop_gradient, leaves)), tf.zeros_like(like)
        parts = [leaves[i : i + self.num_leaves] for i in range(0, len(leaves), self.num_leaves)]
        sizes = [self.function(time, part, self.parameters)[0] for part in parts]
        # What is negative, or not a number, is no size: such a step must not be accepted.
        sizes = [tf.where(size >= 0, size, tf.constant(np.inf, like.dtype)) for size in sizes]
        return sizes[0] if len(sizes) == 1 else tf.reduce_max(tf.stack(sizes), axis=0)

    def key(self):
        return self.function.fingerprint, self.num_leaves


def _closed(norm, t, y):
    wanted = "one number" if t.shape.rank == 0 else f"one number for each row, shape {t.shape}, with per_sample=True"

    def of_errors(errors):
        value = norm(errors)
        try:
            value = tf.convert_to_tensor(value)
        except (TypeError, ValueError) as error:
            raise TypeError(f"norm must return {wanted}. Received: {value!r} from norm={norm!r}") from error
        if not value.dtype.is_floating or not value.shape.is_compatible_with(t.shape):
            raise ValueError(
                f"norm must return {wanted}: reduce all axes{' but the first' if t.shape.rank else ''}. Received: "
                f"{value.dtype.name} of shape {value.shape} from norm={norm!r}"
            )
        return value

    of_errors.__name__ = name_of(norm)
    function = close_scalar(of_errors, t, y)
    return ClosedNorm(function, function.parameters, len(tf.nest.flatten(y)))
