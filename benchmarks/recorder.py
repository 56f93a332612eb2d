"""What recording costs: the time of epochs with a `SolverStepRecorder`, over those without.

    python -m benchmarks.recorder

Models that are recorded and one that is not train in turn, an epoch each, so that all meet the same machine; the median of
the ratios counts.
"""

import argparse
import threading
import time

import keras
import numpy as np

import keras_ode

RECORDINGS = ("nothing", "epoch", "batch")


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
        recorders = [] if every == "nothing" else [keras_ode.callbacks.SolverStepRecorder(every=every)]
        # The clock stands last, so that it counts what the recorder does at the end of an epoch.
        options = {"batch_size": 128, "epochs": rounds + 1, "verbose": 0, "shuffle": False, "callbacks": [*recorders, clock]}
        threads.append(threading.Thread(target=model.fit, args=(x, x[:, :1]), kwargs=options))
        clocks.append(clock)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return np.array([clock.seconds[1:] for clock in clocks])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=100, help="of an epoch")
    parser.add_argument("--rounds", type=int, default=40, help="epochs of each model")
    options = parser.parse_args()
    for jit_compile in (True, False):
        for per_sample in (False, True):
            seconds = epochs(jit_compile, per_sample, options.batches, options.rounds)
            of_epoch, of_batch = (np.median(row / seconds[0]) - 1 for row in seconds[1:])
            print(
                f"jit_compile={jit_compile} per_sample={per_sample}: {np.median(seconds[0]) / options.batches * 1e3:.2f} ms a "
                f"step; recording every epoch {of_epoch:+.1%}, every batch {of_batch:+.1%}",
                flush=True,
            )
