"""A neural ODE is trained by two devices and by two processes, killed in the middle, and resumed.

The training loop is written out because `fit` fails under MultiWorkerMirroredStrategy for any layer ("PerReplica" error).
A step depends on its number alone, so all runs take the same steps. Writes distributed.png, and checkpoints to distributed/.
    python examples/distributed.py            # all runs on this machine, compared; three minutes; --quick: fewer steps
    TF_CONFIG='{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}' \\
        python examples/distributed.py    # one of two workers, whose --output is one directory that both see
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from keras import layers, losses

from keras_ode import ODELayer, datasets, plotting
from keras_ode.layers import Augment

BATCH, SAVE_EVERY, CPUS = 64, 10, ["CPU:0", "CPU:1"]
LOOKS = ("ode", "-", ""), ("other", "-", "s"), ("ink", "--", "^"), ("failure", ":", "x")  # role of the color, line, marker


def build_model():
    dynamics = keras.Sequential([layers.Dense(32, activation="tanh"), layers.Dense(5)])
    ode = ODELayer(dynamics, per_sample=True, adjoint="checkpointed", jit_compile=False)  # each row alone
    return keras.Sequential([layers.Input([2]), Augment(3), ode, layers.Dense(2)])


def make_step(strategy, model, optimizer):
    def replica_step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(losses.sparse_categorical_crossentropy(y, model(x, training=True), from_logits=True)) / BATCH
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)  # sums over the replicas
        return loss
    return tf.function(lambda x, y: strategy.reduce("sum", strategy.run(replica_step, args=(x, y)), axis=None))


def train(strategy, steps, seed, directory, kill_at=None):
    """Trains from the last checkpoint on; writes the weights, the bytes reduced, and the loss and the seconds of each step."""
    keras.config.set_floatx("float64")  # so that rounding is far below any other difference
    keras.utils.set_random_seed(seed)
    points, labels = datasets.spirals(2000, seed=seed)

    def batch(i):  # each replica of this process takes its part of the rows of a step
        rows = np.random.default_rng([seed, i]).choice(len(points), BATCH, replace=False)
        return [strategy.experimental_distribute_values_from_function(lambda c, drawn=values[rows]: tf.constant(
            drawn[c.replica_id_in_sync_group :: c.num_replicas_in_sync])) for values in (points, labels)]
    with strategy.scope():
        model, optimizer = build_model(), keras.optimizers.Adam(1e-2)
        optimizer.build(model.trainable_variables)
    # Workers save together, each to its own directory, and all of them read the files of the first one.
    own = directory / f"worker_{strategy.cluster_resolver.task_id if 'TF_CONFIG' in os.environ else 0}"
    manager = tf.train.CheckpointManager(tf.train.Checkpoint(model=model, optimizer=optimizer), own, max_to_keep=2)
    manager.checkpoint.restore(tf.train.latest_checkpoint(directory / "worker_0"))
    step = make_step(strategy, model, optimizer)
    own.mkdir(parents=True, exist_ok=True)
    with open(own / "steps.txt", "a", buffering=1) as log:
        for i in range(int(tf.convert_to_tensor(optimizer.iterations)), steps):
            part, began = batch(i), time.perf_counter()
            loss = float(step(*part))
            print(i, loss, time.perf_counter() - began, file=log)
            if i + 1 == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if (i + 1) % SAVE_EVERY == 0:
                manager.save()
    sent = [x.inputs[0] for x in step.get_concrete_function(*batch(0)).graph.get_operations() if "CollectiveReduce" in x.type]
    reduced = sum(x.shape.num_elements() * x.dtype.size for x in sent) // len(strategy.experimental_local_results(batch(0)[0]))
    np.savez(own / "result.npz", weights=np.concatenate([np.ravel(w) for w in model.get_weights()]), reduced=reduced)


def launch(arguments, directory, workers, kill_at=None):
    """Runs this file in one or several worker processes, the last of which may kill itself, and returns their exit codes."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(workers)]
    cluster, processes = {"cluster": {"worker": ["{}:{}".format(*s.getsockname()) for s in sockets]}}, []
    try:
        for i, s in enumerate(sockets):
            s.close()  # its port was free until now
            command = [sys.executable, __file__, "--replicas=1", f"--seed={arguments.seed}", f"--output={directory}"]
            command += ["--quick"] * arguments.quick + [f"--kill-at={kill_at}"] * (kill_at is not None and i == workers - 1)
            config = {"TF_CONFIG": json.dumps(cluster | {"task": {"type": "worker", "index": i}})} if workers > 1 else {}
            with open(f"{directory}_{i}.log", "a") as log:
                processes.append(subprocess.Popen(command, env=os.environ | config, stdout=log, stderr=log))
        return [process.wait(timeout=600) for process in processes]
    finally:  # no process is left behind
        for process in processes:
            process.kill()


def compare(arguments, steps):
    """Trains on each set of devices and compares the weights with those of one device whose process is not killed."""
    root, kill_at, stride = arguments.output / "distributed", steps // 2 + 5, 2 if arguments.quick else 1
    runs = ["one device", "two mirrored devices", "two workers, killed", "one device, killed"][::stride]
    shutil.rmtree(root, ignore_errors=True)
    for name, make in zip(runs, (tf.distribute.get_strategy, lambda: tf.distribute.MirroredStrategy(CPUS))[::stride], strict=False):
        train(make(), steps, arguments.seed, root / name)
    for name, workers in zip(runs[2 // stride :], (2, 1), strict=False):
        killed = launch(arguments, root / name, workers, kill_at)  # if one worker dies, the others end with an error
        print(f"{name}: exit codes {killed}, and of the resumed run {launch(arguments, root / name, workers)}; see the logs")
    plt.style.use(plotting.STYLE)
    figure, (above, below) = plt.subplots(2, 1, figsize=(9, 8.5), sharex=True)
    below.set_yscale("symlog", linthresh=1e-16)
    print(f"\n{'':22}{'last loss':>10}{'weights differ by':>19}{'fastest, ms':>13}{'bytes reduced':>15}")
    for i, (name, (role, line, marker)) in enumerate(zip(runs, LOOKS[::stride], strict=True)):
        (number, loss, seconds), (_, alone, _) = (np.loadtxt(root / x / "worker_0/steps.txt").T for x in (name, runs[0]))
        result, first = (np.load(root / x / "worker_0/result.npz") for x in (name, runs[0]))
        far = np.abs(result["weights"] - first["weights"]).max()
        print(f"{name:22}{loss[-1]:10.6f}{far:19.1e}{1e3 * min(seconds):13.1f}{int(result['reduced']):15,}")
        look = {"color": plotting.COLORS[role], "markevery": (i * steps // 40, steps // 10), "ms": 8, "mfc": "white", "mew": 2}
        above.semilogy(number, loss, marker or line, **look, lw=1)
        below.plot(number, np.maximum.accumulate(np.abs(loss - alone[number.astype(int)])), line + marker, **look, label=name)
    for axes in (above, below):
        axes.axvline(kill_at, color=plotting.COLORS["reference"], lw=4, zorder=0, label="kill" if axes is below else None)
    above.set(title="Loss of a batch", ylabel="cross entropy [nats]")
    below.set(title="Largest difference so far from the loss of one device", xlabel="training step", ylabel="difference [nats]",
              ylim=(-5e-17, None))
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(arguments.output / "distributed.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="60 steps in place of 600, by one device and by two workers")
    parser.add_argument("--replicas", type=int, choices=(1, 2), help="train on so many devices of this process alone")
    parser.add_argument("--kill-at", type=int, help="end this process by SIGKILL after a step")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the weights and the batches")
    parser.add_argument("--output", type=pathlib.Path, default=".", help="directory to write to")
    arguments = parser.parse_args()
    steps, two = 60 if arguments.quick else 600, [tf.config.LogicalDeviceConfiguration()] * 2
    if "TF_CONFIG" in os.environ:
        return train(tf.distribute.MultiWorkerMirroredStrategy(), steps, arguments.seed, arguments.output, arguments.kill_at)
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], two)
    if arguments.replicas is None:
        return compare(arguments, steps)
    strategy = tf.distribute.get_strategy() if arguments.replicas == 1 else tf.distribute.MirroredStrategy(CPUS)
    train(strategy, steps, arguments.seed, arguments.output, arguments.kill_at)


if __name__ == "__main__":
    main()
