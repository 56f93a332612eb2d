"""A differential equation as a Keras layer."""

import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import keras
import tensorflow as tf
from keras import ops
from numpy.typing import ArrayLike

from keras_ode import adjoints, configurable, controllers, internals, mass_matrices, paths, regularizers, solvers
from keras_ode.adjoints import Adjoint
from keras_ode.arguments import check_takes_jacobian, checked_jit_compile, checked_method, times_in_one
from keras_ode.closure import Report, reporting
from keras_ode.complex_states import refuse_complex_in_layer
from keras_ode.controllers import Controller
from keras_ode.dynamics import build as build_dynamics
from keras_ode.events import SteadyState
from keras_ode.layers.checks import checked_dynamics, checked_jumps, checked_times
from keras_ode.layers.tolerances import HasTolerances
from keras_ode.names import refuse_known_elsewhere, refuse_unknown
from keras_ode.norms import check_norm
from keras_ode.regularizers import RandomEndTime, Regularizer
from keras_ode.signature import mask_of, refuse_symbolic
from keras_ode.solution import Solution
from keras_ode.solve import DEFAULTS, Options, solve_with
from keras_ode.solvers import Solver
from keras_ode.step_sizes import check_is_number
from keras_ode.typing import Dynamics, Tensors, TensorsLike, Times, do_not_convert


@keras.saving.register_keras_serializable(package="keras_ode")
class ODELayer(HasTolerances, keras.Layer):
    """Solves `dy/dt = f(t, y)` from the layer's input and returns the solution.

    The weights of the layer are the weights of its dynamics. Gradients are computed by an adjoint method, so memory need
    not grow with the number of steps.

    Args:
        dynamics: A `keras.Layer`, a `keras.Model` or a function, either `f(y)` or `f(t, y)`: the layer reads the signature to
            see whether it takes the time. It returns the derivative of the state, in the shape of the state. `t` is a scalar,
            and the `args` of the call follow the state. The layer finds weights only in layers
            and models. To save a layer whose dynamics is a function, register the function with
            `keras.saving.register_keras_serializable`.
        t: Two or more strictly increasing or decreasing times. The input is the state at `t[0]`. If you pass a single
            number, the solve starts at zero and ends there. If you pass `keras_ode.regularizers.random_end_time`, the last
            time is random in training. Defaults to `(0.0, 1.0)`.
        solver: A name (see `keras_ode.solvers`) or a `Solver`. An implicit solver takes the rows of the batch for independent of
            each other. If they are not, as with batch normalization in training or attention over the batch, use an explicit
            solver, or the gradients are inaccurate. Defaults to `"tsit5"`.
        rtol, atol: The tolerances. The error of a step is at most `atol + rtol * max(|y|, |y_new|)`. Default to `1e-3` and
            `1e-6`. They are variables: `layer.rtol.assign(1e-5)` changes one without a new trace.
        adjoint: A name (see `keras_ode.adjoints`) or an `Adjoint`: how the gradient is computed. Defaults to
            `"interpolating"`, or to `"checkpointed"` with a `mass_matrix`.
        controller: `None`, `"pid"`, `"predictive"`, `"constant"` or a `Controller`, such as
            `keras_ode.controllers.StepTo(times)`. `None` selects `"pid"` (`"predictive"` for `"radau"`) if the solver estimates
            its error, and otherwise `"constant"`.
        step_size: The first step of an adaptive solve, or every step of a solve with constant steps, in the units of `t`.
            `None` (the default) lets an adaptive solve choose its first step.
        max_steps: The maximum number of steps to try, accepted or rejected. Defaults to `4096`.
        max_step, min_step: The largest and the smallest step of an adaptive solve, in the units of `t`: see `keras_ode.solve`.
        norm: `"rms"`, `"max"`, or a function of the scaled errors: see `keras_ode.solve`. To save the layer, register the
            function, as for the dynamics. Defaults to `"rms"`.
        per_sample: Whether every row has its own step size, status and statistics, so that its output does not depend
            on the other rows of the batch. The dynamics then receives `t` as `[B, 1, ..., 1]`. Defaults to `False`.
        return_sequences: Whether to return the states at all times, or only the state at `t[-1]` (the default).
        jump_times: Times at which the dynamics is discontinuous, in any order, for example the knots of `DepthVarying`
            weights, or the times of doses. A step ends at each of these times. Defaults to `None`.
        jit_compile: Whether to compile the solve with XLA if the surrounding program is not compiled: `True`, `False` or
            `"auto"` (the default), which compiles where that pays: see `keras_ode.solve`.
        regularizer: A name (see `keras_ode.regularizers`), a `Regularizer`, or a list of them. These penalties on the solve
            are added to the model's losses, except in calls with `training=False`. They change neither the steps nor
            the output. Defaults to `None`.
        jacobian: For implicit solvers, a function `jacobian(t, y, *args)` that returns the Jacobian of the dynamics with
            respect to the state, `[B, D, D]` for a state `[B, D]`: see `keras_ode.solve`. To save the layer, register the
            function, as for the dynamics. Defaults to `None`, which computes the Jacobian by automatic differentiation.
        mass_matrix: A constant matrix M, `[D, D]`, for `M y' = f(t, y)` with a state `[batch, ..., D]`. M may be singular: see
            `keras_ode.solve`. Defaults to `None`.
        inference_rtol, inference_atol: Tolerances for calls without `training=True`, as in `predict`. Default to `None`, which
            uses `rtol` and `atol` there too.
        **kwargs: Arguments of `keras.Layer`: `name`, `dtype`, `trainable`.

    Call arguments:
        y: The state at `t[0]`, a tensor or a nested structure of tensors.
        t: Times to use instead of those of the layer, shape `[T]`, or `[B, T]` with `per_sample`.
        args: A tuple of further arguments of the dynamics, `f(t, y, *args)`: nested structures of tensors. Gradients with
            respect to them are computed. In a functional model these may be Keras tensors.
        jump_times: Jump times to use instead of those of the layer: numbers or a tensor `[J]`, or `[B, J]` with `per_sample`,
            where every row has its own. Gradients with respect to a tensor are computed. In a functional model this may be
            a Keras tensor.
        training: Passed to the dynamics.
        mask: The mask of the state. Defaults to the mask that Keras attaches to it, for example after `Masking`. The
            dynamics receives the mask, and it is attached to the output.

    Input shape:
        `(batch, ...)`, or a nested structure of such shapes.

    Output shape:
        The input shape, or `(batch, T, ...)` with `return_sequences`.

    Raises:
        SolveError: In eager code, if a solve fails. In a graph, as in `fit`, the output is NaN instead.

    Example:

    >>> dynamics = keras.Sequential([keras.layers.Dense(16, activation="tanh"), keras.layers.Dense(2)])
    >>> layer = keras_ode.ODELayer(dynamics, t=(0.0, 1.0))
    >>> layer(tf.zeros([8, 2])).shape
    TensorShape([8, 2])

    Reference: Chen, Rubanova, Bettencourt, Duvenaud (2018), Neural Ordinary Differential Equations, NeurIPS.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        t: Times | RandomEndTime = (0.0, 1.0),
        solver: str | Solver = "tsit5",
        rtol: float = 1e-3,
        atol: float = 1e-6,
        adjoint: str | Adjoint | None = None,
        controller: str | Controller | None = None,
        step_size: float | None = None,
        max_steps: int = 4096,
        per_sample: bool = False,
        return_sequences: bool = False,
        jump_times: Times | None = None,
        jit_compile: bool | Literal["auto"] = "auto",
        regularizer: str | Regularizer | Sequence[str | Regularizer] | None = None,
        max_step: float | None = None,
        min_step: float | None = None,
        norm: Literal["rms", "max"] | Callable[..., Tensors] = "rms",
        jacobian: Callable[..., Tensors] | None = None,
        mass_matrix: ArrayLike | None = None,
        inference_rtol: float | None = None,
        inference_atol: float | None = None,
        **kwargs: Any,
    ) -> None:
        refuse_known_elsewhere("ODELayer", kwargs, inspect.signature(ODELayer.__init__).parameters)
        super().__init__(autocast=False, **kwargs)
        self.supports_masking = True
        self.dynamics = checked_dynamics(dynamics)
        self._set_times(t)
        self.solver = solvers.get(solver)
        self._set_tolerances(rtol=rtol, atol=atol, inference_rtol=inference_rtol, inference_atol=inference_atol)
        self.mass_matrix = mass_matrices.checked_matrix(mass_matrix)
        default = "interpolating" if self.mass_matrix is None else "checkpointed"
        self.adjoint = adjoints.get(default if adjoint is None else adjoint)
        self.controller = None if controller is None else controllers.get(controller)
        self.step_size, self.max_steps = configurable.plain(step_size), configurable.plain(max_steps)
        self.per_sample = bool(per_sample)
        self.return_sequences = bool(return_sequences)
        self.jump_times = None if jump_times is None else checked_jumps(jump_times)
        self.jit_compile = checked_jit_compile(jit_compile)
        self._warned = False
        self._recorder = None  # set while a callback records what the solver does
        self.max_step, self.min_step = configurable.plain(max_step), configurable.plain(min_step)
        self.norm = keras.saving.deserialize_keras_object(norm) if isinstance(norm, dict) else norm
        check_norm(self.norm)
        self.jacobian = keras.saving.deserialize_keras_object(jacobian) if isinstance(jacobian, dict) else jacobian
        check_is_number(step_size)
        dtype = tf.as_dtype(self.variable_dtype)
        checked_method(self.solver, rtol, atol, self.controller, step_size, max_steps, dtype, max_step, min_step)
        self.regularizers = regularizers.get_all(regularizer)
        self._check_options()
        self._needs_noise = any(r.needs_noise for r in self.regularizers)
        if self._needs_noise or self.random_end_time is not None:
            self.seed_generator = keras.random.SeedGenerator()

    def _set_times(self, t):
        self.random_end_time = None
        if isinstance(t, (str, dict, regularizers.RandomEndTime)):
            self.random_end_time = configurable.get(t, "t", regularizers.RandomEndTime, regularizers.TIMES)
            t = self.random_end_time.t
        self.t = tuple(float(x) for x in checked_times(t))

    def _check_options(self):
        """Raises an error for options that cannot be combined."""
        check_takes_jacobian(self.jacobian, self.solver)
        regularizers.check_supported(self.regularizers, self.solver, self.adjoint)
        if self.mass_matrix is not None:
            mass_matrices.check_solver(self.mass_matrix, self.solver)
            mass_matrices.check_rest(self.mass_matrix, self.adjoint, None, self.jump_times, self.regularizers)

    @do_not_convert
    def __call__(
        self,
        y: TensorsLike,
        t: Times | None = None,
        args: Sequence[TensorsLike] = (),
        *,
        jump_times: Times | None = None,
        **options: Any,
    ) -> Tensors:
        refuse_complex_in_layer(y)
        # Keras refuses numbers and tensors in one argument, and tells `build` nothing of an argument called args.
        args = keras.tree.map_structure(self._as_argument, paths.from_plain(_checked_args(args)))
        if args and not self.built:
            self.build(*(_shapes(x) for x in (y, None, args)))
        times = {name: times_in_one(x) for name, x in (("t", t), ("jump_times", jump_times)) if x is not None}
        options |= times | ({"args": paths.as_plain(args)} if args else {})
        return super().__call__(y, **options)

    def build(self, y_shape, t_shape=None, args_shape=()):
        if not isinstance(self.dynamics, keras.Layer):
            return
        y, *args = (
            keras.tree.map_shape_structure(lambda s: keras.KerasTensor(s, self.variable_dtype), shape)
            for shape in (y_shape, *args_shape)
        )
        first = keras.tree.flatten(y)[0]
        t_shape = (first.shape[0], *[1] * (len(first.shape) - 1)) if self.per_sample else ()
        # A layer that loading calls built may hold layers that are not: so this is done in any case.
        build_dynamics(self.dynamics, keras.KerasTensor(t_shape, self.variable_dtype), y, tuple(args))

    def get_build_config(self):
        return paths.as_plain(super().get_build_config())

    def build_from_config(self, config):
        super().build_from_config(paths.from_plain(config))

    def call(self, y, t=None, args=(), training=None, mask=None, jump_times=None):
        mask = mask_of(y) if mask is None else mask
        options = {"args": paths.from_plain(args), "mask": mask, "recorder": self._recorder}
        if jump_times is not None:
            self._check_not_recorded(jump_times)
            options["jump_times"] = jump_times
        penalized = self.regularizers if training is not False else ()
        noise = self._noise(y) if penalized and self._needs_noise else ()
        with reporting(Report()) as report:
            solution, penalties = self._solve(y, t, training, regularizers=penalized, noise=noise, reports=False, **options)
        self._take(report)
        for regularizer, penalty in zip(penalized, penalties, strict=True):
            self.add_loss(regularizer.weight * tf.reduce_mean(penalty))
        return self._with_masks(tf.nest.map_structure(self._as_output, solution.ys), mask)

    def solve(self, y: TensorsLike, t: Times | None = None, training: bool | None = None, **options: Any) -> Solution:
        """Calls `keras_ode.solve` with the dynamics and the options of the layer, and returns the whole `Solution`.

        Args:
            y: The state at `t[0]`: `[B, ...]`, or a nested structure of tensors.
            t: Times to use instead of those of the layer, shape `[T]`, or `[B, T]` with `per_sample`.
            training: Passed to the dynamics.
            **options: Options of `keras_ode.solve` that replace those of the layer, such as `dense=True`, `args`, `mask`
                or `event`.

        Returns:
            The `Solution`, with states of shape `[T, B, ...]` (time first), `status` and `stats`. This method does not
            compute the penalties of regularizers, and callbacks do not record its solve.

        Raises:
            SolveError: In eager code, if the solve fails.

        Example:

        >>> layer = keras_ode.ODELayer(keras.layers.Dense(2, activation="tanh"))
        >>> solution = layer.solve(tf.ones([8, 2]), t=[0.0, 0.5, 1.0])
        >>> solution.ys.shape
        TensorShape([3, 8, 2])
        """
        refuse_unknown("ODELayer.solve", options, DEFAULTS)
        refuse_symbolic(
            (y, t, options.get("args", ())),
            "Call the layer itself there. For status and statistics, call layer.solve in the call of a layer of your own.",
        )
        args = tf.nest.map_structure(self._as_argument, _checked_args(options.pop("args", ())))
        options.setdefault("mask", mask_of(y))
        y = tf.nest.map_structure(tf.convert_to_tensor, y)
        refuse_complex_in_layer(y)
        if not self.built:
            self.build(*(_shapes(x) for x in ((y, None, args) if args else (y,))))
        return self._solve(y, t, training, args=args, **options)[0]

    def _solve(self, y, t, training, **options):
        """Returns the `Solution` and the penalties."""
        chooses = options.get("dense") or options.get("save") == "steps" or isinstance(options.get("event"), SteadyState)
        rtol, atol = self._tolerances_in(training)
        ours = {
            "solver": self.solver,
            "rtol": rtol,
            "atol": atol,
            "adjoint": None if chooses else self.adjoint,
            "controller": self.controller,
            "step_size": self.step_size,
            "max_steps": self.max_steps,
            "max_step": self.max_step,
            "min_step": self.min_step,
            "norm": self.norm,
            "jacobian": self.jacobian,
            "per_sample": self.per_sample,
            "jump_times": self.jump_times,
            "jit_compile": self.jit_compile,
            "rows": True,
            "mass_matrix": self.mass_matrix,
        }
        t = self._times(training) if t is None else t
        y = tf.nest.map_structure(self._as_state, y)
        return solve_with(self.dynamics, y, t, Options(**{**DEFAULTS, **ours, **options}, training=training))

    def compute_output_shape(self, y_shape, t_shape=None, args_shape=()):
        return self._output_shape(y_shape, len(self.t) if t_shape is None else t_shape[-1])

    def compute_output_spec(self, y, t=None, args=(), training=None, mask=None, jump_times=None):
        num_times = len(self.t) if t is None else _num_times(t)
        outputs = keras.tree.map_structure(
            lambda leaf: keras.KerasTensor(self._output_shape(leaf.shape, num_times), self.compute_dtype), y
        )
        return self._with_masks(outputs, mask_of(y) if mask is None else mask)

    def compute_mask(self, y, previous_mask):
        if not self.return_sequences:
            return previous_mask
        return keras.tree.map_structure(lambda mask: _repeated(mask, len(self.t)), previous_mask)

    def get_options(self) -> dict[str, Any]:
        """Returns the options of the solve, without the dynamics, as keyword arguments for another `ODELayer`."""
        config = self.get_config()
        return {name: config[name] for name in config if name not in ("name", "trainable", "dtype", "dynamics")}

    def get_config(self):
        return {
            **super().get_config(),
            "dynamics": keras.saving.serialize_keras_object(self.dynamics),
            "t": configurable.describe(self.random_end_time, regularizers.TIMES) or self.t,
            "solver": configurable.describe(self.solver, solvers.SOLVERS),
            **self._first_tolerances,
            "adjoint": configurable.describe(self.adjoint, adjoints.ADJOINTS),
            "controller": configurable.describe(self.controller, controllers.CONTROLLERS),
            "step_size": self.step_size,
            "max_steps": self.max_steps,
            "max_step": self.max_step,
            "min_step": self.min_step,
            "norm": self.norm if isinstance(self.norm, str) else keras.saving.serialize_keras_object(self.norm),
            "jacobian": None if self.jacobian is None else keras.saving.serialize_keras_object(self.jacobian),
            "per_sample": self.per_sample,
            "return_sequences": self.return_sequences,
            "jump_times": self.jump_times,
            "jit_compile": self.jit_compile,
            "mass_matrix": None if self.mass_matrix is None else self.mass_matrix.matrix.tolist(),
            "regularizer": [configurable.describe(r, regularizers.REGULARIZERS) for r in self.regularizers] or None,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "dynamics": keras.saving.deserialize_keras_object(config["dynamics"])})

    def _output_shape(self, y_shape, num_times):
        if not self.return_sequences:
            return y_shape
        return keras.tree.map_shape_structure(lambda shape: (shape[0], num_times, *shape[1:]), y_shape)

    def _with_masks(self, outputs, masks):
        """Returns the outputs with the masks of the state, repeated for each time."""
        if self.return_sequences:
            for output, mask in zip(keras.tree.flatten(outputs), keras.tree.flatten(masks), strict=True):
                if mask is not None:
                    internals.set_mask(output, _repeated(mask, output.shape[1] or ops.shape(output)[1]))
        return outputs

    def _times(self, training):
        """Returns the times of the layer, the last of which may be random in training."""
        if self.random_end_time is None or not training:
            return self.t
        return self.random_end_time.drawn(keras.random.uniform((), -1, 1, self.variable_dtype, self.seed_generator))

    def _check_not_recorded(self, jump_times):
        if self._recorder is not None:
            raise ValueError(
                "With jump_times, each segment is solved separately, and a SolverStepRecorder cannot record these as one solve: "
                f"leave the layer '{self.name}' out of the recorder's layers. Received: jump_times={jump_times!r}"
            )

    def _noise(self, y):
        """Returns random booleans for each element of the state."""
        return tuple(
            keras.random.uniform(tf.shape(leaf), seed=self.seed_generator) < 0.5 for leaf in tf.nest.flatten(y)
        )

    def _as_state(self, y):
        """The state keeps the precision of the variables; the dynamics casts its own copy."""
        y = tf.convert_to_tensor(y)
        return tf.cast(y, self.variable_dtype) if y.dtype.is_floating else y

    def _as_argument(self, x):
        """Further arguments have the precision of the state."""
        if isinstance(x, keras.KerasTensor):
            return x
        x = tf.convert_to_tensor(x, self.variable_dtype if isinstance(x, float) else None)
        return tf.cast(x, self.variable_dtype) if x.dtype.is_floating else x

    def _as_output(self, leaf):
        """Returns saved states `[T, B, ...]` with the batch axis first and in the compute dtype of the layer."""
        leaf = tf.cast(leaf, self.compute_dtype)
        if not self.return_sequences:
            return leaf[-1]
        return tf.transpose(leaf, [1, 0, *range(2, leaf.shape.rank)])

    def _take(self, report):
        """Adds the losses of layers in the dynamics, and says which weights this layer does not know of."""
        for loss in report.losses:
            self.add_loss(loss)
        unknown = [getattr(v, "path", v.name) for v in report.weights_of_functions]
        if unknown and not self._warned:
            self._warned = True
            warnings.warn(
                f"The dynamics of '{self.name}' reads the trainable weights {unknown} from outside, as a function reads those of "
                "a layer in its closure. The layer cannot find them, so they are missing from its trainable_weights and "
                "from its saved file, and they are trained only if your model holds them in another way. Pass the dynamics "
                "as a Keras layer or a keras.Model subclass that has them as its own.",
                stacklevel=2,
            )


def _checked_args(args):
    if not isinstance(args, (tuple, list)):
        raise TypeError(f"args must be a tuple of the dynamics' further arguments, such as args=(u,). Received: {args!r}")
    return tuple(args)


def _shapes(nest):
    return None if nest is None else keras.tree.map_structure(lambda x: tuple(x.shape), nest)


def _num_times(t):
    """The number of times that a call is given, as far as it is known."""
    if hasattr(t, "shape"):
        return t.shape[-1]
    is_row = isinstance(t[0], (list, tuple)) or len(getattr(t[0], "shape", ())) > 0
    return _num_times(t[0]) if is_row else len(t)


def _repeated(mask, num_times):
    """A mask `[B, ...]` as that of states at all times, `[B, T, ...]`."""
    if mask is None:
        return None
    if isinstance(mask, keras.KerasTensor):
        known = num_times if isinstance(num_times, int) else None
        return keras.KerasTensor((mask.shape[0], known, *mask.shape[1:]), "bool")
    return tf.repeat(mask[:, None], num_times, axis=1)
