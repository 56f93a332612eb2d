"""The callback that changes the tolerances of a model's layers between epochs."""

from collections.abc import Callable, Sequence

import keras

from keras_ode.callbacks.layers import find_layers
from keras_ode.layers import ODELayer
from keras_ode.tolerances import check_tolerance


class ToleranceSchedule(keras.callbacks.Callback):
    """Sets the tolerances of the model's `ODELayer`s at the start of each epoch of `fit`.

    Early epochs usually do not need accurate solves, so you can save time with loose tolerances there. A change does not
    trace the model again. The logs contain the tolerances, as `<layer>_rtol` and `<layer>_atol`. After training, the layers
    keep the last tolerances, as an optimizer keeps the last learning rate of a schedule.

    Args:
        rtol, atol: The schedule of a tolerance: a function of the epoch, which is counted from 0, or a dictionary such as
            `{0: 1e-2, 10: 1e-4}`, whose keys are the epochs from which on a tolerance is used. Before the first of these
            epochs, and with `None` (the default), the tolerance does not change.
        layers: A list of `ODELayer`s, or of their names. Defaults to all `ODELayer`s of the model.

    Raises:
        ValueError: If both schedules are `None`, or if a tolerance is negative or an epoch is not a whole number.

    Example:

    >>> schedule = keras_ode.callbacks.ToleranceSchedule(rtol={0: 1e-1, 1: 1e-4})
    >>> layer = keras_ode.ODELayer(keras.layers.Dense(2))
    >>> model = keras.Sequential([layer])
    >>> model.compile("sgd", "mse")
    >>> history = model.fit(tf.ones([8, 2]), tf.ones([8, 2]), epochs=2, callbacks=[schedule], verbose=0)
    >>> float(layer.rtol)
    0.0001
    """

    def __init__(
        self,
        rtol: Callable[[int], float] | dict[int, float] | None = None,
        atol: Callable[[int], float] | dict[int, float] | None = None,
        layers: Sequence[str | ODELayer] | None = None,
    ) -> None:
        super().__init__()
        if rtol is None and atol is None:
            raise ValueError("ToleranceSchedule needs a function or a dictionary: rtol={0: 1e-2, 10: 1e-4}. Received: none")
        self._schedules = {name: x for name, x in (("rtol", rtol), ("atol", atol)) if x is not None}
        for name, schedule in self._schedules.items():
            _check(name, schedule)
        self.layers = layers
        self._found: dict[str, ODELayer] = {}

    def on_train_begin(self, logs=None):
        self._found = find_layers(self.model, self.layers)

    def on_epoch_begin(self, epoch, logs=None):
        for name, schedule in self._schedules.items():
            value = _at(schedule, epoch)
            if value is not None:
                check_tolerance(name, value)
                for layer in self._found.values():
                    getattr(layer, name).assign(value)

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            for label, layer in self._found.items():
                logs.update({f"{label}_{name}": float(getattr(layer, name)) for name in self._schedules})


def _check(name, schedule):
    if isinstance(schedule, dict):
        if not schedule or not all(isinstance(epoch, int) and epoch >= 0 for epoch in schedule):
            raise ValueError(f"The keys of {name} must be epochs, counted from 0. Received: {name}={schedule!r}")
        for value in schedule.values():
            check_tolerance(name, value)
    elif not callable(schedule):
        raise TypeError(f"{name} must be a function of the epoch or a dictionary. Received: {name}={schedule!r}")


def _at(schedule, epoch):
    """Returns the tolerance of an epoch, or `None` if it does not change."""
    if not isinstance(schedule, dict):
        return float(schedule(epoch))
    begun = [first for first in schedule if first <= epoch]
    return schedule[max(begun)] if begun else None
