"""What saved times cost: training steps and inference with 2 and with 100 saved times on the same interval, as Markdown.

    python -m benchmarks.saved_times

The network, the solver and the tolerance are those of the small workload of `benchmarks.peers`. Both programs of a row take turns
in one process, and the ratio is the median of the ratios of their turns.
"""

import argparse
import statistics

from benchmarks.peers import contestants, run_keras_ode, worker
from benchmarks.peers.workloads import workloads

FEW, MANY = "small", "saved"


def compared(programs, rounds, duration):
    """The median times of two programs, and the median ratio of the second to the first."""
    for program in programs:
        for _ in range(4):  # compiles it
            program()
    turns = []
    for turn in range(rounds):
        order = programs if turn % 2 == 0 else programs[::-1]
        found = [statistics.median(worker.repeat(program, duration)) for program in order]
        turns.append(found if turn % 2 == 0 else found[::-1])
    few, many = zip(*turns, strict=True)
    return statistics.median(few), statistics.median(many), statistics.median(b / a for a, b in turns)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10, help="turns of each program")
    parser.add_argument("--seconds", type=float, default=0.2, help="how long a turn lasts")
    parser.add_argument("--modes", nargs="+", choices=list(contestants.MODES), default=list(contestants.MODES))
    parser.add_argument("--adjoints", nargs="+", choices=contestants.ADJOINTS, default=contestants.ADJOINTS)
    options = parser.parse_args()
    print("| mode | adjoint | training, 2 times, ms | 100 times, ms | ratio | inference, 2 times, ms | 100 times, ms | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for mode in options.modes:
        for adjoint in options.adjoints:
            if (mode, adjoint) == ("xla", "direct"):
                continue  # needs room for as many steps as are allowed
            chosen = {"mode": mode, "adjoint": adjoint, "per_sample": False}
            built = [run_keras_ode.build(workloads()[name], chosen) for name in (FEW, MANY)]
            cells = []
            for pair in zip(*built, strict=True):
                few, many, ratio = compared(pair, options.rounds, options.seconds)
                cells += [f"{1e3 * few:.2f}", f"{1e3 * many:.2f}", f"{ratio:.2f}"]
            print("|", " | ".join([contestants.MODES[mode], adjoint, *cells]), "|", flush=True)


if __name__ == "__main__":
    main()
