"""keras_ode and its peers beside each other, as Markdown: training steps, inference, first step and memory.

    python -m benchmarks.peers                              all of it
    python -m benchmarks.peers --workload small --quick     one workload, each timed once

Every contestant is a process of its own, in an environment of its own that is made when missing, with the same weights
(NumPy seeds), fields, solver (Dormand and Prince 5(4)) and tolerances. A training step is forward, loss and all gradients: by
the state and by all weights. Before it is timed, a contestant's loss and gradient norms must agree with those of a
solve in float64 at a tolerance of 1e-9. Contestants take turns, one computing at a time, and medians count.

The floor is the time of a solve's evaluations and vector-Jacobian products alone, each kind in one compiled loop: as many
as the first row's solve evaluates, and six for each step that it accepts. The first step includes tracing and
compiling; memory is what the process grew by in it, at most. The last two tables lead with the default configuration: milliseconds
of each workload, with ratios to the best peer in brackets, and the means of these ratios.
"""

import argparse
import math
import statistics
import sys

from benchmarks.peers import contestants, table
from benchmarks.peers.workloads import workloads


def allowed(workload):
    """The deviation above which a contestant disagrees.

    A hundred tolerances, since the errors of steps, each about one tolerance, add up and grow on the way, in the solve and
    in that of an adjoint. Where rows differ and steps are shared, more: the root mean square lets one row of `B` have an
    error of `sqrt(B)` tolerances.
    """
    return 100 * workload.tolerance * (math.sqrt(len(workload.y0)) if workload.per_sample else 1)


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


def checked(process, expected, most):
    """The first row of a contestant, with a remark where it failed or disagrees, and facts about its solve."""
    row = table.Row(process.contestant.name, process.contestant.package)
    try:
        answer = process.ask("check")
    except contestants.ContestantError as error:
        return row._replace(remark=f"failed: {error}"), {}
    if expected and (off := deviation(answer, expected)) > most:
        return row._replace(remark="disagrees: not finite" if math.isinf(off) else f"disagrees by {off:.0e}"), {}
    return row._replace(first=answer["seconds"], megabytes=answer["megabytes"]), answer["facts"]


def measure(name, workload, options):
    """The rows of one workload."""
    reference = reference_answer(name, options.timeout)
    waiting = contestants.of_keras_ode(workload, options.adjoints, options.modes) + contestants.of_peers(workload, options.peers)
    rows, running, floor = [], {}, None
    try:
        while waiting:
            contestant = waiting.pop(0)
            if any(row.remark for row in rows if row.name == contestant.name):
                continue  # The same with other threads.
            progress(f"{workload.title}: {contestant.name} {contestant.options}")
            process = running[len(rows)] = contestants.Process(contestant, name, options.timeout)
            expected = None if contestant.package == "floor" else reference
            row, facts = checked(process, expected, allowed(workload))
            if row.remark:
                running.pop(len(rows)).close()
            if facts and floor is None and not workload.stiff:  # which counts no Jacobians
                floor = contestants.of_floor(facts)
                waiting += floor
            rows.append(row)
        progress(f"{workload.title}: taking turns")
        for index, found in take_turns(running, options).items():
            rows[index] = rows[index]._replace(**found)
        return rows
    finally:
        for process in running.values():
            process.close()


def take_turns(running, options):
    """The median times of every process, or a remark, by its key."""
    times, failed = {key: {"train": [], "infer": []} for key in running}, {}
    for _ in range(options.rounds):
        for key in [key for key in times if key not in failed]:
            try:
                for command, seconds in times[key].items():
                    seconds += running[key].ask(command, options.seconds)
            except contestants.ContestantError as error:
                running[key].close()
                failed[key] = {"remark": f"failed: {error}"}
    medians = {key: {command: statistics.median(s) for command, s in found.items() if s} for key, found in times.items()}
    return {**medians, **failed}


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
    parser.add_argument("--timeout", type=float, default=120, help="the longest wait for a contestant, in seconds")
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
    print("", *table.overview(results, options.peers), "", *table.summary(results, options.peers), sep="\n")


if __name__ == "__main__":
    main()
