"""From what the user gives (a Keras layer, a model, a function) to a pure vector field of tensors.

The user's code runs once, traced into a graph. Whatever it reads besides its arguments (weights, variables, tensors in
its closure) is found in that graph and becomes an explicit input, a *parameter*, so that no gradient is lost to a closure.
"""

import dataclasses
import inspect
import warnings
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_ode import fingerprints, internals, tree
from keras_ode.closure import Closure, current_report, may_need_gradient, no_autocast, spec
from keras_ode.complex_states import as_reals, is_complex, leaves_of_nest, packed_as
from keras_ode.signature import (
    about_dataclasses,
    arguments_of,
    describe,
    how_to_stack,
    is_functional,
    keywords_of,
    leaves_of,
    name_of,
    takes_time,
    unwrapped,
    with_mask,
)
from keras_ode.split import Split
from keras_ode.vector_field import PureFunction, VectorField


def close(dynamics, t, y, args=(), training=None, penalties=None, mask=None, jacobian=None):
    """Traces `dynamics` once and returns it as a `VectorField` on the leaves of the state.

    Args:
        dynamics: A Keras layer or model, or a function: `f(y)`, `f(t, y)`, with `args` behind.
        t: The first time, scalar or `[B]`. With `[B]`, the dynamics sees `[B, 1, ..., 1]`, which
            broadcasts against the first leaf.
        y: The first state, a nest of float tensors.
        args: Further arguments, a tuple of nests of tensors.
        training: The mode to call a Keras layer in.
        penalties: `Penalties`, whose leaves the field has behind those of `y`.
        mask: The Keras mask of the state: a nest like `y` of tensors or `None`.
        jacobian: A function like the dynamics that gives its Jacobian by the state, or `None`.

    What an evaluation does besides, at this time and state, is done once: seeds and moving statistics of layers are updated,
    and losses go to the `Report` of who asked for the solve.
    """
    leaves, dynamics = leaves_of_nest(y), unwrapped(dynamics)
    if isinstance(dynamics, keras.Layer) and not dynamics.built:
        build(dynamics, tree.expand(t, tf.nest.flatten(y)[0]), y, args)
    call = _Call(dynamics, y, args, training, mask)
    args, extra = (args, call.masks), None
    if isinstance(dynamics, Split):
        parts = (_Call(part, y, args[0], training, mask) for part in (dynamics.stiff, dynamics.nonstiff))
        call, extra = _SplitCall(call, *parts), "split"
    if jacobian is not None:
        _check_jacobian(jacobian, dynamics, penalties)
        call, extra = _CallWithJacobian(call, _JacobianCall(jacobian, y, args[0], training, mask)), "jacobian"
    if penalties is not None:
        call = _PenalizedCall(call, penalties, len(tf.nest.flatten(args)))
        leaves, args = (*leaves, *penalties.leaves), (args, penalties.noise)
    closure, *rest = _closed(call, dynamics, tree.expand(t, leaves[0]), leaves, args)
    field = VectorField(closure, *rest, extra=extra)
    report = current_report()
    losses = field.take_effects(t, leaves) if closure.has_effects() else ()
    if report is not None:
        report.losses += losses
        report.weights_of_functions += closure.weights_of_functions()
    elif losses:
        warnings.warn(
            f"The dynamics '{call.name}' adds losses (by add_loss or activity_regularizer), which a solve does not return, "
            "so they are discarded. An ODELayer adds them to its own losses.",
            stacklevel=4,
        )
    return field


def build(layer, t, y, args=()):
    """Builds a layer and all within it for a time, a state and further arguments like these, by a symbolic call."""

    def symbol(x):
        return keras.KerasTensor(tuple(x.shape), tf.as_dtype(x.dtype).name)

    if isinstance(layer, Split):
        for part in (layer.stiff, layer.nonstiff):
            if isinstance(part, keras.Layer):
                build(part, t, y, args)
        layer.built = True
        return
    if is_functional(layer):
        return  # built when it was made
    takes = takes_time(layer, len(args), y)
    # Keras gives a build of one argument the shape of the first call argument, which may be the time's.
    own_build = not layer.built and not hasattr(layer.build, "_is_default")
    if takes and own_build and len(inspect.signature(layer.build).parameters) == 1:
        layer.build(tf.nest.map_structure(lambda x: tuple(x.shape), y))
    y, args = (tf.nest.map_structure(symbol, x) for x in (y, args))
    layer(*arguments_of(layer, symbol(t), y, args))


def close_map(function, t, y):
    """A function like the dynamics that gives a new state: `y` and `t` as in `close`."""
    leaves = leaves_of_nest(y)
    return PureFunction(*_closed(_Call(function, y, (), None), function, tree.expand(t, leaves[0]), leaves, ()))


def close_scalar(function, t, y):
    """A function `g(t, y)` or `g(y)` that gives one number like `t`, a scalar or `[B]`."""
    return PureFunction(*_closed(_ScalarCall(function, y, t), function, t, leaves_of_nest(y), ()))


def as_arguments(args, dtype):
    """Further arguments of a dynamics as the tensors that are the first parameters of its field."""
    return as_reals(_as_argument(leaf, dtype) for leaf in tf.nest.flatten(args))


def _closed(call, dynamics, t, leaves, args):
    """What a `PureFunction` is made of."""
    arguments = as_arguments(args, t.dtype)
    specs = [spec(x) for x in (t, *leaves, *arguments)]
    with no_autocast():
        closure = Closure(call, dynamics, specs)
        members = closure.values()
    differentiable = [*(may_need_gradient(a) for a in arguments), *closure.differentiable(members)]
    return closure, specs[: 1 + len(leaves)], (*arguments, *members), differentiable


class _Call:
    """The user's dynamics as a function of flat tensors, with its signature understood and its output checked."""

    def __init__(self, dynamics, y, args, training, mask=None):
        if isinstance(dynamics, (str, bytes)) or not callable(dynamics):
            raise TypeError(
                f"dynamics must be a Keras layer, a model or a function f(y) or f(t, y). Received: {dynamics!r}"
            )
        self.name = name_of(dynamics)
        self._original, self._dynamics = dynamics, getattr(dynamics, "python_function", dynamics)
        self._structure, self._leaves = y, tf.nest.flatten(y)
        self._args = args
        takes_time(dynamics, len(args), y)  # refuses wrong arguments
        self._mask, self.masks = mask, tuple(m for m in tf.nest.flatten(mask) if m is not None)
        self._keywords = keywords_of(dynamics, training=training, mask=mask if self.masks else None)
        self._casts = isinstance(dynamics, keras.Layer) and any(
            layer.compute_dtype != layer.variable_dtype for layer in internals.layers_within(dynamics)
        )

    def __call__(self, t, leaves, arguments, convert=False):
        y = packed_as(self._structure, leaves)
        args, masks = packed_as((self._args, self.masks), arguments)
        keywords = self._keywords
        if masks:
            found = iter(masks)
            mask = tf.nest.map_structure(lambda m: m if m is None else next(found), self._mask)
            y = with_mask(y, mask)
            keywords = {**keywords, "mask": mask} if "mask" in keywords else keywords
        function = self._dynamics
        if convert:
            function = tf.function(function, autograph=True)
        derivative = function(*arguments_of(self._original, self._time(t), y, args), **keywords)
        return self._checked(derivative, tf.nest.flatten(y))

    def num_leaves(self):
        return len(self._leaves)

    def _time(self, t):
        """The time, without the axis that the parts of complex numbers add to the first leaf."""
        return t[..., 0] if t.shape.rank and is_complex(self._leaves[0]) else t

    def _checked(self, derivative, leaves):
        try:
            found = leaves_of(derivative, self._structure)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"The dynamics '{self.name}' must return the nested structure of the state. State: "
                f"{describe(self._structure)}. Received: {describe(derivative)}.{how_to_stack(derivative)}"
            ) from error
        return as_reals(self._checked_leaf(d, y) for d, y in zip(found, leaves, strict=True))

    def _checked_leaf(self, derivative, y):
        if isinstance(derivative, (tf.SparseTensor, tf.RaggedTensor)) or dataclasses.is_dataclass(derivative):
            raise TypeError(
                f"The dynamics '{self.name}' must return dense tensors, or a nested structure of them like the state."
                f"{about_dataclasses(derivative)} Received: {derivative!r}"
            )
        if derivative is None:
            raise ValueError(f"The dynamics '{self.name}' must return the derivative of the state. Received: None")
        # A Python number has no dtype of its own.
        is_number = isinstance(derivative, (int, float, complex) if is_complex(y) else (int, float))
        derivative = tf.convert_to_tensor(derivative, y.dtype if is_number else None)
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
        # Forward accumulators of TensorFlow 2.21 fail on tf.ensure_shape in graphs: it is used only where it adds something.
        known = derivative.shape.is_fully_defined() and y.shape.is_fully_defined()
        return derivative if known else tf.ensure_shape(derivative, y.shape)


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
        derivative, parts = derivative[:count], derivative[count:]
        rates = [r.derivative(total, y, derivative, noise) for r, total in zip(self._regularizers, totals, strict=True)]
        if not parts:
            return [*derivative, *rates]
        return [*derivative, *rates, *parts[:count], *map(tf.zeros_like, rates), *parts[count:], *rates]

    def num_leaves(self):
        return self._call.num_leaves() + len(self._regularizers)


class _SplitCall:
    """A call of a `Split`: the derivative, and behind it that of the stiff part and that of the other."""

    def __init__(self, call, stiff, nonstiff):
        self._calls = stiff, nonstiff
        self.name, self.masks, self.num_leaves = call.name, call.masks, call.num_leaves

    def __call__(self, t, leaves, arguments, convert=False):
        stiff, nonstiff = (call(t, leaves, arguments, convert) for call in self._calls)
        return [*tree.add(stiff, nonstiff), *stiff, *nonstiff]


class _CallWithJacobian:
    """A call with the user's Jacobian behind the derivative."""

    def __init__(self, call, jacobian):
        self._call, self._jacobian = call, jacobian
        self.name, self.masks, self.num_leaves = call.name, call.masks, call.num_leaves

    def __call__(self, t, leaves, arguments, convert=False):
        return [*self._call(t, leaves, arguments, convert), *self._jacobian(t, leaves, arguments, convert)]


class _JacobianCall(_Call):
    """The user's Jacobian, with its shape and its dtype checked."""

    def _checked(self, matrix, leaves):
        (y,) = leaves
        try:
            matrix = tf.convert_to_tensor(matrix, None if tf.is_tensor(matrix) else y.dtype)
        except (TypeError, ValueError) as error:
            raise TypeError(f"jacobian '{self.name}' must return a tensor. Received: {matrix!r}") from error
        wanted = tf.TensorShape([*y.shape, y.shape[-1]])
        if matrix.dtype != y.dtype or matrix.shape.rank != wanted.rank or not matrix.shape.is_compatible_with(wanted):
            raise ValueError(
                f"jacobian '{self.name}' must return {y.dtype.name} of shape {wanted} for a state of shape {y.shape}, where "
                "element [..., i, j] is the derivative of element i of the dynamics with respect to element j of the state. "
                f"Received: {matrix.dtype.name} of shape {matrix.shape}"
            )
        known = matrix.shape.is_fully_defined() and wanted.is_fully_defined()
        return [matrix if known else tf.ensure_shape(matrix, wanted)]


def _check_jacobian(jacobian, dynamics, penalties):
    """Refuses what a Jacobian of the user's cannot be combined with."""
    if not callable(jacobian):
        raise TypeError(f"jacobian must be a function like the dynamics, jacobian(t, y, *args). Received: jacobian={jacobian!r}")
    if isinstance(dynamics, Split):
        raise ValueError(
            "jacobian cannot be combined with a Split, of which only the stiff part is differentiated: leave it out, or pass the "
            f"sum of both parts as one function. Received: jacobian={jacobian!r}"
        )
    if penalties is not None:
        raise ValueError(
            f"jacobian cannot be combined with regularizers, which add unknowns to the state. Received: jacobian={jacobian!r}"
        )


class _ScalarCall(_Call):
    """A function of time and state that gives one number, or one for each sample."""

    def __init__(self, function, y, t):
        super().__init__(function, y, (), None)
        self._t = t

    def _time(self, t):
        return t

    def _checked(self, value, leaves):
        value = tf.convert_to_tensor(value)
        if value.dtype.is_bool:
            value = tf.where(value, tf.ones([], self._t.dtype), -1)
        wanted = self._t.shape
        if not value.dtype.is_floating or not value.shape.is_compatible_with(wanted):
            raise ValueError(
                f"The function '{self.name}' must return a float or a bool of shape {wanted} (one number"
                f"{' for each row' if wanted.rank else ''}). Received: {value.dtype.name} of shape {value.shape}"
            )
        return [tf.ensure_shape(tf.cast(value, self._t.dtype), wanted)]


def _as_argument(value, dtype):
    """A tensor; Python floats and complex numbers take the precision of the state."""
    try:
        if isinstance(value, complex):
            return tf.constant(value, tf.complex128 if dtype == tf.float64 else tf.complex64)
        return tf.constant(value, dtype) if isinstance(value, float) else tf.convert_to_tensor(value)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"args must contain dense tensors, numbers, paths, or nested structures of them.{about_dataclasses(value)} "
            f"Received: {value!r}"
        ) from error


def fingerprint(function):
    """A hashable value of a traced function, equal for two that do the same."""
    return fingerprints.fingerprint(function.graph), tuple(id(tensor) for tensor in function.captured_inputs)
