"""What every test starts from: seeded random numbers and Keras' own dtype policy."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import pytest


@pytest.fixture(autouse=True)
def fresh_start():
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")
