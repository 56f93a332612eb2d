"""Solves in several threads share variables, layers and closures, and disturb nobody."""

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ode

THREADS = 5
RATE = 0.7
# y' = k y from 1: y(1) = exp(k), which is also its derivative by k.
RIGHT = np.exp(RATE)


class Shared:
    """What all threads read."""

    def __init__(self):
        self.variable = tf.Variable(RATE, dtype=tf.float64)
        self.constant = tf.constant(RATE, tf.float64)
        self.layer = keras.layers.Dense(1, use_bias=False, dtype="float64")
        self.layer.build((None, 1))
        self.layer.kernel.assign([[RATE]])
        self.function = tf.function(lambda y: self.variable * y)

    def dynamics(self):
        return {
            "variable": (lambda t, y: self.variable * y, self.variable),
            "function": (lambda t, y: self.function(y), self.variable),
            "layer": (self.layer, self.layer.kernel.value),
            "layer in a function": (lambda t, y: self.layer(y), self.layer.kernel.value),
            "constant": (lambda t, y: self.constant * y, self.constant),
        }


def _value_and_gradient(dynamics, source):
    with tf.GradientTape() as tape:
        tape.watch(source)
        ys = keras_ode.odeint(
            dynamics, tf.ones([1, 1], tf.float64), [0.0, 1.0], rtol=1e-6, atol=1e-6, adjoint="backsolve", jit_compile=False
        )
        value = tf.reduce_sum(ys[-1])
    return float(value), float(tf.squeeze(tape.gradient(value, source)))


def _run_in_threads(work):
    """Runs each function in a thread of its own, all at once; their errors."""
    errors, barrier = [], threading.Barrier(len(work))

    def run(function):
        barrier.wait()
        try:
            function()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(f,)) for f in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_threads_that_solve_and_train_share_what_they_read():
    shared, results, done = Shared(), [], threading.Event()

    def solve(number):
        cases = list(shared.dynamics().values())
        for i in range(2):  # neighbours share one
            results.append(_value_and_gradient(*cases[(number + i) % len(cases)]))

    def read():
        while not done.wait(0.005):
            np.testing.assert_allclose(shared.variable.numpy(), RATE)
            np.testing.assert_allclose(tf.convert_to_tensor(shared.variable), RATE)
            np.testing.assert_allclose(keras.ops.convert_to_numpy(shared.layer.kernel), [[RATE]])

    reader_errors = []
    reader = threading.Thread(target=lambda: reader_errors.extend(_run_in_threads([read, read])))
    reader.start()
    errors = _run_in_threads([lambda number=number: solve(number) for number in range(THREADS)])
    done.set()
    reader.join()
    assert errors == []
    assert reader_errors == []
    np.testing.assert_allclose(results, np.full([THREADS * 2, 2], RIGHT), rtol=1e-4)
    shared.variable.assign(0.0)
    shared.layer.kernel.assign([[0.0]])
    assert float(shared.variable + 0) == float(tf.function(lambda: shared.function(shared.constant))()) == 0
    assert _value_and_gradient(*shared.dynamics()["layer"])[0] == 1


@pytest.mark.slow
def test_threads_that_train_one_model_each_share_the_dynamics():
    dense = keras.layers.Dense(2, activation="tanh")
    dense.build((None, 2))
    models = [keras.Sequential([keras.Input([2]), keras_ode.ODELayer(dense, adjoint="backsolve")]) for _ in range(3)]
    x = np.ones([8, 2], "float32")

    def train(model):
        model.compile("sgd", "mse", jit_compile=False)
        losses = model.fit(x, 2 * x, epochs=2, verbose=0).history["loss"]
        assert losses[-1] < losses[0]

    assert _run_in_threads([lambda model=model: train(model) for model in models]) == []
