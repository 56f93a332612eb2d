"""From what the user gives (a Keras layer, a model, a function) to a pure vector field of tensors.

The user's code runs once, traced into a graph. Whatever it reads besides its arguments (weights, variables, tensors in
its closure) is found in that graph and becomes an explicit input, a *parameter*, so that no gradient is lost to a closure.
"""

import inspect
import warnings
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_ode import fingerprints, tree
from keras_ode.closure import Closure, current_report, may_need_gradient, no_autocast, spec
from keras_ode.vector_field import PureFunction, VectorField

_NOT_ARGUMENTS = ("training", "mask")


def close(dynamics, t, y, args=(), training=None, penalties=None):
    """Traces `dynamics` once and returns it as a `VectorField` on the leaves of the state.

    Args:
        dynamics: A Keras layer or model, or a function: `f(y)`, `f(t, y)`, with `args` behind.
        t: The first time, scalar or `[B]`. With `[B]`, the dynamics sees `[B, 1, ..., 1]`, which
            broadcasts against the first leaf.
        y: The first state, a nest of float tensors.
        args: Further arguments, a tuple of nests of tensors.
        training: The mode to call a Keras layer in.
        penalties: `Penalties`, whose leaves the field has behind those of `y`.

    What an evaluation does besides, at this time and state, is done once: seeds and moving statistics of layers are updated,
    and losses go to the `Report` of who asked for the solve.
    """
    leaves = tf.nest.flatten(y)
    if isinstance(dynamics, keras.Layer) and not dynamics.built:
        build(dynamics, tree.expand(t, leaves[0]), y)
    call = _Call(dynamics, y, args, training)
    if penalties is not None:
        call = _PenalizedCall(call, penalties, len(tf.nest.flatten(args)))
        leaves, args = (*leaves, *penalties.leaves), (args, penalties.noise)
    closure, *rest = _closed(call, dynamics, tree.expand(t, leaves[0]), leaves, args)
    field = VectorField(closure, *rest)
    report = current_report()
    losses = field.take_effects(t, leaves) if closure.has_effects() else ()
    if report is not None:
        report.losses += losses
        report.weights_of_functions += closure.weights_of_functions()
    elif losses:
        warnings.warn(
            f"The dynamics '{call.name}' adds losses (by add_loss or activity_regularizer), which a solve does not return: they "
            "are left out. An ODELayer adds them to its own.",
            stacklevel=4,
        )
    return field


def build(layer, t, y):
    """Builds a layer and all within it for a time and a state like these, by a symbolic call."""

    def symbol(x):
        return keras.KerasTensor(tuple(x.shape), tf.as_dtype(x.dtype).name)

    takes = takes_time(layer)
    # Keras gives a build of one argument the shape of the first call argument, which may be the time's.
    own_build = not layer.built and not hasattr(layer.build, "_is_default")
    if takes and own_build and len(inspect.signature(layer.build).parameters) == 1:
        layer.build(tf.nest.map_structure(lambda x: tuple(x.shape), y))
    y = tf.nest.map_structure(symbol, y)
    layer(*((symbol(t), y) if takes else (y,)))


def close_map(function, t, y):
    """A function like the dynamics that gives a new state: `y` and `t` as in `close`."""
    leaves = tf.nest.flatten(y)
    return PureFunction(*_closed(_Call(function, y, (), None), function, tree.expand(t, leaves[0]), leaves, ()))


def close_scalar(function, t, y):
    """A function `g(t, y)` or `g(y)` that gives one number like `t`, a scalar or `[B]`."""
    return PureFunction(*_closed(_ScalarCall(function, y, t), function, t, tf.nest.flatten(y), ()))


def _closed(call, dynamics, t, leaves, args):
    """What a `PureFunction` is made of."""
    arguments = [_as_argument(leaf, t.dtype) for leaf in tf.nest.flatten(args)]
    specs = [spec(x) for x in (t, *leaves, *arguments)]
    with no_autocast():
        closure = Closure(call, dynamics, specs)
        parameters = (*arguments, *closure.values())
    differentiable = [*(may_need_gradient(a) for a in arguments), *closure.differentiable()]
    return closure, specs[: 1 + len(leaves)], parameters, differentiable


class _Call:
    """The user's dynamics as a function of flat tensors, with its signature understood and its output checked."""

    def __init__(self, dynamics, y, args, training):
        if isinstance(dynamics, (str, bytes)) or not callable(dynamics):
            raise TypeError(
                f"dynamics must be a Keras layer, a model or a function f(y) or f(t, y). Received: {dynamics!r}"
            )
        self.name = _name(dynamics)
        self._dynamics = getattr(dynamics, "python_function", dynamics)
        self._structure = y
        self._args = args
        self._takes_time = takes_time(dynamics, len(args))
        self._keywords = {}
        if isinstance(dynamics, keras.Layer) and "training" in inspect.signature(dynamics.call).parameters:
            self._keywords = {"training": training}
        self._casts = isinstance(dynamics, keras.Layer) and any(
            layer.compute_dtype != layer.variable_dtype for layer in dynamics._flatten_layers()
        )

    def __call__(self, t, leaves, arguments, convert=False):
        y = tf.nest.pack_sequence_as(self._structure, leaves)
        args = tf.nest.pack_sequence_as(self._args, arguments)
        function = self._dynamics
        if convert:
            function = tf.function(function, autograph=True)
        derivative = function(*((t, y) if self._takes_time else (y,)), *args, **self._keywords)
        return self._checked(derivative, leaves)

    def num_leaves(self):
        return len(tf.nest.flatten(self._structure))

    def _checked(self, derivative, leaves):
        try:
            tf.nest.assert_same_structure(self._structure, derivative)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"The dynamics '{self.name}' must return a nest like the state's. State: "
                f"{_describe(self._structure)}. Received: {_describe(derivative)}"
            ) from error
        return [self._checked_leaf(d, y) for d, y in zip(tf.nest.flatten(derivative), leaves, strict=True)]

    def _checked_leaf(self, derivative, y):
        if derivative is None:
            raise ValueError(f"The dynamics '{self.name}' must return the derivative of the state. Received: None")
        derivative = tf.convert_to_tensor(derivative)
        if self._casts and derivative.dtype.is_floating:
            derivative = tf.cast(derivative, y.dtype)
        if derivative.dtype != y.dtype:
            raise ValueError(
                f"The dynamics '{self.name}' must return the state's dtype, {y.dtype.name}. Received: "
                f"{derivative.dtype.name}. Build a Keras dynamics with dtype='{y.dtype.name}', or cast the state."
            )
        same_rank = derivative.shape.rank is None or derivative.shape.rank == y.shape.rank
        if not same_rank or not derivative.shape.is_compatible_with(y.shape):
            raise ValueError(
                f"The dynamics '{self.name}' must return the shape of the state, {y.shape}. Received: {derivative.shape}"
            )
        return tf.ensure_shape(derivative, y.shape)


class Penalties(NamedTuple):
    """What a solve adds up besides its state.

    Attributes:
        regularizers: Objects with `derivative(total, y, derivative, noise)`, the derivative of such a leaf.
        leaves: The leaves at the start, one for each.
        noise: Random booleans like the leaves of the state, or none.
    """

    regularizers: tuple
    leaves: tuple
    noise: tuple


class _PenalizedCall:
    """A call with the derivatives of penalties behind those of the state."""

    def __init__(self, call, penalties, num_arguments):
        self._call, self._regularizers, self._num_arguments = call, penalties.regularizers, num_arguments
        self.name = call.name

    def __call__(self, t, leaves, arguments, convert=False):
        count = self._call.num_leaves()
        y, totals, noise = leaves[:count], leaves[count:], arguments[self._num_arguments :]
        derivative = self._call(t, y, arguments[: self._num_arguments], convert)
        rates = [r.derivative(total, y, derivative, noise) for r, total in zip(self._regularizers, totals, strict=True)]
        return [*derivative, *rates]

    def num_leaves(self):
        return self._call.num_leaves() + len(self._regularizers)


class _ScalarCall(_Call):
    """A function of time and state that gives one number, or one for each sample."""

    def __init__(self, function, y, t):
        super().__init__(function, y, (), None)
        self._t = t

    def _checked(self, value, leaves):
        value = tf.convert_to_tensor(value)
        wanted = self._t.shape
        if not value.dtype.is_floating or not value.shape.is_compatible_with(wanted):
            raise ValueError(
                f"The function '{self.name}' must return a float of shape {wanted} (one number"
                f"{' a sample' if wanted.rank else ''}). Received: {value.dtype.name} of shape {value.shape}"
            )
        return [tf.ensure_shape(tf.cast(value, self._t.dtype), wanted)]


def _as_argument(value, dtype):
    """A tensor; Python floats take the precision of the state."""
    return tf.constant(value, dtype) if isinstance(value, float) else tf.convert_to_tensor(value)


def fingerprint(function):
    """A hashable value of a traced function, equal for two that do the same."""
    return fingerprints.fingerprint(function.graph), tuple(id(tensor) for tensor in function.captured_inputs)


def _describe(nest):
    return tf.nest.map_structure(lambda x: f"{getattr(x, 'dtype', type(x).__name__)} {getattr(x, 'shape', '')}", nest)


def takes_time(dynamics, num_args=0):
    """Tells `f(t, y)` from `f(y)` by the number of positional arguments besides `num_args` more."""
    function = dynamics.call if isinstance(dynamics, keras.Layer) else getattr(dynamics, "python_function", dynamics)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return True
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    positional = [p for p in parameters if p.kind in kinds and p.name not in _NOT_ARGUMENTS]
    required = sum(p.default is inspect.Parameter.empty for p in positional)
    most = len(positional)
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        most = max(most, num_args + 2)
    if required <= num_args + 1 and most >= num_args + 2:
        return required == 0 or positional[0].name in ("t", "time")
    if required <= num_args + 2 <= most:
        return True
    if required <= num_args + 1 <= most and not (num_args and positional[0].name in ("t", "time")):
        return False
    extra = f" and {num_args} more for args" if num_args else ""
    raise TypeError(
        f"The dynamics '{_name(dynamics)}' must take the state, f(y), or the time and the state, f(t, y){extra}. "
        f"Received a function with the arguments ({', '.join(p.name for p in parameters)})"
    )


def _name(dynamics):
    return getattr(dynamics, "name", None) or getattr(dynamics, "__name__", type(dynamics).__name__)
