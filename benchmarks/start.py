"""How long users wait: time to the end of the first, the tenth and the hundredth epoch, and for predictions, by `jit_compile`.

Prints one Markdown table. Each row is measured in a process of its own.
"""

import argparse
import json
import subprocess
import sys
import time

MODELS = {  # width, size of the state, rows of a batch, end time, calls of the layer
    "small": (32, 2, 32, 1.0, 1),
    "five calls": (32, 2, 32, 1.0, 5),
    "wide": (256, 64, 256, 1.0, 1),
    "long": (32, 2, 32, 60.0, 1),
}
EPOCHS = (1, 10, 100)
BATCHES = 7.5  # the last one is half as large
PREDICTED = (1, 2, 3, 5, 8, 13, 21, 34, 55, 89)


def measure(name, jit_compile):
    """Seconds to the end of each number of epochs, the first of all included, and of the predictions after that."""
    import keras
    import tensorflow as tf

    import keras_ode

    keras.utils.set_random_seed(0)
    width, size, rows, end, calls = MODELS[name]
    tf.function(lambda x: x + 1)(tf.ones(3))  # TensorFlow itself has started
    x = tf.random.normal([int(BATCHES * rows), size]).numpy()
    began = time.perf_counter()
    dynamics = keras.Sequential([keras.layers.Dense(width, activation="tanh"), keras.layers.Dense(size)])
    layer = keras_ode.ODELayer(dynamics, t=(0.0, end), jit_compile=jit_compile)
    h = inputs = keras.Input([size])
    for _ in range(calls):
        h = layer(h)
    model = keras.Model(inputs, h)
    model.compile("adam", "mse")
    seconds, done = [], 0
    for epochs in EPOCHS:
        model.fit(x, 0.5 * x, batch_size=rows, epochs=epochs - done, verbose=0)
        done = epochs
        seconds.append(time.perf_counter() - began)
    began = time.perf_counter()
    for count in PREDICTED:
        model.predict(x[:count], verbose=0)
    return [*seconds, time.perf_counter() - began]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=list(MODELS), help="only this one")
    parser.add_argument("--jit", choices=["auto", "False", "True"], help="only this one, in this process; prints JSON")
    options = parser.parse_args()
    values = {"auto": "auto", "False": False, "True": True}
    if options.jit:
        print(json.dumps(measure(options.model or "small", values[options.jit])))
        return
    print("| model | `jit_compile` | 1 epoch, s | 10 epochs, s | 100 epochs, s | predict 10 sizes, s |")
    print("|---|---|---|---|---|---|")
    for name in [options.model] if options.model else MODELS:
        for jit in values:
            command = [sys.executable, "-m", "benchmarks.start", "--model", name, "--jit", jit]
            found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            cells = " | ".join(f"{x:.1f}" for x in json.loads(found.splitlines()[-1]))
            print(f"| {name} | `{jit}` | {cells} |", flush=True)


if __name__ == "__main__":
    main()
