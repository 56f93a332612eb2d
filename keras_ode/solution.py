"""The result of a solve."""

from typing import Any, NamedTuple

import tensorflow as tf

from keras_ode.complex_states import leaves_of_nest, packed_as
from keras_ode.dense import DenseOutput
from keras_ode.typing import Tensors, Times


class Solution(NamedTuple):
    """The result of `keras_ode.solve`: a nested structure of tensors that a `tf.function` can return.

    Attributes:
        ts: The times of the states, shape `[T]` (`[B, T]` if every sample has its own). With `save="steps"`, the start and the
            end of every accepted step, `[max_steps + 1]`, or `[B, max_steps + 1]` with `per_sample=True`. The first
            `stats["num_accepted"] + 1` entries count; after them the last time is repeated.
        ys: The states at these times, in the nested structure of `y0`, each tensor of shape `[T, *shape]`. States that a failed
            solve did not reach, and those after a terminal event, are NaN. With `save="steps"`, `T` is `max_steps + 1`, and
            the state at the last time is repeated after the last step.
        stats: A dict of tensors, scalars or `[B]` with `per_sample=True`: `num_steps` (tried steps), `num_accepted`,
            `num_rejected` and `num_evaluations` (calls of the dynamics), all int32; and `stiffness`, the largest spectral
            radius of the Jacobian, per unit of time, as estimated from the steps. If this number times the step size is above
            two, stability limits the steps, and not accuracy.
        status: int32, scalar or `[B]`: a value of `keras_ode.Status`.
        event_time: The time of the event, scalar or `[B]`; for events that are not terminal `[max_events]` or
            `[max_events, B]`. NaN if no event occurred. `None` without an event.
        event_state: The state at that time (before a reset), a nested structure like `y0` with the axes of `event_time`.
        dense: A `DenseOutput` with `dense=True`, else `None`.
        event_index: int32, with the shape of `event_time`: the index of the event in the list, `-1` if none occurred. `None`
            without an event.
        step_size: The size of the next whole step that the controller proposed at the end, scalar or `[B]`. Pass it as
            `step_size` to a solve that continues from there. The last step may have been shortened to end at the last time;
            this does not shorten `step_size`.

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
    ys: Tensors
    stats: dict[str, tf.Tensor]
    status: tf.Tensor
    event_time: Any = None
    event_state: Any = None
    dense: DenseOutput | None = None
    event_index: Any = None
    step_size: Any = None

    def evaluate(self, t: Times) -> Tensors:
        """Returns the state at any times in the interval, and NaN for times outside of it.

        Args:
            t: Times of any shape; with `per_sample=True` a scalar, `[K]`, or `[B, K]` if every sample has its own times.

        Returns:
            A nested structure like `y0`, each tensor of shape `[*t.shape, *shape]`; with `per_sample=True`, `[K, *shape]`.

        Raises:
            ValueError: If the solution has no dense output.

        Example:

        >>> solution = keras_ode.solve(lambda t, y: -y, tf.constant([1.0]), [0.0, 1.0], rtol=1e-5, dense=True, max_steps=64)
        >>> print(f"{float(solution.evaluate(0.5)[0]):.3f} {float(solution.derivative(0.5)[0]):.3f}")
        0.607 -0.607
        """
        start = tuple(leaf[0] for leaf in leaves_of_nest(self.ys))
        return packed_as(self.ys, self._checked_dense().evaluate(t, start))

    def derivative(self, t: Times) -> Tensors:
        """Returns the derivative of the state with respect to time; arguments and shapes are those of `evaluate`."""
        return packed_as(self.ys, self._checked_dense().derivative(t))

    def _checked_dense(self):
        if self.dense is None:
            raise ValueError("This solution has no dense output. Pass dense=True to keras_ode.solve.")
        return self.dense
