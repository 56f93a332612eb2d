"""Latent ODEs, which model time series as noisy observations of a latent state that follows an ODE."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_ode.layers import ODERNN, ODELayer
from keras_ode.models.unsupervised import Unsupervised
from keras_ode.typing import TensorsLike, Times


@keras.saving.register_keras_serializable(package="keras_ode")
class LatentODE(Unsupervised):
    """A variational autoencoder for time series whose latent state follows an ODE.

    The encoder reads a series from its last observation to its first and computes the posterior, a normal distribution, of
    the latent state at the first time. The ODE is solved over all times from a sample of the posterior, and the decoder maps
    the latent states to observations.

    After `compile(optimizer)`, `fit(inputs)` minimizes the mean negative evidence lower bound (ELBO) of the series, and
    `evaluate(inputs)` returns it. The model and `predict` return decoded series, from one sample of the posterior.

    Args:
        encoder: A Keras layer that maps each series to a vector: an `ODERNN`, which uses the times, or a recurrent layer such
            as `keras.layers.GRU(32, go_backwards=True)`, which gets the time since the first observation as an additional
            feature. It should go backwards, because it estimates the latent state at the first time.
        dynamics: The dynamics of the latent state, a Keras layer `f(z)` or `f(t, z)` that keeps its shape.
        decoder: A Keras layer, or a `keras.Sequential`, that maps latent states `[batch, T, latent_dim]` to observations.
        latent_dim: The size of the latent state.
        noise: The standard deviation of the observations around the decoded values. Defaults to `0.1`.
        name, dtype, trainable: As in `keras.Model`.
        **ode: Arguments of `ODELayer`: `t`, the times, if they are the same for all series; `per_sample=True`, if each series
            has its own times; `solver`, `rtol`, `atol`, ...

    Call arguments:
        inputs: The observed values `[B, T, features]`, or a dict with the entries `"values"`, `"times"` and `"mask"`, where the
            last two are optional. `"times"`, `[B, T]`, needs `per_sample=True`. Times are strictly increasing or decreasing. If
            a row has fewer of them, pad it by repeating its last time. `"mask"`, bool `[B, T]`, is true where something was
            observed.

    Output shape:
        `(batch, T, features)`.

    Raises:
        ValueError: If `noise` is not positive, if `t` is random, with `return_sequences=False`, if `compile` is given a loss,
            if the times of a call do not fit its values, or if `fit` is given weights or values of another shape than the
            decoded ones.

    Example:

    >>> model = keras_ode.models.LatentODE(
    ...     encoder=keras.layers.GRU(16, go_backwards=True),
    ...     dynamics=keras.Sequential([keras.layers.Dense(16, activation="tanh"), keras.layers.Dense(4)]),
    ...     decoder=keras.layers.Dense(2),
    ...     latent_dim=4,
    ...     t=np.linspace(0, 1, 30),
    ... )
    >>> times, spirals, _ = keras_ode.datasets.bidirectional_spirals(8, num_times=30)
    >>> posterior = model.encode(spirals)
    >>> model.decode(posterior.mean(), [0.0, 1.0, 2.0]).shape
    TensorShape([8, 3, 2])

    References: Chen, Rubanova, Bettencourt, Duvenaud (2018), Neural Ordinary Differential Equations, NeurIPS; Rubanova, Chen,
    Duvenaud (2019), Latent ODEs for irregularly-sampled time series, NeurIPS.
    """

    _own_loss = "the negative evidence lower bound"

    def __init__(
        self,
        encoder: keras.Layer,
        dynamics: keras.Layer,
        decoder: keras.Layer,
        latent_dim: int,
        noise: float = 0.1,
        name: str | None = None,
        dtype: "str | keras.DTypePolicy | None" = None,
        trainable: bool = True,
        **ode: Any,
    ) -> None:
        # Times and likelihoods keep the precision of the variables; the parts cast for themselves.
        super().__init__(name=name, dtype=dtype, trainable=trainable, autocast=False)
        if not noise > 0:
            raise ValueError(f"noise must be a positive number. Received: noise={noise!r}")
        if not ode.get("return_sequences", True):
            raise ValueError(
                "LatentODE returns a value at each time: leave return_sequences out. Received: return_sequences=False"
            )
        self.encoder, self.decoder = encoder, decoder
        self.latent_dim, self.noise = int(latent_dim), float(noise)
        self.ode = ODELayer(dynamics, dtype=self.dtype_policy, **{**ode, "return_sequences": True})
        if self.ode.random_end_time is not None:
            raise ValueError(
                f"The times of LatentODE are those of its observations, so none can be random. Received: t={ode['t']!r}"
            )
        self.posterior = keras.layers.Dense(
            2 * self.latent_dim, bias_initializer=_narrow, name="posterior", dtype=self.dtype_policy
        )

    def build(self, inputs_shape):
        shape = inputs_shape["values"] if isinstance(inputs_shape, dict) else inputs_shape
        batch, length, num_features = shape

        def symbol(*shape):
            return keras.KerasTensor(shape, self.variable_dtype)

        if isinstance(self.encoder, ODERNN):
            times = symbol(batch, length) if self.encoder.ode.per_sample else symbol(length)
            features = self.encoder(symbol(batch, length, num_features), t=times)
        else:
            features = self.encoder(symbol(batch, length, num_features + 1))
        self.posterior(features)
        self.ode.build((batch, self.latent_dim))
        self.decoder(symbol(batch, length, self.latent_dim))

    def call(self, inputs, training=None):
        import tensorflow_probability as tfp

        posterior = self._encode(inputs, training)
        prior = tfp.distributions.MultivariateNormalDiag(tf.zeros_like(posterior.mean()))
        self.add_loss(tf.reduce_mean(tfp.distributions.kl_divergence(posterior, prior)))
        return self.decode(posterior.sample(), self._parts(inputs)[1])

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        import tensorflow_probability as tfp

        self._check_weights(y, sample_weight)
        values, _, mask = self._parts(x)
        if not y_pred.shape.is_compatible_with(values.shape):
            raise ValueError(
                f"The decoder must return as many features as the values have, shape {values.shape}. Received: decoded values of "
                f"shape {y_pred.shape}"
            )
        decoded = tfp.distributions.Normal(tf.cast(y_pred, values.dtype), self.noise)
        likelihood = tf.reduce_sum(decoded.log_prob(values), axis=2)
        likelihood = tf.reduce_sum(likelihood if mask is None else tf.where(mask, likelihood, 0.0), axis=1)
        return super().compute_loss(x, y, y_pred, sample_weight) - tf.reduce_mean(likelihood)

    def encode(self, inputs: TensorsLike) -> Any:
        """Returns the posterior of the latent state at the first time of each series.

        Args:
            inputs: As in a call of the model.

        Returns:
            A `tfp.distributions.MultivariateNormalDiag` with batch shape `[B]` and event shape `[latent_dim]`.
        """
        return self._encode(inputs, training=False)

    def decode(self, z0: TensorsLike, times: Times | None = None) -> tf.Tensor:
        """Solves the ODE from latent states and returns the decoded observations.

        Args:
            z0: Latent states at the first of the times, `[B, latent_dim]`.
            times: Strictly increasing or decreasing times, `[T]`, or `[B, T]` with `per_sample=True`. The first one is the
                time of `z0`. They may differ from the times of the observations. Defaults to the times of the model.

        Returns:
            A tensor `[B, T, features]`.
        """
        return self.decoder(self.ode(z0, t=times))

    def _check_weights(self, y, sample_weight):
        if sample_weight is not None:
            raise ValueError(
                "LatentODE has no weights of series: leave sample_weight and class_weight out. To leave out single observations, "
                f"use the mask. Received: sample_weight of type {type(sample_weight).__name__}"
            )

    def get_config(self):
        parts = {"encoder": self.encoder, "dynamics": self.ode.dynamics, "decoder": self.decoder}
        options = {name: value for name, value in self.ode.get_options().items() if name != "return_sequences"}
        return {
            **super().get_config(),
            **{name: keras.saving.serialize_keras_object(part) for name, part in parts.items()},
            "latent_dim": self.latent_dim,
            "noise": self.noise,
            **options,
        }

    @classmethod
    def from_config(cls, config):
        parts = ("encoder", "dynamics", "decoder")
        return cls(**{**config, **{name: keras.saving.deserialize_keras_object(config[name]) for name in parts}})

    def _encode(self, inputs, training):
        import tensorflow_probability as tfp

        values, times, mask = self._parts(inputs)
        times = np.asarray(self.ode.t) if times is None else times
        if isinstance(self.encoder, ODERNN):
            features = self.encoder(values, t=times, mask=mask, training=training)
        else:
            since = tf.broadcast_to(tf.cast(times - times[..., :1], values.dtype), tf.shape(values)[:2])[..., None]
            features = self.encoder(tf.concat([values, since], axis=-1), mask=mask, training=training)
        mean, spread = tf.split(tf.cast(self.posterior(features), self.variable_dtype), 2, axis=-1)
        return tfp.distributions.MultivariateNormalDiag(mean, tf.nn.softplus(spread) + 1e-4)

    def _parts(self, inputs):
        """Returns the values (zero where masked), the times or `None`, and the mask or `None`."""
        parts = inputs if isinstance(inputs, dict) else {"values": inputs}
        values, times, mask = parts["values"], parts.get("times"), parts.get("mask")
        values = tf.cast(tf.convert_to_tensor(values), self.variable_dtype)
        if times is not None and not self.ode.per_sample:
            raise ValueError("Series with times of their own need LatentODE(..., per_sample=True).")
        if times is None and values.shape[1] != len(self.ode.t):
            raise ValueError(
                f"The series must have as many values as there are times: pass these as t to LatentODE, or as "
                f"inputs['times']. Received: values of shape {values.shape} and {len(self.ode.t)} times"
            )
        if times is not None:
            times = tf.convert_to_tensor(times)
            # Float64 is kept, because times are subtracted before they are rounded.
            times = times if times.dtype == tf.float64 else tf.cast(times, self.variable_dtype)
        if mask is None:
            return tf.identity(values), times, None  # without a mask that Keras may have given to the tensor
        mask = tf.cast(mask, bool)
        return tf.where(mask[..., None], values, tf.zeros_like(values)), times, mask


def _narrow(shape, dtype=None):
    """Returns initial biases of the posterior, for standard deviations of about 0.05.

    With a wide posterior, the decoder sees mostly noise and takes long to learn to use the latent state.
    """
    return np.repeat([0.0, -3.0], shape[0] // 2).astype(dtype or "float32")
