"""Continuous normalizing flows: a simple density, transformed by an ODE."""

from collections.abc import Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_ode import regularizers
from keras_ode.dynamics import build as build_layer
from keras_ode.layers import ODELayer
from keras_ode.layers.time import check_layer
from keras_ode.models.unsupervised import Unsupervised
from keras_ode.signature import arguments_of
from keras_ode.typing import TensorsLike

# The random vectors that each takes if nothing is said.
_DIVERGENCES = {"exact": None, "hutchinson": 1, "hutch++": 3}


@keras.saving.register_keras_serializable(package="keras_ode")
class ContinuousNormalizingFlow(Unsupervised):
    """A probability density that an ODE, solved from `t[0]` to `t[-1]`, creates from a base distribution.

    Along a trajectory of `dz/dt = f(t, z)`, the log-density decreases by the integral of the divergence of `f`. To compute the
    density at a point, the model solves the ODE from this point back to the base distribution. This works for any network `f`,
    and the density is exact up to the tolerances if the divergence is.

    After `compile(optimizer)`, `fit(points)` minimizes the mean negative log-likelihood, and `evaluate(points)` returns it. With
    weights, pass the points twice: `fit(points, points, sample_weight=weights)`. The model and `predict` return log-densities.

    Args:
        dynamics: A Keras layer `f(t, z)` or `f(z)` that keeps the shape and is smooth: use `"tanh"` or `"softplus"`, not
            `"relu"`. If you pass a list of layers, the flows are stacked, beginning at the base. Each of them is solved over
            the times `t`.
        base: The distribution at `t[0]`. Its event shape is the shape of a point. Pass `None` (the default) for a standard
            normal distribution, a `tfp.distributions.Distribution`, or a function that returns one. To save the flow, `base`
            must be `None` or a function registered with `keras.saving.register_keras_serializable`. The parameters of the
            base are not trained.
        divergence: How the divergence is computed. `"exact"` (the default) needs one vector-Jacobian product for each
            dimension. `"hutchinson"` is an unbiased estimate from one product with random signs. `"hutch++"` is an unbiased
            estimate of lower variance from nine products, which is exact for Jacobians of rank three or less. The signs stay
            the same during a solve and its gradient, and are drawn anew in each call. To evaluate a flow with another
            `divergence` than it was trained with, create a second `ContinuousNormalizingFlow` with the same dynamics.
        num_vectors: For `"hutchinson"`, the number of random vectors, by default 1. For `"hutch++"`, a number `m`, by default
            3: the estimate needs `3 m` products and is exact for Jacobians of rank `m` or less.
        name, dtype, trainable: As in `keras.Model`.
        **ode: Arguments of `ODELayer`: `t`, `solver`, `rtol`, `atol`, `adjoint`, ... The state is `(z, log_density)`, but
            the integrals of regularizers use only `z`.

    Input shape:
        `(batch, ...)`, the points.

    Output shape:
        `(batch,)`, the log-densities of the points.

    Raises:
        ValueError: If `divergence` or `num_vectors` is invalid, with `return_sequences`, or if the event shape of `base` is not
            the shape of a point. `get_config` and `save` raise it if `base` is a distribution.

    Example:

    >>> dynamics = keras_ode.layers.TimeSequential([
    ...     keras_ode.layers.ConcatSquash(32, activation="tanh"),
    ...     keras_ode.layers.ConcatSquash(2),
    ... ])
    >>> flow = keras_ode.models.ContinuousNormalizingFlow(dynamics)
    >>> flow.compile(keras.optimizers.Adam(0.01))
    >>> points, _ = keras_ode.datasets.moons(64)
    >>> history = flow.fit(points, verbose=0)
    >>> flow.log_prob(points).shape, flow.sample(5).shape
    (TensorShape([64]), TensorShape([5, 2]))

    References: Chen, Rubanova, Bettencourt, Duvenaud (2018), Neural Ordinary Differential Equations, NeurIPS; Grathwohl, Chen,
    Bettencourt, Sutskever, Duvenaud (2019), FFJORD, ICLR.
    """

    _own_loss = "the negative log-likelihood of the points"

    def __init__(
        self,
        dynamics: keras.Layer | Sequence[keras.Layer],
        base: Any = None,
        divergence: Literal["exact", "hutchinson", "hutch++"] = "exact",
        num_vectors: int | None = None,
        name: str | None = None,
        dtype: "str | keras.DTypePolicy | None" = None,
        trainable: bool = True,
        **ode: Any,
    ) -> None:
        # Log-densities keep the precision of the variables; the dynamics casts for itself.
        super().__init__(name=name, dtype=dtype, trainable=trainable, autocast=False)
        self.dynamics = list(dynamics) if isinstance(dynamics, (list, tuple)) else [dynamics]
        if not self.dynamics:
            raise ValueError(f"dynamics must be a Keras layer or a list of them. Received: dynamics={dynamics!r}")
        if ode.get("return_sequences"):
            raise ValueError(
                "A flow uses only the ends of trajectories: leave return_sequences out. Received: return_sequences=True"
            )
        self.base, self.divergence, self.num_vectors = base, divergence, num_vectors
        ode["regularizer"] = [r.of_leaves(1) for r in regularizers.get_all(ode.get("regularizer"))]
        precision = self.variable_dtype
        fields = [WithLogDensity(f, divergence, num_vectors, dtype=precision) for f in self.dynamics]
        self.flows = [ODELayer(field, dtype=precision, **ode) for field in fields]

    def build(self, points_shape):
        self.event_shape = tuple(points_shape[1:])
        for flow in self.flows:
            flow.build((points_shape, (points_shape[0],)))

    def call(self, points, training=None):
        z, change = self._back(points, training)
        log_prob = self.distribution().log_prob(z)
        if not log_prob.shape.is_compatible_with(change.shape):
            raise ValueError(
                f"base must have the event shape of points, {tuple(z.shape[1:])}: wrap a distribution of single numbers in "
                f"tfp.distributions.Independent or Sample. Received: base={self.base!r}, whose log_prob has the shape "
                f"{log_prob.shape} for {z.shape[0]} points"
            )
        return ops.cast(log_prob, change.dtype) + change

    def compute_output_shape(self, points_shape):
        return points_shape[:1]

    def compute_output_spec(self, points, training=None):
        return keras.KerasTensor(points.shape[:1], self.variable_dtype)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        loss = NegativeLogLikelihood()(y_pred, y_pred, sample_weight)
        return loss + ops.cast(super().compute_loss(x, y, y_pred, sample_weight), loss.dtype) if self.losses else loss

    def transport(self, points: TensorsLike, inverse: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
        """Solves the ODE for points of the base distribution, or with `inverse` from points back to the base.

        Args:
            points: Points of shape `(batch, ...)`.
            inverse: Whether to solve from `t[-1]` back to `t[0]`. Defaults to `False`.

        Returns:
            The points at the end of their trajectories, `(batch, ...)`, and the log-determinant of the Jacobian of this map
            (the logarithm of the change of volume), shape `(batch,)`.
        """
        if inverse:
            return self._back(points, training=False)
        state = _without_change(points)
        for flow in self.flows:
            state = flow(state)
        return state

    def _back(self, points, training):
        """Returns what `transport(points, inverse=True)` does. In training, the last time may be random."""
        state = _without_change(points)
        for flow in reversed(self.flows):
            times = flow._times(training)[::-1]
            state = flow(state, t=times if tf.is_tensor(times) else np.array(times))
        return state

    def log_prob(self, points: TensorsLike) -> tf.Tensor:
        """Returns the log-density at points `(batch, ...)`, shape `(batch,)`. You can differentiate it with respect to them."""
        return self(points)

    def sample(self, num_samples: int, seed: Any = None) -> tf.Tensor:
        """Draws samples from the density, shape `(num_samples, ...)`. `seed` works as in TensorFlow Probability."""
        points = self.distribution().sample(num_samples, seed=seed)
        return self.transport(points)[0]

    def distribution(self) -> Any:
        """Returns the base distribution."""
        base = self.base
        if base is None:
            import tensorflow_probability as tfp

            self._check_built()
            zeros = tf.zeros(self.event_shape, self.variable_dtype)
            return tfp.distributions.Independent(tfp.distributions.Normal(zeros, 1.0), len(self.event_shape))
        return base if hasattr(base, "log_prob") else base()

    def as_bijector(self) -> Any:
        """Returns a `tfp.bijectors.Bijector` that maps the base to the density and shares the weights of the flow.

        `tfp.distributions.TransformedDistribution(base, flow.as_bijector())` is the density as a distribution, and its
        `trainable_variables` are those of the flow.

        Raises:
            ValueError: If the flow is not built yet: call it on some points first.
        """
        from keras_ode.models.bijector import FlowBijector

        self._check_built()
        return FlowBijector(self)

    def get_config(self):
        if self.base is not None and hasattr(self.base, "log_prob"):
            raise ValueError(
                "A flow with a distribution as base cannot be saved. Pass a function that returns it, registered with "
                f"keras.saving.register_keras_serializable. Received: base={self.base!r}"
            )
        return {
            **super().get_config(),
            "dynamics": [keras.saving.serialize_keras_object(f) for f in self.dynamics],
            "base": keras.saving.serialize_keras_object(self.base),
            "divergence": self.divergence,
            "num_vectors": self.num_vectors,
            **self.flows[0].get_options(),
        }

    @classmethod
    def from_config(cls, config):
        dynamics = [keras.saving.deserialize_keras_object(f) for f in config["dynamics"]]
        return cls(**{**config, "dynamics": dynamics, "base": keras.saving.deserialize_keras_object(config["base"])})

    def _check_built(self):
        if not self.built:
            raise ValueError(
                "The flow does not know the shape of its points yet: call it on some points first, or call "
                "flow.build((None, 2))."
            )


def _without_change(points):
    """Returns the state with which a solve starts: the points, and zero for each."""
    return points, ops.zeros_like(ops.reshape(points, (ops.shape(points)[0], -1))[:, 0])


def _hutchinson(product, signs):
    """Returns the mean of `v^T A v` over vectors of random signs."""
    return tf.add_n([tf.reduce_sum(v * product(v), axis=1) for v in signs]) / len(signs)


def _hutch_plus_plus(product, signs):
    """Returns the trace on the range of a sketch of the matrix, plus Hutchinson's estimate of the rest.

    The estimate is unbiased for any basis of that range, so the basis is not differentiated. Its derivative would be infinite
    where the rank of the matrix is less than the number of vectors.
    """
    half = len(signs) // 2
    sketch = tf.stack([product(v) for v in signs[:half]], axis=2)
    basis = tf.stop_gradient(tf.linalg.qr(tf.stop_gradient(sketch)).q)
    on_range = [_hutchinson(product, [q]) for q in tf.unstack(basis, num=half, axis=2)]
    rest = [v - tf.linalg.matvec(basis, tf.linalg.matvec(basis, v, transpose_a=True)) for v in signs[half:]]
    return tf.add_n(on_range) + _hutchinson(product, rest)


@keras.saving.register_keras_serializable(package="keras_ode")
class WithLogDensity(keras.Layer):
    """The dynamics of `(z, log_density)` for a layer `f(t, z)` or `f(z)`: the derivatives are `f` and its divergence.

    Solved forward, the second component increases by the log-determinant of the Jacobian of the flow.

    Args:
        dynamics: The layer.
        divergence: `"exact"`, `"hutchinson"` or `"hutch++"`.
        num_vectors: The number of random vectors of an estimate.
        **kwargs: Arguments of `keras.Layer`.

    References: Hutchinson (1990), A stochastic estimator of the trace of the influence matrix, Commun. Stat. Simul. Comput. 19;
    Meyer, Musco, Musco, Woodruff (2021), Hutch++: optimal stochastic trace estimation, SOSA.
    """

    def __init__(
        self,
        dynamics: keras.Layer,
        divergence: Literal["exact", "hutchinson", "hutch++"] = "exact",
        num_vectors: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        check_layer(dynamics)
        if divergence not in _DIVERGENCES:
            raise ValueError(f"divergence must be one of {tuple(_DIVERGENCES)}. Received: divergence={divergence!r}")
        is_count = isinstance(num_vectors, int) and not isinstance(num_vectors, bool) and num_vectors > 0
        if num_vectors is not None and (divergence == "exact" or not is_count):
            raise ValueError(
                "num_vectors is the positive number of random vectors of 'hutchinson' and 'hutch++'; leave it out for 'exact'. "
                f"Received: num_vectors={num_vectors!r}, divergence={divergence!r}"
            )
        self.dynamics, self.divergence, self.num_vectors = dynamics, divergence, num_vectors
        self.seed_generator = keras.random.SeedGenerator()

    def build(self, t_shape, state_shape):
        t, z = (keras.KerasTensor(shape, self.variable_dtype) for shape in (t_shape, state_shape[0]))
        build_layer(self.dynamics, t, z)

    def call(self, t, state, training=None):
        z, _ = state
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(z)
            velocity = tf.cast(self.dynamics(*arguments_of(self.dynamics, t, z)), z.dtype)
            parts = tf.unstack(tf.reshape(velocity, [-1, int(np.prod(z.shape[1:]))]), axis=1)
        if self.divergence == "exact":
            rows = [tf.reshape(tape.gradient(part, z, unconnected_gradients="zero"), [-1, len(parts)]) for part in parts]
            return velocity, tf.add_n([row[:, i] for i, row in enumerate(rows)])

        def product(vectors):
            """Returns the transposed Jacobian of each row times its vector in `vectors`, `[B, D]`."""
            found = tape.gradient(velocity, z, tf.reshape(vectors, tf.shape(z)), unconnected_gradients="zero")
            return tf.reshape(found, tf.shape(vectors))

        estimate = _hutch_plus_plus if self.divergence == "hutch++" else _hutchinson
        return velocity, estimate(product, self._signs(z, len(parts)))

    def _signs(self, z, size):
        """Returns random signs, a list of tensors `[B, D]`, twice as many for Hutch++."""
        count = self.num_vectors or _DIVERGENCES[self.divergence]
        count = 2 * min(count, size) if self.divergence == "hutch++" else count
        # The generator only advances between solves: the noise is the same whenever the solver, or its adjoint, asks.
        signs = 2 * keras.random.randint((count, ops.shape(z)[0], size), 0, 2, seed=self.seed_generator) - 1
        return tf.unstack(tf.cast(signs, z.dtype))

    def compute_output_shape(self, t_shape, state_shape):
        return state_shape

    def get_config(self):
        dynamics = keras.saving.serialize_keras_object(self.dynamics)
        return {**super().get_config(), "dynamics": dynamics, "divergence": self.divergence, "num_vectors": self.num_vectors}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "dynamics": keras.saving.deserialize_keras_object(config["dynamics"])})


class NegativeLogLikelihood(keras.losses.Loss):
    """The negative mean of log-densities. There is no target."""

    def call(self, y_true, y_pred):
        return -y_pred
