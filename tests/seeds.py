"""Seeds for tests that share what TensorFlow has compiled."""

import random

import numpy as np
from tensorflow.python.eager import context


def seed(number):
    """Seeds what `keras.utils.set_random_seed` does, but for kernels that draw numbers and ran before.

    Where Keras' function sets the seed of TensorFlow, TensorFlow drops every function that it has made ready to run, and
    optimizes it again at its next call. `tf.random.set_seed` must have been called once.
    """
    random.seed(number)
    np.random.seed(number)
    context.context()._rng = random.Random(number)
