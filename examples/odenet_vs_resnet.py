"""An ODE network beside the residual network that it replaces: error, parameters, memory and time.

A perceptron with one hidden layer, a ResNet of six blocks, an RK-Net (an ODE network whose gradient goes back through the
solver's steps) and an ODE-Net (by the adjoint equation) learn the same digits. But for the perceptron, all shrink the
picture and read the digit by the same layers, of the same widths. Before, each takes a training step at several depths,
each in a process of its own, which tells how much memory the step needed at most.

    python examples/odenet_vs_resnet.py            # ten minutes of two CPU cores
    python examples/odenet_vs_resnet.py --quick    # few digits, one epoch, two measurements of memory

Writes odenet_vs_resnet.png. Memory is read from /proc, so that only Linux has it.

Source: Chen, Rubanova, Bettencourt, Duvenaud (2018), Neural Ordinary Differential Equations, NeurIPS, Table 1. On all of
MNIST (60,000 digits) it gives test errors of 1.60 % to the perceptron and 0.41 %, 0.47 % and 0.42 % to ResNet, RK-Net and
ODE-Net, with 0.24, 0.60, 0.22 and 0.22 million parameters. Memory is stated there as orders alone: of the blocks for the
ResNet, of the evaluations for the RK-Net, and constant for the ODE-Net.
"""

import argparse
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

COLORS = {"MLP": "0.6", "ResNet": "C0", "RK-Net": "C1", "ODE-Net": "C2"}
BLOCKS, TOLERANCE = 6, 1e-3
# Looser backward tolerances, as nfe_figures.py tries them: half of the evaluations, and a gradient good enough to learn from.
LOOSER = keras_ode.adjoints.Interpolating(checkpoints=8, rtol=30 * TOLERANCE, atol=30 * TOLERANCE)
ADJOINTS = {"RK-Net": "direct", "ODE-Net": LOOSER}
# Where memory is measured: blocks, or evaluations of the dynamics. A ResNet of 192 blocks takes minutes to trace.
DEPTHS = {"ResNet": (12, 48), "RK-Net": (12, 48, 192), "ODE-Net": (12, 48, 192)}
QUICK_DEPTHS = {"RK-Net": (48,), "ODE-Net": (48,)}


def build_model(kind, learning_rate, blocks=BLOCKS, channels=32, **ode):
    if kind == "MLP":
        body = [layers.Flatten(), layers.Dense(300, activation="silu"), layers.Dense(10)]
    else:
        adjoint = ADJOINTS.get(kind, "direct")
        net = keras_ode.models.ODENet(
            10, channels, solver="bosh3", rtol=TOLERANCE, atol=TOLERANCE, adjoint=adjoint, **ode
        )
        middle = keras_ode.layers.ResidualBlocks(net.ode.dynamics, blocks) if kind == "ResNet" else net.ode
        body = [net.downsample, middle, net.head]
    model = keras.Sequential([layers.Input((28, 28, 1)), *body])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(learning_rate), loss, metrics=["accuracy"])
    return model


def trained(kind, train, test, epochs, seed, batch_size=100):
    """Test error, parameters, and seconds of training."""
    print(f"\n{kind}")
    keras.utils.set_random_seed(seed)
    model = build_model(kind, keras.optimizers.schedules.CosineDecay(2e-3, epochs * len(train[0]) // batch_size))
    began = time.perf_counter()
    model.fit(augmented(*train, batch_size), epochs=epochs, shuffle=False, verbose=2)
    seconds = time.perf_counter() - began
    return 1 - model.evaluate(*test, verbose=0, return_dict=True)["accuracy"], model.count_params(), seconds


def memory_of_step(kind, depth):
    """Megabytes that a training step takes, in a process of its own: what others freed would hide its peak."""
    command = [sys.executable, __file__, "--memory", kind, str(depth)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.split()[-1])


def print_memory(kind, depth, batch_size=128):
    """Prints by how many megabytes a training step on a batch raises the peak of this process' memory."""
    # The third-order pair takes three evaluations a step.
    model = build_model(kind, 1e-3, blocks=depth, controller="constant", step_size=3 / depth)
    pictures, labels = np.zeros([batch_size, 28, 28, 1], "float32"), np.zeros(batch_size)
    model.fit(pictures[:2], labels[:2], verbose=0)  # traces for batches of any size
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = peak()
    model.fit(pictures, labels, batch_size=batch_size, verbose=0)
    print(peak() - before)


def peak():
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+)", status)[1]) / 1024


def draw(path, rows, memory):
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    bars = left.bar(list(rows), [100 * error for error, _, _ in rows.values()], color=[COLORS[kind] for kind in rows])
    left.bar_label(bars, [f"{error:.1%}\n{count:,} weights" for error, count, _ in rows.values()], size=9, padding=2)
    left.set(title="Test error on 1,000 digits", ylabel="error, %")
    left.margins(y=0.2)
    for kind, points in memory.items():
        right.plot(list(points), list(points.values()), "o-", color=COLORS[kind], label=kind)
    right.set(title="Memory of a training step, batch of 128", ylabel="MB", ylim=0, xlim=0)
    right.set_xlabel("blocks (ResNet), or evaluations of the dynamics in a forward pass")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few digits, one epoch, two measurements of memory")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the augmentation")
    parser.add_argument("--output", type=pathlib.Path, default=".", help="directory to write to")
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        return print_memory(arguments.memory[0], int(arguments.memory[1]))
    epochs, num_train, depths = (1, 200, QUICK_DEPTHS) if arguments.quick else (16, 4000, DEPTHS)
    arguments.output.mkdir(parents=True, exist_ok=True)

    memory = {kind: {depth: memory_of_step(kind, depth) for depth in depths[kind]} for kind in depths}
    digits = load_digits(num_train)
    rows = {kind: trained(kind, *digits, epochs, arguments.seed) for kind in COLORS}

    columns = depths["ODE-Net"]
    print(f"\n{'':8}{'test error':>11}{'parameters':>12}{'training':>11}   memory of a step, by blocks or evaluations")
    print(" " * 42 + "".join(f"{depth:13}" for depth in columns))
    for kind, (error, count, seconds) in rows.items():
        megabytes = "".join(f"{value:10.0f} MB" for value in memory.get(kind, {}).values())
        print(f"{kind:8}{error:11.1%}{count:12,}{seconds:9.0f} s{megabytes}")
    print("As in the paper, memory grows with the depth but for the ODE-Net. There the ODE networks err as little as the ResNet\n"
          "with a third of its parameters; so few epochs on so few digits leave them behind it.")
    draw(arguments.output / "odenet_vs_resnet.png", rows, memory)


if __name__ == "__main__":
    main()
