"""keras_ode and its peers beside each other, as Markdown: training steps, inference, first step and memory.

    python -m benchmarks.peers                              all of it
    python -m benchmarks.peers --workload small --quick     one workload, each timed once

Every contestant is a process of its own, in an environment of its own that is made when missing, with the same weights
(NumPy seeds), fields, solver (Dormand and Prince 5(4)) and tolerances. A training step is forward, loss and all gradients: by
the state and by all weights. Before it is timed, a contestant's loss and gradient norms must agree with those of a
solve in float64 at a tolerance of 1e-9. Contestants take turns, one computing at a time, and medians count.

The floor is the time of a solve's evaluations and vector-Jacobian products alone, each kind in one compiled loop: as many
as the first row's solve evaluates, and six for each step that it accepts. The first step includes tracing and
compiling; memory is what the process grew by in it, at most.
"""

import argparse
import math
import statistics
import sys

from benchmarks.peers import contestants, table
from benchmarks.peers.workloads import workloads

# A contestant disagrees when it is off by more tolerances than that: its steps' errors, each about a tolerance, add up and
# are carried along; so do those of an adjoint's own solve.
TOLERANCES = 100


def deviation(answer, reference):
    """The greatest relative error of the loss, of inference, and of the gradients' norms together."""
    loss = abs(reference["loss"])
    pairs = list(zip(answer["norms"], reference["norms"], strict=True))
    return max(
        (error if math.isfinite(error) else math.inf)
        for error in (
            abs(answer["loss"] - reference["loss"]) / loss,
            abs(answer["inferred"] - reference["loss"]) / loss,
            math.hypot(*(a - b for a, b in pairs)) / math.hypot(*reference["norms"]),
        )
    )


def reference_answer(workload, timeout):
    process = contestants.Process(contestants.REFERENCE, workload, timeout)
    try:
        return process.ask("check")
    finally:
        process.close()


def start(contestant, workload, reference, allowed, timeout):
    """The process, or `None`; its first row; and its answer. Without a `reference` any answer will do."""
    process = contestants.Process(contestant, workload, timeout)
    row = table.Row(contestant.name, contestant.package)
    try:
        answer = process.ask("check")
    except contestants.ContestantError as error:
        process.close()
        return None, row._replace(remark=f"failed: {error}"), None
    row = row._replace(first=answer["seconds"], megabytes=answer["megabytes"])
    off = deviation(answer, reference) if reference else 0.0
    if off > allowed:
        process.close()
        return None, row._replace(remark=f"disagrees by {off:.0e}"), None
    return process, row, answer


def measure(name, workload, options):
    """The rows of one workload."""
    reference = reference_answer(name, options.timeout)
    waiting = contestants.of_keras_ode(workload, options.adjoints, options.modes) + contestants.of_peers(options.peers)
    running, rows, facts = [], [], None
    try:
        while waiting:
            contestant = waiting.pop(0)
            progress(f"{workload.title}: {contestant.name} {contestant.options}")
            expected = None if contestant.package == "floor" else reference
            process, row, answer = start(contestant, name, expected, TOLERANCES * workload.tolerance, options.timeout)
            if process is None:
                rows.append(row)
                continue
            running.append((process, row))
            if facts is None and answer["facts"]:
                facts = answer["facts"]
                waiting += contestants.of_floor(facts)
        progress(f"{workload.title}: taking turns")
        return rows + take_turns(running, options)
    finally:
        for process, _ in running:
            process.close()


def take_turns(running, options):
    """The rows with their medians."""
    times = [{"train": [], "infer": []} for _ in running]
    for _ in range(options.rounds):
        for (process, _), found in zip(running, times, strict=True):
            for command, seconds in found.items():
                seconds += process.ask(command, options.seconds)
    medians = [{command: statistics.median(seconds) for command, seconds in found.items()} for found in times]
    return [row._replace(**found) for (_, row), found in zip(running, medians, strict=True)]


def progress(what):
    if sys.stderr.isatty():
        print(what, file=sys.stderr)


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", nargs="+", choices=list(workloads()), default=list(workloads()), dest="workloads")
    parser.add_argument("--peers", nargs="*", choices=contestants.PEERS, default=contestants.PEERS)
    parser.add_argument("--adjoints", nargs="+", choices=contestants.ADJOINTS, default=contestants.ADJOINTS)
    parser.add_argument("--modes", nargs="+", choices=list(contestants.MODES), default=["xla", "plain"])
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contestant")
    parser.add_argument("--seconds", type=float, default=0.3, help="how long a turn lasts, at least one step")
    parser.add_argument("--timeout", type=float, default=300, help="the longest wait for a contestant, in seconds")
    parser.add_argument("--quick", action="store_true", help="one turn of one step each")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds = 1, 0.0
    return options


def main():
    options, results = parse(), {}
    print("\n".join(table.head(table.COLUMNS)), flush=True)
    for name in options.workloads:
        workload = workloads()[name]
        results[name] = table.fastest_of_each_name(measure(name, workload, options))
        print("\n".join(table.lines(workload.title, results[name], options.peers)), flush=True)
    print("", *table.summary(results, options.peers), sep="\n")


if __name__ == "__main__":
    main()
