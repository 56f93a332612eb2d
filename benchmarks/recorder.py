"""What recording costs: the time of training steps with a `SolverStepRecorder`, over that without."""

import argparse
import time

import keras
import numpy as np

import keras_ode


def build(jit_compile, per_sample):
    keras.utils.set_random_seed(0)
    dynamics = keras.Sequential([*(keras.layers.Dense(64, "tanh") for _ in range(2)), keras.layers.Dense(2)])
    layer = keras_ode.ODELayer(dynamics, rtol=1e-5, atol=1e-5, per_sample=per_sample, name="flow")
    model = keras.Sequential([keras.Input([2]), layer, keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=jit_compile)
    return model


class Clock(keras.callbacks.Callback):
    """The seconds of each epoch."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.perf_counter() - self._start)


def epochs(model, callbacks, batches, repeats):
    """The seconds of each epoch but the first, which compiles."""
    x = np.random.default_rng(0).normal(size=(128 * batches, 2)).astype("float32")
    clock = Clock()
    model.fit(x, x[:, :1], batch_size=128, epochs=repeats + 1, verbose=0, shuffle=False, callbacks=[clock, *callbacks])
    return clock.seconds[1:]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for jit_compile in (True, False):
        for per_sample in (False, True):
            times = {"none": [], "epoch": [], "batch": []}
            for _ in range(options.rounds):  # in turn, so that all meet the same machine
                for every, seconds in times.items():
                    recorders = [] if every == "none" else [keras_ode.callbacks.SolverStepRecorder(every=every)]
                    seconds += epochs(build(jit_compile, per_sample), recorders, options.batches, options.repeats)
            best = {every: min(seconds) / options.batches * 1e3 for every, seconds in times.items()}
            print(
                f"jit_compile={jit_compile} per_sample={per_sample}: {best['none']:.2f} ms a step; recording every epoch "
                f"{best['epoch'] / best['none'] - 1:+.1%}, every batch {best['batch'] / best['none'] - 1:+.1%}",
                flush=True,
            )
