"""What a traced function reads from outside, made explicit: no gradient is lost to a closure."""

import contextlib
import functools

import keras
import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.backend.common.variables import initialize_all_variables
from tensorflow.python.eager import record


class Closure:
    """What the dynamics reads from outside: Keras variables, `tf.Variable`s and tensors."""

    def __init__(self, dynamics):
        self._layer = dynamics if isinstance(dynamics, keras.Layer) else None
        self._keras_variables = list(dynamics.variables) if self._layer is not None else []
        self._variables = []
        self._tensors = []

    def values(self):
        """The closure's values, as tensors that tapes around the solve can see."""
        return [
            *(tf.convert_to_tensor(v.value) for v in self._keras_variables),
            *(v.read_value() for v in self._variables),
            *self._tensors,
        ]

    def differentiable(self):
        return [
            *(v.trainable and tf.as_dtype(v.dtype).is_floating for v in self._keras_variables),
            *(True for _ in self._variables),
            *(may_need_gradient(tensor) for tensor in self._tensors),
        ]

    def trace(self, call, specs):
        """Traces the call with the closure's known members as explicit inputs."""
        members = [spec(x) for x in self.values()]
        num_leaves, num_specs = call.num_leaves(), len(specs)
        self._seen = {}

        def flat(convert, t, *rest):
            leaves, arguments = rest[:num_leaves], rest[num_leaves : num_specs - 1]
            with self._bound(rest[num_specs - 1 :]):
                return call(t, leaves, arguments, convert)

        self.python = functools.partial(flat, False)
        try:
            return trace(self.python, specs + members)
        except tf.errors.OperatorNotAllowedInGraphError:
            self.python = functools.partial(flat, True)
            return trace(self.python, specs + members)

    def extend(self, function):
        """Adds what a trace captured besides the known members; whether there was anything."""
        seen = list(self._seen.values())
        if any(variable._value is None for variable in seen):  # made by a layer that the trace was the first to call
            initialize_all_variables()
        raw = {id(v._value) for v in (*self._keras_variables, *seen)}
        self._keras_variables += seen
        self._variables = [
            v for v in function.graph.variables if id(v) not in raw and v.trainable and v.dtype.is_floating
        ]
        self._tensors = [x for x in function.graph.external_captures if x.dtype not in (tf.resource, tf.variant)]
        return bool(seen or self._variables or self._tensors)

    def check(self, function):
        """No trainable variable may still be read behind our back: its gradient would be lost."""
        handles = {id(x) for x in function.graph.external_captures}
        hidden = [v.name for v in self._variables if id(v.handle) in handles]
        if hidden:
            raise ValueError(
                f"The dynamics reads the trainable variables {hidden} where a gradient cannot follow (by a sparse "
                "read, read_value() or an assignment). Read them with tf.convert_to_tensor(variable) in the dynamics, "
                "or create them with trainable=False."
            )

    @contextlib.contextmanager
    def _bound(self, values):
        """Inside, reading a member gives its explicit value."""
        num_keras, num_variables = len(self._keras_variables), len(self._variables)
        keras_values, values = values[:num_keras], values[num_keras:]
        variable_values, tensor_values = values[:num_variables], values[num_variables:]
        graph = tf.compat.v1.get_default_graph()
        captured = [graph._function_captures.by_val_internal.get(id(tensor)) for tensor in self._tensors]
        for tensor, value in zip(self._tensors, tensor_values, strict=True):
            graph.replace_capture(tensor, value)
        cached = [variable._cached_value for variable in self._variables]
        for variable, value in zip(self._variables, variable_values, strict=True):
            variable._cached_value = value
        try:
            with _RecordingScope(zip(self._keras_variables, keras_values, strict=True), self._seen):
                yield
        finally:
            for variable, value in zip(self._variables, cached, strict=True):
                variable._cached_value = value
            for tensor, before in zip(self._tensors, captured, strict=True):
                if before is None:
                    graph._function_captures.pop(id(tensor))
                else:
                    graph.replace_capture(tensor, before)


class _RecordingScope(keras.StatelessScope):
    """Binds variables to values and notes the variables that are read without one."""

    def __init__(self, mapping, seen):
        super().__init__(mapping, initialize_variables=False)
        self._seen = seen

    def get_current_value(self, variable):
        value = super().get_current_value(variable)
        if value is None:
            self._seen[id(variable)] = variable
        return value


@contextlib.contextmanager
def no_autocast():
    """The solve keeps the variables' own precision; the dynamics casts for itself."""
    scope = global_state.get_global_attribute("autocast_scope")
    global_state.set_global_attribute("autocast_scope", None)
    try:
        yield
    finally:
        global_state.set_global_attribute("autocast_scope", scope)


def trace(function, specs, jit_compile=None):
    return tf.function(function, autograph=False, jit_compile=jit_compile).get_concrete_function(*specs)


def spec(x):
    return tf.TensorSpec(x.shape, x.dtype)


def may_need_gradient(tensor):
    """Floats may, unless it is known already that no tape watches them."""
    if not tensor.dtype.is_floating:
        return False
    return not tf.executing_eagerly() or is_watched(tensor)


def is_watched(tensor):
    """Whether a tape records what happens to this eager tensor."""
    return record.should_record_backprop([tensor])
