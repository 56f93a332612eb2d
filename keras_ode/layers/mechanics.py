"""Dynamics of mechanical systems, which are defined by an energy, a Lagrangian or an acceleration."""

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_ode.dynamics import build as build_layer
from keras_ode.layers.time import call_layer, check_layer
from keras_ode.signature import takes_time
from keras_ode.typing import Number, TensorsLike


class _OfLayer(keras.Layer):
    """The base class of dynamics that are computed from one layer, for a state `[batch, 2 D]` of two halves.

    Derivatives are computed in the precision of the variables, because half precision is too coarse for second derivatives.
    """

    def __init__(self, layer: keras.Layer, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        check_layer(layer)
        self.layer = layer

    def build(self, t_shape, y_shape):
        if len(y_shape) != 2 or y_shape[-1] is None or y_shape[-1] % 2:
            raise ValueError(
                f"{type(self).__name__} needs a state [batch, 2 D] of two halves, such as positions and momenta. Received: a state "
                f"of shape {y_shape}"
            )
        build_layer(self.layer, keras.KerasTensor(t_shape, self.variable_dtype), keras.KerasTensor(y_shape, self.variable_dtype))

    def call(self, t, y, training=None):  # Keras passes `training` on to the layer
        y = ops.cast(y, self.variable_dtype)
        return ops.cast(self._derivative(ops.cast(t, self.variable_dtype), y), self.compute_dtype)

    def compute_output_spec(self, t, y, training=None):
        return keras.KerasTensor(y.shape, self.compute_dtype)

    def compute_output_shape(self, t_shape, y_shape):
        return y_shape

    def _of(self, t, y):
        """The layer's output in the dtype of the state."""
        return tf.cast(call_layer(self.layer, t, y), y.dtype)

    def _number_of(self, t, y):
        """The output of a layer that must have one number for each row, such as an energy."""
        value = self._of(t, y)
        if not value.shape.is_compatible_with([None, 1]):
            raise ValueError(
                f"The layer of {type(self).__name__} must return one number for each row, [batch, 1]. Received: a layer "
                f"'{self.layer.name}' that returns the shape {value.shape}"
            )
        return value

    def get_config(self):
        return {**super().get_config(), "layer": keras.saving.serialize_keras_object(self.layer)}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "layer": keras.saving.deserialize_keras_object(config["layer"])})


@keras.saving.register_keras_serializable(package="keras_ode")
class HamiltonianDynamics(_OfLayer):
    """Hamilton's equations `q' = dH/dp`, `p' = -dH/dq` for an energy `H(q, p)` that a layer computes.

    The exact solution conserves `H`, even if the layer is not trained, unless the layer takes the time.

    Args:
        layer: A Keras layer `H(y)` or `H(t, y)` that maps the state `y = [q, p]`, `[batch, 2 D]`, to an energy for each row,
            `[batch, 1]`. It must be twice differentiable: use `"tanh"` or `"softplus"`, not `"relu"`.
        **kwargs: Arguments of `keras.Layer`.

    Call arguments:
        t: The time, a scalar, or `[B, 1]`.
        y: The positions and the momenta, concatenated: `[q, p]`.

    Input shape:
        `()` or `(batch, 1)` for `t`, and `(batch, 2 D)` for `y`.

    Output shape:
        `(batch, 2 D)`.

    Raises:
        ValueError: If the layer does not return one number for each row.

    Example:

    >>> energy = keras.Sequential([keras.layers.Dense(16, activation="tanh"), keras.layers.Dense(1)])
    >>> layer = keras_ode.ODELayer(keras_ode.layers.HamiltonianDynamics(energy))
    >>> layer(tf.zeros([8, 4])).shape
    TensorShape([8, 4])

    Reference: Greydanus, Dzamba, Yosinski (2019), Hamiltonian neural networks, NeurIPS.
    """

    def _derivative(self, t, y):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(y)
            energy = self._number_of(t, y)
        of_q, of_p = tf.split(tape.gradient(energy, y, unconnected_gradients="zero"), 2, axis=-1)
        return tf.concat([of_p, -of_q], axis=-1)

    def energy(self, y: TensorsLike, t: Number = 0.0) -> tf.Tensor:
        """Returns the energies `[batch, 1]` of states `[batch, 2 D]` at the time `t`, which defaults to zero."""
        y = tf.convert_to_tensor(y, self.variable_dtype)
        return self._number_of(tf.convert_to_tensor(t, y.dtype), y)


@keras.saving.register_keras_serializable(package="keras_ode")
class LagrangianDynamics(_OfLayer):
    """The Euler-Lagrange equations `q' = v`, `d/dt dL/dv = dL/dq` for a Lagrangian `L(q, v)` that a layer computes.

    The acceleration is `v' = (d^2 L / dv^2)^-1 (dL/dq - d^2 L / dv dq v)`. The exact solution conserves the energy
    `v dL/dv - L`, even if the layer is not trained. Unlike Hamilton's equations, these need velocities instead of momenta.

    Args:
        layer: A Keras layer `L(y)` that maps the state `y = [q, v]`, `[batch, 2 D]`, to a number for each row, `[batch, 1]`. It
            must be three times differentiable: use `"tanh"` or `"softplus"`, not `"relu"`.
        kinetic: Whether to add `|v|^2 / 2` to the output of the layer. For a network with small weights, this keeps the matrix
            `d^2 L / dv^2` invertible. If the matrix is singular, the acceleration is not finite. Defaults to `True`.
        **kwargs: Arguments of `keras.Layer`.

    Call arguments:
        t: The time, a scalar, or `[B, 1]`. The result does not depend on it.
        y: The positions and the velocities, concatenated: `[q, v]`.

    Input shape:
        `()` or `(batch, 1)` for `t`, and `(batch, 2 D)` for `y`.

    Output shape:
        `(batch, 2 D)`.

    Raises:
        TypeError: If the layer takes the time.
        ValueError: If the layer does not return one number for each row.

    Example:

    >>> lagrangian = keras.Sequential([keras.layers.Dense(16, activation="softplus"), keras.layers.Dense(1)])
    >>> layer = keras_ode.ODELayer(keras_ode.layers.LagrangianDynamics(lagrangian))
    >>> layer(tf.zeros([8, 4])).shape
    TensorShape([8, 4])

    Reference: Cranmer, Greydanus, Hoyer, Battaglia, Spergel, Ho (2020), Lagrangian neural networks, arXiv:2003.04630.
    """

    def __init__(self, layer: keras.Layer, kinetic: bool = True, **kwargs: Any) -> None:
        super().__init__(layer, **kwargs)
        if takes_time(layer):
            raise TypeError(
                "The layer of LagrangianDynamics must be a function of the state alone, L(y), since the equations are those of a "
                f"Lagrangian that does not depend on the time. Received: {layer!r}"
            )
        self.kinetic = bool(kinetic)

    def get_config(self):
        return {**super().get_config(), "kinetic": self.kinetic}

    def energy(self, y: TensorsLike) -> tf.Tensor:
        """Returns the energies `v dL/dv - L`, `[batch, 1]`, of states `[batch, 2 D]`."""
        y = tf.convert_to_tensor(y, self.variable_dtype)
        value, slope = self._slope(y)
        v, of_v = (tf.split(x, 2, axis=-1)[1] for x in (y, slope))
        return tf.reduce_sum(v * of_v, axis=-1, keepdims=True) - value

    def _slope(self, y):
        """Returns the Lagrangian and its gradient with respect to the state."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(y)
            value = self._number_of(tf.zeros([], y.dtype), y)
            if self.kinetic:
                # Third derivatives of a power are NaN at zero.
                value += tf.reduce_sum(tf.square(tf.split(y, 2, axis=-1)[1]), axis=-1, keepdims=True) / 2
        return value, tape.gradient(value, y, unconnected_gradients="zero")

    def _derivative(self, t, y):
        size = y.shape[-1] // 2
        with tf.GradientTape(watch_accessed_variables=False, persistent=True) as tape:
            tape.watch(y)
            slope = self._slope(y)[1]
            of_v = tf.unstack(slope[:, size:], axis=-1)
        rows = [tape.gradient(p, y, unconnected_gradients="zero") for p in of_v]
        second = tf.stack(rows, axis=1)  # the derivatives of dL/dv by q and v: [B, D, 2 D]
        v = y[:, size:]
        force = slope[:, :size] - tf.linalg.matvec(second[:, :, :size], v)
        acceleration = _solved(second[:, :, size:], force)
        return tf.concat([v, acceleration], axis=-1)


def _solved(matrix, right):
    """Returns the solution of `matrix x = right` for a batch of matrices, which is not finite where a matrix is singular.

    TensorFlow's solvers raise an error for a singular matrix, which would end the training. With this function the solver
    rejects the step and takes a smaller one.
    """
    size = right.shape[-1]
    if size == 1:
        return right / matrix[..., 0]
    orthogonal, upper = tf.linalg.qr(matrix)
    right, found = tf.linalg.matvec(orthogonal, right, transpose_a=True), []
    for i in reversed(range(size)):
        known = sum(upper[..., i, j] * x for j, x in zip(range(i + 1, size), reversed(found), strict=True))
        found.append((right[..., i] - known) / upper[..., i, i])
    return tf.stack(found[::-1], axis=-1)


@keras.saving.register_keras_serializable(package="keras_ode")
class SecondOrderDynamics(_OfLayer):
    """The dynamics of the second-order equation `q'' = f(t, q, q')`, for the state `[q, q']`.

    Args:
        layer: A Keras layer `f(y)` or `f(t, y)` that maps the state `y = [q, v]`, `[batch, 2 D]`, to the acceleration,
            `[batch, D]`.
        **kwargs: Arguments of `keras.Layer`.

    Call arguments:
        t: The time, a scalar, or `[B, 1]`.
        y: The positions and the velocities, concatenated: `[q, v]`.

    Input shape:
        `()` or `(batch, 1)` for `t`, and `(batch, 2 D)` for `y`.

    Output shape:
        `(batch, 2 D)`.

    Example:

    >>> acceleration = keras.layers.Dense(2, activation="tanh")
    >>> layer = keras_ode.ODELayer(keras_ode.layers.SecondOrderDynamics(acceleration))
    >>> layer(tf.zeros([8, 4])).shape
    TensorShape([8, 4])

    Reference: Norcliffe, Bodnar, Day, Simidjievski, Liò (2020), On second order behaviour in augmented neural ODEs, NeurIPS.
    """

    def _derivative(self, t, y):
        return tf.concat([tf.split(y, 2, axis=-1)[1], self._of(t, y)], axis=-1)
