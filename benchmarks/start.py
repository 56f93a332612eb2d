"""How long users wait, as two Markdown tables: for epochs and predictions by `jit_compile`, and until compiling has paid.

    python -m benchmarks.start
    python -m benchmarks.start --model small

Each row is measured in a process of its own.
"""

import argparse
import json
import statistics
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
JIT_COMPILE = {"auto": "auto", "False": False, "True": True}


def model_of(name, jit_compile):
    """A Keras model and a batch for it."""
    import keras
    import tensorflow as tf

    import keras_ode

    keras.utils.set_random_seed(0)
    width, size, rows, end, calls = MODELS[name]
    dynamics = keras.Sequential([keras.layers.Dense(width, activation="tanh"), keras.layers.Dense(size)])
    layer = keras_ode.ODELayer(dynamics, t=(0.0, end), jit_compile=jit_compile)
    h = inputs = keras.Input([size])
    for _ in range(calls):
        h = layer(h)
    return keras.Model(inputs, h), tf.random.normal([rows, size])


def start_tensorflow():
    import tensorflow as tf

    import keras_ode  # noqa: F401

    tf.function(lambda x: x + 1)(tf.ones(3))


def waiting(name, jit_compile):
    """Seconds to the end of each number of epochs, the first of all included, and of the predictions after that."""
    import tensorflow as tf

    start_tensorflow()
    _, size, rows, *_ = MODELS[name]
    x = tf.random.normal([int(BATCHES * rows), size]).numpy()
    began = time.perf_counter()
    model, _ = model_of(name, jit_compile)
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


def gradients(name, compiled):
    """Seconds of the first gradient and of a later one in a `tf.function`, and steps of the solver that one takes."""
    import tensorflow as tf

    from keras_ode import programs

    start_tensorflow()
    programs.STEPS_BEFORE_COMPILING = 0 if compiled else 10**12
    began = time.perf_counter()
    model, x = model_of(name, "auto")
    layer = model.layers[-1]

    @tf.function
    def gradient(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model(x) ** 2)
        return tape.gradient(loss, model.trainable_weights)

    seconds = []
    for _ in range(50):
        gradient(x)
        seconds.append(time.perf_counter() - began)
        began = time.perf_counter()
    steps = int(layer.solve(x).stats["num_steps"]) * MODELS[name][-1]
    return seconds[0], statistics.median(seconds[10:]), steps


def measured(name, jit):
    """What a process of its own finds."""
    command = [sys.executable, "-m", "benchmarks.start", "--model", name, "--jit", jit]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(found.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=list(MODELS), help="only this one")
    parser.add_argument("--jit", choices=[*JIT_COMPILE, "plain", "compiled"], help="only this one, in this process; prints JSON")
    options = parser.parse_args()
    if options.jit:
        name = options.model or "small"
        waits = options.jit in JIT_COMPILE
        print(json.dumps(waiting(name, JIT_COMPILE[options.jit]) if waits else gradients(name, options.jit == "compiled")))
        return
    names = [options.model] if options.model else list(MODELS)
    print("| model | `jit_compile` | 1 epoch, s | 10 epochs, s | 100 epochs, s | predict 10 sizes, s |")
    print("|---|---|---|---|---|---|")
    for name in names:
        for jit in JIT_COMPILE:
            cells = " | ".join(f"{x:.1f}" for x in measured(name, jit))
            print(f"| {name} | `{jit}` | {cells} |", flush=True)
    # Of gradients.
    print("\n| model | first gradient, s | compiled, s | later ones, ms | compiled, ms | steps of one | break-even, steps |")
    print("|---|---|---|---|---|---|---|")
    for name in names:
        (first, plain, steps), (first_compiled, compiled, _) = measured(name, "plain"), measured(name, "compiled")
        saved = plain - compiled
        paid = f"{(first_compiled - first) / saved * steps:.0f}" if saved > 0 else "never"
        cells = f"{first:.1f} | {first_compiled:.1f} | {1e3 * plain:.2f} | {1e3 * compiled:.2f} | {steps} | {paid}"
        print(f"| {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
