"""An ODE network beside the residual network that it replaces: error, parameters, memory and time.

A multilayer perceptron, a ResNet of six blocks, an RK-Net (an ODE network whose gradient goes back through the solver's
steps) and an ODE-Net (by the adjoint equation) learn the same digits. But for the perceptron, all shrink the picture and
read the digit by the same layers, of the same widths. Memory is that of one training step, each measured in a process of
its own: how it grows with the number of blocks, or with the evaluations as the tolerance falls.

    python examples/odenet_vs_resnet.py            # about ten minutes on two CPU cores
    python examples/odenet_vs_resnet.py --quick    # few digits, one epoch, and two sizes

Writes odenet_vs_resnet.png.

Source: Chen, Rubanova, Bettencourt, Duvenaud (2018), Neural Ordinary Differential Equations, NeurIPS, Table 1. On all of
MNIST (60,000 digits) it gives test errors of 1.60 % to the perceptron and 0.41 %, 0.47 % and 0.42 % to ResNet, RK-Net and
ODE-Net, with 0.24, 0.60, 0.22 and 0.22 million parameters. Memory is stated there as orders alone: of the blocks for the
ResNet, of the evaluations for the RK-Net, and constant for the ODE-Net.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import time

import keras
import matplotlib.pyplot as plt
import numpy as np
from digits import augmented, load_digits
from keras import layers

import keras_ode

ADJOINTS = {"RK-Net": "direct", "ODE-Net": "interpolating"}
# Of the models that are trained, and of those whose memory is measured: blocks or tolerances.
SIZES = {"MLP": 0, "ResNet": 6, "RK-Net": 1e-3, "ODE-Net": 1e-3}
MEMORY_SIZES = {"ResNet": (6, 15, 30), "RK-Net": (1e-2, 1e-4, 1e-5), "ODE-Net": (1e-2, 1e-4, 1e-5)}
COLORS = {"MLP": "0.6", "ResNet": "C0", "RK-Net": "C1", "ODE-Net": "C2"}


def build_model(kind, size, channels=32):
    """A model, compiled; `size` is the ResNet's number of blocks and the tolerance of the two ODE networks."""
    if kind == "MLP":
        body = [layers.Flatten(), layers.Dense(300, activation="silu"), layers.Dense(10)]
    else:
        tolerance = 1e-3 if kind == "ResNet" else size
        net = keras_ode.models.ODENet(
            10, channels, solver="bosh3", rtol=tolerance, atol=tolerance, adjoint=ADJOINTS.get(kind, "direct")
        )
        middle = keras_ode.layers.ResidualBlocks(net.ode.dynamics, size) if kind == "ResNet" else net.ode
        body = [net.downsample, middle, net.head]
    model = keras.Sequential([layers.Input((28, 28, 1)), *body])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(2e-3), loss, metrics=["accuracy"])
    return model


def evaluations(model, pictures):
    """Evaluations of a forward solve on the pictures; of a ResNet, its blocks."""
    downsample, middle = model.layers[:2]
    if isinstance(middle, keras_ode.layers.ResidualBlocks):
        return middle.num_blocks
    return int(middle.solve(downsample(pictures)).stats["num_evaluations"])


def peak_megabytes():
    """The most memory that this process ever had. (The resource module would count its parent's, too.)"""
    return int(re.search(r"VmHWM:\s*([0-9]+)", pathlib.Path("/proc/self/status").read_text()).group(1)) / 1024


def measure(kind, size):
    """In a process of its own: evaluations, and the megabytes that training on one batch takes beyond the built model."""
    (pictures, labels), _ = load_digits(128)
    model = build_model(kind, size)
    before = peak_megabytes()
    model.fit(pictures, labels, batch_size=128, epochs=2, verbose=0)
    print(json.dumps([evaluations(model, pictures), peak_megabytes() - before]))


def measured(kind, size, seed):
    command = [sys.executable, __file__, "--seed", str(seed), "--measure", kind, str(size)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def trained(kind, train, test, epochs):
    """A row of the table: parameters, test error and the seconds of training."""
    model = build_model(kind, SIZES[kind])
    began = time.perf_counter()
    model.fit(augmented(*train, batch_size=100), epochs=epochs, shuffle=False, verbose=2)
    seconds = time.perf_counter() - began
    return model.count_params(), 1 - model.evaluate(*test, verbose=0, return_dict=True)["accuracy"], seconds


def draw(path, rows, memory):
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    bars = left.bar(rows, [100 * error for _, error, _ in rows.values()], color=[COLORS[kind] for kind in rows])
    left.bar_label(bars, [f"{error:.1%}\n{count:,} weights" for count, error, _ in rows.values()], size=9, padding=2)
    left.set(title="Test error on 1,000 digits", ylabel="error, %")
    left.margins(y=0.2)
    for kind, points in memory.items():
        right.plot(*np.transpose(points), "o-", color=COLORS[kind], label=kind)
    right.set(title="Memory of a training step, batch of 128", ylabel="MB beyond the built model",
              xlabel="evaluations of the block in a forward pass (ResNet: blocks)", ylim=0)
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few digits, one epoch, and two sizes")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the augmentation")
    parser.add_argument("--output", type=pathlib.Path, default=".", help="directory to write to")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    keras.utils.set_random_seed(arguments.seed)
    if arguments.measure:
        kind, size = arguments.measure
        return measure(kind, int(size) if kind == "ResNet" else float(size))
    epochs, num_train = (1, 500) if arguments.quick else (15, 4000)
    arguments.output.mkdir(parents=True, exist_ok=True)

    train, test = load_digits(num_train)
    rows = {kind: trained(kind, train, test, epochs) for kind in SIZES}
    memory = {}
    for kind, sizes in MEMORY_SIZES.items():
        chosen = sizes[:: len(sizes) - 1] if arguments.quick else sizes
        memory[kind] = [measured(kind, size, arguments.seed) for size in chosen]

    print(f"\n{'':8}{'test error':>12}{'parameters':>12}{'training':>11}   memory of a training step")
    for kind, (count, error, seconds) in rows.items():
        line = f"{kind:8}{error:12.1%}{count:12,}{seconds:9.0f} s   "
        if kind in memory:
            (few, least), (many, most) = memory[kind][0], memory[kind][-1]
            unit = "blocks" if kind == "ResNet" else "evaluations"
            line += f"{least:.0f} MB at {few} {unit}, {most:.0f} MB at {many}: {(most - least) / (many - few):+.2f} MB each"
        print(line)
    print("As in the paper, the ODE networks need a fraction of the ResNet's weights, and memory grows with the depth but\n"
          "for the ODE-Net. Errors are higher than the paper's, which trains on fifteen times as many digits.")
    draw(arguments.output / "odenet_vs_resnet.png", rows, memory)


if __name__ == "__main__":
    main()
