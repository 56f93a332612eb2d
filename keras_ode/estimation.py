"""Parameters of a differential equation from observations: single shooting, multiple shooting, and optimizers around them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_ode import tree
from keras_ode.graphs import traced
from keras_ode.solve import solve
from keras_ode.typing import Dynamics, Tensors, TensorsLike, Times, do_not_convert


class Estimate(NamedTuple):
    """The result of `estimate`. The parameters themselves are the values of the variables.

    Attributes:
        loss: The loss at the last step, a float.
        losses: The losses at all steps, or, for `"lbfgs"`, at all evaluations, an array.
        num_steps: The number of steps that the optimizer took.
        converged: Whether `"lbfgs"` has converged, and `None` for optimizers that do not tell.

    Example:

    >>> rate = tf.Variable(0.5)
    >>> t = np.linspace(0.0, 2.0, 5)
    >>> result = keras_ode.estimate(lambda t, y: -rate * y, np.exp(-t)[:, None], t, variables=[rate], num_steps=3)
    >>> result.num_steps, result.losses.shape, result.converged
    (3, (3,), None)
    """

    loss: float
    losses: np.ndarray
    num_steps: int
    converged: bool | None


@do_not_convert
def multiple_shooting(
    dynamics: Dynamics,
    ys: TensorsLike,
    t: Times,
    group_size: int,
    *,
    starts: TensorsLike | None = None,
    continuity: float = 100.0,
    args: Sequence[TensorsLike] = (),
    **options: Any,
) -> tf.Tensor:
    """Returns the loss of multiple shooting: that of short solves, plus a penalty on the gaps between them.

    A solve over a long time depends on the parameters in a complicated way, so that its loss has many local minima. Multiple
    shooting divides the observations into groups. Each group is solved on its own, from its first observation, and a penalty closes
    the gap between the end of each solve and the start of the next group.

    Args:
        dynamics: As in `keras_ode.solve`.
        ys: The observations of the state, `[T, ...]`, with NaN where a value is missing.
        t: Their times, `[T]`, strictly increasing.
        group_size: The number of observations in a group, two or more. Groups share their ends with their neighbors. With
            `group_size=T` there is one group: single shooting.
        starts: The states at the start of each group, `[G, ...]`, if they are to be estimated too, as they should if the
            observations are noisy: pass a variable that starts at `ys[:-1:group_size - 1]`. Defaults to these observations,
            which must not be missing then.
        continuity: The weight of the penalty: the mean square of the differences between the end of each group and the start of
            the next. Defaults to `100.0`.
        args: As in `keras_ode.solve`, for all groups.
        **options: Options of `keras_ode.solve`.

    Returns:
        A scalar tensor: the mean squared error over all groups plus the weighted penalty. It is differentiable by everything
        that the solves depend on, and NaN if one of them fails in a graph.

    Raises:
        ValueError: For invalid arguments.

    Example:

    >>> t = tf.linspace(0.0, 6.0, 13)
    >>> ys = tf.exp(-t)[:, None]
    >>> loss = keras_ode.multiple_shooting(lambda t, y: -y, ys, t, group_size=5, rtol=1e-6)
    >>> bool(loss < 1e-6)
    True

    Reference: Bock, Plitt (1984), A multiple shooting algorithm for direct solution of optimal control problems, IFAC
    Proceedings 17; for neural ODEs: Rackauckas et al. (2020), Universal differential equations for scientific machine learning,
    arXiv:2001.04385.
    """
    ys, t = tree.as_tensor(ys), _checked_times(t, ys)
    count = len(t)
    if group_size != int(group_size) or not 2 <= group_size <= count:
        raise ValueError(f"group_size must be a whole number from 2 to the number of times, {count}. Received: {group_size!r}")
    # Index [G, K] of each group's observations; the last group repeats its last time.
    first = np.arange(0, count - 1, int(group_size) - 1)
    index = np.minimum(first[:, None] + np.arange(int(group_size)), count - 1)
    starts = _first_observations(ys, first) if starts is None else tf.cast(_value(starts), ys.dtype)
    if not starts.shape.is_compatible_with([len(first), *ys.shape[1:]]):
        raise ValueError(
            f"starts must have the shape {(len(first), *ys.shape[1:])}, one state for each group. Received: starts of shape "
            f"{starts.shape}"
        )
    options = {**options, "args": args, "per_sample": True}
    # In float64: the solve subtracts times before it rounds them.
    states = solve(dynamics, starts, t[index], **options).ys  # [K, G, ...]
    fresh = np.concatenate([np.ones([len(first), 1], bool), np.diff(index, axis=1) > 0], axis=1)
    fresh[1:, 0] = False  # the first observation of a group is also the last one of that before
    loss = _mean_squares(states, tf.gather(ys, index.T), fresh.T)
    if len(first) > 1:
        loss += continuity * tf.reduce_mean((states[-1][:-1] - starts[1:]) ** 2)
    return loss


@do_not_convert
def estimate(
    dynamics: Dynamics,
    ys: TensorsLike,
    t: Times,
    y0: TensorsLike | None = None,
    *,
    variables: Sequence[tf.Variable | keras.Variable] | None = None,
    optimizer: str | keras.optimizers.Optimizer = "adam",
    num_steps: int = 1000,
    group_size: int | None = None,
    starts: TensorsLike | None = None,
    continuity: float = 100.0,
    loss: Callable[[Tensors, Tensors], tf.Tensor] | None = None,
    args: Sequence[TensorsLike] = (),
    **options: Any,
) -> Estimate:
    """Fits the parameters of a differential equation to observations of its state. The variables are changed in place.

    Args:
        dynamics: As in `keras_ode.solve`: it reads the variables.
        ys: The observations, `[T, ...]`: a nested structure like `y0`, with NaN where a value is missing. They are cast to the
            dtype of the first variable. Keras layers need rows: for one series, `[T, 1, D]`, or `[T, D]` with `group_size`,
            where the groups are the rows.
        t: Their times, `[T]`, strictly increasing.
        y0: The state at `t[0]`, a tensor or a variable. Defaults to `ys[0]`. To estimate it too, pass a variable, and name it in
            `variables`.
        variables: The list of variables to estimate: `tf.Variable` or `keras.Variable`. Defaults to the trainable variables of a
            dynamics that is a Keras layer.
        optimizer: A Keras optimizer or its name, or `"lbfgs"`: `tfp.optimizer.lbfgs_minimize`, which converges in few steps if
            there are few parameters and the loss is smooth. It needs TensorFlow Probability, tight tolerances, and variables
            without a constraint. Defaults to `"adam"`, with a learning rate of 0.01.
        num_steps: The number of steps of the optimizer, or the most steps of `"lbfgs"`. Defaults to `1000`.
        group_size: With a number, the loss is that of `keras_ode.multiple_shooting` with groups of this size, and `y0` is not used.
        starts, continuity: As in `keras_ode.multiple_shooting`.
        loss: A function `loss(states, ys)` that returns a scalar. Defaults to the mean squared error, without missing values.
            It cannot be combined with `group_size`. The penalties of Keras variables that have a `regularizer` are added.
        args: As in `keras_ode.solve`.
        **options: Options of `keras_ode.solve`.

    Returns:
        An `Estimate`.

    Raises:
        ValueError, TypeError: For invalid arguments, and without a `loss` if `ys` does not have the shape of the states.
        ArithmeticError: If the loss or its gradient is not finite, for example because a solve failed. The variables keep the
            values before that step, or, with `"lbfgs"`, those at the start.
        RuntimeError: If it is called in a graph.
        ImportError: If `"lbfgs"` is chosen and TensorFlow Probability is not installed.

    Example:

    >>> rate = tf.Variable(0.3)
    >>> t = tf.linspace(0.0, 2.0, 11)
    >>> result = keras_ode.estimate(
    ...     lambda t, y: -rate * y, tf.exp(-2 * t)[:, None], t, variables=[rate], optimizer="lbfgs", rtol=1e-6
    ... )
    >>> print(f"{float(rate):.3f}")
    2.000

    Reference: Rackauckas et al. (2020), Universal differential equations for scientific machine learning, arXiv:2001.04385.
    """
    if not tf.executing_eagerly():
        raise RuntimeError("estimate runs in eager code only, and compiles its steps itself. Call it outside tf.function.")
    variables = _checked_variables(dynamics, variables)
    if group_size is not None and loss is not None:
        raise ValueError(f"loss cannot be combined with group_size. Received: loss={loss!r}, group_size={group_size!r}")
    dtype = variables[0].dtype
    ys = tf.nest.map_structure(lambda x: tf.cast(tree.as_tensor(x), dtype), ys)
    times = _checked_times(t, tf.nest.flatten(ys)[0])
    options = {**options, "args": args}

    def compute():
        if group_size is not None:
            return multiple_shooting(dynamics, ys, times, group_size, starts=starts, continuity=continuity, **options)
        start = tf.nest.map_structure(lambda leaf: leaf[0], ys) if y0 is None else tf.nest.map_structure(_value, y0)
        states = solve(dynamics, start, times, **options).ys
        if loss is not None:
            return loss(states, ys)
        pairs = list(zip(tf.nest.flatten(states), tf.nest.flatten(ys), strict=True))
        _check_shapes(pairs)
        return tf.add_n([_mean_squares(found, wanted) for found, wanted in pairs])

    objective = _Objective(compute, variables)
    if optimizer == "lbfgs":
        return _by_lbfgs(objective, num_steps)
    return _by_steps(objective, keras.optimizers.Adam(0.01) if optimizer == "adam" else keras.optimizers.get(optimizer), num_steps)


class _Objective:
    """A loss and its gradient by variables, as one compiled function."""

    def __init__(self, compute, variables):
        self.variables = variables
        self._compute = compute
        self.evaluate = traced(self._value_and_gradients)

    def _penalty(self):
        """Returns the sum of the penalties of Keras variables that have a regularizer, as `fit` adds it to the loss."""
        penalties = [v.regularizer(v) for v in self.variables if getattr(v, "regularizer", None) is not None]
        return tf.add_n([tf.cast(p, self.variables[0].dtype) for p in penalties]) if penalties else 0

    def _value_and_gradients(self):
        tensors = [v.value if isinstance(v, keras.Variable) else v for v in self.variables]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(tensors)
            value = self._compute() + self._penalty()
        found = tape.gradient(value, tensors)
        unused = [getattr(v, "path", v.name) for v, g in zip(self.variables, found, strict=True) if g is None]
        if unused:
            raise ValueError(f"The loss does not depend on the variables {unused}. Leave them out, or let the dynamics read them.")
        return value, [tf.convert_to_tensor(g) for g in found]


def _by_steps(objective, optimizer, num_steps):
    variables = objective.variables
    tracked = [v if isinstance(v, keras.Variable) else None for v in variables]
    # Keras optimizers take Keras variables only: those of TensorFlow have a copy.
    copies = [_copy(v) if k is None else k for v, k in zip(variables, tracked, strict=True)]
    optimizer.build(copies)

    def assign_copies():
        for v, copy in zip(variables, copies, strict=True):
            if v is not copy:
                v.assign(copy.value)

    def step():
        value, gradients = objective.evaluate()
        is_fine = tf.reduce_all([tf.reduce_all(tf.math.is_finite(x)) for x in (value, *gradients)])

        def update():
            optimizer.apply(gradients, copies)
            assign_copies()
            return value

        return tf.cond(is_fine, update, lambda: value), is_fine

    compiled, losses = traced(step), []
    for number in range(int(num_steps)):
        value, is_fine = compiled()
        losses.append(float(value))
        if not is_fine:
            raise ArithmeticError(_not_finite(losses[-1], f"at step {number}"))
    if losses:
        optimizer.finalize_variable_values(copies)  # With `use_ema`, these are averages over the steps.
        assign_copies()
    return Estimate(losses[-1] if losses else float("nan"), np.array(losses), len(losses), None)


def _by_lbfgs(objective, num_steps):
    try:
        import tensorflow_probability as tfp
    except ImportError as error:
        raise ImportError("optimizer='lbfgs' needs TensorFlow Probability: pip install 'tensorflow-probability[tf]'") from error
    variables, losses = objective.variables, []
    constrained = [getattr(v, "path", v.name) for v in variables if v.constraint is not None]
    if constrained:
        raise ValueError(
            "'lbfgs' knows no constraints: use another optimizer, or estimate a number without one, such as the logarithm of a "
            f"positive constant. Received: variables {constrained} with constraints"
        )
    shapes, sizes = [v.shape for v in variables], [int(np.prod(v.shape)) for v in variables]
    start = tf.concat([tf.reshape(tf.convert_to_tensor(v), [-1]) for v in variables], axis=0)

    def assign(x):
        for v, part, shape in zip(variables, tf.split(x, sizes), shapes, strict=True):
            v.assign(tf.reshape(part, shape))

    def value_and_gradients(x):
        assign(x)
        value, gradients = objective.evaluate()
        losses.append(float(value))
        return value, tf.concat([tf.reshape(g, [-1]) for g in gradients], axis=0)

    result = tfp.optimizer.lbfgs_minimize(value_and_gradients, start, max_iterations=int(num_steps))
    value = float(result.objective_value)
    is_fine = np.isfinite(value) and np.isfinite(result.objective_gradient).all()
    assign(result.position if is_fine else start)
    if not is_fine:
        raise ArithmeticError(_not_finite(value, "with 'lbfgs'"))
    return Estimate(value, np.array(losses), int(result.num_iterations), bool(result.converged))


def _copy(variable):
    """A `keras.Variable` with the value and the constraint of a `tf.Variable`."""
    copy = keras.Variable(variable.numpy(), dtype=variable.dtype.name)
    copy.constraint = variable.constraint
    return copy


def _value(x):
    """What a variable holds; anything else as it is."""
    x = x.value if isinstance(x, keras.Variable) else x
    return tf.convert_to_tensor(x) if isinstance(x, tf.Variable) else x


def _not_finite(value, where):
    if np.isfinite(value):
        return (
            f"The gradient of the loss is not finite {where}, although the loss is {value}. Either the adjoint equation could not "
            "be solved (try adjoint='checkpointed', and see keras_ode.check_gradients), or the loss has no derivative there."
        )
    return (
        f"The loss is {value} {where}. Either a solve failed (call keras_ode.solve with these values in eager code, which tells "
        "why), or the observations have no finite values. Try a smaller learning rate, other starting values, or group_size=."
    )


def _first_observations(ys, first):
    """The observations with which groups start: none may be missing, as far as they are known."""
    known = tf.get_static_value(ys)
    missing = [] if known is None else [int(n) for n in first if np.isnan(known[n]).any()]
    if missing:
        raise ValueError(
            "A group starts at an observation with a missing value: choose another group_size, or pass starts=. Received: "
            f"group_size={first[1] + 1 if len(first) > 1 else len(known)}, ys with NaN in the entries {missing}"
        )
    return tf.gather(ys, first)


def _mean_squares(found, wanted, mask=True):
    """The mean of squared differences, without missing values and those that a mask leaves out."""
    known = ~tf.math.is_nan(wanted)
    if mask is not True:
        known &= tf.reshape(tf.constant(mask), [*mask.shape, *[1] * (len(wanted.shape) - mask.ndim)])
    squares = tf.where(known, found - tf.where(known, wanted, tf.zeros_like(wanted)), tf.zeros_like(found)) ** 2
    return tf.reduce_sum(squares) / tf.reduce_sum(tf.cast(known, found.dtype))


def _check_shapes(pairs):
    """Refuses states and observations that subtraction would broadcast."""
    for states, ys in pairs:
        if not states.shape.is_compatible_with(ys.shape):
            raise ValueError(
                f"ys must have the shape of the states at the times t, {states.shape}. If only a part of the state was observed, "
                f"mark the rest as missing with NaN, or pass a loss. Received: ys of shape {ys.shape}"
            )


def _checked_times(t, ys):
    times = np.asarray(t, "float64")
    if times.ndim != 1 or len(times) < 2 or not np.all(np.diff(times) > 0) or ys.shape[:1] != times.shape:
        raise ValueError(
            "t must be two or more strictly increasing times, and ys must have one entry for each. Received: t of shape "
            f"{times.shape}, ys of shape {ys.shape}"
        )
    return times


def _checked_variables(dynamics, variables):
    if variables is None and isinstance(dynamics, keras.Layer):
        variables = dynamics.trainable_variables
    variables = list(variables or ())
    if not variables:
        raise ValueError(
            "Pass the variables to estimate, variables=[...]. The variables that a function reads are not known, and a "
            f"Keras layer has none before it is built. Received: variables={variables!r}"
        )
    wrong = [v for v in variables if not isinstance(v, (tf.Variable, keras.Variable))]
    if wrong:
        raise TypeError(f"variables must be a list of tf.Variable or keras.Variable. Received: {wrong[0]!r}")
    return variables
