"""Which traced functions XLA can compile."""

import functools
from collections.abc import Hashable

import tensorflow as tf

from keras_ode import internals

# What the compiler itself takes away.
_NO_KERNEL_NEEDED = ("Placeholder", "Const", "Assert", "NoOp")
_LOOPS = ("While", "StatelessWhile")


_MOST_REMEMBERED = 1024
_reasons: dict[Hashable, str | None] = {}  # by fingerprint: looking takes as long as a small solve does


def why_not_compiled(graph, fingerprint):
    """Why XLA cannot compile a function or its gradient: words, or `None` if nothing is known to be in the way.

    Args:
        graph: The graph of the function.
        fingerprint: A hashable value of the graph, under which the answer is remembered.
    """
    missing = object()
    reason = _reasons.get(fingerprint, missing)
    if reason is missing:
        reason = _look(graph)
        if len(_reasons) >= _MOST_REMEMBERED:
            _reasons.clear()
        _reasons[fingerprint] = reason
    return reason


def _look(graph):
    if any(x.dtype == tf.string for x in graph.inputs):
        return "a tensor of strings among its arguments"
    definition = graph.as_graph_def()
    reached = _reached(graph)
    nodes = [
        [node for node in definition.node if node.name in reached],
        *(f.node_def for f in definition.library.function),
    ]
    unknown = sorted({node.op for part in nodes for node in part if not _is_known(node)})
    if unknown:
        return f"what it has no kernels for: {', '.join(unknown[:4])}"
    for part in nodes:
        names = {node.name: node for node in part}
        for node in part:
            if node.op in _LOOPS and _is_unbounded(node, names):
                return f"the gradient of a tf.while_loop without maximum_iterations ('{node.name}')"
    return None


def is_compile_error(error):
    """Whether TensorFlow's error tells that XLA failed to compile."""
    text = str(error)
    return any(words in text for words in ("XLA", "tf2xla", "Detected unsupported operations", "ompile-time constant"))


def _reached(graph):
    """The names of the operations that a function's results, or effects, depend on."""
    waiting = [*(x.op for x in graph.outputs), *graph.control_outputs]
    found = set()
    while waiting:
        op = waiting.pop()
        if op.name not in found:
            found.add(op.name)
            waiting += [*(x.op for x in op.inputs), *op.control_inputs]
    return found


def _is_known(node):
    types = tuple((name, a.type) for name, a in sorted(node.attr.items()) if a.WhichOneof("value") == "type")
    return node.op in _NO_KERNEL_NEEDED or _has_kernel(node.op, types)


@functools.lru_cache(maxsize=4096)
def _has_kernel(op, types):
    """Whether an operation has kernels for these types on all devices that XLA may compile it for."""
    registered = _kernels(op)
    if not registered:  # a function that the user calls by its name
        return True
    devices = ["XLA_CPU_JIT"] + ["XLA_GPU_JIT"] * bool(tf.config.list_physical_devices("GPU"))
    return all(any(k.device_type == device and _takes(k, dict(types)) for k in registered) for device in devices)


def _takes(kernel, types):
    return all(
        types[c.name] in c.allowed_values.list.type
        for c in kernel.constraint
        if c.name in types and c.allowed_values.list.type
    )


def _kernels(op):
    _register_kernels()
    return internals.kernels_of(op)


@functools.cache
def _register_kernels():
    """XLA makes its kernels known when it compiles for the first time."""
    with tf.init_scope():
        tf.function(lambda: tf.constant(0.0), jit_compile=True)()


def _is_unbounded(loop, names):
    """Whether the second input of a loop, its largest number of iterations, says that there is none."""
    bound = names.get(loop.input[1].split(":")[0]) if len(loop.input) > 1 else None
    if bound is None or bound.op != "Const":
        return False
    return tf.make_ndarray(bound.attr["value"].tensor).tolist() == -1
