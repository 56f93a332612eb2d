"""A whole training step as XLA takes it for a TPU: one program of static shapes, without the host and without 64-bit types.

TensorFlow lists the types of TPUs in tensorflow/core/tpu/tpu_defs.h, `kTpuAllTypes`: complex128 is missing. It lists float64, int64 and
uint64, but TPUs have no registers for these: XLA replaces each by two 32-bit values (the custom calls `X64SplitLow` and `X64SplitHigh`),
with several operations for one. So the package leaves all of them out where the state is in single precision.
"""

import functools
import re
from collections import Counter

import keras
import pytest
import tensorflow as tf

import keras_ode
from tests.marks import slow

# Of the instructions of XLA: https://openxla.org/xla/operation_semantics
HOST = re.compile(r"\b(?:custom-call|infeed|outfeed|send|send-done|recv|recv-done)\(")
DYNAMIC = re.compile(r"\[[^\]]*<=")  # f32[<=8], a dimension of at most 8
WIDE = re.compile(r" = (f64|s64|u64|c128)\[")
X = tf.random.stateless_normal([8, 3], [0, 0])
Y = tf.reverse(X, [1])


def compiled_step(make_layer):
    """The instructions of a training step: the forward solve, the adjoint and Adam."""
    keras.utils.set_random_seed(0)
    dynamics = keras.layers.Dense(3, activation="tanh")
    model = keras.Sequential([keras.Input([3]), make_layer(dynamics)])
    optimizer = keras.optimizers.Adam(1e-2)
    optimizer.build(model.trainable_variables)

    @tf.function(jit_compile=True, autograph=False)
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=True) - y)) + tf.add_n(model.losses or [tf.constant(0.0)])
        optimizer.apply_gradients(zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True))
        return loss

    lines = step.experimental_get_compiler_ir(X, Y)(stage="hlo").splitlines()
    return [line.split(", metadata=")[0] for line in lines if " = " in line]


@functools.cache
def wide_types_of_keras():
    """How often each 64-bit type occurs where the dynamics is called once, with no solver: Adam counts its steps in int64."""
    return wide_types(compiled_step(lambda dynamics: dynamics))


def wide_types(instructions):
    """How many instructions give each 64-bit type."""
    return Counter(wide for line in instructions for wide in WIDE.findall(line))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="interpolating"),
        slow({"adjoint": "checkpointed"}, id="checkpointed"),
        slow({"adjoint": "backsolve"}, id="backsolve"),
        slow({"adjoint": "direct", "max_steps": 16}, id="direct"),
        slow({"per_sample": True, "regularizer": "kinetic"}, id="per_sample"),
    ],
)
def test_compiled_training_step_is_one_program_without_host_dynamic_shapes_and_wide_types(options):
    instructions = compiled_step(lambda dynamics: keras_ode.ODELayer(dynamics, **options))
    assert any(" while(" in line for line in instructions)  # the solver's loop is in the program
    assert [line for line in instructions if HOST.search(line)] == []
    assert [line for line in instructions if DYNAMIC.search(line)] == []
    assert wide_types(instructions) == wide_types_of_keras()


def test_patterns_find_what_a_tpu_lacks():
    @tf.function(jit_compile=True, autograph=False)
    def step(x):
        return tf.boolean_mask(x, x > 0), tf.cast(x, tf.float64)

    hlo = step.experimental_get_compiler_ir(X)(stage="hlo")
    assert DYNAMIC.search(hlo) and "f64" in WIDE.findall(hlo)
    assert HOST.search('%x = f32[] custom-call(f32[] %y), custom_call_target="xla_python_cpu_callback"')
