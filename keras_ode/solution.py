"""What a solve returns."""

from typing import Any, NamedTuple

import tensorflow as tf

from keras_ode.complex_states import leaves_of_nest, packed_as
from keras_ode.dense import DenseOutput


class Solution(NamedTuple):
    """The result of `keras_ode.solve`: a nest of tensors that a `tf.function` can return.

    Attributes:
        ts: The times asked for, shape `[T]` (`[B, T]` where every sample has its own). With `save="steps"` the start and where
            every accepted step ended, `[max_steps + 1]`, or `[B, max_steps + 1]` with `per_sample=True`: the first
            `stats["num_accepted"] + 1` count, and the last time follows them again and again.
        ys: The states at these times: the nest of `y0`, each leaf of shape `[T, *leaf.shape]`. States that a failed
            solve did not reach, and those after a terminal event, are NaN. With `save="steps"`, `T` is `max_steps + 1`, and
            behind the last step the state at the last time follows.
        stats: A dict of tensors, scalars or `[B]` with `per_sample=True`: `num_steps` (steps tried), `num_accepted`,
            `num_rejected`, `num_evaluations` (calls of the dynamics), all int32; and `stiffness`, the largest spectral
            radius of the Jacobian that the steps showed, per unit of time: where times the step size it is above two,
            stability limits the steps, not accuracy.
        status: int32, scalar or `[B]`: a value of `keras_ode.Status`.
        event_time: When the event happened, scalar or `[B]`; for events that are not terminal `[max_events]` or
            `[max_events, B]`. NaN where there was none. `None` without an event.
        event_state: The state then (before a reset), a nest like `y0` with the axes of `event_time`.
        dense: A `DenseOutput` with `dense=True`, else `None`.
        event_index: int32, with the shape of `event_time`: which event of a list happened, `-1` where none did. `None` without
            an event.
        step_size: The size of the next whole step that the controller proposed at the end, scalar or `[B]`: give it as
            `step_size` to a solve that goes on from there. A step cut short to end at the last time does not shorten it.

    Example:

    >>> solution = keras_ode.solve(lambda t, y: -y, tf.constant([1.0]), [0.0, 0.5, 1.0])
    >>> solution.ys.shape
    TensorShape([3, 1])
    >>> keras_ode.Status(int(solution.status)).name
    'SUCCESS'
    >>> int(solution.stats["num_rejected"])
    0
    """

    ts: tf.Tensor
    ys: Any
    stats: dict
    status: tf.Tensor
    event_time: Any = None
    event_state: Any = None
    dense: DenseOutput | None = None
    event_index: Any = None
    step_size: Any = None

    def evaluate(self, t):
        """The state anywhere in the interval; NaN outside it.

        Args:
            t: Times of any shape; with `per_sample=True` a scalar, `[K]` or, with times for every sample, `[B, K]`.

        Returns:
            The nest of `y0`, each leaf of shape `[*t.shape, *leaf.shape]`; with `per_sample=True`, `[K, *leaf.shape]`.

        Raises:
            ValueError: If the solve was not asked for dense output.
        """
        start = tuple(leaf[0] for leaf in leaves_of_nest(self.ys))
        return packed_as(self.ys, self._checked_dense().evaluate(t, start))

    def derivative(self, t):
        """The derivative of `evaluate` by time; arguments and shapes are the same."""
        return packed_as(self.ys, self._checked_dense().derivative(t))

    def _checked_dense(self):
        if self.dense is None:
            raise ValueError("This solution has no dense output. Ask for it with solve(..., dense=True).")
        return self.dense
