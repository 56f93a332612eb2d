"""Gradients of our own, which leave memory with the graph that they belong to."""

import functools
import weakref

import tensorflow as tf
from tensorflow.python.eager.forwardprop_util import pack_tangents
from tensorflow.python.framework import ops


def custom_gradient(f):
    """`tf.custom_gradient`, which forgets the gradient together with its graph.

    TensorFlow 2.21 registers the gradient of each call in a graph under a name of its own and never takes it out. The
    gradient refers to the graph, so every trace of a solve would stay in memory until the process ends.
    """
    decorated = tf.custom_gradient(f)

    @functools.wraps(f)
    def call(*tensors):
        results = decorated(*tensors)
        if not tf.executing_eagerly():
            _forget_with_graph(tf.nest.flatten(results)[0].op)
        return results

    return call


def is_followed(tensors):
    """Whether a forward accumulator knows a derivative of one of these tensors."""
    return bool(pack_tangents(list(tensors)).tangents)


def refuse_forward_mode(tensors):
    """Refuses to go on where a forward accumulator follows one of these tensors."""
    if is_followed(tensors):
        raise NotImplementedError(
            "Forward mode (tf.autodiff.ForwardAccumulator) goes through the steps of the solver: use adjoint='direct'. The other "
            "adjoints, and SteadyState, have derivatives in reverse mode (tf.GradientTape) only."
        )


def first_order_only(values, sources, what="This adjoint", remedy="use adjoint='direct'"):
    """The values, which refuse to be differentiated by the sources: that gradient would be missing in silence."""

    def refuse(*_):
        raise NotImplementedError(
            f"{what} gives first derivatives only, in reverse mode (tf.GradientTape). For second derivatives (nested tapes, "
            f"tape.jacobian of a gradient) and forward mode (tf.autodiff.ForwardAccumulator) {remedy}."
        )

    @custom_gradient
    def pass_on(*tensors):
        return tuple(tf.identity(tensor) for tensor in tensors[: len(values)]), refuse

    return pass_on(*values, *sources)


def _forget_with_graph(op):
    """Lets the graph of an operation, instead of TensorFlow's registry, hold its registered gradient."""
    name = op.get_attr("_gradient_op_type").decode()
    entry = ops.gradient_registry._registry[name]
    gradient = entry["type"]
    found = weakref.ref(gradient)
    entry["type"] = lambda op, *cotangents: found()(op, *cotangents)
    op.graph.keras_ode_gradients = [*getattr(op.graph, "keras_ode_gradients", ()), gradient]
    weakref.finalize(op.graph, ops.gradient_registry._registry.pop, name).atexit = False
