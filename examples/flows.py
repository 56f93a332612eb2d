"""Continuous normalizing flows learn the densities of points in the plane, compared with two other flows of the same size.

A continuous flow transforms a normal distribution by an ODE. The density at a point follows from the solve back to the base and
from the divergence on the way, for any network. A coupling flow (Glow) and a planar flow are sequences of invertible layers.

    python examples/flows.py [--quick]    # two sets, twelve minutes on two CPU cores; quick: one, small flows, a few steps
    python examples/flows.py --width 64 --steps 10000 --seeds 1    # the size and the number of steps of FFJORD

Writes flows.png. Sources: Grathwohl et al. (2019), FFJORD, ICLR, Figure 2 (densities of continuous flows and of Glow, without
numbers); Kingma, Dhariwal (2018), Glow, NeurIPS; Rezende, Mohamed (2015), Variational inference with normalizing flows, ICML.
"""

import argparse
import pathlib

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from keras import ops

import keras_ode
from keras_ode import plotting
from keras_ode.layers import ConcatSquash, TimeSequential
from keras_ode.models import ContinuousNormalizingFlow

SETS = ("moons", "circles", "pinwheel", "checkerboard", "eight_gaussians", "spirals")
EXTENT, CELLS, BATCH = 4.0, 200, 500


def samples(name, num_samples, seed):
    """Points of a set, without classes, in units of their spread."""
    drawn = getattr(keras_ode.datasets, name)
    points, scale = (p[0] if isinstance(p, tuple) else p for p in (drawn(num_samples, seed=seed), drawn(10000, seed=99)))
    return (points - scale.mean(axis=0)) / scale.std()


class LayeredFlow(keras.Model):
    """Applies `layer(state, weights)` from data to the base, with each of the stacked weights. The state has a log-determinant."""

    def __init__(self, layer, start):
        super().__init__()
        self.layer, self.stacks = layer, [self.add_weight(values.shape) for values in start]
        self.set_weights(start)

    def call(self, z):
        z, change = tf.foldl(self.layer, [ops.convert_to_tensor(v) for v in self.stacks], (z, ops.zeros_like(z[:, 0])))
        log_prob = change - 0.5 * ops.sum(z**2, axis=-1) - np.log(2 * np.pi)
        self.add_loss(-ops.mean(log_prob))
        return log_prob


def coupling(state, weights):
    """Mixes the coordinates. Then scales and shifts the second by a function of the first, a network of 32 units."""
    (z, change), (mixing, slopes, biases, out, out_bias) = state, weights
    z = ops.matmul(z, mixing)
    scale, shift = ops.unstack(ops.matmul(ops.tanh(z[:, :1] * slopes + biases), out) + out_bias, axis=-1)
    scale = 2 * ops.tanh(scale / 2)
    determinant = mixing[0, 0] * mixing[1, 1] - mixing[0, 1] * mixing[1, 0]
    return ops.stack([z[:, 0], z[:, 1] * ops.exp(scale) + shift], axis=-1), change + scale + ops.log(ops.abs(determinant))


def planar(state, weights):
    """Returns `z + u tanh(w z + b)`, which is invertible since `softplus` makes `w u > -1`."""
    (z, change), (u, w, b) = state, weights
    product = ops.sum(w * u)
    u = u + (ops.softplus(product + np.log(np.e - 1)) - 1 - product) * w / ops.sum(w**2)
    bent = ops.tanh(ops.sum(z * w, axis=-1) + b)
    return z + u * bent[:, None], change + ops.log1p((1 - bent**2) * ops.sum(u * w))


def flows(width):
    """Returns a continuous flow, and the other two with about as many weights."""
    # The plane is enlarged first: otherwise tanh is almost linear there at the start, and slow to learn fine structure.
    hidden = [ConcatSquash(width, activation="tanh") for _ in range(3)]
    dynamics = TimeSequential([keras.layers.Rescaling(4.0), *hidden, ConcatSquash(2)])
    continuous = ContinuousNormalizingFlow(dynamics, solver="bosh3", rtol=1e-3, atol=1e-3, adjoint="checkpointed")
    continuous.build((None, 2))
    n, m, normal = round(continuous.count_params() / 134), round(continuous.count_params() / 5), np.random.normal
    start = np.linalg.qr(normal(size=(n, 2, 2)))[0], normal(size=(n, 32)), *map(np.zeros, ((n, 32), (n, 32, 2), (n, 2)))
    return continuous, LayeredFlow(coupling, start), LayeredFlow(planar, [np.zeros((m, 2)), normal(size=(m, 2)), np.zeros(m)])


def fit(model, start, points):
    """Trains a model by maximum likelihood from the weights `start`. Its compiled programs are those of its first training."""
    model.set_weights(start)
    for variable in model.optimizer.variables:
        variable.assign(ops.zeros_like(variable))
    model.fit(points, batch_size=BATCH, verbose=0)


def density(model):
    """The model's density in the middles of the cells of a grid, `[CELLS, CELLS]`."""
    axis = (np.arange(CELLS, dtype="float32") + 0.5) / CELLS * 2 * EXTENT - EXTENT
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    return np.exp(model.predict(grid, batch_size=5000, verbose=0)).reshape(CELLS, CELLS)


def draw(path, results):
    """Draws a row for each set: points, and the densities of the flows."""
    plt.style.use(plotting.STYLE)
    figure, axes = plt.subplots(len(results), 4, figsize=(9.6, 2.5 * len(results)), squeeze=False)
    for row, (name, (points, *densities)) in zip(axes, results.items(), strict=True):
        row[0].hist2d(*points.T, bins=100, range=[[-2.6, 2.6]] * 2)
        for ax, values in zip(row[1:], densities, strict=True):
            ax.imshow(values, origin="lower", extent=[-EXTENT, EXTENT] * 2)
        row[0].set_ylabel(name.replace("_", " "))
    plt.setp(axes, aspect="equal", xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), xticks=[], yticks=[])
    for ax, title in zip(axes[0], ("points", "continuous flow", "coupling flow", "planar flow"), strict=True):
        ax.set_title(title)
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one set, small flows, a few steps")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=("checkerboard", "spirals"), help="names of data sets")
    parser.add_argument("--width", type=int, default=32, help="units of each hidden layer of the continuous flow")
    parser.add_argument("--steps", type=int, default=1000, help="training steps")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the first set of weights")
    parser.add_argument("--seeds", type=int, default=3, help="how many sets of weights are trained")
    parser.add_argument("--output", type=pathlib.Path, default=".", help="directory to write to")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.sets, arguments.width, arguments.steps, arguments.seeds = SETS[:1], 8, 50, 1
    arguments.output.mkdir(parents=True, exist_ok=True)
    models, results, compiled = flows(arguments.width), {}, not arguments.quick  # Compiling takes longer than a few steps.
    optimizers = (keras.optimizers.Muon, 6e-2), (keras.optimizers.Adam, 1e-2), (keras.optimizers.Muon, 1e-2)
    for model, (optimizer, rate) in zip(models, optimizers, strict=True):
        model.compile(optimizer(keras.optimizers.schedules.CosineDecay(rate, arguments.steps), clipnorm=1.0), jit_compile=compiled)
    # The same weights, with tight tolerances: the errors of a loose solve can raise the computed likelihood.
    exact = ContinuousNormalizingFlow(models[0].dynamics, rtol=1e-5, atol=1e-5)
    exact.compile(jit_compile=compiled)
    print(f"Median of {arguments.seeds} seed(s) of the held-out log-likelihood [nats], and integral of the density")
    for name in arguments.sets:
        points, held_out, scores = samples(name, BATCH * arguments.steps, seed=1), samples(name, 5000, seed=2), []
        for seed in range(arguments.seed, arguments.seed + arguments.seeds):
            keras.utils.set_random_seed(seed)
            for model, fresh in zip(models, flows(arguments.width), strict=True):
                fit(model, fresh.get_weights(), points)
            scores.append([model.predict(held_out, batch_size=5000, verbose=0).mean() for model in (exact, *models[1:])])
        results[name] = points, *map(density, (exact, *models[1:]))
        numbers = *np.median(scores, axis=0), *(d.sum() * (2 * EXTENT / CELLS) ** 2 for d in results[name][1:])
        print(f"{name:16}", *(f"{n:8.3f}" for n in numbers), flush=True)
    print("Weights of the flows:", *(f"{model.count_params():,}" for model in models))
    draw(arguments.output / "flows.png", results)


if __name__ == "__main__":
    main()
