"""Makes functions that are traced, and looks at their graphs: what they call, and what they do with variables."""

import functools

import tensorflow as tf

from keras_ode import internals

CALLS = {"PartitionedCall", "StatefulPartitionedCall"}
BRANCHES = {"If", "StatelessIf", "Case", "StatelessCase"}
LOOPS = {"While", "StatelessWhile"}
READS = {"ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VariableShape", "VarIsInitializedOp"}
UPDATES = {"AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp"}
GRADIENT = internals.GRADIENT
# Operations whose results do not depend on the values that they are given.
_SHAPES = {"Shape", "ShapeN", "Size", "Rank", "ZerosLike", "OnesLike"}


def traced(function, jit_compile=None):
    """A `tf.function` whose traces TensorFlow counts on their own.

    TensorFlow counts traces by code object, and warns of "retracing" after five of them. All solves have the same code, so five
    solves of different kinds would print this warning, which their user could do nothing about. A partial has no code object.
    """
    return tf.function(functools.partial(function), autograph=False, jit_compile=jit_compile)


def inner_graphs(op):
    """The graphs of the functions that an operation calls: one, those of its branches, or a loop's condition and body."""
    if op.type in CALLS:
        names = [op.get_attr("f").name]
    elif op.type in LOOPS:
        names = [op.get_attr("cond").name, op.get_attr("body").name]
    elif op.type.endswith("If"):
        names = [op.get_attr("then_branch").name, op.get_attr("else_branch").name]
    else:
        names = [branch.name for branch in op.get_attr("branches")]
    return [function_of(op.graph, name).graph for name in names]


def is_custom_gradient(op):
    return op.type == "IdentityN" and has_attribute(op, GRADIENT)


def is_nesting(op):
    return op.type in CALLS or op.type in BRANCHES or op.type in LOOPS


def in_order(graph):
    """Operations in the order in which they were made, but after all that they take.

    A loop that TensorFlow has differentiated takes lists which were made after it.
    """
    done = set()
    for operation in graph.get_operations():
        stack = [operation]
        while stack:
            op = stack[-1]
            missing = [] if op in done else [x.op for x in op.inputs if x.op not in done]
            if missing:
                stack += missing
                continue
            stack.pop()
            if op not in done:
                done.add(op)
                yield op


def sources_of(results):
    """The operations that tensors are computed by, and those that must run before them."""
    found, stack = set(), [x.op for x in results]
    while stack:
        op = stack.pop()
        if op not in found:
            found.add(op)
            stack += [*(x.op for x in op.inputs), *op.control_inputs]
    return found


def function_of(graph, name):
    while graph is not None:
        function = internals.called_function(graph, name)
        if function is not None:
            return function
        graph = getattr(graph, "outer_graph", None)
    raise KeyError(name)


def inputs_of(graph, results):
    """Which of the inputs of a graph the values of some of its tensors depend on: a set of their numbers.

    It does not look into branches and loops.
    """
    numbers = {id(x): i for i, x in enumerate(graph.inputs)}
    found, seen, waiting = set(), set(), list(results)
    while waiting:
        tensor = waiting.pop()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        op = tensor.op
        if id(tensor) in numbers:
            found.add(numbers[id(tensor)])
        elif op.type == "IdentityN":
            waiting.append(op.inputs[tensor.value_index])
        elif op.type in CALLS:
            (inner,) = inner_graphs(op)
            waiting += [op.inputs[i] for i in inputs_of(inner, [inner.outputs[tensor.value_index]])]
        elif op.type not in _SHAPES | BRANCHES | LOOPS:
            waiting += op.inputs
    return found


def has_attribute(op, attribute):
    try:
        op.get_attr(attribute)
    except ValueError:
        return False
    return True


def assigned(graph, keys):
    """The variables that a graph assigns to.

    Args:
        keys: What stands for the handles of variables that are inputs of the graph, by the tensors' ids.
    """
    for op, handles in uses(graph, keys):
        if op.type in UPDATES:
            yield from handles
        elif is_nesting(op):
            for inner, inner_keys in inner_uses(op, keys):
                yield from assigned(inner, inner_keys)


def uses(graph, keys):
    """The operations that take handles, with what stands for these; `keys` grows by the handles that they pass on."""
    for op in graph.get_operations():
        if not _may_take_handles(op):
            continue
        handles = [keys[id(x)] for x in op.inputs if id(x) in keys]
        if op.type == "Identity" and handles:
            keys[id(op.outputs[0])] = handles[0]
        elif handles or op.type in UPDATES or is_nesting(op):
            yield op, handles


def inner_uses(op, keys):
    """The graphs that an operation calls, each with what stands for the handles among its inputs."""
    inputs = list(op.inputs)[1:] if op.type in BRANCHES else list(op.inputs)
    for graph in inner_graphs(op):
        pairs = zip(graph.inputs, inputs, strict=False)
        yield graph, {id(inside): keys[id(given)] for inside, given in pairs if id(given) in keys}


def _may_take_handles(op):
    return is_nesting(op) or any(x.dtype == tf.resource for x in op.inputs)
