"""Networks whose propagation is stable by construction are compared with residual blocks, on points in the plane.

A residual block is a step of Euler's method for y' = s(K y + b), and an error grows along the blocks if the Jacobian has
eigenvalues with positive real parts. Antisymmetric, Hamiltonian and leapfrog networks have none, whatever they learn. All four
classify points of three data sets. The Hamiltonian network does so also without its penalty on changes of the weights along the
blocks, and by multilevel training: it starts with a few blocks, and its weights are interpolated to twice as many, and so on.

    python examples/stable_architectures.py [--quick]    # 12 minutes on two CPU cores; quick: one data set, one seed, few epochs

Writes stable_architectures.png. Source: Haber, Ruthotto (2017), Stable architectures for deep neural networks, Inverse Problems
34. It reports that the stable networks are competitive with residual networks on these problems and on MNIST, and that multilevel
training gives good starting values. Its networks have other sizes, so the accuracies cannot be compared number by number.
"""

import argparse
import itertools
import pathlib

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

from keras_ode import datasets, plotting
from keras_ode.layers import AntisymmetricDynamics, Augment, HamiltonianBlocks, LeapfrogBlocks, ResidualBlocks

WIDTH, DURATION, GAMMA, SMOOTHNESS = 8, 8.0, 0.5, 1e-4
KINDS = ("residual", "antisymmetric", "Hamiltonian", "leapfrog", "Hamiltonian, multilevel", "Hamiltonian, no penalty")
NAMES = ("ellipses", "swiss_roll", "peaks")
STYLES = {"residual": ("ink", "x", "-"), "antisymmetric": ("ode", "o", "--"), "Hamiltonian": ("other", "s", "-."),
          "leapfrog": ("third", "^", ":")}


def build_blocks(kind, num_blocks, step_size, **options):
    if kind in ("residual", "antisymmetric"):
        make = {"residual": keras.layers.Dense, "antisymmetric": AntisymmetricDynamics}[kind]
        return ResidualBlocks(make(WIDTH if kind == "residual" else GAMMA, "tanh", **options), num_blocks, step_size=step_size)
    build = LeapfrogBlocks if kind == "leapfrog" else HamiltonianBlocks
    return build(num_blocks, step_size, smoothness=0.0 if kind.endswith("no penalty") else SMOOTHNESS, **options)


def trained(kind, name, depth, epochs, seed):
    """A model, and its accuracy on other points. Multilevel training begins with an eighth of the blocks."""
    keras.utils.set_random_seed(seed)
    (points, labels), test = (getattr(datasets, name)(1000, seed=number) for number in (0, 1))
    levels = 4 if kind.endswith("multilevel") else 1
    few, epochs, head = depth // 2 ** (levels - 1), epochs // levels, keras.layers.Dense(int(labels.max()) + 1)
    blocks = build_blocks(kind, few, DURATION / few)
    for level in range(levels):
        blocks = blocks.refined() if level else blocks
        model = keras.Sequential([keras.layers.Rescaling(2 / np.std(points)), Augment(WIDTH - 2), blocks, head])
        schedule = keras.optimizers.schedules.CosineDecay(1e-2, epochs * len(points) // 100)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(schedule), loss, metrics=["accuracy"])
        model.fit(points, labels, batch_size=100, epochs=epochs, verbose=0)
    return model, model.evaluate(*test, verbose=0, return_dict=True)["accuracy"]


def roughness(blocks):
    """What `smoothness=` penalizes: the sum of the squared changes of the weights from block to block, over twice the step."""
    return sum(np.sum(np.diff(weight, axis=0) ** 2) for weight in blocks.get_weights()) / (2 * blocks.step_size)


def eigenvalues(kind, blocks, y):
    """The eigenvalues of the Jacobian of the equation that the blocks discretize, at the states `y` (with z, or y', of zero)."""
    def field(n, x):
        if kind in ("residual", "antisymmetric"):
            return blocks.layers[n](x)
        kernel, bias, (y, z) = blocks.kernel[n], blocks.bias[n], tf.split(x, 2, axis=1)
        if kind == "leapfrog":
            return tf.concat([z, -tf.tanh(y @ tf.transpose(kernel) + bias) @ kernel], axis=1)
        return tf.concat([tf.tanh(z @ tf.transpose(kernel) + bias), -tf.tanh(y @ kernel + bias)], axis=1)
    x = y if kind in ("residual", "antisymmetric") else tf.concat([y, 0 * y], axis=1)
    with tf.GradientTape() as tape:
        tape.watch(x)
        changes = tf.stack([field(n, x) for n in range(blocks.num_blocks)], axis=1)
    return np.ravel(np.linalg.eigvals(np.float64(tape.batch_jacobian(changes, x))))


def growths(kind, depth, seeds, step_size=0.1, change=1e-6):
    """By how much untrained blocks of the same normal weights at every depth enlarge a small change of an input, for each seed."""
    blocks = build_blocks(kind, depth, step_size, dtype="float64")
    blocks.build((40, WIDTH))
    for random in map(np.random.default_rng, seeds):
        y, direction = random.normal(size=(2, 20, WIDTH)) / 10
        kernel = random.normal(size=(WIDTH, WIDTH)) / np.sqrt(WIDTH)
        blocks.set_weights([np.broadcast_to(kernel if w.shape[-2:] == kernel.shape else 0.0, w.shape) for w in blocks.weights])
        direction *= change / np.linalg.norm(direction, axis=1, keepdims=True)
        changed, unchanged = np.split(blocks(np.concatenate([y + direction, y])), 2)
        yield np.median(np.linalg.norm(changed - unchanged, axis=1)) / change


def draw(path, models, spectra, depths, growth):
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
        for label in range(labels.max() + 1):
            style = {"color": plt.cm.cividis(label / labels.max()), "ms": 3.5, "mec": "black", "mew": 0.3}
            ax.plot(*points[labels == label].T, "os^Dv"[label], label=f"class {label}", **style)
        ax.set(title=f"{name.replace('_', ' ').capitalize()} (Hamiltonian)", xlabel="$x_1$", ylabel="$x_2$")
        ax.legend(fontsize=10, loc="upper right", frameon=True)
    for kind, (role, marker, line) in STYLES.items():
        ax, color = left if kind in ("residual", "antisymmetric") else right, plotting.COLORS[role]
        ax.plot(spectra[kind].real, spectra[kind].imag, marker, ms=3, color=color, alpha=0.6, label=kind)
        growing.semilogx(depths, np.median(growth[kind], axis=1), line, base=2, marker=marker, color=color, label=kind)
    for ax in (left, right):
        ax.axvline(0, color="0.5", lw=1)
        ax.set(title="Eigenvalues after training", xlabel="real part [1/time]", ylabel="imaginary part [1/time]", xlim=(-3, 3))
        ax.legend(markerscale=2)
    growing.set(title="A small change, untrained", xlabel="blocks of step 0.1", ylabel="change, output / input", yscale="log")
    growing.set_xticks(depths, depths)
    growing.legend(fontsize=10)
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one data set, one seed, a few epochs")
    parser.add_argument("--seed", type=int, default=0, help="the first of the seeds of the weights")
    parser.add_argument("--output", type=pathlib.Path, default=".", help="directory to write to")
    arguments = parser.parse_args()
    depth, epochs, num_names, num_seeds = (8, 4, 1, 1) if arguments.quick else (16, 40, 3, 3)
    depths = [2**n for n in range(4, 7 if arguments.quick else 11)]
    arguments.output.mkdir(parents=True, exist_ok=True)
    seeds, models, spectra = range(arguments.seed, arguments.seed + num_seeds), {}, {}
    print(f"{'data':12}{'network':26}{'median accuracy':>16}{'smallest':>10}{'largest real part':>19}{'median roughness':>18}")
    for name, kind in itertools.product(NAMES[:num_names], KINDS):
        trials, hits = zip(*(trained(kind, name, depth, epochs, seed) for seed in seeds), strict=True)
        states = keras.Sequential(trials[0].layers[:2])(getattr(datasets, name)(20, seed=1)[0])
        spectra[kind] = eigenvalues(kind, trials[0].layers[2], states)
        rough = f"{np.median([roughness(m.layers[2]) for m in trials]):18.1f}" if kind.startswith("Hamiltonian") else ""
        print(f"{name:12}{kind:26}{np.median(hits):16.1%}{min(hits):10.1%}{spectra[kind].real.max():19.1e}{rough}", flush=True)
        models |= {name: trials[0]} if kind == "Hamiltonian" else {}
    growth = {kind: [list(growths(kind, n, seeds)) for n in depths] for kind in STYLES}
    for kind, values in growth.items():
        print(f"{kind:14}{depths[-1]} blocks multiply a small change by {np.median(values[-1]):.3g} (median of seeds).")
    draw(arguments.output / "stable_architectures.png", models, spectra, depths, growth)


if __name__ == "__main__":
    main()
