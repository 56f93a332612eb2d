"""Continuous flows of M hidden units against planar flows of K layers, fitted to densities that are known up to a factor.

A planar flow is K units, one after the other. The dynamics of a continuous flow is a sum of M units with gates that depend on time.
Both minimize the Kullback-Leibler divergence KL(q || p) of their density q from the known one, p. A gate has two weights, so planar
flows of K = 7/5 M layers, with as many weights as the continuous flow, are trained too. Writes flows_width.png.

    python examples/flows_width.py [--quick]    # some minutes of CPU time; quick: two units, a few steps

Source: Chen et al. (2018), Neural Ordinary Differential Equations, NeurIPS, Figure 4: losses for K, M = 2, 8, 32, without numbers.
After 10,000 steps of Adam, those of continuous flows are "generally" lower than those of planar flows after 500,000 of RMSprop.
Densities: Rezende, Mohamed (2015), Variational inference with normalizing flows, ICML; a wall at |x1| = 4 makes two integrable.
"""

import argparse
import pathlib
import time

import keras
import matplotlib.pyplot as plt
import numpy as np
from keras import initializers, ops

from keras_ode import ODELayer, plotting

NAMES, BATCH = ("two moons", "wave", "forked wave"), 256
COPIES = (3, len(NAMES))  # All are trained at once: each weight has one copy for each seed and density.
ODE = {"solver": "bosh3", "adjoint": "checkpointed", "rtol": 1e-3, "atol": 1e-3, "inference_rtol": 1e-5, "inference_atol": 1e-5}


def energies(x):
    """Minus the logarithm of each density, up to a constant, at its own points: from `[..., 3, 2]` to `[..., 3]`."""
    x1, x2 = x[..., 0], x[..., 1]
    ring = 0.5 * ((ops.sqrt(x1**2 + x2**2 + 1e-6) - 2) / 0.4) ** 2
    moons = ring - ops.logaddexp(-0.5 * ((x1 - 2) / 0.6) ** 2, -0.5 * ((x1 + 2) / 0.6) ** 2)
    wall = 0.5 * (ops.relu(ops.abs(x1) - 4) / 0.4) ** 2
    above = x2 - ops.sin(np.pi / 2 * x1)
    below = above + 3 * ops.exp(-0.5 * ((x1 - 1) / 0.6) ** 2)
    fork = wall - ops.logaddexp(-0.5 * (above / 0.35) ** 2, -0.5 * (below / 0.35) ** 2)
    return ops.stack([moons[..., 0], (wall + 0.5 * (above / 0.4) ** 2)[..., 1], fork[..., 2]], axis=-1)


def densities(extent, cells):
    """`exp(-energies)` in the middles of the cells of a grid over `[-extent, extent]^2`, `[cells, cells, 3]`."""
    axis = (np.arange(cells, dtype="float32") + 0.5) / cells * 2 * extent - extent
    points = np.stack(np.meshgrid(axis, axis), axis=-1)[..., None, :].repeat(len(NAMES), axis=-2)
    return np.exp(-ops.convert_to_numpy(energies(points)))


class PlanarLayers(keras.Layer):
    """The layers `z + u tanh(w z + b)`, invertible since `softplus` makes `w u > -1`. The state is `(z, log_determinant)`."""

    def __init__(self, units, spread=0.01):
        super().__init__()
        self.w = self.add_weight((units, *COPIES, 2), initializers.RandomNormal(stddev=1.0))
        self.u = self.add_weight((units, *COPIES, 2), initializers.RandomNormal(stddev=spread))
        self.b = self.add_weight((units, *COPIES), initializers.RandomNormal(stddev=1.0))

    def call(self, state):
        z, change = state
        for w, u, b in zip(*map(ops.unstack, (self.w, self.u, self.b)), strict=True):
            product = ops.sum(w * u, axis=-1, keepdims=True)
            u = u + (ops.softplus(product + np.log(np.e - 1)) - 1 - product) * w / ops.sum(w**2, axis=-1, keepdims=True)
            bent = ops.tanh(ops.sum(z * w, axis=-1) + b)
            z, change = z + u * bent[..., None], change + ops.log1p((1 - bent**2) * ops.sum(u * w, axis=-1))
        return z, change


class GatedUnits(PlanarLayers):
    """The same units, and a gate for each, as the dynamics `sum_m sigmoid(slope_m t + offset_m) u_m tanh(w_m z + b_m)`."""

    def __init__(self, units):
        super().__init__(units, spread=0.1)
        self.slope = self.add_weight((units, *COPIES), initializers.RandomNormal(stddev=4.0))
        self.offset = self.add_weight((units, *COPIES), initializers.RandomNormal(stddev=2.0))

    def call(self, t, state):
        hidden = ops.tanh(ops.einsum("bsdi,msdi->bmsd", state[0], self.w) + self.b)
        gate = ops.sigmoid(self.slope * ops.cast(t, hidden.dtype) + self.offset)
        divergence = ops.sum((1 - hidden**2) * gate * ops.sum(self.w * self.u, axis=-1), axis=1)
        return ops.einsum("bmsd,msdi->bsdi", gate * hidden, self.u), divergence


class Sampler(keras.Model):
    """From points of a normal distribution to points of q, and `log q - log p` there, up to a constant."""

    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def call(self, z):
        z = ops.tile(z[:, None, None], (1, *COPIES, 1))  # The copies share no weights, so each has its own gradient.
        x, change = self.flow((z, ops.zeros_like(z[..., 0])))
        return {"x": x, "log_ratio": -0.5 * ops.sum(z**2, axis=-1) - np.log(2 * np.pi) - change + energies(x)}

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return ops.sum(ops.mean(y_pred["log_ratio"], axis=0))


def learn(flow, steps):
    """Trains a flow: returns the divergences of its copies in nats, `[3, 3]`, points of them, and the number of their weights."""
    model = Sampler(flow)
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.03, steps)), jit_compile=True)
    model.fit(keras.random.normal((steps * BATCH, 2)), batch_size=BATCH, verbose=0)
    found = model.predict(keras.random.normal((50000, 2)), batch_size=2000, verbose=0)
    log_integral = np.log(densities(8, 800).sum(axis=(0, 1)) * (16 / 800) ** 2)
    return found["log_ratio"].mean(axis=0) + log_integral, found["x"], model.count_params() // np.prod(COPIES)


def draw(path, results, units):
    """As in Figure 4: a row for each density, with points of both flows of each size, and the divergences."""
    plt.style.use(plotting.STYLE)
    figure, axes = plt.subplots(3, 2 * len(units) + 2, figsize=(6 + 4 * len(units), 6.6))
    for row, (name, target) in enumerate(zip(NAMES, np.moveaxis(densities(4, 100), -1, 0), strict=True)):
        axes[row, 0].imshow(target, origin="lower")
        axes[row, 0].set(ylabel=name, title="" if row else "target")
        for ax, (kind, size) in zip(axes[row, 1:-1], [(k, n) for k in ("planar", "continuous") for n in units], strict=True):
            ax.hist2d(*results[kind, size][1][:, 0, row].T, bins=100, range=[[-4, 4]] * 2)
            ax.set_title("" if row else f"{kind}\n{'M' if kind == 'continuous' else 'K'} = {size}")
        for kind, role, style in (("planar", "other", "s--"), ("continuous", "ode", "o-")):
            medians = {size: np.median(found[0][:, row]) for (k, size), found in sorted(results.items()) if k == kind}
            axes[row, -1].loglog(list(medians), list(medians.values()), style, color=plotting.COLORS[role], label=kind)
        axes[row, -1].set(xlim=(1, 100), ylim=(0.01, 5), ylabel="KL [nats]", xlabel="K or M" if row == 2 else "")
    axes[0, -1].legend(fontsize=10)
    plt.setp(axes[:, :-1], aspect="equal", xticks=[], yticks=[])
    figure.savefig(path, dpi=80)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two units, a few steps")
    parser.add_argument("--units", nargs="+", type=int, default=[2, 8, 32], help="numbers M of units")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the points")
    parser.add_argument("--output", type=pathlib.Path, default=".", help="directory to write to")
    arguments = parser.parse_args()
    units, steps, results = ((2,), 20, {}) if arguments.quick else (arguments.units, 2000, {})
    arguments.output.mkdir(parents=True, exist_ok=True)
    print(f"Median of {COPIES[0]} seeds of KL(q || p) [nats]: {', '.join(NAMES)}; weights of a flow; CPU time so far")
    for kind, n in [flow for m in units for flow in (("continuous", m), ("planar", m), ("planar", round(1.4 * m)))]:
        keras.utils.set_random_seed(arguments.seed)
        flow, factor = (ODELayer(GatedUnits(n), **ODE), 1) if kind == "continuous" else (PlanarLayers(n), 3)
        divergences, _, weights = results[kind, n] = learn(flow, factor * steps)
        print(f"{kind:10} {n:4} {np.median(divergences, axis=0).round(3)} {weights:5} {time.process_time():5.0f} s", flush=True)
    for words, ratio in (("units", 1), ("weights", 1.4)):
        lower = [results["continuous", n][0] < results["planar", round(ratio * n)][0] for n in units]
        print(f"The continuous flow is closer than a planar flow of as many {words} in {np.sum(lower)} of {np.size(lower)} cases.")
    draw(arguments.output / "flows_width.png", results, units)


if __name__ == "__main__":
    main()
