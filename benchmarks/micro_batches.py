"""Time and memory of a solve and its gradient against the number of rows, all at once and some at a time.

    python -m benchmarks.micro_batches

Each line is a process of its own. Memory is by how much its peak rises above what it was before the first solve.
"""

import argparse
import resource
import subprocess
import sys
import time

ROWS, BATCH_SIZE = (1_000, 10_000, 100_000), 1_000


def measure(num_rows, batch_size):
    """Prints seconds and megabytes of a second and the first solve with gradient."""
    import keras
    import numpy as np
    import tensorflow as tf

    import keras_ode

    network = keras.Sequential([keras.layers.Dense(32, activation="tanh"), keras.layers.Dense(8)])
    network.build((None, 8))
    y = tf.constant(np.random.default_rng(0).normal(size=(num_rows, 8)).astype("float32"))

    def gradient():
        with tf.GradientTape() as tape:
            end = keras_ode.odeint(
                network, y, [0.0, 1.0], rtol=1e-4, per_sample=True, batch_size=batch_size, adjoint="checkpointed", jit_compile=False
            )[-1]
            loss = tf.reduce_mean(end**2)
        return float(loss), [g.numpy() for g in tape.gradient(loss, network.trainable_variables)]

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    gradient()
    start, used = time.perf_counter(), time.process_time()
    gradient()
    elapsed, used = time.perf_counter() - start, time.process_time() - used
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{num_rows:8,} {batch_size or 'all':>10} {elapsed:8.2f} {used:8.2f} {memory:8.0f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs=2, type=int, help="rows, and the batch size or 0")
    arguments = parser.parse_args()
    if arguments.only:
        measure(arguments.only[0], arguments.only[1] or None)
        return
    print(f"{'rows':>8} {'batch_size':>10} {'seconds':>8} {'CPU s':>8} {'MB':>8}")
    for num_rows in ROWS:
        for batch_size in (0, BATCH_SIZE)[: 1 if num_rows == BATCH_SIZE else 2]:
            command = [sys.executable, "-m", "benchmarks.micro_batches", "--only", str(num_rows), str(batch_size)]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
