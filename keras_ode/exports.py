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


def check_format(field, solver, has_event):
    """Refuses a solve that the format to which the model is converted cannot hold."""
    form = internals.exported_format()
    if form is None:
        return
    if solver.has_complex_numbers:
        raise ValueError(
            f"{form} has no complex numbers, which this solver needs: use another one for stiff equations, such as "
            f"'kvaerno5' or 'rodas5p', or export a SavedModel. Received: solver={solver!r}"
        )
    if field.has_complex_numbers:
        raise ValueError(
            f"{form} has no arithmetic of complex numbers: compute the real and the imaginary part separately in the dynamics, "
            "or export a SavedModel. Received: a dynamics that computes with complex numbers"
        )
    if has_event:
        raise ValueError(
            f"{form} cannot contain a solve with an event, because its graph has gradients of the event function and loops "
            "within branches: export a SavedModel. Received: an event"
        )
    if form == "ONNX" and solver.has_branches:
        raise ValueError(
            "tf2onnx cannot convert the branches of a solver that changes its method from step to step: use another solver, or "
            f"export to LiteRT or as a SavedModel. Received: solver={solver!r}"
        )
