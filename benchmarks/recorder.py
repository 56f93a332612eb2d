"""What recording costs: the time of a training step with a `SolverStepRecorder`, beside the same step without.

    python -m benchmarks.recorder

Four models train in turn, a block of steps each, in all orders, so that all meet the same machine: one that is recorded, and
three that are not. The median of the ratios counts, with its standard error. The second model that is not recorded tells how much
two programs that are the same differ. The third has four metrics of Keras, since a recorder has four metrics too.
"""

import argparse
import itertools
import time

import keras
import numpy as np
import tensorflow as tf

import keras_ode

MODELS = {  # the rows of a batch, the width of the dynamics, and the end time
    "short": (128, 64, 1.0),
    "wide": (512, 256, 1.0),
    "long": (128, 64, 20.0),
}
MODES = {  # whether XLA compiles the training step, and whether every sample has its own steps
    "xla": (True, False),
    "xla_per_sample": (True, True),
    "plain": (False, False),
    "plain_per_sample": (False, True),
}
METRICS = ["mean_absolute_error", "mean_absolute_percentage_error", "mean_squared_logarithmic_error", "mean_squared_error"]
BLOCK = 4


def build(name, jit_compile, per_sample, metrics):
    rows, width, end = MODELS[name]
    keras.utils.set_random_seed(0)
    dynamics = keras.Sequential([*(keras.layers.Dense(width, "tanh") for _ in range(2)), keras.layers.Dense(2)])
    options = {"rtol": 1e-5, "atol": 1e-5, "per_sample": per_sample, "jit_compile": "auto" if jit_compile else False}
    layer = keras_ode.ODELayer(dynamics, t=[0.0, end], name="flow", **options)
    model = keras.Sequential([keras.Input([2]), layer, keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.0), "mse", metrics=metrics, jit_compile=jit_compile)
    return model, np.random.default_rng(0).normal(size=(rows, 2)).astype("float32")


def training(name, jit_compile, per_sample, recorded=False, metrics=()):
    """A function that trains a block of steps as `fit` does, and returns the mean seconds of each but the first."""
    model, x = build(name, jit_compile, per_sample, list(metrics))
    model.fit(x, x[:, :1], batch_size=len(x), verbose=0)
    callbacks = keras.callbacks.CallbackList([keras_ode.callbacks.SolverStepRecorder()] if recorded else [], model=model)
    model.make_train_function(force=True)
    batches = iter(tf.data.Dataset.from_tensors((x, x[:, :1])).repeat())

    def step(number):
        callbacks.on_train_batch_begin(number)
        callbacks.on_train_batch_end(number, model.train_function(batches))

    def block():
        step(0)  # brings the program back into the caches of the processor
        start = time.perf_counter()
        for number in range(BLOCK):
            step(number + 1)
        return (time.perf_counter() - start) / BLOCK

    callbacks.on_train_begin()
    for _ in range(3):
        block()
    return block


def measure(*case, rounds):
    """The seconds of a step of each of the four models in each round, `[rounds, 4]`."""
    kinds = {}, {"recorded": True}, {}, {"metrics": METRICS}
    blocks = [training(*case, **kind) for kind in kinds]
    seconds = np.zeros([rounds, len(kinds)])
    for row, order in zip(seconds, itertools.cycle(itertools.permutations(range(len(kinds)))), strict=False):
        for i in order:
            row[i] = blocks[i]()
    return seconds


def excess(ratios):
    """The median of ratios less one, with its standard error (that of a normal distribution with the same quartiles)."""
    low, median, high = np.percentile(ratios, [25, 50, 75])
    return f"{median - 1:+.1%} +- {1.253 * (high - low) / 1.349 / np.sqrt(len(ratios)):.1%}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--rounds", type=int, default=120, help=f"blocks of {BLOCK} steps of each model")
    options = parser.parse_args()
    print("model    mode              ms without  ms recording  cost               four metrics       the same program again")
    for name, mode in itertools.product(options.models, options.modes):
        without, recording, again, metrics = measure(name, *MODES[mode], rounds=options.rounds).T
        milliseconds = f"{np.median(without) * 1e3:10.2f}  {np.median(recording - without) * 1e3:+12.2f}"
        costs = f"{excess(recording / without):18} {excess(metrics / without):18} {excess(again / without)}"
        print(f"{name:8} {mode:16} {milliseconds}  {costs}", flush=True)
