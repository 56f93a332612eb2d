"""Gradients of our own, which leave memory with the graph that they belong to."""

import contextlib
import functools
import threading
import weakref

import tensorflow as tf

from keras_ode import internals
from keras_ode.graphs import is_custom_gradient

_saving = threading.local()


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
            op = tf.nest.flatten(results)[0].op
            _forget_with_graph(op)
            if _used() is not None:
                _used().append(op)
        return results

    return call


def is_followed(tensors):
    """Whether a forward accumulator knows a derivative of one of these tensors."""
    return internals.has_tangents(tensors)


def refuse_forward_mode(tensors):
    """Refuses to go on where a forward accumulator follows one of these tensors."""
    if is_followed(tensors):
        raise NotImplementedError(
            "Forward mode (tf.autodiff.ForwardAccumulator) differentiates the steps of the solver: use adjoint='direct'. The "
            "other adjoints, and SteadyState, have derivatives in reverse mode (tf.GradientTape) only."
        )


def first_order_only(values, sources, what="This adjoint", remedy="use adjoint='direct'"):
    """The values, which refuse to be differentiated by the sources: that gradient would be missing in silence."""
    words = (
        f"{what} gives first derivatives only, in reverse mode (tf.GradientTape). For second derivatives (nested tapes, "
        f"tape.jacobian of a gradient) and forward mode (tf.autodiff.ForwardAccumulator) {remedy}."
    )
    if is_being_saved():
        return refuses_gradients(values, sources, words)

    def refuse(*_):
        raise NotImplementedError(words)

    @custom_gradient
    def pass_on(*tensors):
        return tuple(tf.identity(tensor) for tensor in tensors[: len(values)]), refuse

    return pass_on(*values, *sources)


def differentiable(values, times, words):
    """The values, which can be differentiated so many times one after the other; once more is an error with these words."""
    if is_being_saved():
        return values

    @custom_gradient
    def pass_on(*tensors):
        def gradient(*cotangents):
            if times == 0:
                raise NotImplementedError(words)
            return differentiable(cotangents, times - 1, words)

        return tuple(map(tf.identity, tensors)), gradient

    return tuple(pass_on(*values))


def _forget_with_graph(op):
    """Lets the graph of an operation, instead of TensorFlow's registry, hold its registered gradient."""
    name = op.get_attr(internals.GRADIENT).decode()
    entry = internals.gradient_entry(name)
    gradient = entry["type"]
    found = weakref.ref(gradient)
    entry["type"] = lambda op, *cotangents: _differentiate(found(), op, cotangents)
    op.graph.keras_ode_gradients = [*getattr(op.graph, "keras_ode_gradients", ()), gradient]
    weakref.finalize(op.graph, internals.forget_gradient, name).atexit = False


def _differentiate(gradient, op, cotangents):
    # TensorFlow traces a gradient without an operation to put it into a SavedModel.
    before, _saving.is_on = is_being_saved(), op is None
    try:
        return gradient(op, *cotangents)
    finally:
        _saving.is_on = before


def is_being_saved():
    """Whether the gradient that this thread traces is for a SavedModel, which keeps no custom gradients within gradients."""
    return getattr(_saving, "is_on", False)


def refuses_gradients(values, sources, message):
    """Values as they are, but their gradient by the sources is an error, in a SavedModel too: a `LookupError`."""
    reals = (tf.math.real(x) for x in sources if x.dtype.is_floating or x.dtype.is_complex)
    # Zero, whatever the sources are, and yet a function of them.
    zero = tf.add_n([tf.cast(tf.reduce_sum(tf.where(tf.zeros_like(x, tf.bool), x, 0)), tf.float32) for x in reals])
    return tuple(tf.raw_ops.PreventGradient(input=x + tf.cast(zero, x.dtype), message=message) for x in values)


def leave_out_names(results):
    """The results as they are; in a graph for a SavedModel's gradient, which nobody differentiates, no operation names its own."""
    if is_being_saved():
        for op in tf.compat.v1.get_default_graph().get_operations():
            if is_custom_gradient(op):
                internals.clear_attribute(op, internals.GRADIENT)
    return results


def _used():
    """The operations with custom gradients of `differentiated_last`, or `None` outside of it."""
    return getattr(_saving, "used", None)


@contextlib.contextmanager
def differentiated_last():
    """Inside, a graph is built that holds gradients and is never differentiated itself.

    In a SavedModel its operations would still name their custom gradients, which are not saved, and TensorFlow would warn
    of that at each load. So the names are taken out where they have been used.
    """
    if not is_being_saved():
        yield
        return
    before, _saving.used = _used(), []
    try:
        yield
        graph = tf.compat.v1.get_default_graph()
        for op in _used():
            if op.graph is graph:  # that of an inner function is finished
                internals.clear_attribute(op, internals.GRADIENT)
    finally:
        _saving.used = before
