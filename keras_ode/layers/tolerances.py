"""Tolerances of a layer that can be changed without tracing its model again."""

import numbers

import keras
import numpy as np
import tensorflow as tf

from keras_ode import configurable
from keras_ode.tolerances import check_tolerance

_NAMES = ("rtol", "atol", "inference_rtol", "inference_atol")


class ToleranceVariable(keras.Variable):
    """A scalar variable that holds a tolerance and raises an error for any other value.

    Args:
        label: The name, such as `"rtol"`.
        number: The initial value.
        dtype: `"float64"`, or `"float32"`, so that a step in single precision contains no float64, which TPUs must emulate.
    """

    def __init__(self, label, number, dtype):
        check_tolerance(label, number)
        self.label, self.latest = label, float(number)
        super().__init__(
            lambda shape, dtype: tf.constant(number, dtype, shape=shape),
            shape=(),
            dtype=dtype,
            trainable=False,
            autocast=False,  # that of the layer in which it is read
            aggregation="only_first_replica",
            name=label,
        )

    def assign(self, value):
        """Sets the tolerance to a number that is not negative, or to a scalar tensor."""
        known = tf.get_static_value(tf.convert_to_tensor(value))
        if known is not None:
            if known.ndim:
                raise ValueError(f"{self.label} must be one number. Received: {self.label}={value!r}")
            check_tolerance(self.label, float(known))
            self.latest = float(known)
        return super().assign(value)

    def __float__(self):
        """Returns the shortest number that the dtype rounds to the value: `1e-3`, not `0.0010000000474974513`."""
        return float(str(self.numpy()))

    def is_rounded(self, number):
        """Returns whether the value equals `number`, rounded to the dtype of the variable."""
        return bool(self.numpy() == np.asarray(number, self.dtype))

    def __eq__(self, other):
        """Compares with a number in the dtype of the variable. Keras would round the number to single precision."""
        return self.is_rounded(other) if isinstance(other, numbers.Real) and tf.executing_eagerly() else super().__eq__(other)

    __hash__ = keras.Variable.__hash__

    def __format__(self, spec):
        return format(float(self), spec) if spec else str(self)


class HasTolerances:
    """A layer with tolerances that are variables, but not weights.

    `variables` contains the tolerances. `weights` does not, so `get_weights`, `count_params` and weight files contain only what
    belongs to the dynamics. The configuration stores the initial tolerances, and a weight file stores those that were changed.
    """

    def _set_tolerances(self, **tolerances):
        self._first_tolerances = {name: configurable.plain(tolerances[name]) for name in _NAMES}
        given = {name: x for name, x in self._first_tolerances.items() if x is not None}
        # A layer that a function makes while it is traced lives no longer than that: it has numbers.
        if tf.executing_eagerly():
            dtype = "float64" if self.variable_dtype == "float64" else "float32"
            given = {name: ToleranceVariable(name, x, dtype) for name, x in given.items()}
        # Keras would make weights of variables that are attributes of a layer.
        self._tolerances = _Untracked(given)

    @property
    def variables(self):
        return [*super().variables, *(x for x in self._tolerances.values() if isinstance(x, ToleranceVariable))]

    def save_own_variables(self, store):
        super().save_own_variables(store)
        for name, variable in self._tolerances.items():
            if isinstance(variable, ToleranceVariable) and not variable.is_rounded(self._first_tolerances[name]):
                store[name] = variable

    def load_own_variables(self, store):
        kept = list(store.keys())
        super().load_own_variables({name: store[name] for name in kept if name not in _NAMES})
        for name in set(kept).intersection(_NAMES):
            self._set_tolerance(name, np.asarray(store[name]))

    def _set_tolerance(self, name, value):
        if name in self._tolerances:
            self._tolerances[name].assign(value)
        elif value is not None:
            raise ValueError(
                f"The layer '{self.name}' was created without {name}, and traced functions would ignore it: pass it to the "
                f"constructor, {name}=... Received: {name}={value!r}"
            )

    def _tolerances_in(self, training):
        """Returns `rtol` and `atol` for training or inference."""
        found = self._tolerances
        if training:
            return found["rtol"], found["atol"]
        return tuple(found.get(f"inference_{name}", found[name]) for name in ("rtol", "atol"))


class _Untracked:
    """A dictionary whose variables Keras does not track."""

    def __init__(self, entries):
        self._entries = entries

    def __getitem__(self, name):
        return self._entries[name]

    def __contains__(self, name):
        return name in self._entries

    def get(self, name, default=None):
        return self._entries.get(name, default)

    def items(self):
        return self._entries.items()

    def values(self):
        return self._entries.values()


def _tolerance(name):
    return property(
        lambda layer: layer._tolerances.get(name),
        lambda layer, value: layer._set_tolerance(name, value),
        doc=f"The variable `{name}`, which `assign` changes.",
    )


for _name in _NAMES:
    setattr(HasTolerances, _name, _tolerance(_name))
