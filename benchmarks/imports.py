"""What importing keras_ode takes beyond importing TensorFlow and Keras: medians of processes in turn.

    python -m benchmarks.imports
"""

import argparse
import statistics
import subprocess
import sys

CODE = """
import time
import tensorflow, keras
begin = time.perf_counter()
import keras_ode
print(time.perf_counter() - begin)
"""


def seconds():
    """Those of one process."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    found = [seconds() for _ in range(parser.parse_args().repeats)]
    print(f"import keras_ode: {statistics.median(found):.3f} s beyond TensorFlow and Keras ({len(found)} processes)")
