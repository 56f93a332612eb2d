"""Residual blocks that also use the state before the previous one, as linear two-step methods do."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_ode.layers.depth import build_all, checked_count, copies, described
from keras_ode.layers.time import call_layer
from keras_ode.signature import with_mask


@keras.saving.register_keras_serializable(package="keras_ode")
class LinearMultistepBlocks(keras.Layer):
    """Blocks of a linear two-step method, `h[n+1] = (1 - k[n]) h[n] + k[n] h[n-1] + f(h[n])`, with trainable `k`.

    With `k = 0`, these are residual blocks. There is no state before the first block, so `h[-1] = h[0]`, and `k[0]` has no
    effect. For a small `f`, the recurrence is stable if every `k` lies between -1 and 1. It is then a discretization of the
    modified equation `(1 + k) h' + (1 - k) h'' / 2 = f(h)`.

    With `survival < 1`, training skips `f` at random (stochastic depth). A block then computes
    `(1 - k) h[n] + k h[n-1] + s f(h[n])`, where `s` is 1 with probability `p[n] = 1 - (1 - survival) (n + 1) / num_blocks`, and
    0 otherwise. Each row of a batch draws its own `s`. In inference, `s` is `p[n]`.

    Args:
        layer: A Keras layer `f(h)` or `f(t, h)` that keeps the shape. `t` is the index of the block, counted from 0. Or a list
            of one layer for each block.
        num_blocks: The number of blocks.
        shared: Whether all blocks have the same `f`. Otherwise `layer` is the first block, and the other blocks are copies of
            it with their own weights. Every block has its own `k` in either case. Defaults to `False`.
        survival: The probability that the last block keeps its `f` in training, above 0 and at most 1. Defaults to `1.0`.
        k_initializer: The initializer of `k`. Defaults to uniform values between -0.1 and 0.
        seed: The seed of the random numbers in training. Defaults to `None`.
        **kwargs: Arguments of `keras.Layer`.

    Input shape:
        The input shape of `layer`.

    Output shape:
        The same as the input shape.

    Raises:
        ValueError: If `survival` is not above 0 and at most 1, or if there is a list of layers of the wrong length.

    Example:

    >>> blocks = keras_ode.layers.LinearMultistepBlocks(keras.layers.Dense(2, activation="tanh"), num_blocks=6)
    >>> blocks(tf.zeros([8, 2])).shape, blocks.k.shape
    (TensorShape([8, 2]), TensorShape([6]))

    Reference: Lu, Zhong, Li, Dong (2018), Beyond finite layer neural networks: bridging deep architectures and numerical
    differential equations, ICML. Stochastic depth: Huang, Sun, Liu, Sedra, Weinberger (2016), Deep networks with stochastic
    depth, ECCV.
    """

    def __init__(
        self,
        layer: keras.Layer | Sequence[keras.Layer],
        num_blocks: int,
        shared: bool = False,
        survival: float = 1.0,
        k_initializer: str | keras.initializers.Initializer | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 < survival <= 1:
            raise ValueError(f"survival must be a probability, above 0 and at most 1. Received: survival={survival!r}")
        self.num_blocks, self.shared = checked_count("num_blocks", num_blocks), bool(shared)
        self.supports_masking = True
        self.survival, self.seed = float(survival), seed
        if k_initializer is None:
            k_initializer = keras.initializers.RandomUniform(-0.1, 0.0)
        self.k_initializer = keras.initializers.get(k_initializer)
        self.layers = copies(layer, 1 if shared else self.num_blocks)
        if self.survival < 1:
            self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, y_shape):
        build_all(self.layers, y_shape, self.compute_dtype)
        self.k = self.add_weight((self.num_blocks,), self.k_initializer, name="k")

    def call(self, y, training=None, mask=None):
        k, before = ops.cast(self.k, y.dtype), y
        for n in range(self.num_blocks):
            y = y if mask is None else with_mask(y, mask)
            f = ops.cast(call_layer(self.layers[0 if self.shared else n], ops.cast(n, y.dtype), y), y.dtype)
            before, y = y, y - k[n] * (y - before) + self._kept(f, n, training)
        return y

    def _kept(self, f, n, training):
        """Returns the `f` of block `n` times its `s`."""
        probability = 1 - (1 - self.survival) * (n + 1) / self.num_blocks
        if probability == 1:
            return f
        if not training:
            return probability * f
        shape = (ops.shape(f)[0], *[1] * (len(f.shape) - 1))
        drawn = keras.random.uniform(shape, seed=self.seed_generator, dtype="float32")
        return ops.cast(drawn < probability, f.dtype) * f

    def compute_output_shape(self, y_shape):
        return y_shape

    def get_config(self):
        return {
            **super().get_config(),
            "layer": described(self.layers),
            "num_blocks": self.num_blocks,
            "shared": self.shared,
            "survival": self.survival,
            "k_initializer": keras.initializers.serialize(self.k_initializer),
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "layer": keras.saving.deserialize_keras_object(config["layer"])})
