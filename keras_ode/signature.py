"""What a dynamics takes, the state alone or the time and the state, each with further arguments behind, and what it returns."""

import dataclasses
import functools
import inspect

import keras
import tensorflow as tf
from keras import ops

from keras_ode import internals

_NOT_ARGUMENTS = ("training", "mask")
_TIMES = ("t", "time")
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def takes_time(dynamics, num_args=0, state=None):
    """Tells `f(t, y)` from `f(y)` by the number of positional arguments besides `num_args` more.

    Args:
        dynamics: A Keras layer, a model or a function.
        num_args: The number of further arguments.
        state: The state, where it is known: it tells a functional model of two inputs that takes the time from one
            whose state is a pair.

    Raises:
        TypeError: Where the names or the number of the arguments tell that the dynamics is neither.
    """
    if is_functional(dynamics):
        return _model_takes_time(dynamics, num_args, state)
    try:
        parameters = list(inspect.signature(_function_of(dynamics)).parameters.values())
    except (TypeError, ValueError):  # some builtins have no signature
        return True
    positional = [p for p in parameters if p.kind in _POSITIONAL and p.name not in _NOT_ARGUMENTS]
    names = [p.name for p in positional]
    _check_bound(dynamics, names)
    _check_keywords(dynamics, parameters)
    _check_order(dynamics, names)
    required = sum(p.default is inspect.Parameter.empty for p in positional)
    most = len(positional)
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        most = max(most, num_args + 2)
    timed = bool(names) and names[0] in _TIMES
    if required <= num_args + 1 and most >= num_args + 2:
        if not required and names and not timed:
            raise TypeError(
                f"All arguments of the dynamics '{name_of(dynamics)}' have defaults, so it is unclear whether the first is "
                f"the time or the state. Remove the default of the state. Received a function with the arguments "
                f"({', '.join(p.name for p in parameters)})"
            )
        return not names or timed
    if required <= num_args + 2 <= most:
        return True
    if required <= num_args + 1 <= most and not timed:
        return False
    raise _wrong_number(dynamics, parameters, num_args, required)


def check_signature(dynamics):
    """Refuses what takes neither `(y)` nor `(t, y)` with any number of further arguments behind."""
    if is_functional(dynamics):
        return
    try:
        parameters = inspect.signature(_function_of(dynamics)).parameters.values()
    except (TypeError, ValueError):
        return
    required = [
        p for p in parameters if p.kind in _POSITIONAL and p.default is p.empty and p.name not in _NOT_ARGUMENTS
    ]
    takes_time(dynamics, max(0, len(required) - 2))


def arguments_of(dynamics, t, y, args=()):
    """The positional arguments to call a dynamics with, a tuple."""
    timed = takes_time(dynamics, len(args), y)
    if not is_functional(dynamics):
        return (t, y, *args) if timed else (y, *args)
    inputs = dynamics.input
    if isinstance(inputs, dict):
        if not timed:
            return (y,)
        time = next(name for name in inputs if name in _TIMES)
        others = [name for name in inputs if name != time]
        return ({time: _like_input(inputs[time], t, y), **(y if isinstance(y, dict) else {others[0]: y})},)
    if timed:
        return ([_like_input(inputs[0], t, y), y, *args],)
    return ([y, *args] if args else y,)


def is_functional(dynamics):
    """Whether this is a functional model of several inputs, which its call takes as one nest."""
    return (
        isinstance(dynamics, keras.Model)
        and len(getattr(dynamics, "inputs", None) or ()) > 1
        and next(iter(inspect.signature(dynamics.call).parameters), None) == "inputs"
    )


def keywords_of(dynamics, **values):
    """Of these keyword arguments, those to give to a dynamics: what it takes and has no default for, or is not `None`."""
    try:
        parameters = {} if is_functional(dynamics) else inspect.signature(_function_of(dynamics)).parameters
    except (TypeError, ValueError):
        return {}
    return {
        name: value
        for name, value in values.items()
        if name in parameters and (value is not None or parameters[name].default is inspect.Parameter.empty)
    }


def refuse_symbolic(inputs, instead):
    """Refuses Keras tensors, the symbols of functional models, with what to do `instead`."""
    found = next((x for x in tf.nest.flatten(inputs) if isinstance(x, keras.KerasTensor)), None)
    if found is not None:
        raise TypeError(f"A solve needs tensors, not the Keras tensors of a functional model. {instead} Received: {found!r}")


def mask_of(y):
    """The Keras masks that came with tensors, a nest like `y`; `None` where there is none."""
    return keras.tree.map_structure(lambda leaf: internals.get_mask(leaf), y)


def with_mask(y, mask):
    """Tensors like `y` that bring these masks to the Keras layers that take them."""

    def marked(leaf, mask):
        leaf = tf.identity(leaf)
        if mask is not None:
            internals.set_mask(leaf, mask)
        return leaf

    return tf.nest.pack_sequence_as(y, [marked(a, b) for a, b in zip(tf.nest.flatten(y), tf.nest.flatten(mask), strict=True)])


def name_of(dynamics):
    if isinstance(dynamics, functools.partial):
        return name_of(dynamics.func)
    return getattr(dynamics, "name", None) or getattr(dynamics, "__name__", type(dynamics).__name__)


def leaves_of(derivative, state):
    """The leaves of a derivative in the order of those of the state; `ValueError` if the nests differ.

    A list may stand for a tuple, and a tuple for a list; a list of numbers for a vector.
    """
    if tf.is_tensor(state):
        is_vector = state.shape.rank == 1 and isinstance(derivative, (list, tuple)) and len(derivative) > 0
        if is_vector and all(isinstance(d, (int, float)) or getattr(d, "shape", None) == () for d in derivative):
            return [_stacked(derivative, state.dtype)]
        tf.nest.assert_same_structure(state, derivative)
        return [derivative]
    if isinstance(state, (list, tuple)) and isinstance(derivative, (list, tuple)):
        plain = type(state) in (list, tuple) or type(derivative) in (list, tuple)
        if plain or type(state) is type(derivative):
            return [leaf for d, y in zip(derivative, state, strict=True) for leaf in leaves_of(d, y)]
    if isinstance(state, dict) and isinstance(derivative, dict) and set(state) == set(derivative):
        return [leaf for key in sorted(state) for leaf in leaves_of(derivative[key], state[key])]
    tf.nest.assert_same_structure(state, derivative)
    return tf.nest.flatten(derivative)


def how_to_stack(derivative):
    """The hint for a list of the components of a state with rows."""
    if isinstance(derivative, (list, tuple)) and derivative and all(tf.is_tensor(d) for d in derivative):
        return " For one tensor made of several, return tf.stack([...], axis=-1)."
    return ""


def about_dataclasses(value):
    """The hint for a dataclass that TensorFlow takes for one value."""
    if not dataclasses.is_dataclass(value):
        return ""
    return (
        f" The dataclass {type(value).__name__} is a nested structure for TensorFlow only if it has the methods __tf_flatten__ "
        "and __tf_unflatten__: write these, or use a dict or a NamedTuple in its place."
    )


def describe(nest):
    return tf.nest.map_structure(lambda x: f"{getattr(x, 'dtype', type(x).__name__)} {getattr(x, 'shape', '')}", nest)


def _stacked(numbers, dtype):
    return tf.stack([tf.convert_to_tensor(n, dtype if isinstance(n, (int, float)) else None) for n in numbers])


def unwrapped(dynamics):
    """The Keras layer or model in a `tf.function` of one; all else as it is."""
    inner = getattr(dynamics, "python_function", None)
    return inner if isinstance(inner, keras.Layer) else dynamics


def _function_of(dynamics):
    dynamics = unwrapped(dynamics)
    return dynamics.call if isinstance(dynamics, keras.Layer) else getattr(dynamics, "python_function", dynamics)


def _callee(dynamics):
    """What to write for the dynamics in a message."""
    name = name_of(dynamics)
    return name if name.isidentifier() else "f"


def _wrong_number(dynamics, parameters, num_args, required):
    """The error for a dynamics of too few or too many arguments."""
    names = [p.name for p in parameters]
    extra = f" and {num_args} more for args" if num_args else ""
    hint = ""
    if names and names[0] in _TIMES and len(names) == num_args + 1:
        hint = f" If it depends on the time alone, take the state as well: (t, y{''.join(', ' + n for n in names[1:])})."
    elif required > num_args + 2:
        hint = " Pass the further arguments as args=(...)."
    return TypeError(
        f"The dynamics '{name_of(dynamics)}' must take the state, f(y), or the time and the state, f(t, y){extra}. "
        f"Received a function with the arguments ({', '.join(names)}).{hint}"
    )


def _check_bound(dynamics, names):
    """Refuses a method without its object, which would get the time or the state as `self`."""
    if names and names[0] == "self" and not hasattr(dynamics, "__self__"):
        raise TypeError(
            f"The dynamics '{name_of(dynamics)}' is a method of a class, without an object to call it on: its arguments are "
            f"({', '.join(names)}). Pass the method of an object, such as model.{_callee(dynamics)}. Received: {dynamics!r}"
        )


def _check_order(dynamics, names):
    """Refuses a time behind the state, as in SciPy's `odeint`, which would get the state, or never the time."""
    late = next((name for name in names[1:] if name in _TIMES), None)
    if late is None or names[0] in _TIMES:
        return
    ordered = [late, *(name for name in names if name != late)]
    if is_functional(dynamics):
        fix = f"Make it as keras.Model([{', '.join(ordered)}], ...)"
    elif isinstance(dynamics, keras.Layer):
        fix = f"Define its call as call(self, {', '.join(ordered)})"
    else:
        fix = f"Pass `lambda {', '.join(ordered)}: {_callee(dynamics)}({', '.join(names)})` in its place"
    raise TypeError(
        f"The dynamics '{name_of(dynamics)}' takes the time after the state, ({', '.join(names)}), but is called with the "
        f"time first, f(t, y). {fix}, or rename '{late}' if it is not the time."
    )


def _check_keywords(dynamics, parameters):
    """Refuses arguments that must be given by name: nothing would give them. What a partial has bound is given."""
    bound = dynamics.keywords if isinstance(dynamics, functools.partial) else {}
    for p in parameters:
        if p.kind is not inspect.Parameter.KEYWORD_ONLY or p.name in (*bound, *_NOT_ARGUMENTS):
            continue
        if p.name in _TIMES:
            raise TypeError(
                f"The dynamics '{name_of(dynamics)}' takes '{p.name}' by name only, but is called as f(t, y). Pass "
                f"`lambda t, y: {_callee(dynamics)}(y, {p.name}=t)` in its place."
            )
        if p.default is inspect.Parameter.empty:
            raise TypeError(
                f"The dynamics '{name_of(dynamics)}' must take the state, f(y), or the time and the state, f(t, y). Received "
                f"a function with the arguments ({', '.join(q.name for q in parameters)}), of which '{p.name}' can be passed by "
                f"name only. Bind it with functools.partial({_callee(dynamics)}, {p.name}=...)."
            )


def _model_takes_time(model, num_args, state):
    """`takes_time` of a functional model: `[t, y, *args]`, or the state and `args` alone."""
    inputs = model.input
    if isinstance(inputs, dict):
        time = next((name for name in inputs if name in _TIMES), None)
        timed = time is not None and not (isinstance(state, dict) and time in state)
        if not num_args and (not timed or len(inputs) == 2 or state is None or isinstance(state, dict)):
            return timed
    else:
        _check_order(model, [getattr(x, "name", "") for x in inputs])
        nested = state is not None and keras.tree.is_nested(state)
        if len(inputs) == num_args + 2 and (state is None or nested == keras.tree.is_nested(inputs[1])):
            return True
        if len(inputs) == num_args + 1 or (not num_args and (nested or state is None)):
            return False
    names = keras.tree.map_structure(lambda x: x.name, inputs)
    raise TypeError(
        f"The dynamics '{name_of(model)}' must take the state, the time and the state, keras.Model([t, y], ...), or these "
        f"and args, keras.Model([t, y, *args], ...). Received a model of the inputs {names} for a state and {num_args} args"
    )


def _like_input(reference, t, y):
    """The time in the shape of a model's input: one number for all rows, or one a row."""
    if isinstance(t, keras.KerasTensor):
        return keras.KerasTensor(reference.shape, t.dtype)
    if not len(reference.shape):
        return t
    rows = reference.shape[0] or ops.shape(keras.tree.flatten(y)[0])[0]
    if len(t.shape):
        t = ops.reshape(t, (-1, *[1] * (len(reference.shape) - 1)))
    return ops.broadcast_to(t, (rows, *(n or 1 for n in reference.shape[1:])))
