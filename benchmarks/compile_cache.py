"""What TensorFlow's persistent cache saves: the first compiled training step in three processes, as Markdown.

    python -m benchmarks.compile_cache

The first process has no cache, the second fills an empty one, and the third finds in it what the second compiled. The model is the
small one of `benchmarks.peers`, with the default adjoint, in a `tf.function(jit_compile=True)`.
"""

import json
import os
import subprocess
import sys
import tempfile
import time


def first_step():
    """Prints the seconds of the first and of the second training step, and those of all processors in the first."""
    from benchmarks.peers import run_keras_ode
    from benchmarks.peers.workloads import workloads

    train, _ = run_keras_ode.build(workloads()["small"], {"mode": "xla", "adjoint": "interpolating", "per_sample": False})
    found = []
    for _ in range(2):
        begin, used = time.perf_counter(), time.process_time()
        train()
        found.append((time.perf_counter() - begin, time.process_time() - used))
    print(json.dumps(found))


def run(directory=None):
    flags = {"TF_XLA_FLAGS": f"--tf_xla_persistent_cache_directory={directory}"} if directory else {}
    command = [sys.executable, "-m", "benchmarks.compile_cache", "--first-step"]
    result = subprocess.run(command, env=os.environ | flags, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return json.loads(result.stdout)


def main():
    print("| process | first step, s | its CPU time, s | second step, ms |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as directory:
        for name, chosen in (("no cache", None), ("empty cache", directory), ("filled cache", directory)):
            (seconds, used), (later, _) = run(chosen)
            print(f"| {name} | {seconds:.1f} | {used:.1f} | {1e3 * later:.1f} |", flush=True)
        size = sum(entry.stat().st_size for entry in os.scandir(directory))
        print(f"\nThe cache has {len(os.listdir(directory))} files and {size / 1e6:.1f} MB.")


if __name__ == "__main__":
    first_step() if "--first-step" in sys.argv else main()
