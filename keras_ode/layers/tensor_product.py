"""A layer of products of one-dimensional basis functions, which is linear in its weights."""

from typing import Any, Literal

import keras
from keras import ops

from keras_ode.layers.depth import checked_count


def _monomials(x, degree):
    return [ops.ones_like(x), *(x**n for n in range(1, degree + 1))]


def _recurrence(next_term):
    def functions(x, degree):
        terms = [ops.ones_like(x), x]
        for n in range(1, degree):
            terms.append(next_term(n, x, terms[-1], terms[-2]))
        return terms[: degree + 1]

    return functions


def _harmonics(x, degree):
    """Returns one, followed by sines and cosines in turn."""
    waves = [(ops.sin if n % 2 else ops.cos)((n + 1) // 2 * x) for n in range(1, degree + 1)]
    return [ops.ones_like(x), *waves]


_BASES = {
    "chebyshev": _recurrence(lambda n, x, last, before: 2 * x * last - before),
    "fourier": _harmonics,
    "legendre": _recurrence(lambda n, x, last, before: ((2 * n + 1) * x * last - n * before) / (n + 1)),
    "polynomial": _monomials,
}


@keras.saving.register_keras_serializable(package="keras_ode")
class TensorProduct(keras.Layer):
    """A linear combination of products of one-dimensional basis functions, one function of each input.

    For inputs `x1, ..., xD` and basis functions `p0, ..., pN`, each output is the sum of `w[i, ..., j] p_i(x1) ... p_j(xD)`
    over all indices. The output is linear in the weights `w`. There are `(degree + 1)**D` products, so use this layer for few
    inputs.

    Args:
        units: The size of the output.
        degree: The highest degree of the polynomials. For `"fourier"`, the number of sines and cosines in addition to the
            constant.
        basis: The basis functions. `"legendre"` (the default) and `"chebyshev"` are well conditioned for inputs between -1 and
            1. `"polynomial"` uses the powers of each input, and `"fourier"` uses `1, sin x, cos x, sin 2x, ...`.
        kernel_initializer: As in `keras.layers.Dense`. Defaults to `"glorot_uniform"`.
        **kwargs: Arguments of `keras.Layer`.

    Input shape:
        `(batch, ..., D)`.

    Output shape:
        `(batch, ..., units)`.

    Raises:
        ValueError: If `basis` is not one of the names above.

    Example:

    >>> layer = keras_ode.layers.TensorProduct(2, degree=3)
    >>> layer(tf.zeros([8, 2])).shape, layer.kernel.shape
    (TensorShape([8, 2]), TensorShape([16, 2]))

    Reference: Rackauckas et al. (2020), Universal differential equations for scientific machine learning, arXiv:2001.04385.
    """

    def __init__(
        self,
        units: int,
        degree: int,
        basis: Literal["legendre", "chebyshev", "polynomial", "fourier"] = "legendre",
        kernel_initializer: str | keras.initializers.Initializer = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if basis not in _BASES:
            raise ValueError(f"basis must be one of {tuple(_BASES)}. Received: basis={basis!r}")
        self.units, self.degree, self.basis = checked_count("units", units), checked_count("degree", degree), basis
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, x_shape):
        count = (self.degree + 1) ** x_shape[-1]
        self.kernel = self.add_weight((count, self.units), self.kernel_initializer, name="kernel")

    def call(self, x):
        functions = ops.stack(_BASES[self.basis](x, self.degree), axis=-1)  # [..., D, degree + 1]
        products = functions[..., 0, :]
        for i in range(1, x.shape[-1]):
            products = products[..., :, None] * functions[..., i, None, :]
            products = ops.reshape(products, (*ops.shape(products)[:-2], products.shape[-2] * products.shape[-1]))
        return ops.matmul(products, self.kernel)

    def compute_output_shape(self, x_shape):
        return (*x_shape[:-1], self.units)

    def get_config(self):
        return {
            **super().get_config(),
            "units": self.units,
            "degree": self.degree,
            "basis": self.basis,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
