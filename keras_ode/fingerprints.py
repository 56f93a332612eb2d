"""Hashable values of traced graphs, equal for two that compute the same."""

import hashlib

from keras_ode.graphs import GRADIENT, inner_graphs, is_custom_gradient, is_nesting
from keras_ode.rebuild import gradient_of


def fingerprint(graph, gradients=None):
    """A hashable value of a graph with all that it calls, but for what it captured.

    TensorFlow gives inner functions and custom gradients another name in every trace, so that it is what they compute that
    counts.

    Args:
        graph: A traced graph.
        gradients: A dictionary of the traced gradients of its custom gradients, by operation; it grows.
    """
    digest = hashlib.sha256()
    _add(digest, graph, {} if gradients is None else gradients)
    return digest.hexdigest()


def _add(digest, graph, gradients):
    operations = graph.get_operations()
    numbers = {op.name: str(number) for number, op in enumerate(operations)}
    for op in operations:
        node = op.node_def
        inner = ()
        if is_nesting(op):
            inner = inner_graphs(op)
            _forget_functions(node)
        gradient, has_name = _traced(op, gradients) if is_custom_gradient(op) else (None, not inner)
        if not has_name:
            node.attr.pop(GRADIENT, None)
        _rename(node, numbers)
        digest.update(node.SerializeToString(deterministic=True))
        for function in inner:
            _add(digest, function, gradients)
        if gradient is not None:
            digest.update(repr((gradient.exists, [_position(x, numbers) for x in gradient.outside()])).encode())
            _add(digest, gradient.graph, gradients)
    digest.update(repr([_position(x, numbers) for x in graph.outputs]).encode())


def _position(tensor, numbers):
    """Where a tensor comes from, within the graph whose operations are numbered."""
    if hasattr(tensor, "op") and tensor.op.name in numbers:
        return numbers[tensor.op.name], tensor.value_index
    return id(tensor)


def _rename(node, numbers):
    """Numbers instead of names, of which some count the traces of the program."""
    inputs = []
    for name in node.input:
        operation, separator, index = name.lstrip("^").partition(":")
        inputs.append(("^" if name.startswith("^") else "") + numbers[operation] + separator + index)
    del node.input[:]
    # The inputs that are waited for come last, in no order.
    node.input.extend(sorted(inputs, key=lambda name: name if name.startswith("^") else ""))
    node.name = numbers[node.name]
    node.attr.pop("_user_specified_name", None)


def _traced(op, gradients):
    """The traced gradient of a custom gradient, and whether it is known by its name only."""
    try:
        return gradient_of(op, gradients), False
    except NotImplementedError:  # there is none
        return None, False
    except (LookupError, TypeError, ValueError):  # it may never be asked for
        return None, True


def _forget_functions(node):
    for value in node.attr.values():
        for function in ((value.func,) if value.HasField("func") else value.list.func):
            function.name = ""
