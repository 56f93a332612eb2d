"""The process of one contestant: builds its two programs, and runs them as it is told.

    python -m benchmarks.peers.worker MODULE OPTIONS

`MODULE` has `build(workload, options)`, which returns `train` and `infer`, functions without arguments that return when
their work is done: `train` the loss, the gradients by the state and the weights, and a dict of facts, `infer` the loss.
`OPTIONS` are JSON. Commands come on standard input, one a line; each is answered by one line of JSON:

    check           the first runs: the loss, the norms of the gradients, and what the first training step took
    train SECONDS   as many training steps as fill the time, one at least
    infer SECONDS   the same of inference
"""

import importlib
import json
import os
import pathlib
import re
import sys
import time

import numpy as np

from benchmarks.peers.workloads import grown, workloads


def megabytes(what):
    """The memory that this process has (`VmRSS`) or ever had (`VmHWM`; the resource module would count its parent's too)."""
    return int(re.search(rf"{what}:\s*([0-9]+)", pathlib.Path("/proc/self/status").read_text()).group(1)) / 1024


def timed(program):
    begin = time.perf_counter()
    result = program()
    return time.perf_counter() - begin, result


def check(train, infer):
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # Forgets the peak of the imports.
    before = megabytes("VmRSS")
    seconds, (loss, gradients, facts) = timed(train)
    peak = megabytes("VmHWM")
    return {
        "seconds": seconds,
        "loss": float(loss),
        "norms": [float(np.linalg.norm(np.asarray(gradient, "float64"))) for gradient in gradients],
        "facts": {name: int(np.max(fact)) for name, fact in facts.items()},
        "megabytes": peak - before,
        "inferred": float(infer()),
    }


def repeat(program, seconds):
    """The times of runs that fill so many seconds. The first warms the caches that other contestants have used."""
    program()
    end, times = time.perf_counter() + seconds, []
    while not times or time.perf_counter() < end:
        times.append(timed(program)[0])
    return times


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # What libraries print is no answer.
    module, options = importlib.import_module(f"benchmarks.peers.{sys.argv[1]}"), json.loads(sys.argv[2])
    workload = grown(*options["grown"]) if "grown" in options else workloads()[options["workload"]]
    workload = workload._replace(tolerance=options.get("tolerance", workload.tolerance))
    if options.get("float64"):
        y0, times, weights = workload.y0.astype("float64"), workload.times.astype("float64"), workload.weights
        workload = workload._replace(y0=y0, times=times, weights=tuple(w.astype("float64") for w in weights))
    train, infer = module.build(workload, options)
    for line in sys.stdin:
        command, *seconds = line.split()
        programs = {"train": train, "infer": infer}
        answer = check(**programs) if command == "check" else repeat(programs[command], float(seconds[0]))
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
