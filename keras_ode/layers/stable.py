"""Architectures whose forward propagation is stable by design: antisymmetric, Hamiltonian and leapfrog networks."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import keras
import tensorflow as tf
from keras import ops

from keras_ode.layers.depth import checked_count, reseeded
from keras_ode.step_sizes import check_is_number
from keras_ode.typing import TensorsLike


@keras.saving.register_keras_serializable(package="keras_ode")
class AntisymmetricDynamics(keras.Layer):
    """The dynamics `f(y) = activation((K - K^T - gamma I) y + b)`, whose Jacobian has no eigenvalue with a positive real part.

    The eigenvalues of an antisymmetric matrix are imaginary, and `gamma` shifts their real part to `-gamma`. The eigenvalues of
    the Jacobian have no positive real part either, because the derivative of the activation is not negative. Errors and
    gradients therefore do not grow along the trajectory, and for a small `gamma` they do not vanish either. Euler's method
    needs `gamma > 0` and a small step, because imaginary eigenvalues lie outside its stability region.

    Args:
        gamma: The shift of the eigenvalues, zero or positive. Defaults to `0.0`.
        activation: A name or a function whose derivative is not negative. Defaults to `"tanh"`.
        kernel_initializer, bias_initializer: As in `keras.layers.Dense`.
        **kwargs: Arguments of `keras.Layer`.

    Input shape:
        `(batch, ..., channels)`.

    Output shape:
        The same as the input shape.

    Raises:
        ValueError: If `gamma` is negative.

    Example:

    >>> layer = keras_ode.ODELayer(keras_ode.layers.AntisymmetricDynamics(gamma=0.1), t=(0.0, 10.0))
    >>> layer(tf.zeros([8, 4])).shape
    TensorShape([8, 4])

    Reference: Haber, Ruthotto (2017), Stable architectures for deep neural networks, Inverse Problems 34.
    """

    def __init__(
        self,
        gamma: float = 0.0,
        activation: str | Callable[..., Any] = "tanh",
        kernel_initializer: str | keras.initializers.Initializer = "glorot_uniform",
        bias_initializer: str | keras.initializers.Initializer = "zeros",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not gamma >= 0:
            raise ValueError(f"gamma must be zero or positive. Received: gamma={gamma!r}")
        self.gamma, self.activation = float(gamma), keras.activations.get(activation)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.supports_masking = True

    def build(self, y_shape):
        size = y_shape[-1]
        self.kernel = self.add_weight((size, size), self.kernel_initializer, name="kernel")
        self.bias = self.add_weight((size,), self.bias_initializer, name="bias")

    def matrix(self) -> tf.Tensor:
        """Returns the matrix `K - K^T - gamma I`, `[channels, channels]`."""
        kernel = ops.convert_to_tensor(self.kernel)
        return kernel - ops.transpose(kernel) - self.gamma * ops.eye(kernel.shape[0], dtype=kernel.dtype)

    def call(self, y):
        return self.activation(ops.matmul(y, ops.transpose(self.matrix())) + self.bias)

    def compute_output_shape(self, y_shape):
        return y_shape

    def get_config(self):
        return {
            **super().get_config(),
            "gamma": self.gamma,
            "activation": keras.activations.serialize(self.activation),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
        }


class _Blocks(keras.Layer):
    """The base class of blocks with a matrix and a vector each: their weights `[num_blocks, ...]` and the smoothness penalty."""

    def __init__(
        self,
        num_blocks: int,
        step_size: float = 1.0,
        activation: str | Callable[..., Any] = "tanh",
        smoothness: float = 0.0,
        kernel_initializer: str | keras.initializers.Initializer = "glorot_uniform",
        bias_initializer: str | keras.initializers.Initializer = "zeros",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        self.num_blocks = checked_count("num_blocks", num_blocks)
        check_is_number(step_size)
        if not step_size > 0 or not smoothness >= 0:
            raise ValueError(
                "step_size must be positive, and smoothness zero or positive. Received: "
                f"step_size={step_size!r}, smoothness={smoothness!r}"
            )
        self.step_size, self.smoothness = float(step_size), float(smoothness)
        self.activation = keras.activations.get(activation)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)

    def build(self, y_shape):
        size = (y_shape if isinstance(y_shape[-1], (int, type(None))) else y_shape[0])[-1]
        draw = self.kernel_initializer

        def kernels(shape, dtype=None):  # the initializers of Keras would take the blocks for a part of a convolution
            return ops.stack([_redrawn(draw, n)(shape[1:], dtype=dtype) for n in range(shape[0])])

        self.kernel = self.add_weight((self.num_blocks, size, size), kernels, name="kernel")
        self.bias = self.add_weight((self.num_blocks, size), self.bias_initializer, name="bias")

    def _weights(self, dtype):
        """Returns the matrix and the vector of each block."""
        kernel, bias = (tf.unstack(ops.cast(ops.convert_to_tensor(v), dtype)) for v in (self.kernel, self.bias))
        return list(zip(kernel, bias, strict=True))

    def _penalize(self):
        """Adds the penalty on the changes of the weights to the losses."""
        if self.smoothness:
            self.add_loss(self.smoothness * roughness([self.kernel, self.bias], self.step_size))

    def refined(self) -> Self:
        """Returns a layer with twice as many blocks and half the step size, whose weights are interpolated linearly.

        This is the prolongation of multilevel training: train a few blocks, refine them, and continue to train.

        Raises:
            ValueError: If the layer is not built yet and so has no weights.
        """
        if not self.built:
            raise ValueError(f"Build the layer '{self.name}' before you refine it: call it, or train it.")
        config = {**self.get_config(), "num_blocks": 2 * self.num_blocks, "step_size": self.step_size / 2}
        fine = type(self).from_config({**config, "name": f"{self.name}_refined"})
        fine.build((None, self.kernel.shape[-1]))
        fine.set_weights([_interpolated(weight) for weight in self.get_weights()])
        return fine

    def compute_output_shape(self, y_shape):
        return y_shape

    def get_config(self):
        return {
            **super().get_config(),
            "num_blocks": self.num_blocks,
            "step_size": self.step_size,
            "activation": keras.activations.serialize(self.activation),
            "smoothness": self.smoothness,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
        }


@keras.saving.register_keras_serializable(package="keras_ode")
class HamiltonianBlocks(_Blocks):
    """Verlet steps of a network with two sets of channels, `y' = s(K z + b)` and `z' = -s(K^T y + b)`.

    Block `n` computes `z <- z - h s(K[n]^T y + b[n])` and then `y <- y + h s(K[n] z + b[n])`. Each of these two maps is a
    shear, so the blocks preserve volume and have an exact inverse. Forward propagation is stable if the step is small. For a
    linear `s` and constant weights, it is stable if `h` times the largest singular value of `K` is less than two.

    Args:
        num_blocks: The number of blocks.
        step_size: The step `h`. Defaults to `1.0`.
        activation: The function `s`. Defaults to `"tanh"`.
        smoothness: The weight of a penalty on changes of the weights from block to block. The penalty is the sum of
            `|K[n+1] - K[n]|^2 / (2 h)`, plus the same sum for `b`, and is added to the losses of the model. Defaults to `0.0`.
        kernel_initializer, bias_initializer: The initializers of each block, as in `keras.layers.Dense`.
        **kwargs: Arguments of `keras.Layer`.

    Call arguments:
        y: The state `y`, or the pair `[y, z]`. If you pass only `y`, then `z` starts at zero and is not returned.

    Input shape:
        `(batch, ..., channels)`, or two such shapes.

    Output shape:
        The same as the input shape.

    Example:

    >>> blocks = keras_ode.layers.HamiltonianBlocks(num_blocks=100, step_size=0.1)
    >>> blocks(tf.zeros([8, 4])).shape
    TensorShape([8, 4])
    >>> y, z = blocks([tf.ones([8, 4]), tf.zeros([8, 4])])
    >>> start = blocks.inverse([y, z])
    >>> bool(tf.reduce_max(tf.abs(start[0] - 1)) < 1e-4)
    True

    Reference: Haber, Ruthotto (2017), Stable architectures for deep neural networks, Inverse Problems 34.
    """

    def call(self, y):
        is_pair = isinstance(y, (list, tuple))
        self._penalize()
        y, z = y if is_pair else (y, ops.zeros_like(y))
        for kernel, bias in self._weights(y.dtype):
            z = z - self.step_size * self.activation(ops.matmul(y, kernel) + bias)
            y = y + self.step_size * self.activation(ops.matmul(z, ops.transpose(kernel)) + bias)
        return [y, z] if is_pair else y

    def inverse(self, state: Sequence[TensorsLike]) -> list[tf.Tensor]:
        """Returns the input `[y, z]` for which the blocks return the pair `state`."""
        y, z = (ops.convert_to_tensor(x, self.compute_dtype) for x in state)
        for kernel, bias in reversed(self._weights(y.dtype)):
            y = y - self.step_size * self.activation(ops.matmul(z, ops.transpose(kernel)) + bias)
            z = z + self.step_size * self.activation(ops.matmul(y, kernel) + bias)
        return [y, z]


@keras.saving.register_keras_serializable(package="keras_ode")
class LeapfrogBlocks(_Blocks):
    """Leapfrog steps of the second-order network `y'' = -K^T s(K y + b)`, whose velocity starts at zero.

    Block `n` computes `y[n+1] = 2 y[n] - y[n-1] - h^2 K[n]^T s(K[n] y[n] + b[n])`. The first block computes
    `y[1] = y[0] - h^2 / 2 K[0]^T s(K[0] y[0] + b[0])`. The Jacobian of the right-hand side is symmetric and has no positive
    eigenvalue, so solutions oscillate. Forward propagation is stable if the step is small. For a linear `s` and constant
    weights, it is stable if `h` times the largest singular value of `K` is less than two.

    Args:
        num_blocks, step_size, activation, smoothness, kernel_initializer, bias_initializer: As in `HamiltonianBlocks`. The
            derivative of the activation must not be negative.
        **kwargs: Arguments of `keras.Layer`.

    Input shape:
        `(batch, ..., channels)`.

    Output shape:
        The same as the input shape.

    Example:

    >>> keras_ode.layers.LeapfrogBlocks(num_blocks=100, step_size=0.1)(tf.zeros([8, 4])).shape
    TensorShape([8, 4])

    Reference: Haber, Ruthotto (2017), Stable architectures for deep neural networks, Inverse Problems 34. This form of the
    blocks: Ruthotto, Haber (2020), Deep neural networks motivated by partial differential equations, J. Math. Imaging Vis. 62.
    """

    def call(self, y):
        self._penalize()
        velocity = None  # the difference of the last two states
        for kernel, bias in self._weights(y.dtype):
            force = -ops.matmul(self.activation(ops.matmul(y, ops.transpose(kernel)) + bias), kernel)
            change = self.step_size**2 * force
            velocity = change / 2 if velocity is None else velocity + change
            y = y + velocity
        return y


def roughness(weights, step_size):
    """Returns half the integral of the squared rate of change of the weights `[num_blocks, ...]` along the blocks."""
    return sum(ops.sum(ops.square(ops.diff(ops.convert_to_tensor(w), axis=0))) for w in weights) / (2 * step_size)


def _interpolated(weight):
    """Interpolates the weights `[N, ...]` of blocks at `2 N` times. After the last block, its weights are repeated."""
    following = ops.concatenate([weight[1:], weight[-1:]], axis=0)
    pairs = ops.stack([weight, (weight + following) / 2], axis=1)
    return ops.convert_to_numpy(ops.reshape(pairs, (-1, *weight.shape[1:])))


def _redrawn(initializer, number):
    """Returns the same initializer with another seed, if it has one."""
    return type(initializer).from_config(reseeded(initializer.get_config(), number))
