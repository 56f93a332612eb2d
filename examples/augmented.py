"""A neural ODE cannot turn a ball inside out; with a few more dimensions it can.

The flow of an ODE is a homeomorphism: the points of a ball cannot leave the shell around it without crossing it. A model
that has to separate the two bends space until its equation is hard to solve. Zeros appended to the state (`Augment`)
give the points room to pass each other, after Dupont, Doucet, Teh (2019), Augmented Neural ODEs, NeurIPS.

    python examples/augmented.py            # three seeds
    python examples/augmented.py --quick    # one seed, a few epochs

Writes augmented.png.
"""

import argparse
import itertools
import pathlib

import keras
import matplotlib.pyplot as plt
import numpy as np
from keras import layers

import keras_ode
from keras_ode import plotting


def build_model(num_channels, width=32):
    """A flow of the plane, with `num_channels` more dimensions, and a linear classifier of its end points."""
    dynamics = keras.Sequential([
        layers.Dense(width, activation="tanh"),
        layers.Dense(width, activation="tanh"),
        layers.Dense(2 + num_channels),
    ])
    ode = keras_ode.ODELayer(dynamics, rtol=3e-3, atol=3e-3, name="ode")
    return keras.Sequential([layers.Input([2]), keras_ode.layers.Augment(num_channels), ode, layers.Dense(1)])


def train(num_channels, points, labels, epochs, seed):
    """A trained model and its history, in which the recorder logs the evaluations of the dynamics."""
    keras.utils.set_random_seed(seed)
    model = build_model(num_channels)
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=[keras.metrics.BinaryAccuracy(threshold=0.0)])
    recorder = keras_ode.callbacks.SolverStepRecorder()
    history = model.fit(points, labels, batch_size=100, epochs=epochs, verbose=0, callbacks=[recorder]).history
    print(f"{num_channels} more dimensions, seed {seed}: loss {last(history['loss']):.5f} in the last epochs", flush=True)
    return model, history


def last(values, count=5):
    return np.mean(values[-count:])


def summary(histories):
    """Medians over seeds: loss and accuracy of the last epochs, evaluations of the first and of the last."""
    rows = [(last(h["loss"]), last(h["binary_accuracy"]), np.mean(h["ode_nfe"][:5]), last(h["ode_nfe"])) for h in histories]
    return np.median(rows, axis=0)


def compared(plain, augmented):
    """Compares this run with the paper's two claims: a lower loss, and evaluations that hardly grow."""
    growth = [row[3] / row[2] for row in (plain, augmented)]
    return (
        f"Loss of the plain model, divided by that of the augmented one: {plain[0] / augmented[0]:.1f} (in the paper, above 1).\n"
        f"Evaluations of the last epochs, divided by those of the first: {growth[0]:.2f} plain, {growth[1]:.2f} augmented "
        "(in the paper, the plain model's grow and the augmented one's hardly do)."
    )


def draw(path, runs, points, labels):
    """Draws the models of the first seed. Lines are medians of the seeds, and bands are their ranges."""
    plt.style.use(plotting.STYLE)
    figure, axes = plt.subplots(2, 3, figsize=(14, 9))
    colors = {"neural ODE": (plotting.COLORS["other"], "--"), "augmented": (plotting.COLORS["ode"], "-")}
    classes = (("ball", plotting.COLORS["failure"], "o"), ("shell", plotting.COLORS["third"], "^"))
    grid = np.stack(np.meshgrid(*2 * [np.linspace(-1.8, 1.8, 161, dtype="float32")]), axis=-1)
    for row, (name, ((model, _), *_)) in zip(axes, runs.items(), strict=True):
        probability = 1 / (1 + np.exp(-model.predict(grid.reshape(-1, 2), batch_size=4096, verbose=0).reshape(161, 161)))
        row[0].contourf(grid[..., 0], grid[..., 1], probability, levels=np.linspace(0, 1, 11), cmap="Greys_r", alpha=0.6)
        for label, (_, color, marker) in enumerate(classes):
            row[0].scatter(*points[:500][labels[:500] == label].T, s=16, color=color, marker=marker, edgecolor="white", lw=0.4)
        row[0].set(title=f"{name}: classes", aspect="equal", xlim=(-1.8, 1.8), ylim=(-1.8, 1.8), xlabel="x", ylabel="y")

        start = model.layers[0](points[:150])
        states = model.get_layer("ode").solve(start, np.linspace(0, 1, 41)).ys.numpy()
        # Seen along the normal of the plane that separates the classes, and along the widest direction in this plane.
        normal = model.layers[-1].get_weights()[0][:, 0]
        normal /= np.linalg.norm(normal)
        rest = states[-1] - states[-1].mean(axis=0) - np.outer((states[-1] - states[-1].mean(axis=0)) @ normal, normal)
        along = np.linalg.svd(rest)[2][0]
        for label, (kind, color, marker) in enumerate(classes):
            shown = states[:, labels[:150] == label]
            row[1].plot(shown @ along, shown @ normal, "-", color=color, lw=0.5, alpha=0.5)
            row[1].plot(shown[-1] @ along, shown[-1] @ normal, marker, color=color, ms=5, label=kind)
        row[1].set(title=f"{name}: trajectories", xlabel="within the classifier's plane", ylabel="across it")
        row[1].legend(frameon=True)
    for (name, models), (ax, quantity) in itertools.product(runs.items(), zip(axes[:, 2], ("loss", "ode_nfe"), strict=True)):
        values = np.array([history[quantity] for _, history in models])
        epochs, (color, style) = range(1, values.shape[1] + 1), colors[name]
        ax.plot(epochs, np.median(values, axis=0), style, color=color, label=name)
        ax.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=color, alpha=0.2)
    axes[0, 2].set(title="Training loss", xlabel="epoch", ylabel="cross-entropy [nats]", yscale="log")
    axes[1, 2].set(title="Cost of a forward solve", xlabel="epoch", ylabel="evaluations", ylim=(0, None))
    for ax in axes[:, 2]:
        ax.legend()
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, a few epochs")
    parser.add_argument("--seed", type=int, default=0, help="the first of the seeds of the weights")
    parser.add_argument("--output", type=pathlib.Path, default=".", help="directory to write to")
    arguments = parser.parse_args()
    epochs, num_seeds = (5, 1) if arguments.quick else (60, 3)
    arguments.output.mkdir(parents=True, exist_ok=True)

    points, labels = keras_ode.datasets.spheres(2000, dimension=2, seed=0)
    seeds, kinds = range(arguments.seed, arguments.seed + num_seeds), {"neural ODE": 0, "augmented": 5}
    runs = {kind: [train(count, points, labels[:, None], epochs, seed) for seed in seeds] for kind, count in kinds.items()}
    rows = {kind: summary([history for _, history in models]) for kind, models in runs.items()}
    print(f"\nMedians of {num_seeds} seeds")
    print(f"{'':12} {'loss':>9} {'accuracy':>9} {'evaluations, first epochs':>26} {'last epochs':>12}")
    for kind, (loss, accuracy, first, final) in rows.items():
        print(f"{kind:12} {loss:9.5f} {accuracy:9.2%} {first:26.1f} {final:12.1f}")
    print(compared(*rows.values()))
    draw(arguments.output / "augmented.png", runs, points, labels)


if __name__ == "__main__":
    main()
