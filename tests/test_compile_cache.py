"""TensorFlow's persistent cache of compiled programs: a second process finds all of them, so programs do not differ by chance."""

import os
import pathlib
import subprocess
import sys

import pytest

# One epoch of `fit`, and a gradient of a solve that is compiled alone, with weights that differ from process to process.
SCRIPT = """
import sys
import keras
import tensorflow as tf
import keras_ode

keras.utils.set_random_seed(int(sys.argv[1]))
x = tf.random.normal([8, 2])
layer = keras_ode.ODELayer(keras.layers.Dense(2, activation="tanh"))
model = keras.Sequential([layer])
model.compile("sgd", "mse", jit_compile=True)
model.fit(x, x, batch_size=4, verbose=0)
alone = keras_ode.ODELayer(keras.layers.Dense(2, activation="tanh"), jit_compile=True)
with tf.GradientTape() as tape:
    loss = tf.reduce_sum(alone(x))
tape.gradient(loss, alone.trainable_variables)
"""


@pytest.mark.slow
def test_second_process_finds_every_program_of_the_first(tmp_path):
    files = []
    for seed in (1, 2):
        subprocess.run(
            [sys.executable, "-c", SCRIPT, str(seed)],
            check=True,
            capture_output=True,
            cwd=pathlib.Path(__file__).parents[1],
            env={**os.environ, "TF_XLA_FLAGS": f"--tf_xla_persistent_cache_directory={tmp_path}"},
        )
        files.append({path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()})
    assert len(files[0]) >= 3  # a training step, a forward solve and its gradient
    assert files[1] == files[0]
