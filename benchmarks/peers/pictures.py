"""Two pictures of keras_ode beside its peers: how accurate a gradient is for its time, and how time and memory grow.

    python -m benchmarks.peers.pictures precision [--output docs/images/precision.png]
    python -m benchmarks.peers.pictures growth [--output docs/images/growth.png]

`precision` computes in float64: the error of a gradient is that of all gradients' norms together, against diffrax at a
tolerance of 1e-13. Of each package the points count that no other point of it beats, so that each has its best solver.
`growth` computes in float32 by Dormand and Prince's pair. Its slopes are those of the last two points, on logarithmic axes.
Memory is what the process grew by in its first training step, with tracing and compiling.
"""

import argparse
import math
import statistics
from typing import NamedTuple

import numpy as np

from benchmarks.peers.contestants import Contestant, ContestantError, Process
from benchmarks.peers.workloads import GROWTH

TOLERANCES = [10.0**-k for k in range(3, 12)]
STYLES = {"keras_ode": ("C0", "o-"), "diffrax": ("C1", "^--"), "torchdiffeq": ("C2", "s:")}
# Of each package the solvers that it would use, and what it must be told beside them.
EXPLICIT = {
    "keras_ode": (["dopri5", "tsit5", "dopri8", "vern7"], {"mode": "xla", "adjoint": "checkpointed"}),
    "diffrax": (["Dopri5", "Tsit5", "Dopri8"], {"adjoint": "checkpointed"}),
    "torchdiffeq": (["dopri5", "dopri8"], {"adjoint": "direct", "threads": 1}),
}
STIFF = {
    "keras_ode": (["rodas5p", "kvaerno5"], {"mode": "xla", "adjoint": "checkpointed"}),
    "diffrax": (["Kvaerno3", "Kvaerno5"], {"adjoint": "checkpointed"}),
}
PROBLEMS = {"small": EXPLICIT, "long": EXPLICIT, "stiff": STIFF}
# By default and by the least memory; the adjoint equation of torchdiffeq is what keeps its memory flat.
GROWING = {
    "keras_ode, default": ("keras_ode", {"mode": "auto", "adjoint": None, "per_sample": False}, "C0", "o-"),
    "keras_ode, checkpointed": ("keras_ode", {"mode": "xla", "adjoint": "checkpointed", "per_sample": False}, "C0", "o:"),
    "diffrax, checkpointed": ("diffrax", {"adjoint": "checkpointed"}, "C1", "^--"),
    "torchdiffeq, direct": ("torchdiffeq", {"adjoint": "direct", "threads": 2}, "C2", "s:"),
    "torchdiffeq, adjoint": ("torchdiffeq", {"adjoint": "adjoint", "threads": 2}, "C2", "s--"),
}
MOST_STEPS = 50_000


class Point(NamedTuple):
    """What one process found: seconds of a later training step, megabytes, and the norms of its gradients."""

    seconds: float
    megabytes: float
    norms: np.ndarray


def measured(package, options, workload, seconds, timeout):
    """A point, or nothing where the contestant fails or takes too long."""
    process = Process(Contestant(package, package, {"max_steps": MOST_STEPS, **options}), workload, timeout)
    try:
        first = process.ask("check")
        times = process.ask("train", seconds)
    except ContestantError as error:
        print(f"{package} {options}: {error}", flush=True)
        return None
    finally:
        process.close()
    return Point(statistics.median(times), first["megabytes"], np.array(first["norms"]))


def best_of(points):
    """Of pairs (seconds, error) those that no other beats in both."""
    kept, least = [], math.inf
    for seconds, error in sorted(points):
        if error < least:
            kept.append((seconds, error))
            least = error
    return kept


def draw_precision(plt, options):
    figure, axes = plt.subplots(1, len(PROBLEMS), figsize=(13, 4.6), layout="constrained")
    for axis, (name, packages) in zip(axes, PROBLEMS.items(), strict=True):
        exact = {"adjoint": "checkpointed", "tolerance": 1e-13, "float64": True}
        reference = measured("diffrax", exact, name, 0, options.timeout).norms
        for package, (solvers, chosen) in packages.items():
            found = []
            for solver in solvers:
                for tolerance in TOLERANCES:
                    how = {"solver": solver, "tolerance": tolerance, "float64": True, "per_sample": name == "stiff", **chosen}
                    if point := measured(package, how, name, options.seconds, options.timeout):
                        error = np.linalg.norm(point.norms - reference) / np.linalg.norm(reference)
                        print(f"{name} {package} {solver} {tolerance:.0e}: {1e3 * point.seconds:.2f} ms, {error:.1e}", flush=True)
                        found.append((1e3 * point.seconds, error))
            color, style = STYLES[package]
            axis.plot(*zip(*best_of(found), strict=True), style, color=color, label=package, markersize=4)
        axis.set(title=name, xscale="log", yscale="log", xlabel="training step, ms", ylabel="relative error of the gradient")
        axis.grid(alpha=0.3)
        axis.legend()
    return figure


def draw_growth(plt, options):
    figure, axes = plt.subplots(2, len(GROWTH), figsize=(15, 7), layout="constrained", sharex="col")
    for (above, below), (quantity, values) in zip(axes.T, GROWTH.items(), strict=True):
        for name, (package, chosen, color, style) in GROWING.items():
            found = []
            for value in values:
                point = measured(package, {"grown": (quantity, value), **chosen}, quantity, options.seconds, options.timeout)
                if point is None:
                    break
                found.append((value, 1e3 * point.seconds, point.megabytes))
                print(f"{quantity} {value} {name}: {1e3 * point.seconds:.2f} ms, {point.megabytes:.0f} MB", flush=True)
            for axis, column in ((above, 1), (below, 2)):
                x, y = [point[0] for point in found], [point[column] for point in found]
                slope = f" ({math.log(y[-1] / y[-2]) / math.log(x[-1] / x[-2]):.2f})" if len(x) > 1 else ""
                axis.plot(x, y, style, color=color, label=name + slope, markersize=4)
        above.set(title=quantity, ylabel="training step, ms")
        below.set(xlabel=quantity, ylabel="memory, MB")
        for axis in (above, below):
            axis.set(xscale="log", yscale="log")
            axis.grid(alpha=0.3)
            axis.legend(fontsize=7, title="slope at the end in brackets", title_fontsize=7)
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["precision", "growth"])
    parser.add_argument("--output", help="defaults to docs/images/WHAT.png")
    parser.add_argument("--seconds", type=float, default=0.2, help="how long later steps are timed, one at least")
    parser.add_argument("--timeout", type=float, default=60, help="the longest wait for a contestant, in seconds")
    options = parser.parse_args()
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = {"precision": draw_precision, "growth": draw_growth}[options.what](plt, options)
    output = options.output or f"docs/images/{options.what}.png"
    figure.savefig(output, dpi=110)
    print(f"saved {output}")


if __name__ == "__main__":
    main()
