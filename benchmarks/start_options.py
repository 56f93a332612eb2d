"""Which options of an `ODELayer` shorten the start, as a Markdown table: CPU time of the first epoch and of the first predictions.

    python -m benchmarks.start_options

The model is "small" of `benchmarks.start`. Each figure is the median of `--repeats` processes, which take turns. CPU time is that
of all threads, so other programs on the machine change it little. It does not contain the imports, whose CPU time is printed below
the table.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time

CHECKPOINTED = {"jit_compile": False, "adjoint": "checkpointed"}
OPTIONS = {
    "the defaults": {},
    "`jit_compile=False`": {"jit_compile": False},
    '`jit_compile=False, adjoint="checkpointed"`': CHECKPOINTED,
    '`jit_compile=False, adjoint="checkpointed", solver="bosh3"`': {**CHECKPOINTED, "solver": "bosh3"},
}
SERVED = "a SavedModel of it, loaded in a new process"


def cpu_time():
    return time.clock_gettime(time.CLOCK_PROCESS_CPUTIME_ID)


def of_options(options, folder):
    """CPU seconds of the import, of the first epoch and of the predictions; leaves a SavedModel in `folder`."""
    began = cpu_time()
    import keras
    import tensorflow as tf

    import keras_ode
    from benchmarks.start import BATCHES, MODELS, PREDICTED, start_tensorflow

    imported = cpu_time() - began
    start_tensorflow()
    keras.utils.set_random_seed(0)
    width, size, rows, end, _ = MODELS["small"]
    x = tf.random.normal([int(BATCHES * rows), size]).numpy()
    began = cpu_time()
    dynamics = keras.Sequential([keras.layers.Dense(width, activation="tanh"), keras.layers.Dense(size)])
    model = keras.Sequential([keras.Input([size]), keras_ode.ODELayer(dynamics, t=(0.0, end), **options)])
    model.compile("adam", "mse")
    model.fit(x, 0.5 * x, batch_size=rows, epochs=1, verbose=0)
    trained = cpu_time() - began
    began = cpu_time()
    for count in PREDICTED:
        model.predict(x[:count], verbose=0)
    predicted = cpu_time() - began
    model.export(folder, verbose=False)
    return imported, trained, predicted


def of_saved_model(folder):
    """CPU seconds to load a SavedModel, and to predict as the model did."""
    import tensorflow as tf

    from benchmarks.start import MODELS, PREDICTED

    tf.function(lambda x: x + 1)(tf.ones(3))
    x = tf.random.normal([max(PREDICTED), MODELS["small"][1]])
    began = cpu_time()
    served = tf.saved_model.load(folder)
    for count in PREDICTED:
        served.serve(x[:count])
    return (cpu_time() - began,)


def measured(*arguments):
    """What a process of its own finds."""
    command = [sys.executable, "-m", "benchmarks.start_options", *arguments]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--options", type=json.loads, help="only these, in this process; prints JSON")
    parser.add_argument("--folder", help="for the SavedModel; without --options it is loaded")
    given = parser.parse_args()
    if given.folder:
        found = of_saved_model(given.folder) if given.options is None else of_options(given.options, given.folder)
        print(json.dumps(found))
        return
    results = {name: [] for name in (*OPTIONS, SERVED)}
    for _ in range(given.repeats):
        for name, options in OPTIONS.items():
            with tempfile.TemporaryDirectory() as folder:
                results[name].append(measured("--options", json.dumps(options), "--folder", folder))
                if options == CHECKPOINTED:
                    results[SERVED].append(measured("--folder", folder))
    print("| options | first epoch of `fit`, s of CPU time | ten sizes in `predict`, s of CPU time |\n|---|---|---|")
    for name in OPTIONS:
        _, trained, predicted = (statistics.median(column) for column in zip(*results[name], strict=True))
        print(f"| {name} | {trained:.1f} | {predicted:.1f} |")
    print(f"| {SERVED} | | {statistics.median(row[0] for row in results[SERVED]):.1f} |")
    imports = [row[0] for name in OPTIONS for row in results[name]]
    print(f"\nThe imports take {statistics.median(imports):.1f} s of CPU time.")


if __name__ == "__main__":
    main()
