"""A dynamics in two parts."""

from typing import Any

import keras

from keras_ode.signature import arguments_of
from keras_ode.typing import Dynamics


@keras.saving.register_keras_serializable(package="keras_ode")
class Split(keras.Layer):
    """A dynamics `stiff(t, y) + nonstiff(t, y)`, of which `solver="kencarp4"` treats only the first part implicitly.

    Use it where the stiff part is simple, such as diffusion or decay, and the rest is expensive and not stiff. Newton's method then
    needs the Jacobian of the stiff part only, and iterates with that part alone. All other solvers integrate the sum, and so does
    the backward solve of `adjoint="interpolating"`, whose equations are not split.

    Args:
        stiff: A Keras layer, a model or a function `f(y)` or `f(t, y)`, followed by the `args` of the solve.
        nonstiff: The same for the other part. Both return a derivative in the shape of the state.
        **kwargs: Arguments of `keras.Layer`: `name`, `dtype`, `trainable`.

    Raises:
        TypeError: If a part is not a Keras layer, a model or a function.

    Example:

    >>> dynamics = keras_ode.Split(lambda t, y: -1000.0 * y, lambda t, y: 1000.0 * tf.cos(t) * tf.ones_like(y))
    >>> ys = keras_ode.odeint(dynamics, tf.constant([0.0], tf.float64), [0.0, 1.0], solver="kencarp4", rtol=1e-6)
    >>> print(f"{float(ys[-1, 0]):.4f}")
    0.5411

    Reference: Kennedy, Carpenter (2003), Additive Runge-Kutta schemes for convection-diffusion-reaction equations, Appl. Numer.
    Math. 44(1-2), 139-181.
    """

    def __init__(self, stiff: Dynamics, nonstiff: Dynamics, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        for name, part in (("stiff", stiff), ("nonstiff", nonstiff)):
            if not callable(part):
                raise TypeError(
                    f"{name} must be a Keras layer, a model or a function f(y) or f(t, y). Received: {name}={part!r}"
                )
        self.stiff, self.nonstiff = stiff, nonstiff

    def build(self, *shapes, **shapes_by_name):
        """Does nothing but set `built`: a part that is a layer is built when it is called."""
        self.built = True

    def call(self, t, y, *args):
        stiff, nonstiff = (part(*arguments_of(part, t, y, args)) for part in (self.stiff, self.nonstiff))
        return keras.tree.map_structure(lambda a, b: a + b, stiff, nonstiff)

    def get_config(self):
        parts = {name: keras.saving.serialize_keras_object(getattr(self, name)) for name in ("stiff", "nonstiff")}
        return {**super().get_config(), **parts}

    @classmethod
    def from_config(cls, config):
        parts = {name: keras.saving.deserialize_keras_object(config[name]) for name in ("stiff", "nonstiff")}
        return cls(**{**config, **parts})
