"""Hashable values of traced graphs, equal for two that compute the same."""

import hashlib
import types

import tensorflow as tf

from keras_ode import internals
from keras_ode.graphs import GRADIENT, inner_graphs, is_custom_gradient, is_nesting
from keras_ode.rebuild import Gradients


def fingerprint(graph, gradients=None, open_values=()):
    """A hashable value of a graph with all that it calls, but for what it captured.

    TensorFlow gives inner functions and custom gradients another name in every trace, so that it is what they compute that
    counts.

    Args:
        graph: A traced graph.
        gradients: The `Gradients` of the graph.
        open_values: Constants whose values do not count.
    """
    digest = hashlib.sha256()
    _add(digest, graph, Gradients() if gradients is None else gradients, set(open_values))
    return digest.hexdigest()


def scalars(graph):
    """The constants of a graph that are one float each."""
    constants = (op for op in graph.get_operations() if op.type == "Const")
    return [op for op in constants if op.outputs[0].dtype.is_floating and op.outputs[0].shape.rank == 0]


def _add(digest, graph, gradients, open_values=frozenset()):
    operations = graph.get_operations()
    numbers = {op.name: str(number) for number, op in enumerate(operations)}
    for op in operations:
        node = op.node_def
        inner = ()
        if is_nesting(op):
            inner = inner_graphs(op)
            _forget_functions(node)
        known = _of_library(op, numbers) if is_custom_gradient(op) else None
        gradient, has_name = _traced(op, gradients) if is_custom_gradient(op) and known is None else (None, not inner)
        if known is not None or not has_name:
            node.attr.pop(GRADIENT, None)
        digest.update(repr(known).encode())
        if op in open_values:
            node.attr.pop("value")
        _rename(node, numbers)
        digest.update(repr([x.shape for x in op.outputs]).encode())
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


def _of_library(op, numbers):
    """What tells a custom gradient of TensorFlow or Keras themselves from others, as that of swish: its code, and what it reads."""
    try:
        return _description(_function(op), numbers)
    except (LookupError, ValueError):
        return None


def _function(op):
    return internals.registered_gradient(op.get_attr(GRADIENT))


def _description(value, numbers):
    if isinstance(value, types.FunctionType):
        if value.__module__.partition(".")[0] not in ("tensorflow", "keras"):
            raise LookupError
        code = value.__code__
        cells = [_description(cell.cell_contents, numbers) for cell in value.__closure__ or ()]
        return code.co_filename, code.co_firstlineno, code.co_name, cells
    if isinstance(value, (list, tuple)):
        return [_description(x, numbers) for x in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if tf.is_tensor(value) and hasattr(value, "op"):
        return _position(value, numbers)
    raise LookupError


def _traced(op, gradients):
    """The traced gradient of a custom gradient, and whether it is known by its name only."""
    if _function(op).__module__.startswith("keras_ode"):  # a solve within the dynamics, whose gradient takes long to trace
        return None, True
    try:
        return gradients.of(op), False
    except NotImplementedError:  # there is none
        return None, False
    except (LookupError, TypeError, ValueError):  # it may never be asked for
        return None, True


def _forget_functions(node):
    for value in node.attr.values():
        for function in ((value.func,) if value.HasField("func") else value.list.func):
            function.name = ""
