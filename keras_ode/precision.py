"""In which precision a traced function computes."""

import ml_dtypes
import tensorflow as tf

# Operations that pass on what they are given.
_PASSES = ("Identity", "EnsureShape", "StopGradient")
# Operations that GPUs compute in TensorFloat-32 where they may.
_PRODUCTS = ("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "Einsum", "Conv2D", "Conv3D", "DepthwiseConv2dNative")


def resolution(dtype):
    """The distance from one to the next number of a float type."""
    return float(ml_dtypes.finfo(dtype.as_numpy_dtype).eps)


def of_results(graph):
    """The coarsest float type that the results of a graph were cast from, or are in; `None` without floats."""
    return _coarsest(_origin(result).dtype for result in graph.outputs)


def within(graph, sources):
    """The coarsest float type of all that a graph computes from some of its tensors; `None` without floats."""
    seen, waiting = set(), [op for source in sources for op in source.consumers()]
    dtypes = [source.dtype for source in sources]
    while waiting:
        op = waiting.pop()
        if op not in seen:
            seen.add(op)
            dtypes += [output.dtype for output in op.outputs]
            waiting += [consumer for output in op.outputs for consumer in output.consumers()]
    return _coarsest(dtypes)


def is_tensor_float_32(operations):
    """Whether products of float32 matrices among operations run in TensorFloat-32, with ten bits, on a GPU of this machine."""
    if not tf.config.experimental.tensor_float_32_execution_enabled() or not tf.config.list_physical_devices("GPU"):
        return False
    return any(op.type in _PRODUCTS and op.outputs[0].dtype == tf.float32 for op in operations)


def _origin(result):
    """What a result was before it was passed on, or cast from a type of less precision."""
    while result.op.type in (*_PASSES, "Cast"):
        before = result.op.inputs[0]
        if result.op.type == "Cast" and not (before.dtype.is_floating and resolution(before.dtype) > resolution(result.dtype)):
            break
        result = before
    return result


def _coarsest(dtypes):
    return max((dtype for dtype in dtypes if dtype.is_floating), key=resolution, default=None)
