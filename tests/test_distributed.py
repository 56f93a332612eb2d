"""Several processes train as one, and killed ones resume; the program that they run is examples/distributed.py."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

PROGRAM = pathlib.Path(__file__).parents[1] / "examples" / "distributed.py"
KILL_AT = 35  # of 60 steps; the last checkpoint before is that of step 30
TIMEOUT = 600


def train(directory, *options_of_each):
    """Trains in one process for each list of options, as workers if there are several; returns their exit codes and their output."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in options_of_each]
        hosts = ["{}:{}".format(*s.getsockname()) for s in sockets]
    processes = []
    try:
        for i, options in enumerate(options_of_each):
            task = {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": i}}
            environment = {**os.environ, **({"TF_CONFIG": json.dumps(task)} if len(hosts) > 1 else {})}
            command = [sys.executable, PROGRAM, "--quick", "--replicas=1", f"--output={directory}", *options]
            processes.append(subprocess.Popen(
                command, env=environment, cwd=PROGRAM.parents[1], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                start_new_session=True,
            ))  # fmt: skip
        outputs = [process.communicate(timeout=TIMEOUT)[0] for process in processes]
        return [process.returncode for process in processes], outputs
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def weights(directory, worker=0):
    return np.load(directory / f"worker_{worker}" / "result.npz")["weights"]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The weights that one device reaches that nobody kills."""
    directory = tmp_path_factory.mktemp("unbroken")
    codes, outputs = train(directory, [])
    assert codes == [0], outputs
    return weights(directory)


@pytest.mark.slow
def test_killed_training_on_one_device_resumes_to_exactly_the_weights_of_an_unbroken_one(unbroken, tmp_path):
    assert train(tmp_path, [f"--kill-at={KILL_AT}"])[0] == [-signal.SIGKILL]
    codes, outputs = train(tmp_path, [])
    assert codes == [0], outputs
    np.testing.assert_array_equal(weights(tmp_path), unbroken)
    numbers = np.loadtxt(tmp_path / "worker_0" / "steps.txt")[:, 0]
    np.testing.assert_array_equal(numbers, [*range(KILL_AT), *range(30, 60)])  # it did not start over


@pytest.mark.slow
@pytest.mark.parametrize("killed", [(1,), (0, 1)], ids=["one", "all"])
def test_two_workers_that_are_killed_and_resume_reach_the_weights_of_one_device(killed, unbroken, tmp_path):
    codes, outputs = train(tmp_path, *([f"--kill-at={KILL_AT}"] if i in killed else [] for i in range(2)))
    assert -signal.SIGKILL in codes
    # A worker that misses the other one ends by itself: with an error, or aborted by TensorFlow, which sees that first.
    assert 0 not in codes, outputs
    codes, outputs = train(tmp_path, [], [])
    assert codes == [0, 0], outputs
    np.testing.assert_array_equal(weights(tmp_path, 0), weights(tmp_path, 1))
    # Sums in another order, in double precision; 60 steps of Adam make a hundred to ten thousand times of that.
    np.testing.assert_allclose(weights(tmp_path), unbroken, rtol=0, atol=1e-10)
