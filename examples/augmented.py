"""A neural ODE cannot turn a ball inside out; with a few more dimensions it can.

The flow of an ODE is a homeomorphism: the points of a ball cannot leave the shell around it without crossing it. A model
that has to separate the two bends space until its equation is hard to solve. Zeros appended to the state (`Augment`)
give the points room to pass each other, after Dupont, Doucet, Teh (2019), Augmented Neural ODEs, NeurIPS.

    python examples/augmented.py            # a few minutes on two CPU cores
    python examples/augmented.py --quick    # a few epochs

Writes augmented.png.
"""

import argparse
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
    history = model.fit(points, labels, batch_size=100, epochs=epochs, verbose=2, callbacks=[recorder]).history
    return model, history


def last(values, count=5):
    return np.mean(values[-count:])


def compared(plain, augmented):
    """Compares this run with the paper's two claims: a lower loss, and evaluations that hardly grow."""
    ratio = last(plain["loss"]) / last(augmented["loss"])
    growth = [last(history["ode_nfe"]) / np.mean(history["ode_nfe"][:5]) for history in (plain, augmented)]
    return (
        f"Loss of the plain model, divided by that of the augmented one: {ratio:.1f} (in the paper, above 1).\n"
        f"Evaluations of the last epochs, divided by those of the first: {growth[0]:.2f} plain, {growth[1]:.2f} augmented "
        "(in the paper, the plain model's grow and the augmented one's hardly do)."
    )


def draw(path, runs, points, labels):
    """Draws the classes of both models, trajectories through the ODE, and the loss and the evaluations over the epochs."""
    plt.style.use(plotting.STYLE)
    figure, axes = plt.subplots(2, 3, figsize=(14, 9))
    colors = {"neural ODE": (plotting.COLORS["other"], "--"), "augmented": (plotting.COLORS["ode"], "-")}
    classes = (("ball", plotting.COLORS["failure"], "o"), ("shell", plotting.COLORS["third"], "^"))
    grid = np.stack(np.meshgrid(*2 * [np.linspace(-1.8, 1.8, 161, dtype="float32")]), axis=-1)
    for row, (name, (model, _)) in zip(axes, runs.items(), strict=True):
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
    for name, (_, history) in runs.items():
        epochs = range(1, len(history["loss"]) + 1)
        color, style = colors[name]
        axes[0, 2].semilogy(epochs, history["loss"], style, color=color, label=name)
        axes[1, 2].plot(epochs, history["ode_nfe"], style, color=color, label=name)
    axes[0, 2].set(title="Training loss", xlabel="epoch", ylabel="cross-entropy [nats]")
    axes[1, 2].set(title="Cost of a forward solve", xlabel="epoch", ylabel="evaluations", ylim=(0, None))
    for ax in axes[:, 2]:
        ax.legend()
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few epochs")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the weights")
    parser.add_argument("--output", type=pathlib.Path, default=".", help="directory to write to")
    arguments = parser.parse_args()
    epochs = 5 if arguments.quick else 60
    arguments.output.mkdir(parents=True, exist_ok=True)

    points, labels = keras_ode.datasets.spheres(2000, dimension=2, seed=0)
    runs = {
        name: train(num_channels, points, labels[:, None], epochs, arguments.seed)
        for name, num_channels in (("neural ODE", 0), ("augmented", 5))
    }
    print(f"{'':12} {'loss':>9} {'accuracy':>9} {'evaluations, first epochs':>26} {'last epochs':>12}")
    for name, (_, history) in runs.items():
        loss, accuracy, nfe = history["loss"], history["binary_accuracy"], history["ode_nfe"]
        print(f"{name:12} {last(loss):9.5f} {last(accuracy):9.2%} {np.mean(nfe[:5]):26.1f} {last(nfe):12.1f}")
    print(compared(*(history for _, history in runs.values())))
    draw(arguments.output / "augmented.png", runs, points, labels)


if __name__ == "__main__":
    main()
