"""Networks whose propagation is stable by construction, beside residual blocks, on points in the plane.

A residual block is a step of Euler's method for y' = s(K y + b), and an error grows along the blocks if the Jacobian has
eigenvalues with positive real parts. Antisymmetric, Hamiltonian and leapfrog networks have none, whatever they learn. All four
classify points of three data sets; the Hamiltonian network also by multilevel training: it starts with a few blocks, and its
weights are interpolated to twice as many, again and again.

    python examples/stable_architectures.py            # about 15 minutes on two CPU cores
    python examples/stable_architectures.py --quick    # one data set, one seed, a few epochs

Writes stable_architectures.png.

Source: Haber, Ruthotto (2017), Stable architectures for deep neural networks, Inverse Problems 34. It reports that the stable
networks are competitive with residual networks on these three problems and on MNIST, and that multilevel training gives good
starting values. It trains networks of other sizes in another way, so the accuracies cannot be compared number by number.
"""

import argparse
import itertools
import pathlib
import time

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

from keras_ode import datasets, plotting
from keras_ode.layers import AntisymmetricDynamics, Augment, HamiltonianBlocks, LeapfrogBlocks, ResidualBlocks

WIDTH, DURATION, GAMMA, SMOOTHNESS = 8, 8.0, 0.5, 1e-4
KINDS = ("residual", "antisymmetric", "Hamiltonian", "leapfrog", "Hamiltonian, multilevel")
COLORS = plotting.COLORS
STYLES = {"residual": (COLORS["ink"], "x", "-"), "antisymmetric": (COLORS["ode"], "o", "--"),
          "Hamiltonian": (COLORS["other"], "s", "-."), "leapfrog": (COLORS["third"], "^", ":")}
CLASSES = {"ellipses": 2, "swiss_roll": 2, "peaks": 5}


def build_blocks(kind, num_blocks, step_size, **options):
    if kind in ("residual", "antisymmetric"):
        make = {"residual": keras.layers.Dense, "antisymmetric": AntisymmetricDynamics}[kind]
        return ResidualBlocks(make(WIDTH if kind == "residual" else GAMMA, "tanh", **options), num_blocks, step_size=step_size)
    build = LeapfrogBlocks if kind == "leapfrog" else HamiltonianBlocks
    return build(num_blocks, step_size, smoothness=SMOOTHNESS, **options)


def fitted(blocks, head, points, labels, epochs):
    scale = keras.layers.Rescaling(2 / np.std(points))
    model = keras.Sequential([keras.Input([2]), scale, Augment(WIDTH - 2), blocks, head])
    schedule = keras.optimizers.schedules.CosineDecay(1e-2, epochs * len(points) // 100)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(schedule), loss, metrics=["accuracy"])
    model.fit(points, labels, batch_size=100, epochs=epochs, verbose=0)
    return model


def trained(kind, name, depth, epochs, seed):
    """A model, its accuracy on other points, and the seconds that training took."""
    keras.utils.set_random_seed(seed)
    train, test = (getattr(datasets, name)(1000, seed=number) for number in (0, 1))
    head, began = keras.layers.Dense(CLASSES[name]), time.perf_counter()
    levels, few, blocks = (4, depth // 8, None) if kind == "Hamiltonian, multilevel" else (1, depth, None)
    for level in range(levels):
        blocks = blocks.refined() if level else build_blocks(kind, few, DURATION / few)
        model = fitted(blocks, head, *train, epochs // levels)
    return model, model.evaluate(*test, verbose=0, return_dict=True)["accuracy"], time.perf_counter() - began


def eigenvalues(kind, blocks, y):
    """Those of the Jacobian of the equation that each block is a step of, at the states `y` (with z, or y', of zero)."""
    def field(n, x):
        if kind in ("residual", "antisymmetric"):
            return blocks.layers[n](x)
        kernel, bias, (y, z) = blocks.kernel[n], blocks.bias[n], tf.split(x, 2, axis=1)
        if kind == "leapfrog":
            return tf.concat([z, -tf.tanh(y @ tf.transpose(kernel) + bias) @ kernel], axis=1)
        return tf.concat([tf.tanh(z @ tf.transpose(kernel) + bias), -tf.tanh(y @ kernel + bias)], axis=1)

    x = y if kind in ("residual", "antisymmetric") else tf.concat([y, 0 * y], axis=1)
    found = []
    for n in range(blocks.num_blocks):
        with tf.GradientTape() as tape:
            tape.watch(x)
            change = field(n, x)
        found.append(np.linalg.eigvals(np.float64(tape.batch_jacobian(change, x))))
    return np.ravel(found)


def growth(kind, depth, seed, step_size=0.1, change=1e-6):
    """By how much untrained blocks of the same normal weights at every depth enlarge a small change of an input."""
    random, blocks = np.random.default_rng(seed), build_blocks(kind, depth, step_size, dtype="float64")
    blocks.build((20, WIDTH))
    y, direction = random.normal(size=(2, 20, WIDTH)) / 10
    kernel = random.normal(size=(WIDTH, WIDTH)) / np.sqrt(WIDTH)
    blocks.set_weights([np.broadcast_to(kernel if w.shape[-2:] == kernel.shape else 0.0, w.shape) for w in blocks.weights])
    direction *= change / np.linalg.norm(direction, axis=1, keepdims=True)
    return np.median(np.linalg.norm(blocks(y + direction) - blocks(y), axis=1)) / change


def draw(path, models, spectra, depths, growths):
    """Draws the classes of each data set, the eigenvalues after training, and the growth of a small change."""
    plt.style.use(plotting.STYLE)
    columns = 2 if len(models) == 1 else 3
    figure, axes = plt.subplots(2, columns, figsize=(4 * columns, 7.5))
    *maps, left, right, growing = axes.flat
    for ax, (name, model) in zip(maps, models.items(), strict=True):
        points, labels = getattr(datasets, name)(400, seed=1)
        ends = np.linspace(points.min(axis=0) - 0.2, points.max(axis=0) + 0.2, 121, dtype="float32")
        grid = np.stack(np.meshgrid(*ends.T), axis=-1)
        classes = model.predict(grid.reshape(-1, 2), batch_size=4096, verbose=0).argmax(axis=1).reshape(121, 121)
        ax.pcolormesh(grid[..., 0], grid[..., 1], classes, cmap="cividis", alpha=0.5)
        for label in range(CLASSES[name]):
            style = {"color": plt.cm.cividis(label / labels.max()), "ms": 3.5, "mec": "black", "mew": 0.3}
            ax.plot(*points[labels == label].T, "os^Dv"[label], label=f"class {label}", **style)
        ax.set(title=f"{name.replace('_', ' ').capitalize()} (Hamiltonian)", xlabel="$x_1$", ylabel="$x_2$")
        ax.legend(fontsize=10, loc="upper right", frameon=True)
    for kind, (color, marker, line) in STYLES.items():
        ax = left if kind in ("residual", "antisymmetric") else right
        ax.plot(spectra[kind].real, spectra[kind].imag, marker, ms=3, color=color, alpha=0.4, label=kind)
        growing.plot(depths, np.median(growths[kind], axis=0), line, marker=marker, color=color, label=kind)
    for ax in (left, right):
        ax.axvline(0, color="0.5", lw=1)
        ax.set(title="Eigenvalues after training", xlabel="real part, 1 / time", ylabel="imaginary part, 1 / time", xlim=(-3, 3))
        for handle in ax.legend().legend_handles:
            handle.set(markersize=7, alpha=1)
    growing.set(title="A small change, untrained", xlabel="blocks of step 0.1", ylabel="change of output / of input")
    growing.set_xscale("log", base=2)
    growing.set_yscale("log")
    growing.set_xticks(depths, depths)
    growing.legend(fontsize=10)
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one data set, one seed, a few epochs")
    parser.add_argument("--seed", type=int, default=0, help="the first of the seeds of the weights")
    parser.add_argument("--output", type=pathlib.Path, default=".", help="directory to write to")
    arguments = parser.parse_args()
    names, depth, epochs, num_seeds = (["ellipses"], 8, 8, 1) if arguments.quick else (list(CLASSES), 16, 40, 3)
    depths = [2**n for n in range(4, 8 if arguments.quick else 11)]
    arguments.output.mkdir(parents=True, exist_ok=True)

    seeds, models, spectra = range(arguments.seed, arguments.seed + num_seeds), {}, {}
    print(f"{'data':12}{'network':26}{'median accuracy':>16}{'smallest':>10}{'seconds':>9}{'largest real part':>19}")
    for name, kind in itertools.product(names, KINDS):
        runs = [trained(kind, name, depth, epochs, seed) for seed in seeds]
        (model, *_), (_, accuracies, seconds) = runs[0], zip(*runs, strict=True)
        states = keras.Sequential(model.layers[:2])(getattr(datasets, name)(20, seed=1)[0])
        spectra[kind] = eigenvalues(kind, model.layers[2], states)
        print(f"{name:12}{kind:26}{np.median(accuracies):16.1%}{min(accuracies):10.1%}{np.median(seconds):9.1f}"
              f"{spectra[kind].real.max():19.2e}", flush=True)
        models |= {name: model} if kind == "Hamiltonian" else {}
    growths = {kind: [[growth(kind, n, seed) for n in depths] for seed in seeds] for kind in STYLES}
    for kind, values in growths.items():
        print(f"{kind:14}{depths[-1]} blocks multiply a small change by {np.median(values, axis=0)[-1]:.3g} (median of seeds).")
    draw(arguments.output / "stable_architectures.png", models, spectra, depths, growths)


if __name__ == "__main__":
    main()
