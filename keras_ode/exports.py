"""What changes where a graph is traced for an export."""

import contextlib

import tensorflow as tf

from keras_ode import internals, tree


def is_exported():
    """Whether a graph is traced for an export: it holds the forward solve alone, of operations that other runtimes know.

    Its gradient, should somebody ask for it, runs the forward solve once more.
    """
    return not (tf.executing_eagerly() or tree.is_compiled() or internals.may_be_recorded()) and internals.is_exporting()


def standard_where_exported():
    """A context in which a graph that is traced for an export gets operations that converters know."""
    return tree.standard_operations() if is_exported() else contextlib.nullcontext()


def refuse_what_formats_lack(what, remedy):
    """Refuses to trace complex numbers for a runtime that has none."""
    form = internals.exported_format()
    if form is not None:
        raise ValueError(f"{form} has no complex numbers, which {what} computes with. {remedy}")
