"""Functions that a user wants called at each tried step of a solve."""

from typing import NamedTuple

import tensorflow as tf

from keras_ode import tree
from keras_ode.complex_states import as_given
from keras_ode.dynamics import fingerprint
from keras_ode.typing import Tensors

# Operations that run on the host, which XLA cannot compile.
_HOST_OPERATIONS = ("Print", "PyFunc", "EagerPyFunc", "WriteSummary", "WriteScalarSummary", "WriteHistogramSummary")


class StepInfo(NamedTuple):
    """One tried step: tensors, scalars or `[B]` with `per_sample=True`.

    Attributes:
        t: The time at which the step started.
        step_size: Its size, positive in either direction of time.
        error: Its scaled error; an adaptive solve accepts a step if this is at most one.
        accepted: Whether the step was accepted.
        running: Whether the sample was still being solved. If not, this is not a step of the sample.
        y: The state at the end of the step, a nested structure like `y0`.

    Example:

    >>> count = tf.Variable(0)
    >>> solution = keras_ode.solve(lambda t, y: -y, tf.constant([1.0]), [0.0, 1.0], on_step=lambda info: count.assign_add(1))
    >>> int(count) == int(solution.stats["num_steps"])
    True
    """

    t: tf.Tensor
    step_size: tf.Tensor
    error: tf.Tensor
    accepted: tf.Tensor
    running: tf.Tensor
    y: Tensors


class OnStep:
    """Observes tried steps, and calls a function with the `StepInfo` of each.

    Args:
        function: A function `function(info)`.
        t: A time, scalar or `[B]`; only its shape and dtype count.
        y: A state; of it only the nest, the shapes and the dtypes.
    """

    def __init__(self, function, t, y):
        if not callable(function):
            raise TypeError(f"on_step must be a function on_step(info). Received: on_step={function!r}")

        time, flag = tf.TensorSpec(t.shape, t.dtype), tf.TensorSpec(t.shape, tf.bool)
        specs = StepInfo(time, time, time, flag, flag, tf.nest.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), y))
        # A tf.function remembers what it traced, so it is not wrapped.
        if not isinstance(function, tf.types.experimental.PolymorphicFunction):
            function = _without_result(function)
        self._function = function.get_concrete_function(specs)
        self._like = tf.nest.flatten(specs.y)

    def start(self):
        return ()

    def see(self, state, trial):
        interval = trial.interval
        size = tf.abs(interval.size)
        y = as_given(trial.step.y[: len(self._like)], self._like)
        info = (interval.start, size, trial.error, trial.accept, trial.running, *y)
        # A plain call would tell `tf.custom_gradient` of the variables in it, which then asks for their gradients.
        arguments = (*map(tf.stop_gradient, info), *self._function.captured_inputs)
        self._function.add_to_graph()
        outputs = [x.dtype for x in self._function.graph.outputs]
        tf.raw_ops.StatefulPartitionedCall(args=arguments, Tout=outputs, f=self._function)
        return state

    @property
    def fingerprint(self):
        """A hashable value, equal for two that do the same."""
        return fingerprint(self._function)

    def check_compiles(self, jit_compile):
        """Refuses to be compiled by XLA where the function runs on the host."""
        if not (jit_compile or tree.is_compiled()):
            return
        graph = self._function.graph.as_graph_def()
        nodes = (*graph.node, *(node for function in graph.library.function for node in function.node_def))
        found = sorted({node.op for node in nodes if node.op.startswith(_HOST_OPERATIONS)})
        if found:
            raise ValueError(
                f"on_step runs {', '.join(found)} on the host (tf.print, tf.py_function, tf.summary), which XLA cannot "
                "compile. Leave jit_compile=True out, here and in the tf.function around the solve, or let on_step "
                "use tensors and variables only."
            )


def _without_result(function):
    """A function as a tf.function; what it returns, such as the operation of `tf.print`, is dropped."""

    @tf.function
    def call(info):
        function(info)

    return call
