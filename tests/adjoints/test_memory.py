"""How much memory a gradient takes, as the number of steps grows."""

import json
import pathlib
import subprocess
import sys

import pytest

from tests.marks import nightly

# The peak of gradients with few and with many steps, above what the process had before; 32,768 states.
SCRIPT = """
import json, pathlib, re, sys
import tensorflow as tf
import keras_ode

def peak():
    # In KiB. The resource module would count what the parent process had.
    return int(re.search(r"VmHWM:\\s*([0-9]+)", pathlib.Path("/proc/self/status").read_text()).group(1))

adjoint, solver, few, many = *sys.argv[1:3], *map(int, sys.argv[3:])

@tf.function
def gradient(y, end):
    with tf.GradientTape() as tape:
        tape.watch(y)
        times = tf.stack([tf.zeros_like(end), end])
        ys = keras_ode.odeint(lambda t, y: -(y**3), y, times, solver=solver, controller="constant", step_size=2 / many,
                              max_steps=many + 48, adjoint=adjoint, jit_compile=False)
        loss = tf.reduce_sum(ys[-1] ** 2)
    return tape.gradient(loss, y)

y, start, peaks = tf.ones([2**15]), peak(), []
for end in (2 * few / many, 2.0):
    # y(T)^2 = 1 / (1 + 2 T) from y(0) = 1, and its derivative by y(0) is 2 / (1 + 2 T)^2.
    error = abs(float(gradient(y, tf.constant(end))[0]) * (1 + 2 * end) ** 2 / 2 - 1)
    if error > 1e-4:
        sys.exit(f"The gradient is off by {error}")
    peaks.append(peak() - start)
print(json.dumps(peaks))
"""


def run(script, *arguments):
    """What a script prints in a process of its own."""
    here = pathlib.Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, cwd=here)
    assert done.returncode == 0, done.stderr
    return done.stdout


def peaks(adjoint, solver="heun", few=200, many=2000):
    return json.loads(run(SCRIPT, adjoint, solver, few, many).splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", ["backsolve", "interpolating", "checkpointed"])
def test_memory_of_a_gradient_does_not_grow_with_the_steps(adjoint):
    few, many = peaks(adjoint)
    # The 1,800 steps more would keep a state of 128 KiB each. The tenth part is for the allocator: from one process to the
    # next a peak differs by 5 MB.
    assert 0 < many < few + 1800 * 128 / 10


@pytest.mark.slow
def test_memory_of_steps_that_are_taken_back_is_flat():
    few, many = peaks("reversible", "asynchronous_leapfrog", 200, 20_000)
    # 10 MB, twice what a peak differs from one process to the next: one in 250 of the 19,800 states more.
    assert 0 < many < few + 19_800 * 128 / 250


@pytest.mark.slow
def test_memory_of_direct_differentiation_does_grow_with_the_steps():
    few, many = peaks("direct")
    # A state of 128 KiB and a few intermediate results, for 1,800 steps more.
    assert many - few > 1800 * 128


# Grappler makes temporary variables of sums of three where it expects more than 200 MB to be alive; within a loop's branch
# it loses them, and refuses the next call, for they exist.
LARGE = """
import keras, sys
import tensorflow as tf
import keras_ode

layer = keras_ode.ODELayer(keras.layers.Conv2D(32, 3, padding="same"), controller="constant", step_size=0.25,
                           adjoint=sys.argv[1], solver=sys.argv[2])
layer.build((256, 7, 7, 32))

@tf.function
def gradient(y):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(y))
    return tape.gradient(loss, [v.value for v in layer.trainable_variables])

for _ in range(3):
    gradient(tf.ones([256, 7, 7, 32]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "adjoint, solver",
    [("interpolating", "euler"), ("checkpointed", "euler"), nightly("backsolve", "euler"), nightly("reversible", "reversible")],
)
def test_gradient_of_a_large_state_can_be_taken_again(adjoint, solver):
    run(LARGE, adjoint, solver)
