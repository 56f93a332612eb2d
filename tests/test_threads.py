"""Solves in several threads share variables, layers and closures, and disturb nobody."""

import subprocess
import sys
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


@pytest.mark.slow
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


def _answers(serve):
    """What eight threads at once get for batches of different sizes, each several times, beside the answers to one thread."""
    batches = [np.random.default_rng(rows).normal(size=[rows, 2]).astype("float32") for rows in (1, 2, 3, 5, 8, 13, 21, 300)]
    found = {}

    def ask(number):
        found[number] = [np.asarray(serve(batches[number])) for _ in range(5)]

    assert _run_in_threads([lambda number=number: ask(number) for number in range(len(batches))]) == []
    return [(np.asarray(serve(x)), found[number]) for number, x in enumerate(batches)]


@pytest.mark.parametrize("kind", ["Keras", "SavedModel"])
@pytest.mark.slow
def test_threads_that_ask_one_served_model_get_the_answers_of_a_single_thread(kind, tmp_path):
    dense = keras.layers.Dense(2, activation="tanh")
    model = keras.Sequential([keras.Input([2]), keras_ode.ODELayer(dense, solver="heun", step_size=0.25)])
    if kind == "SavedModel":
        model.export(str(tmp_path / "served"), verbose=False)
        loaded = tf.saved_model.load(str(tmp_path / "served"))
    for expected, answers in _answers(model if kind == "Keras" else loaded.serve):
        for answer in answers:
            # The same operations on the same numbers; products of matrices may be summed in another order.
            np.testing.assert_allclose(answer, expected, rtol=1e-6, atol=1e-7)


SERVE_IN_THREADS = """
import sys, threading
import numpy as np
import tensorflow as tf

model = tf.saved_model.load(sys.argv[1])
batches = [np.full([rows, 2], 1 / rows, "float32") for rows in (1, 2, 3, 5, 8, 13, 21, 300)]
found, barrier = {}, threading.Barrier(8)

def ask(number):
    barrier.wait()
    found[number] = [model.serve(batches[number]).numpy() for _ in range(5)]

threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
[thread.start() for thread in threads], [thread.join() for thread in threads]
for number, x in enumerate(batches):
    for answer in found[number]:
        np.testing.assert_allclose(answer, model.serve(x).numpy(), rtol=1e-6, atol=1e-7)
print("keras_ode" in sys.modules, len(found))
"""


@pytest.mark.slow
def test_threads_of_a_process_without_the_package_get_the_answers_of_a_single_thread(tmp_path):
    model = keras.Sequential([keras.Input([2]), keras_ode.ODELayer(keras.layers.Dense(2, activation="tanh"), solver="bosh3")])
    model.export(str(tmp_path / "served"), verbose=False)
    code = [sys.executable, "-c", SERVE_IN_THREADS, str(tmp_path / "served")]
    served = subprocess.run(code, capture_output=True, text=True, cwd=tmp_path)
    assert served.stdout.splitlines() == ["False 8"], served.stderr
