"""Pure functions of tensors: what a dynamics is to the solver, however it was written."""

import functools
from collections.abc import Hashable
from typing import Any

import tensorflow as tf

from keras_ode import graphs, precision, tree
from keras_ode.closure import no_autocast, spec, trace
from keras_ode.complex_states import is_complex
from keras_ode.custom_gradient import custom_gradient, differentiated_last, leave_out_names
from keras_ode.rebuild import rebuilt
from keras_ode.xla import why_not_compiled

# Traced effects of evaluations in eager code, by what they compute; the oldest go first.
_MOST_EFFECTS = 64
# Products for so many columns of a Jacobian are written out: each takes time to trace.
_MOST_UNROLLED = 24
_effects: dict[Hashable, Any] = {}


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
        return trace(lambda *inputs: leave_out_names(self._build(*inputs)), [*self._specs, *map(spec, self.parameters)])

    def labels(self):
        """What a user calls the parameters."""
        labels = self._closure.labels()
        return ["A tensor in args" for _ in self.parameters[: len(self.parameters) - len(labels)]] + labels

    def precisions(self, num_leaves):
        """The coarsest float type of what is computed from time and state, and that of the results."""
        graph = self._closure.graph
        return precision.within(graph, graph.inputs[: 1 + num_leaves]), precision.of_results(graph)

    @functools.cached_property
    def is_tensor_float_32(self):
        """Whether a GPU of this machine computes its products in TensorFloat-32."""
        return precision.is_tensor_float_32(self._closure.operations())

    @property
    def why_not_compiled(self):
        """What XLA cannot compile, in words, or `None`."""
        return why_not_compiled(self._closure.graph, self.fingerprint)

    def _build(self, *inputs):
        """The results, built in the current graph."""
        results = self._closure.build(inputs, self._sources(), self._wanted())[0]
        return tuple(results[: len(results) - self._closure.num_losses])

    def _wanted(self):
        """The slice of the graph's results that are its own, but for losses; `None`: all of them."""
        return None

    def _sources(self):
        """Which inputs a gradient must not be lost by; by the time, it follows what the user's code shows."""
        return (False, *(True for _ in self._specs[1:]), *self.differentiable)

    def take_effects(self, t, y):
        """Does once what an evaluation at `t` and `y` does besides giving a derivative: updates of state; losses, returned."""
        inputs = (tree.expand(t, y[0]), *y, *self.parameters)
        effects = self._known_effects(inputs) if tf.executing_eagerly() else self._trace_effects(inputs)
        with no_autocast():
            return self._closure.apply(effects(*inputs))

    def _known_effects(self, inputs):
        key = (self.fingerprint, tuple((x.dtype, tuple(x.shape)) for x in inputs))
        effects = _effects.get(key)
        if effects is None:
            effects = _effects[key] = self._trace_effects(inputs)
            for oldest in list(_effects)[:-_MOST_EFFECTS]:
                _effects.pop(oldest, None)
        return effects

    def _trace_effects(self, inputs):
        return trace(lambda *inputs: self._closure.effects(inputs, self._sources()), [spec(x) for x in inputs])

    @functools.cached_property
    def fingerprint(self):
        return *self._closure.fingerprint(), self.differentiable

    @functools.cached_property
    def is_convolutional(self):
        return any("Conv" in op.type for op in self._closure.operations())

    @property
    def has_complex_numbers(self):
        """Whether the graph computes with complex numbers."""
        return any(is_complex(x) for op in self._closure.operations() for x in op.outputs)


class VectorField(PureFunction):
    """A pure vector field and its vector-Jacobian products.

    Attributes:
        integral_weights: Empty, so that the error of an integral of its products does not count: see `ScaledField`.
        extra: What the traced function gives behind the derivative: `"split"`, its two parts; `"jacobian"`, the user's own; or
            `None`.
    """

    integral_weights = ()

    def __init__(self, closure, specs, parameters, differentiable, extra=None, part=0):
        super().__init__(closure, specs, parameters, differentiable)
        self.extra, self._part = extra, part
        self._vjp, self._jvp, self._by_time, self._jacobians = None, None, None, {}

    def parts(self):
        """The fields whose sum it is, the stiff one first; `None` where it was given as one."""
        if self.extra != "split":
            return None
        return tuple(self._as(type(self), part) for part in (1, 2))

    def _as(self, kind, part=None):
        """The same field as one of another kind, or a part of it."""
        extra, part = (self.extra, self._part) if part is None else ("part", part)
        return kind(self._closure, self._specs, self.parameters, self.differentiable, extra, part)

    def _wanted(self):
        count = len(self._specs) - 1
        return None if self.extra is None else slice(self._part * count, (self._part + 1) * count)

    @functools.cached_property
    def fingerprint(self):
        return *super().fingerprint, self.extra, self._part

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

    def jacobian(self, t, y, parameters, rows, automatic=False):
        """The Jacobian by the state, `[B, D, D]` where `rows` are independent, else `[1, N, N]`, and the derivative by time,
        leaves, or `None` where there is none; `automatic`, not the user's own."""
        key = rows, automatic
        if key not in self._jacobians:
            self._jacobians[key] = self._trace_jacobian(t, y, parameters, rows, automatic)
        matrix, *by_time = self._jacobians[key](tree.expand(t, y[0]), *y, *parameters)
        return matrix, tuple(by_time) or None

    @property
    def has_jacobian(self):
        """Whether the user has given its Jacobian."""
        return self.extra == "jacobian"

    def evaluations_of_jacobian(self, matrix, automatic=False):
        """How many evaluations such a Jacobian is worth."""
        return 0 if self.has_jacobian and not automatic else matrix.shape[-1]

    def jvp(self, t, y, parameters, tangent):
        """The product of the Jacobian by the state with a tangent of it, leaves."""
        if self._jvp is None:
            self._jvp = self._trace_jvp(t, y, parameters)
        return tuple(self._jvp(tree.expand(t, y[0]), *y, *parameters, *tangent))

    def by_time(self, t, y, parameters):
        """The derivative by time, leaves, or `None` where there is none."""
        if self._by_time is None:
            self._by_time = _traced(
                lambda t, *rest: _by_time(self._build(t, *rest), t), [spec(x) for x in (tree.expand(t, y[0]), *y, *parameters)]
            )
        return tuple(self._by_time(tree.expand(t, y[0]), *y, *parameters)) or None

    def depends(self, results, leaves):
        """Whether some of the derivative's leaves depend on some of the state's; both are given by their numbers."""
        graph = self._closure.graph
        found = graphs.inputs_of(graph, [graph.outputs[i] for i in results])
        return any(1 + i in found for i in leaves)

    def inlined(self):
        """The same field for loops that are differentiated; each call is built once more, in the caller's graph.

        The gradient of a call of a function in a loop keeps all that the function was given, weights too, for every call;
        that of operations only what their own gradients need.
        """
        return self if tree.is_standard() else self._as(_InlinedField)

    def shared(self):
        """The same field, whose calls are those of one traced function."""
        return self if type(self) is VectorField else self._as(VectorField)

    def compiled(self):
        """The same field, of which XLA compiles every call and its gradient, each alone."""
        return self._as(_CompiledField)

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
            with differentiated_last():
                derivative = self._build(t, *y, *parameters)
                gradients = tf.gradients(derivative, sources, cotangent, unconnected_gradients="zero")
            return (*derivative, *(tf.convert_to_tensor(gradient) for gradient in gradients))

        return trace(vjp, [spec(x) for x in (tree.expand(t, y[0]), *y, *parameters, *y)])

    def _trace_jacobian(self, t, y, parameters, rows, automatic):
        num_leaves = len(y)

        def jacobian(t, *rest):
            return self._jacobian(t, rest[:num_leaves], rest[num_leaves:], rows, automatic)

        return _traced(jacobian, [spec(x) for x in (tree.expand(t, y[0]), *y, *parameters)])

    def _jacobian(self, t, y, parameters, rows, automatic=False):
        """The user's, or one product for each element of a row, or of the state, in the current graph: in a loop where there are
        many."""
        if self.has_jacobian and not automatic:
            found = self._closure.build((t, *y, *parameters), self._sources(), slice(len(y), len(y) + 1))[0]
            return (_as_blocks(found[0], rows), *_by_time(self._build(t, *y, *parameters), t))
        width = tree.packed(y, rows).shape[1]
        if width > _MOST_UNROLLED:
            return (self._columns(t, y, parameters, rows, width), *_by_time(self._build(t, *y, *parameters), t))
        derivative = self._build(t, *y, *parameters)
        flat = tree.packed(derivative, rows)
        columns = (tf.gradients(column, y, unconnected_gradients="zero") for column in tf.unstack(flat, axis=1))
        matrix = tf.stack([tree.packed([tf.convert_to_tensor(x) for x in found], rows) for found in columns], axis=1)
        return (matrix, *_by_time(derivative, t))

    def _columns(self, t, y, parameters, rows, width):
        """The Jacobian by the state, one Jacobian-vector product after the other."""

        def column(i):
            inner = tuple(map(tf.identity, y))
            vectors = tf.zeros_like(tree.packed(inner, rows))
            unit = tree.unpacked(vectors + tf.one_hot(i, width, dtype=vectors.dtype), inner, rows)
            return tree.packed(_forward(self._build(t, *inner, *parameters), inner, unit), rows)

        dtype = max((leaf.dtype for leaf in y), key=lambda d: d.size)
        columns = tf.map_fn(column, tf.range(width), parallel_iterations=1, fn_output_signature=dtype)
        return tf.ensure_shape(tf.transpose(columns, [1, 2, 0]), [None, width, width])

    def _trace_jvp(self, t, y, parameters):
        num_leaves = len(y)

        def jvp(t, *rest):
            y, parameters, tangent = rest[:num_leaves], rest[num_leaves:-num_leaves], rest[-num_leaves:]
            return _forward(self._build(t, *y, *parameters), y, tangent)

        return _traced(jvp, [spec(x) for x in (tree.expand(t, y[0]), *y, *parameters, *y)])


def _traced(function, specs):
    """`trace`, for a function that differentiates: in a graph for an export, of operations that converters know."""
    traced = trace(function, specs)
    return trace(lambda *inputs: rebuilt(traced.graph, inputs), specs) if tree.is_standard() else traced


def _forward(results, sources, tangents):
    """The product of the results' Jacobian with tangents: the derivative of its products with cotangents, which are linear, by
    these; zeros where nothing depends on the sources."""
    cotangents = [tf.zeros_like(x) for x in results]
    products = tf.gradients(results, sources, cotangents)
    known = [(x, tangent) for x, tangent in zip(products, tangents, strict=True) if x is not None]
    if not known:
        return [tf.zeros_like(x) for x in results]
    products, tangents = zip(*known, strict=True)
    found = tf.gradients(products, cotangents, tangents, unconnected_gradients="zero")
    return [tf.convert_to_tensor(x) for x in found]


def _by_time(results, t):
    """The derivative of the results by time, a list, empty where there is none."""
    cotangents = [tf.zeros_like(x) for x in results]
    by_time = tf.gradients(results, t, cotangents)[0]
    if by_time is None:
        return []
    return [tf.convert_to_tensor(x) for x in tf.gradients(by_time, cotangents, unconnected_gradients="zero")]


class _InlinedField(VectorField):
    """See `VectorField.inlined`."""

    def __call__(self, t, y, parameters):
        return self._build(tree.expand(t, y[0]), *y, *parameters)

    def jvp(self, t, y, parameters, tangent):
        return tuple(_forward(self(t, y, parameters), y, tangent))

    def by_time(self, t, y, parameters):
        t = tree.expand(t, y[0])
        return tuple(_by_time(self._build(t, *y, *parameters), t)) or None

    def jacobian(self, t, y, parameters, rows, automatic=False):
        matrix, *by_time = self._jacobian(tree.expand(t, y[0]), y, parameters, rows, automatic)
        return matrix, tuple(by_time) or None


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


def _as_blocks(matrix, rows):
    """A Jacobian `[D, D]`, or `[B, D, D]` of independent rows, as the solvers have it."""
    if matrix.shape.rank == 2:
        return matrix[None]
    if rows:
        return matrix
    count, size = matrix.shape[:2]
    blocks = matrix[:, :, None, :] * tf.eye(count, dtype=matrix.dtype)[:, None, :, None]
    return tf.reshape(blocks, [1, count * size, count * size])


class ScaledField:
    """A vector field whose cotangents of states, given and returned, are in a unit of their own; those of parameters in one.

    Args:
        field: A `VectorField`.
        unit: A scalar, or `[B]`: a unit for each row.
        integral_weights: For each differentiable parameter a scalar, times which its cotangent compares with `atol`.
    """

    def __init__(self, field, unit, integral_weights):
        self.field, self.unit, self.integral_weights = field, unit, integral_weights
        self.differentiable, self.select, self.parts = field.differentiable, field.select, field.parts
        self.has_jacobian = field.has_jacobian

    def __call__(self, t, y, parameters):
        return self.field(t, y, parameters)

    def jacobian(self, t, y, parameters, rows, automatic=False):
        return self.field.jacobian(t, y, parameters, rows, automatic)

    def evaluations_of_jacobian(self, matrix, automatic=False):
        return self.field.evaluations_of_jacobian(matrix, automatic)

    def jvp(self, t, y, parameters, tangent):
        return self.field.jvp(t, y, parameters, tangent)

    def by_time(self, t, y, parameters):
        return self.field.by_time(t, y, parameters)

    def vjp(self, t, y, parameters, cotangent):
        derivative, products, integrand = self.field.vjp(t, y, parameters, tree.scale(self.unit, cotangent))
        return derivative, tree.scale(1 / self.unit, products), integrand
