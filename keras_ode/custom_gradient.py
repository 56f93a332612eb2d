"""Gradients of our own, which leave memory with the graph that they belong to."""

import functools
import weakref

import tensorflow as tf

from keras_ode import internals


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


def _forget_with_graph(op):
    """Lets the graph of an operation, instead of TensorFlow's registry, hold its registered gradient."""
    name = op.get_attr(internals.GRADIENT).decode()
    entry = internals.gradient_entry(name)
    gradient = entry["type"]
    found = weakref.ref(gradient)
    entry["type"] = lambda op, *cotangents: found()(op, *cotangents)
    op.graph.keras_ode_gradients = [*getattr(op.graph, "keras_ode_gradients", ()), gradient]
    weakref.finalize(op.graph, internals.forget_gradient, name).atexit = False
