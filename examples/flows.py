"""Continuous normalizing flows learn the densities of six sets of points in the plane.

A flow carries a normal distribution along an ODE. Its density at a point follows from the way back to the base and from
the divergence on that way; exact likelihood for any network, which needs no inverse and no special layers. Beside it, a
planar flow with as many parameters, whose bijective layers bend the plane at one line each.

    python examples/flows.py            # about ten minutes on two CPU cores
    python examples/flows.py --quick    # one set, a few steps
    python examples/flows.py --sets spirals --width 64 --steps 10000    # the size and the number of steps of FFJORD

Writes flows.png. After Chen, Rubanova, Bettencourt, Duvenaud (2018), Neural Ordinary Differential Equations, NeurIPS
(section 4); Grathwohl, Chen, Bettencourt, Sutskever, Duvenaud (2019), FFJORD, ICLR; and for the planar flow, Rezende,
Mohamed (2015), Variational inference with normalizing flows, ICML.
"""

import argparse
import pathlib
import time

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from keras import ops

import keras_ode
from keras_ode.layers import ConcatSquash, TimeSequential
from keras_ode.models import ContinuousNormalizingFlow

SETS = ("moons", "circles", "pinwheel", "checkerboard", "eight_gaussians", "spirals")
EXTENT, CELLS = 4.0, 200


def samples(name, num_samples, seed):
    """Points of a set, without classes, in units of their spread."""
    drawn = getattr(keras_ode.datasets, name)
    points, scale = drawn(num_samples, seed=seed), drawn(10000, seed=99)
    points, scale = (p[0] if isinstance(p, tuple) else p for p in (points, scale))
    return (points - scale.mean(axis=0)) / scale.std()


def dynamics(width):
    """It sees the plane enlarged: else tanh is almost linear there at first, and slow to learn what is fine."""
    hidden = [ConcatSquash(width, activation="tanh") for _ in range(3)]
    return TimeSequential([keras.layers.Rescaling(4.0), *hidden, ConcatSquash(2)])


class PlanarFlow(keras.Model):
    """From data to the base: `z <- z + u tanh(w z + b)`, invertible while `w u > -1`; many times over."""

    def __init__(self, num_layers):
        super().__init__(name="planar")
        self.u = self.add_weight((num_layers, 2), keras.initializers.RandomNormal(stddev=0.01), name="u")
        self.w = self.add_weight((num_layers, 2), keras.initializers.RandomNormal(stddev=1.0), name="w")
        self.b = self.add_weight((num_layers,), "zeros", name="b")

    def call(self, z):
        def eight_layers(carry, weights):
            z, change = carry
            for u, w, b in zip(*map(tf.unstack, weights), strict=True):
                product = ops.sum(u * w)
                # So that w u > -1; the shift by log(e - 1) leaves u = 0 what it is.
                u = u + (ops.softplus(product + np.log(np.e - 1)) - 1 - product) * w / ops.sum(w * w)
                bent = ops.tanh(ops.sum(z * w, axis=-1) + b)
                z, change = z + u * bent[:, None], change + ops.log1p((1 - bent**2) * ops.sum(u * w))
            return z, change

        weights = [ops.reshape(weight, (-1, 8, *weight.shape[1:])) for weight in (self.u, self.w, self.b)]
        z, change = tf.foldl(eight_layers, weights, (z, ops.zeros_like(z[:, 0])))
        return change - 0.5 * ops.sum(z**2, axis=-1) - np.log(2 * np.pi)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return -ops.mean(y_pred)


def learn(model, points, steps, learning_rate):
    """Trains by maximum likelihood; an epoch is a hundred batches of 500."""
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    model.compile(keras.optimizers.Adam(schedule, clipnorm=1.0), jit_compile=True)
    model.fit(points, batch_size=500, epochs=max(1, steps * 500 // len(points)), verbose=2)
    return model


def density(model):
    """The model's density in the middles of the cells of a grid, `[CELLS, CELLS]`."""
    axis = (np.arange(CELLS, dtype="float32") + 0.5) / CELLS * 2 * EXTENT - EXTENT
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    return np.exp(model.predict(grid, batch_size=4000, verbose=0)).reshape(CELLS, CELLS)


def compare(name, width, steps):
    """Both flows, trained on one set: its points, scores, integrals over the grid, densities, and sizes."""
    points, held_out = samples(name, 50000, seed=1), samples(name, 5000, seed=2)
    flow = ContinuousNormalizingFlow(dynamics(width), rtol=1e-3, atol=1e-3, adjoint="checkpointed", name="continuous")
    flow.build((None, 2))
    planar = PlanarFlow(num_layers=8 * round(flow.count_params() / 40))
    learn(flow, points, steps, 1e-2)
    learn(planar, points, steps, 5e-3)
    # The same weights, solved accurately: what a loose solve gains by its errors is no likelihood.
    exact = ContinuousNormalizingFlow(flow.dynamics, rtol=1e-5, atol=1e-5)
    exact.compile(jit_compile=True)
    scores = [-model.evaluate(held_out, batch_size=5000, verbose=0) for model in (exact, planar)]
    densities = [density(model) for model in (exact, planar)]
    integrals = [values.sum() * (2 * EXTENT / CELLS) ** 2 for values in densities]
    return points, scores, integrals, densities, [model.count_params() for model in (flow, planar)]


def draw(path, results):
    """For each set a column: points, the continuous flow's density, the planar flow's."""
    figure, axes = plt.subplots(3, len(results), figsize=(2.3 * len(results), 7.2), layout="constrained", squeeze=False)
    for column, (name, (points, densities)) in zip(axes.T, results.items(), strict=True):
        column[0].hist2d(*points.T, bins=100, range=[[-2.6, 2.6]] * 2, cmap="magma")
        for ax, values in zip(column[1:], densities, strict=True):
            ax.imshow(values, origin="lower", extent=[-EXTENT, EXTENT] * 2, cmap="magma")
        column[0].set_title(name.replace("_", " "))
        for ax in column:
            ax.set(aspect="equal", xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), xticks=[], yticks=[])
    for ax, label in zip(axes[:, 0], ("samples", "continuous flow", "planar flow"), strict=True):
        ax.set_ylabel(label, size="large")
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one set, a few steps")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS, help="names of data sets")
    parser.add_argument("--width", type=int, default=32, help="units of each hidden layer of the continuous flow")
    parser.add_argument("--steps", type=int, default=2000, help="training steps")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    parser.add_argument("--output", type=pathlib.Path, default=".", help="directory to write to")
    arguments = parser.parse_args()
    names, steps = (arguments.sets[:1], 100) if arguments.quick else (arguments.sets, arguments.steps)
    arguments.output.mkdir(parents=True, exist_ok=True)
    results, lines = {}, []
    for name in names:
        keras.utils.set_random_seed(arguments.seed)
        began = time.perf_counter()
        points, scores, integrals, densities, sizes = compare(name, arguments.width, steps)
        results[name], numbers = (points, densities), " ".join(f"{number:11.3f}" for number in (*scores, *integrals))
        lines.append(f"{name:16} {numbers} {time.perf_counter() - began:6.0f} s")
        print(lines[-1], flush=True)

    print("\nHeld-out log-likelihood [nats], and integral of the density, of flows with {:,} and {:,} parameters".format(*sizes))
    print(f"{'':16} {'continuous':>11} {'planar':>11} {'continuous':>11} {'planar':>11}", *lines, sep="\n")
    print(f"The papers print no likelihoods of such sets, and show planar flows of up to 64 layers. This one has {sizes[1] // 5}.")
    draw(arguments.output / "flows.png", results)


if __name__ == "__main__":
    main()
