"""Every private interface of TensorFlow and Keras that the package uses.

A release may rename or remove what is private without a word, so no other module touches any of it. Each entry says
what it is for, and which public way there is, if any. `tests/test_internals.py` has a test for each, which fails
first where a release changes it.

Besides these, the package relies on attributes that have no underscore but no promise either: those of the graph of a
concrete function (`captures`, `capture`, `inputs`, `outputs`, `control_outputs`, `variables`, `outer_graph`).
"""

import sys

import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.trainers.compile_utils import MetricsList
from tensorflow.core.function.polymorphism import function_type as function_type_lib
from tensorflow.python.eager import backprop_util, context, execute, forwardprop_util, record
from tensorflow.python.eager.polymorphic_function.atomic_function import AtomicFunction
from tensorflow.python.eager.polymorphic_function.polymorphic_function import OptionalXlaContext
from tensorflow.python.framework import kernels, ops
from tensorflow.python.framework.func_graph import func_graph_from_py_func
from tensorflow.python.ops import control_flow_util, handle_data_util
from tensorflow.python.ops.control_flow_v2_func_graphs import WhileBodyFuncGraph

# Attributes of operations that TensorFlow sets: under which name the gradient of a custom gradient is registered, and
# whether a call of a function asks for XLA. No public function reads either.
GRADIENT = "_gradient_op_type"
MUST_COMPILE = "_XlaMustCompile"
# Our own, on operations that write in place: the rank of the buffer, which XLA's operation needs (see `programs.for_xla`).
RANK = "_keras_ode_rank"
# How Keras names the state of a `keras.random.SeedGenerator`. Public once a variable tells that it is one.
SEED_STATE = "seed_generator_state"


# Graphs of TensorFlow.


def traced_graph(name, function, specs):
    """The graph of a Python function, traced once and called by nobody.

    The public way, `tf.function(...).get_concrete_function(...).graph`, also registers a function with the runtime and
    traces twice where variables are made.
    """
    return func_graph_from_py_func(name, function, specs, {})


def called_function(graph, name):
    """The function that operations of a graph call by this name, with its `graph`; `None` if the graph knows none.

    No public method of a graph gives one.
    """
    return graph._get_function(name)


def add_function(graph, function):
    """Makes a function, and those that it calls, known to a graph whose operations call it. No public way."""
    graph._add_function_recursive(function)


def import_functions(graph, library):
    """Makes the functions of a `FunctionDefLibrary` known to a graph and to the runtime, which forgets them with the graph.

    The public `tf.graph_util.import_graph_def` makes them known to neither.
    """
    runtime, known = context.context(), {}
    definitions = {definition.signature.name: definition for definition in library.function}

    def function(name):
        """The function of this name, which holds those that it calls."""
        if name not in known:
            definition = definitions[name]
            called = {x.name: None for node in definition.node_def for x in called_functions(node)}
            inner = {id(f): f for child in map(function, called) for f in (child, *child.children)}
            runtime.add_function_def(definition)
            known[name] = AtomicFunction(name, runtime, _type_of(definition.signature), [*inner.values()])
        return known[name]

    for name in definitions:
        graph._add_function_recursive(function(name))


def called_functions(node):
    """The names of functions among the attributes of a `NodeDef`, as the messages that hold them."""
    for attribute in node.attr.values():
        yield from [attribute.func] if attribute.HasField("func") else attribute.list.func


def _type_of(signature):
    taken, given = (
        [tf.TensorSpec(None, argument.type) for argument in arguments] for arguments in (signature.input_arg, signature.output_arg)
    )
    return function_type_lib.from_structured_signature((tuple(taken), {}), given)


def created_operation(graph, like, inputs, attributes):
    """A new operation in a graph, of the type of another one.

    The public `graph.create_op` takes twice as long, which a solve's tracing would show.
    """
    return graph._create_op_internal(
        like.type, inputs, [x.dtype for x in like.outputs], name=like.type, attrs=attributes, op_def=like.op_def
    )


def copy_handle_data(old, new):
    """Tells a resource or variant tensor what the other holds: its shape and type inside. No public way."""
    handle_data_util.copy_handle_data(old, new)


def is_loop_body(graph):
    """Whether a graph is the body of a `tf.while_loop`. No public way."""
    return isinstance(graph, WhileBodyFuncGraph)


def kernels_of(op_type):
    """The kernels that TensorFlow has for an operation, by device and type. No public way."""
    return kernels.get_registered_kernels_for_op(op_type).kernel


def device_variables(variable):
    """The `tf.Variable`s that one consists of: one for each device under a distribution strategy.

    The public `strategy.experimental_local_results` sees them only inside the scope of that strategy.
    """
    return getattr(variable, "_values", None) or (variable,)


# Gradients of TensorFlow.


def is_differentiable(tensor):
    """Whether a tensor's type has gradients; of a variant, such as a list, the type of what it holds.

    The public `tf.DType.is_floating` and `is_complex` do for all but handles and variants.
    """
    return backprop_util.IsTrainable(tensor)


def is_recorded(tensor):
    """Whether a tape records what happens to an eager tensor. Public once `tf.GradientTape` tells what it watches."""
    return record.should_record_backprop([tensor])


def may_be_recorded():
    """Whether there is a tape that records here, whatever it watches. No public way."""
    return record.could_possibly_record()


def is_exporting():
    """Whether this is called while Keras or TensorFlow exports a model. No public way: it is seen by who has called."""
    return _is_called_from(_EXPORTERS)


def exported_format():
    """The format to which a model is converted while this is called; `None` where that is not known, or a SavedModel."""
    return next((name for name, modules in _CONVERTERS.items() if _is_called_from(modules)), None)


def _is_called_from(modules):
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith(modules):
            return True
        frame = frame.f_back
    return False


_CONVERTERS = {"LiteRT": ("keras.src.export.litert", "tensorflow.lite."), "ONNX": ("keras.src.export.onnx", "tf2onnx.")}
_EXPORTERS = "keras.src.export.", "tensorflow.python.saved_model.save", "tensorflow.lite.", "tf2onnx."


def has_tangents(tensors):
    """Whether a `tf.autodiff.ForwardAccumulator` follows one of these tensors. Public once one tells what it follows."""
    return bool(forwardprop_util.pack_tangents(list(tensors)).tangents)


def not_recorded():
    """A context in which no tape records. The public `tape.stop_recording()` needs the tape, which is the user's."""
    return record.stop_recording()


def record_operation(op_type, inputs, attributes, outputs):
    """Tells tapes of an operation that was made by `created_operation`, as each public operation does by itself.

    Args:
        attributes: A function that returns the operation's attributes, names and values in turn.
    """
    if execute.must_record_gradient():
        execute.record_gradient(op_type, inputs, attributes(), outputs)


def registered_gradient(name):
    """The gradient function that is registered under a name. `tf.RegisterGradient` has no counterpart that reads."""
    return ops.gradient_registry.lookup(name)


def gradient_entry(name):
    """The entry of the registry of gradients, a dict whose `"type"` is the function. No public way."""
    return ops.gradient_registry._registry[name]


def clear_attribute(op, name):
    """Removes an attribute from an operation of a graph that is not finished yet. No public way."""
    op._clear_attr(name)


def forget_gradient(name):
    """Removes an entry from the registry. Not needed once TensorFlow lets a `tf.custom_gradient` go with its graph."""
    ops.gradient_registry._registry.pop(name)


# XLA.


def is_in_xla_context(graph):
    """Whether XLA compiles a graph, as far as TensorFlow tells where it is traced. No public way."""
    return control_flow_util.GraphOrParentsInXlaContext(graph)


def xla_context(is_compiled):
    """A context that tells what is traced inside that XLA compiles it. `tf.xla.experimental.jit_scope` does not."""
    return OptionalXlaContext(is_compiled)


def dot_in_full_precision(a, b):
    """XLA's contraction of the last axis of `a` with the first of `b`, in the full precision of their type.

    The public `tf.config.experimental.enable_tensor_float_32_execution` holds for the whole program, and
    `tf.raw_ops.XlaDotV2` wants the same messages, serialized.
    """
    from tensorflow.compiler.tf2xla.python import xla  # slow to import
    from tensorflow.compiler.xla import xla_data_pb2

    numbers = xla_data_pb2.DotDimensionNumbers(lhs_contracting_dimensions=[a.shape.rank - 1], rhs_contracting_dimensions=[0])
    highest = xla_data_pb2.PrecisionConfig(operand_precision=[xla_data_pb2.PrecisionConfig.HIGHEST] * 2)
    return xla.dot_general(a, b, numbers, highest)


def update_in_place(buffer, places, values):
    """TensorFlow's `buffer` with the rows at `places`, one behind the other, replaced by `values`, without a copy."""
    updated = tf.raw_ops.InplaceUpdate(x=buffer, i=places, v=values)
    if not tf.executing_eagerly():
        updated.op._set_attr(RANK, tf.compat.v1.AttrValue(i=buffer.shape.rank))
    return updated


def dynamic_update_slice(buffer, values, index):
    """XLA's `buffer` with `buffer[index], buffer[index + 1], ...` replaced by `values`.

    A public `tf.tensor_scatter_nd_update` becomes the same with a test of the index, which takes two more kernels.
    """
    from tensorflow.compiler.tf2xla.ops import gen_xla_ops

    indices = tf.stack([index] + [tf.zeros_like(index)] * (buffer.shape.rank - 1))
    return gen_xla_ops.xla_dynamic_update_slice(buffer, values, indices)


# Keras.


def set_autocast_scope(scope):
    """Sets, for this thread, in which type layers read their variables (`None`: in their own), and returns what was set.

    Public once Keras exports `AutocastScope`.
    """
    before = global_state.get_global_attribute("autocast_scope")
    global_state.set_global_attribute("autocast_scope", scope)
    return before


def raw_variable(variable):
    """The `tf.Variable` of a Keras variable, or `None` where Keras has yet to make it.

    The public `variable.value` is a fresh tensor in that case, and what a `keras.StatelessScope` holds inside of one.
    """
    return variable._value


def assign_now(variable, value):
    """Assigns to the `tf.Variable` of a Keras variable, whatever scope is around; `variable.assign` asks the scope."""
    variable._direct_assign(value)


def layers_within(layer):
    """A layer and all layers inside of it. The public `model.layers` has those of the first level of a model alone."""
    return layer._flatten_layers()


def ids_of_trained(layer):
    """The ids of the variables that a layer and those inside of it created to be trained, also where they are frozen now.

    The public `layer.trainable_variables` leaves out what is frozen.
    """
    return {id(v) for each in layers_within(layer) for v in each._trainable_variables}


def own_metrics(layer):
    """The list of a layer's own metrics, to add to and to remove from.

    The public `layer.metrics` is a copy, and an attribute that is a metric becomes a part of what is saved.
    """
    return layer._metrics


class Metrics(MetricsList):
    """A metric of several logs, of which less is better, as callbacks that monitor one of them find out.

    A public `keras.Metric` may return a dict of logs too, but callbacks do not find the names in it.
    """

    def __init__(self, names, name):
        super().__init__([_LessIsBetter(log) for log in names], name=name)


class _LessIsBetter:
    _direction = "down"

    def __init__(self, name):
        self.name = name


def get_mask(tensor):
    """The Keras mask that came with a tensor, or `None`. Public once Keras exports `get_keras_mask`."""
    return getattr(tensor, "_keras_mask", None)


def set_mask(tensor, mask):
    """Gives a tensor a mask for the Keras layers that take it. Public once Keras exports `set_keras_mask`."""
    tensor._keras_mask = mask
