"""What an exported model says and does where it is served: in another process, which does not know the package."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_ode import ODELayer

SERVE = """
import sys
import tensorflow as tf

model, x = tf.saved_model.load(sys.argv[1]), tf.ones([3, 1])
with tf.GradientTape() as tape:
    tape.watch(x)
    y = model.serve(x)
print(tape.gradient(y, x).numpy().ravel().tolist())
try:
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            y = model.serve(x)
        gradient = inner.gradient(y, x)
    outer.gradient(gradient, x)
except LookupError as error:
    print(error)
"""


@tf.custom_gradient
def decay(y):
    return -0.7 * y, lambda g: -0.7 * g


class Decay(keras.layers.Layer):
    """`y' = -0.7 y`, with a gradient of its own."""

    def call(self, y):
        return decay(y)


@pytest.mark.slow
def test_exported_model_has_its_gradient_and_says_nothing_when_loaded(tmp_path):
    model = keras.Sequential([keras.Input([1]), ODELayer(Decay(), rtol=1e-6)])
    model.export(str(tmp_path / "exported"), verbose=False)
    code = [sys.executable, "-c", SERVE, str(tmp_path / "exported")]
    served = subprocess.run(code, capture_output=True, text=True, cwd=tmp_path)
    gradient, *refusal = served.stdout.splitlines()
    np.testing.assert_allclose(eval(gradient), np.exp(-0.7 * np.ones(3)), rtol=1e-5)
    # The gradient of the gradient would be zero, in silence.
    assert "adjoint='direct'" in refusal[0]
    said = [line for line in served.stderr.splitlines() if "WARNING:absl" in line or "gradient" in line.lower()]
    assert said == []
