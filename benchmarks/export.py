"""Sizes and latencies of exported models: SavedModel, LiteRT and ONNX, beside Keras.

    python -m benchmarks.export              a Markdown table
    python -m benchmarks.export --calls 100

A SavedModel's size is that of its graph. `without` is that of the graph that training uses, which holds what a backward pass needs.
Latencies are medians, on the CPU. Needs the packages of `pip install "keras_ode[export]"`.
"""

import argparse
import contextlib
import io
import logging
import pathlib
import statistics
import tempfile
import time
import unittest.mock

import keras
import numpy as np
import onnxruntime
import tensorflow as tf

from keras_ode import ODELayer, internals

SAVED = {"t": tuple(np.linspace(0, 1, 20)), "return_sequences": True}
CONFIGURATIONS = {
    "`rk4`, 10 steps": {"solver": "rk4", "step_size": 0.1},
    "`tsit5`": {},
    "`tsit5`, `per_sample`": {"per_sample": True},
    "`tsit5`, 20 saved times": SAVED,
    "`rodas5p`": {"solver": "rodas5p"},
}
ROWS = 1, 300
WIDTH = 32


def network(options):
    dynamics = keras.Sequential([keras.layers.Dense(WIDTH, activation="tanh"), keras.layers.Dense(2)])
    return keras.Sequential([keras.Input([2], name="x"), ODELayer(dynamics, **options)])


def saved_model(model, folder):
    """A function that runs the SavedModel, and the size of its graph in bytes."""
    model.export(str(folder), verbose=False)
    loaded = tf.saved_model.load(str(folder))
    return lambda x: loaded.serve(x), (folder / "saved_model.pb").stat().st_size


def size_without(model, folder):
    """The size of a SavedModel whose graph is the one that training uses."""
    with unittest.mock.patch.object(internals, "is_exporting", lambda: False):
        return saved_model(model, folder)[1]


def lite(folder):
    converted = tf.lite.TFLiteConverter.from_saved_model(str(folder)).convert()
    runner = tf.lite.Interpreter(model_content=converted, num_threads=1).get_signature_runner()
    return lambda x: runner(x=x), len(converted)


def onnx(model, path):
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    model(np.zeros([1, 2], "float32"))
    model.export(str(path), format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(str(path))
    (given,) = session.get_inputs()
    return lambda x: session.run(None, {given.name: x}), path.stat().st_size


def milliseconds(run, rows, calls):
    x, found = np.random.default_rng(0).normal(size=[rows, 2]).astype("float32"), []
    for _ in range(3):
        run(x)
    for _ in range(calls):
        begin = time.perf_counter()
        run(x)
        found.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(found)


def row(name, options, calls):
    keras.utils.set_random_seed(0)
    model = network(options)
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stderr(io.StringIO()):
        folder = pathlib.Path(scratch)
        served, size = saved_model(model, folder / "served")
        without = size_without(model, folder / "without")
        of_lite, lite_size = lite(folder / "served")
        of_onnx, onnx_size = onnx(model, folder / "model.onnx")
        runs = (lambda x: model(x, training=False), served, of_lite, of_onnx)
        times = [" / ".join(f"{milliseconds(run, rows, calls):.2g}" for rows in ROWS) for run in runs]
    sizes = [f"{bytes_ / 1000:.0f}" for bytes_ in (size, without, lite_size, onnx_size)]
    return f"| {' | '.join([name, *sizes, *times])} |"


def main(calls):
    columns = ["SavedModel, kB", "without, kB", "LiteRT, kB", "ONNX, kB", "Keras, ms", "SavedModel, ms", "LiteRT, ms", "ONNX, ms"]
    print(f"Latencies at {' / '.join(map(str, ROWS))} rows.\n")
    print(f"| model | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for name, options in CONFIGURATIONS.items():
        print(row(name, options, calls), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=30)
    main(parser.parse_args().calls)
