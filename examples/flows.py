"""Continuous normalizing flows learn the densities of points in the plane, compared with coupling flows of the same size.

A continuous flow transforms a normal distribution by an ODE. The density at a point follows from the solve back to the base and
from the divergence along the trajectory: the likelihood is exact for any network, without an inverse or special layers. A coupling
flow (Glow in the plane) is a sequence of invertible layers: a matrix, and an affine map of one coordinate that a network computes
from the other.

    python examples/flows.py            # two sets, fourteen minutes on two CPU cores
    python examples/flows.py --quick    # one set, small flows, a few steps
    python examples/flows.py --width 64 --steps 10000    # the size and the number of steps of FFJORD

Writes flows.png. Sources: Grathwohl, Chen, Bettencourt, Sutskever, Duvenaud (2019), FFJORD, ICLR, Figure 2 (densities of
continuous flows and of Glow, without numbers); Kingma, Dhariwal (2018), Glow, NeurIPS.
"""

import argparse
import pathlib
import time

import keras
import matplotlib.pyplot as plt
import numpy as np
from keras import ops

import keras_ode
from keras_ode import plotting
from keras_ode.layers import ConcatSquash, TimeSequential
from keras_ode.models import ContinuousNormalizingFlow

SETS = ("moons", "circles", "pinwheel", "checkerboard", "eight_gaussians", "spirals")
EXTENT, CELLS, SEEDS = 4.0, 200, 3


def samples(name, num_samples, seed):
    """Points of a set, without classes, in units of their spread."""
    drawn = getattr(keras_ode.datasets, name)
    points, scale = drawn(num_samples, seed=seed), drawn(10000, seed=99)
    points, scale = (p[0] if isinstance(p, tuple) else p for p in (points, scale))
    return (points - scale.mean(axis=0)) / scale.std()


def dynamics(width):
    """The plane is enlarged first: otherwise tanh is almost linear there at the start, and slow to learn fine structure."""
    hidden = [ConcatSquash(width, activation="tanh") for _ in range(3)]
    return TimeSequential([keras.layers.Rescaling(4.0), *hidden, ConcatSquash(2)])


class CouplingFlow(keras.Model):
    """Maps data to the base. Each layer mixes the coordinates, and then scales and shifts the second as a function of the first."""

    def __init__(self, num_layers, width=32):
        super().__init__(name="coupling")
        self.mixing = self.add_weight((num_layers, 2, 2), name="mixing")
        angles = np.random.uniform(0, 2 * np.pi, num_layers)
        self.mixing.assign(np.moveaxis([[np.cos(angles), -np.sin(angles)], [np.sin(angles), np.cos(angles)]], -1, 0))
        sizes = [keras.Input([1]), keras.layers.Rescaling(4.0)]
        self.networks = [
            keras.Sequential([*sizes, keras.layers.Dense(width, "tanh"), keras.layers.Dense(2, kernel_initializer="zeros")])
            for _ in range(num_layers)
        ]

    def call(self, z):
        change = ops.zeros_like(z[:, 0])
        for matrix, network in zip(ops.unstack(self.mixing), self.networks, strict=True):
            z = ops.matmul(z, matrix)
            scale, shift = ops.unstack(network(z[:, :1]), axis=-1)
            scale = 2 * ops.tanh(scale / 2)
            z = ops.stack([z[:, 0], z[:, 1] * ops.exp(scale) + shift], axis=-1)
            change = change + scale + ops.log(ops.abs(matrix[0, 0] * matrix[1, 1] - matrix[0, 1] * matrix[1, 0]))
        return change - 0.5 * ops.sum(z**2, axis=-1) - np.log(2 * np.pi)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return -ops.mean(y_pred)


def flows(width):
    """A continuous flow, and a coupling flow with about as many weights."""
    continuous = ContinuousNormalizingFlow(dynamics(width), rtol=1e-3, atol=1e-3, adjoint="checkpointed", name="continuous")
    continuous.build((None, 2))
    return continuous, CouplingFlow(num_layers=round(continuous.count_params() / 134))


def fit(model, start, points, steps, learning_rate, jit_compile):
    """Trains a model by maximum likelihood from the weights `start`. Its compiled programs are those of its first training."""
    if not model.compiled:
        schedule = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
        model.compile(keras.optimizers.Adam(schedule, clipnorm=1.0), jit_compile=jit_compile)
    model.set_weights(start)
    for variable in model.optimizer.variables:
        variable.assign(ops.zeros_like(variable))
    model.fit(points, batch_size=500, epochs=max(1, steps * 500 // len(points)), verbose=0)


def density(model):
    """The model's density in the middles of the cells of a grid, `[CELLS, CELLS]`."""
    axis = (np.arange(CELLS, dtype="float32") + 0.5) / CELLS * 2 * EXTENT - EXTENT
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    return np.exp(model.predict(grid, batch_size=5000, verbose=0)).reshape(CELLS, CELLS)


def draw(path, results):
    """Draws a column for each set: points, and the densities of both flows."""
    plt.style.use(plotting.STYLE)
    figure, axes = plt.subplots(3, len(results), figsize=(2.3 * len(results), 7.2), squeeze=False)
    for column, (name, (points, *densities)) in zip(axes.T, results.items(), strict=True):
        column[0].hist2d(*points.T, bins=100, range=[[-2.6, 2.6]] * 2)
        for ax, values in zip(column[1:], densities, strict=True):
            ax.imshow(values, origin="lower", extent=[-EXTENT, EXTENT] * 2)
        column[0].set_title(name.replace("_", " "))
    plt.setp(axes, aspect="equal", xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), xticks=[], yticks=[])
    for ax, label in zip(axes[:, 0], ("points", "continuous flow", "coupling flow"), strict=True):
        ax.set_ylabel(label)
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one set, small flows, a few steps")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=("checkerboard", "spirals"), help="names of data sets")
    parser.add_argument("--width", type=int, default=32, help="units of each hidden layer of the continuous flow")
    parser.add_argument("--steps", type=int, default=2000, help="training steps")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the first of three sets of weights")
    parser.add_argument("--output", type=pathlib.Path, default=".", help="directory to write to")
    arguments = parser.parse_args()
    names, width, steps, seeds = arguments.sets, arguments.width, arguments.steps, SEEDS
    if arguments.quick:
        names, width, steps, seeds = SETS[:1], 8, 50, 1
    arguments.output.mkdir(parents=True, exist_ok=True)
    models, results = flows(width), {}
    # The same weights, with tight tolerances: the errors of a loose solve can raise the computed likelihood.
    exact = ContinuousNormalizingFlow(models[0].dynamics, rtol=1e-5, atol=1e-5)
    jit_compile = not arguments.quick  # compiling takes longer than a few steps
    exact.compile(jit_compile=jit_compile)
    print(f"Median of {seeds} seed(s) of the held-out log-likelihood [nats], integral of the density, time so far")
    for name in names:
        points, held_out, scores = samples(name, 50000, seed=1), samples(name, 5000, seed=2), []
        for seed in range(arguments.seed, arguments.seed + seeds):
            keras.utils.set_random_seed(seed)
            for model, fresh, rate in zip(models, flows(width), (1e-2, 5e-3), strict=True):
                fit(model, fresh.get_weights(), points, steps, rate, jit_compile)
            scores.append([model.predict(held_out, batch_size=5000, verbose=0).mean() for model in (exact, models[1])])
        results[name] = points, density(exact), density(models[1])
        numbers = *np.median(scores, axis=0), *(d.sum() * (2 * EXTENT / CELLS) ** 2 for d in results[name][1:])
        print(f"{name:16}", *(f"{n:8.3f}" for n in numbers), f"{time.process_time():6.0f} s of CPU time", flush=True)
    print("{}: {:,} weights, {}: {:,}".format(*(x for model in models for x in (model.name, model.count_params()))))
    draw(arguments.output / "flows.png", results)


if __name__ == "__main__":
    main()
