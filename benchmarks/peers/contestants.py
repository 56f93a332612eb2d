"""Who runs, each in a process of its own."""

import contextlib
import json
import os
import pathlib
import select
import subprocess
import tempfile
from typing import NamedTuple

from benchmarks.peers import environments, table

ADJOINTS = ("backsolve", "interpolating", "checkpointed", "direct")
MODES = {"xla": "XLA", "plain": "graph", "auto": "graph, solve compiled"}
PEERS = ("diffrax", "torchdiffeq", "torchode", "tfp")
ROOT = pathlib.Path(__file__).resolve().parents[2]


class ContestantError(Exception):
    """What a contestant said, or that it said nothing."""


class Contestant(NamedTuple):
    """`name` is a row of the table: of several of one name, the fastest counts. `package` has the module `run_package`."""

    name: str
    package: str
    options: dict


def of_keras_ode(workload, adjoints, modes):
    solvers = {"": "dopri5"} if not workload.stiff else {f", {name}": name for name in ("rodas5p", "kvaerno5")}
    steppings = {"": workload.per_sample} | ({", shared steps": False} if workload.weights_of_rows else {})
    options = {"mode": "auto", "adjoint": None, "per_sample": workload.per_sample, "solver": next(iter(solvers.values()))}
    return [Contestant(table.DEFAULT, "keras_ode", options)] + [
        Contestant(
            f"keras_ode, {MODES[mode]}, {adjoint}{stepping}{solver}",
            "keras_ode",
            {"mode": mode, "adjoint": adjoint, "per_sample": per_sample, "solver": solvers[solver]},
        )
        for solver in solvers
        for stepping, per_sample in steppings.items()
        for mode in modes
        for adjoint in adjoints
        # Under XLA, direct differentiation needs room for as many steps as are allowed, not as are taken.
        if (mode, adjoint) != ("xla", "direct") and not (workload.stiff and adjoint in ("backsolve", "direct"))
    ]


def of_peers(workload, packages):
    everyone = of_stiff_peers() if workload.stiff else of_explicit_peers()
    return [contestant for contestant in everyone if contestant.package in packages]


def of_explicit_peers():
    threads = (1, 2)
    return [
        *(Contestant(f"diffrax, {a}", "diffrax", {"adjoint": a}) for a in ("checkpointed", "backsolve")),
        *(
            Contestant(f"torchdiffeq, {a}", "torchdiffeq", {"adjoint": a, "threads": n})
            for a in ("adjoint", "seminorm", "direct")
            for n in threads
        ),
        *(Contestant("torchode", "torchode", {"threads": n}) for n in threads),
        *(Contestant(f"tfp, {MODES[mode]}", "tfp", {"mode": mode}) for mode in ("plain", "xla")),
    ]


def of_stiff_peers():
    """Those with methods for stiff equations: torchdiffeq's released one is SciPy's."""
    return [
        Contestant("diffrax, checkpointed, Kvaerno5", "diffrax", {"adjoint": "checkpointed"}),
        *(Contestant("torchdiffeq, adjoint, SciPy's Radau", "torchdiffeq", {"adjoint": "adjoint", "threads": n}) for n in (1, 2)),
    ]


def of_floor(facts):
    """Who computes no more than the arithmetic of a solve; Dormand and Prince's step has six products."""
    counts = {"evaluations": facts["evaluations"], "products": 6 * facts["accepted"]}
    return [Contestant("floor", "floor", {"mode": mode, **counts}) for mode in ("xla", "plain")]


# Whom the others are compared with.
_EXACT = {"adjoint": "checkpointed", "float64": True, "tolerance": 1e-9, "max_steps": 100_000}
REFERENCE = Contestant("reference", "diffrax", _EXACT)


class Process:
    """A contestant's worker on one workload."""

    def __init__(self, contestant, workload, timeout):
        self.contestant, self._timeout = contestant, timeout
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (it lives as long as the process)
        options = json.dumps({"workload": workload, **contestant.options})
        quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu", "JAX_TRACEBACK_FILTERING": "off", "CUDA_VISIBLE_DEVICES": ""}
        self._process = subprocess.Popen(
            [environments.python(contestant.package), "-m", "benchmarks.peers.worker", f"run_{contestant.package}", options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": str(ROOT), **quiet},
            cwd=ROOT,
            text=True,
        )

    def ask(self, *command):
        """The answer to a command. Only one contestant computes at a time, so each is awaited."""
        try:
            print(*command, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise ContestantError(self._last_error()) from None
        if not select.select([self._process.stdout], [], [], self._timeout)[0]:
            raise ContestantError(f"no answer in {self._timeout} s")
        answer = self._process.stdout.readline()
        if not answer:
            raise ContestantError(self._last_error())
        return json.loads(answer)

    def close(self):
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            with contextlib.suppress(BrokenPipeError):  # What it was not there to read.
                pipe.close()

    def _last_error(self):
        self._process.wait()
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors]
        return ([line for line in lines if "Error" in line] or ["no message"])[-1][:120]
