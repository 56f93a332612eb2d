"""Flows of differential equations as bijectors of TensorFlow Probability.

`import keras_ode` does not import this module, since TensorFlow Probability is slow to load: write `import keras_ode.probability`.
"""

import numbers
from collections.abc import Sequence
from typing import Any, Literal

from keras_ode.models.bijector import FlowBijector
from keras_ode.models.flow import ContinuousNormalizingFlow
from keras_ode.typing import Dynamics

__all__ = [
    "Flow",
]


class Flow(FlowBijector):
    """The map from the state at the first time of an ODE to that at the last time, as a bijector.

    `tfd.TransformedDistribution(base, Flow(dynamics, event_shape))` samples by solving the equation forward and scores by
    solving it backward. The logarithm of the determinant of the Jacobian is the integral of the divergence of the dynamics along
    the trajectory, and is solved together with the state.

    Args:
        dynamics: A Keras layer `f(t, y)` or `f(y)` that keeps the shape of points `[batch, *event_shape]` and is smooth (not relu),
            or a list of them, which follow each other.
        event_shape: The shape of a point, a list of integers.
        divergence: `"exact"`, which costs a vector-Jacobian product for each dimension; `"hutchinson"`, an unbiased estimate
            from one product with random signs; or `"hutch++"`, an unbiased estimate that varies less. The random numbers stay
            the same in a solve and its gradient, and are drawn again in each solve. Defaults to `"exact"`.
        num_vectors: The number of random vectors of `"hutchinson"`, 1 by default; or `m` for `"hutch++"`, which takes `3 m`
            products and is exact for Jacobians of rank `m` and less, 3 by default.
        name: The name of the bijector.
        **ode: Arguments of `ODELayer`: `t`, `solver`, `rtol`, `atol`, `adjoint`, `dtype`, ...

    Points may have any number of batch axes. Forward and inverse, and the log-determinant of either, are one solve each. The
    weights of the dynamics are the `trainable_variables` of the bijector and of distributions made with it.

    Raises:
        ValueError: If `event_shape` is not a list of positive integers, or if a `base` is given.

    Example:

    >>> import tensorflow_probability as tfp
    >>> import keras_ode.probability
    >>> dynamics = keras.Sequential([keras.layers.Dense(16, activation="tanh"), keras.layers.Dense(2)])
    >>> flow = keras_ode.probability.Flow(dynamics, event_shape=[2], rtol=1e-4)
    >>> base = tfp.distributions.MultivariateNormalDiag(tf.zeros(2))
    >>> distribution = tfp.distributions.TransformedDistribution(base, flow)
    >>> distribution.log_prob(distribution.sample(5)).shape
    TensorShape([5])

    References: Chen, Rubanova, Bettencourt, Duvenaud (2018), Neural Ordinary Differential Equations, NeurIPS; Grathwohl, Chen,
    Bettencourt, Sutskever, Duvenaud (2019), FFJORD, ICLR; Meyer, Musco, Musco, Woodruff (2021), Hutch++: optimal stochastic trace
    estimation, SOSA.
    """

    def __init__(
        self,
        dynamics: Dynamics | Sequence[Dynamics],
        event_shape: Sequence[int],
        divergence: Literal["exact", "hutchinson", "hutch++"] = "exact",
        num_vectors: int | None = None,
        name: str = "flow",
        **ode: Any,
    ) -> None:
        event_shape = list(event_shape) if isinstance(event_shape, (list, tuple)) else event_shape
        if not isinstance(event_shape, list) or not all(isinstance(n, numbers.Integral) and int(n) > 0 for n in event_shape):
            raise ValueError(f"event_shape must be a list of positive integers, such as [2]. Received: {event_shape!r}")
        if "base" in ode:
            raise ValueError(
                "A bijector has no base: pass it to TransformedDistribution(base, Flow(...)), or use "
                f"keras_ode.models.ContinuousNormalizingFlow(dynamics, base=...). Received: base={ode['base']!r}"
            )
        given = {"dynamics": dynamics, "event_shape": event_shape, "divergence": divergence, "num_vectors": num_vectors}
        flow = ContinuousNormalizingFlow(dynamics, divergence=divergence, num_vectors=num_vectors, **ode)
        flow.build((None, *event_shape))
        super().__init__(flow, name, {**given, "name": name, **ode})
