"""From what the user gives (a Keras layer, a model, a function) to a pure vector field of tensors.

The user's code runs once, traced into a graph. Whatever it reads besides its arguments (weights, variables, tensors in
its closure) is found in that graph and becomes an explicit input, a *parameter*, so that no gradient is lost to a closure.
"""

import dataclasses
import functools
import inspect
import warnings
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_ode import fingerprints, precision, tree
from keras_ode.closure import Closure, current_report, may_need_gradient, no_autocast, spec, trace
from keras_ode.custom_gradient import custom_gradient
from keras_ode.signature import (
    arguments_of,
    describe,
    how_to_stack,
    is_functional,
    keywords_of,
    leaves_of,
    name_of,
    takes_time,
    with_mask,
)
from keras_ode.xla import why_not_compiled

# Traced effects of evaluations in eager code, by what they compute; the oldest go first.
_MOST_EFFECTS = 64
_effects = {}


class PureFunction:
    """A traced function of tensors with nothing hidden: `f(t, y, parameters)`, its results a tuple.

    Attributes:
        parameters: The tensors to pass: the leaves of `args`, then what the function reads from outside.
        differentiable: A bool for each parameter: whether it can have a gradient.
        fingerprint: A hashable value, equal for two that compute the same function.
        is_convolutional: Whether the graph holds a convolution.
    """

    def __init__(self, closure, specs, parameters, differentiable):
        self._closure, self._specs = closure, specs
        self.parameters = tuple(parameters)
        self.differentiable = tuple(differentiable)

    def __call__(self, t, y, parameters):
        return tuple(self._function(t, *y, *parameters))

    @functools.cached_property
    def _function(self):
        return trace(lambda *inputs: self._build(*inputs), [*self._specs, *map(spec, self.parameters)])

    def precisions(self, num_leaves):
        """The coarsest float type of what is computed from time and state, and that of the results."""
        graph = self._closure.graph
        return precision.within(graph, graph.inputs[: 1 + num_leaves]), precision.of_results(graph)

    def _build(self, *inputs):
        """The results, built in the current graph."""
        results = self._closure.build(inputs, self._sources())[0]
        return tuple(results[: len(results) - self._closure.num_losses])

    def _sources(self):
        """Which inputs a gradient must not be lost by; by the time, it follows what the user's code shows."""
        return (False, *(True for _ in self._specs[1:]), *self.differentiable)

    def take_effects(self, t, y):
        """Does once what an evaluation at `t` and `y` does besides giving a derivative: updates of state; losses, returned."""
        inputs = (tree.expand(t, y[0]), *y, *self.parameters)
        key = (self.fingerprint, tuple((x.dtype, tuple(x.shape)) for x in inputs))
        effects = _effects.get(key) if tf.executing_eagerly() else None
        if effects is None:
            effects = trace(lambda *inputs: self._closure.effects(inputs, self._sources()), [spec(x) for x in inputs])
            if tf.executing_eagerly():
                _effects[key] = effects
                for oldest in list(_effects)[:-_MOST_EFFECTS]:
                    _effects.pop(oldest, None)
        with no_autocast():
            return self._closure.apply(effects(*inputs))

    @functools.cached_property
    def fingerprint(self):
        return *self._closure.fingerprint(), self.differentiable

    @functools.cached_property
    def is_convolutional(self):
        return any("Conv" in op.type for op in self._closure.operations())

    @property
    def why_not_compiled(self):
        """What XLA cannot compile, in words, or `None`."""
        return why_not_compiled(self._closure.graph, self.fingerprint)


class VectorField(PureFunction):
    """A pure vector field and its vector-Jacobian products."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._vjp = None

    def __call__(self, t, y, parameters):
        """The derivative at `(t, y)`: a tuple of leaves like `y`; `t` is a scalar, or `[B]`."""
        return super().__call__(tree.expand(t, y[0]), y, parameters)

    def vjp(self, t, y, parameters, cotangent):
        """The derivative, and `cotangent`'s products with the Jacobians by `y` and by the differentiable parameters."""
        if self._vjp is None:
            self._vjp = self._trace_vjp(t, y, parameters)
        num_leaves = len(y)
        results = self._vjp(tree.expand(t, y[0]), *y, *parameters, *cotangent)
        return results[:num_leaves], results[num_leaves : 2 * num_leaves], results[2 * num_leaves :]

    def inlined(self):
        """The same field for loops that are differentiated; each call is built once more, in the caller's graph.

        The gradient of a call of a function in a loop keeps all that the function was given, weights too, for every call;
        that of operations only what their own gradients need.
        """
        return _InlinedField(self._closure, self._specs, self.parameters, self.differentiable)

    def compiled(self):
        """The same field, of which XLA compiles every call and its gradient, each alone."""
        return _CompiledField(self._closure, self._specs, self.parameters, self.differentiable)

    def select(self, parameters):
        """The differentiable ones among `parameters`."""
        return tuple(p for p, keep in zip(parameters, self.differentiable, strict=True) if keep)

    def _trace_vjp(self, t, y, parameters):
        num_leaves, num_parameters = len(y), len(parameters)

        def vjp(t, *rest):
            y, rest = rest[:num_leaves], rest[num_leaves:]
            parameters, cotangent = rest[:num_parameters], rest[num_parameters:]
            sources = (*y, *self.select(parameters))
            # Built once more, not a call of the traced function: what a call returns, XLA takes for constant where a
            # shape depends on it, and would compile anew for every value of the weights.
            derivative = self._build(t, *y, *parameters)
            gradients = tf.gradients(derivative, sources, cotangent, unconnected_gradients="zero")
            return (*derivative, *(tf.convert_to_tensor(gradient) for gradient in gradients))

        return trace(vjp, [spec(x) for x in (tree.expand(t, y[0]), *y, *parameters, *y)])


class _InlinedField(VectorField):
    """See `VectorField.inlined`."""

    def __call__(self, t, y, parameters):
        return self._build(tree.expand(t, y[0]), *y, *parameters)


class _CompiledField(VectorField):
    """See `VectorField.compiled`. A gradient evaluates the field again: for it only the arguments are kept."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._calls = None

    @property
    def fingerprint(self):
        return *super().fingerprint, "compiled"

    def inlined(self):
        # Where all is compiled, single calls need not be.
        return super().inlined() if tree.is_compiled() else self

    def __call__(self, t, y, parameters):
        t = tree.expand(t, y[0])
        if self._calls is None:
            self._calls = self._trace_calls(len(y), [spec(x) for x in (t, *y, *parameters)])
        evaluate, differentiate = self._calls

        @custom_gradient
        def call(*arguments):
            def gradient(*cotangent):
                found = iter(differentiate(*arguments, *cotangent))
                return [next(found) if d else None for d in (True, *(True for _ in y), *self.differentiable)]

            return evaluate(*arguments), gradient

        return tuple(call(t, *y, *parameters))

    def _trace_calls(self, num_leaves, specs):
        num_arguments = len(specs)

        def differentiate(*inputs):
            arguments, cotangent = inputs[:num_arguments], inputs[num_arguments:]
            sources = (*arguments[: 1 + num_leaves], *self.select(arguments[1 + num_leaves :]))
            gradients = tf.gradients(self._build(*arguments), sources, cotangent, unconnected_gradients="zero")
            return tuple(tf.convert_to_tensor(gradient) for gradient in gradients)

        specs_of_leaves = specs[1 : 1 + num_leaves]
        return (
            trace(lambda *arguments: self._build(*arguments), specs, jit_compile=True),
            trace(differentiate, specs + specs_of_leaves, jit_compile=True),
        )


class ScaledField:
    """A vector field whose cotangents of states, given and returned, are in a unit of their own; those of parameters in one.

    Args:
        field: A `VectorField`.
        unit: A scalar, or `[B]`: a unit for each row.
        integral_weights: For each differentiable parameter a scalar, times which its cotangent compares with `atol`.
    """

    def __init__(self, field, unit, integral_weights):
        self.field, self.unit, self.integral_weights = field, unit, integral_weights
        self.differentiable, self.select = field.differentiable, field.select

    def __call__(self, t, y, parameters):
        return self.field(t, y, parameters)

    def vjp(self, t, y, parameters, cotangent):
        derivative, products, integrand = self.field.vjp(t, y, parameters, tree.scale(self.unit, cotangent))
        return derivative, tree.scale(1 / self.unit, products), integrand


def close(dynamics, t, y, args=(), training=None, penalties=None, mask=None):
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

    What an evaluation does besides, at this time and state, is done once: seeds and moving statistics of layers are updated,
    and losses go to the `Report` of who asked for the solve.
    """
    leaves = tf.nest.flatten(y)
    if isinstance(dynamics, keras.Layer) and not dynamics.built:
        build(dynamics, tree.expand(t, leaves[0]), y, args)
    call = _Call(dynamics, y, args, training, mask)
    args = (args, call.masks)
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


def build(layer, t, y, args=()):
    """Builds a layer and all within it for a time, a state and further arguments like these, by a symbolic call."""

    def symbol(x):
        return keras.KerasTensor(tuple(x.shape), tf.as_dtype(x.dtype).name)

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

    def __init__(self, dynamics, y, args, training, mask=None):
        if isinstance(dynamics, (str, bytes)) or not callable(dynamics):
            raise TypeError(
                f"dynamics must be a Keras layer, a model or a function f(y) or f(t, y). Received: {dynamics!r}"
            )
        self.name = name_of(dynamics)
        self._original, self._dynamics = dynamics, getattr(dynamics, "python_function", dynamics)
        self._structure = y
        self._args = args
        takes_time(dynamics, len(args), y)  # refuses wrong arguments
        self._mask, self.masks = mask, tuple(m for m in tf.nest.flatten(mask) if m is not None)
        self._keywords = keywords_of(dynamics, training=training, mask=mask if self.masks else None)
        self._casts = isinstance(dynamics, keras.Layer) and any(
            layer.compute_dtype != layer.variable_dtype for layer in dynamics._flatten_layers()
        )

    def __call__(self, t, leaves, arguments, convert=False):
        y = tf.nest.pack_sequence_as(self._structure, leaves)
        args, masks = tf.nest.pack_sequence_as((self._args, self.masks), arguments)
        keywords = self._keywords
        if masks:
            found = iter(masks)
            mask = tf.nest.map_structure(lambda m: m if m is None else next(found), self._mask)
            y = with_mask(y, mask)
            keywords = {**keywords, "mask": mask} if "mask" in keywords else keywords
        function = self._dynamics
        if convert:
            function = tf.function(function, autograph=True)
        derivative = function(*arguments_of(self._original, t, y, args), **keywords)
        return self._checked(derivative, leaves)

    def num_leaves(self):
        return len(tf.nest.flatten(self._structure))

    def _checked(self, derivative, leaves):
        try:
            found = leaves_of(derivative, self._structure)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"The dynamics '{self.name}' must return a nest like the state's. State: "
                f"{describe(self._structure)}. Received: {describe(derivative)}.{how_to_stack(derivative)}"
            ) from error
        return [self._checked_leaf(d, y) for d, y in zip(found, leaves, strict=True)]

    def _checked_leaf(self, derivative, y):
        if isinstance(derivative, (tf.SparseTensor, tf.RaggedTensor)) or dataclasses.is_dataclass(derivative):
            raise TypeError(
                f"The dynamics '{self.name}' must return dense tensors, or a nest of them like the state. Received: "
                f"{derivative!r}"
            )
        if derivative is None:
            raise ValueError(f"The dynamics '{self.name}' must return the derivative of the state. Received: None")
        # A Python number has no dtype of its own.
        derivative = tf.convert_to_tensor(derivative, y.dtype if isinstance(derivative, (int, float)) else None)
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
        if value.dtype.is_bool:
            value = tf.where(value, tf.ones([], self._t.dtype), -1)
        wanted = self._t.shape
        if not value.dtype.is_floating or not value.shape.is_compatible_with(wanted):
            raise ValueError(
                f"The function '{self.name}' must return a float or a bool of shape {wanted} (one number"
                f"{' a sample' if wanted.rank else ''}). Received: {value.dtype.name} of shape {value.shape}"
            )
        return [tf.ensure_shape(tf.cast(value, self._t.dtype), wanted)]


def _as_argument(value, dtype):
    """A tensor; Python floats take the precision of the state."""
    return tf.constant(value, dtype) if isinstance(value, float) else tf.convert_to_tensor(value)


def fingerprint(function):
    """A hashable value of a traced function, equal for two that do the same."""
    return fingerprints.fingerprint(function.graph), tuple(id(tensor) for tensor in function.captured_inputs)
