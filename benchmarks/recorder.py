"""What recording costs: the time of epochs with a `SolverStepRecorder`, over those without.

    python -m benchmarks.recorder

Models that are recorded and two that are not train in turn, an epoch each, so that all meet the same machine. The median of
the ratios counts, with its standard error. The second model that is not recorded tells what the machine's noise alone does.
"""

import argparse
import threading
import time

import keras
import numpy as np

import keras_ode

RECORDINGS = ("nothing", "nothing again", "epoch", "batch")


def build(jit_compile, per_sample):
    keras.utils.set_random_seed(0)
    dynamics = keras.Sequential([*(keras.layers.Dense(64, "tanh") for _ in range(2)), keras.layers.Dense(2)])
    layer = keras_ode.ODELayer(dynamics, rtol=1e-5, atol=1e-5, per_sample=per_sample, name="flow")
    model = keras.Sequential([keras.Input([2]), layer, keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=jit_compile)
    return model


class Turns:
    """Lets the epochs of several `fit`s, each in a thread, run one after another."""

    def __init__(self, count):
        self.count, self._now, self._changed = count, 0, threading.Condition()

    def wait(self, me):
        with self._changed:
            self._changed.wait_for(lambda: self._now == me)

    def next(self):
        with self._changed:
            self._now = (self._now + 1) % self.count
            self._changed.notify_all()


class Clock(keras.callbacks.Callback):
    """The seconds of each epoch, which waits for its turn."""

    def __init__(self, turns, me):
        super().__init__()
        self.turns, self.me, self.seconds = turns, me, []

    def on_epoch_begin(self, epoch, logs=None):
        self.turns.wait(self.me)
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.perf_counter() - self._start)
        self.turns.next()


def epochs(jit_compile, per_sample, batches, rounds):
    """The seconds of each epoch but the first, which compiles, of each kind of recording: `[kinds, rounds]`."""
    x = np.random.default_rng(0).normal(size=(128 * batches, 2)).astype("float32")
    turns, clocks, threads = Turns(len(RECORDINGS)), [], []
    for i, every in enumerate(RECORDINGS):
        model, clock = build(jit_compile, per_sample), Clock(turns, i)
        recorders = [] if "nothing" in every else [keras_ode.callbacks.SolverStepRecorder(every=every)]
        # The clock stands last, so that it counts what the recorder does at the end of an epoch.
        options = {"batch_size": 128, "epochs": rounds + 1, "verbose": 0, "shuffle": False, "callbacks": [*recorders, clock]}
        threads.append(threading.Thread(target=model.fit, args=(x, x[:, :1]), kwargs=options))
        clocks.append(clock)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return np.array([clock.seconds[1:] for clock in clocks])


def excess(ratios):
    """The median of ratios less one, with its standard error (that of a normal distribution with the same quartiles)."""
    low, median, high = np.percentile(ratios, [25, 50, 75])
    return f"{median - 1:+.1%} +- {1.253 * (high - low) / 1.349 / np.sqrt(len(ratios)):.1%}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=100, help="of an epoch")
    parser.add_argument("--rounds", type=int, default=40, help="epochs of each model")
    options = parser.parse_args()
    for jit_compile in (True, False):
        for per_sample in (False, True):
            seconds = epochs(jit_compile, per_sample, options.batches, options.rounds)
            again, of_epoch, of_batch = (excess(row / seconds[0]) for row in seconds[1:])
            print(
                f"jit_compile={jit_compile} per_sample={per_sample}: {np.median(seconds[0]) / options.batches * 1e3:.2f} ms a "
                f"step; recording every epoch {of_epoch}, every batch {of_batch}; nothing again {again}",
                flush=True,
            )
