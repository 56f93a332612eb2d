"""Continuous flows of M units against planar flows of M layers, fitted to densities that are known up to a factor.

A planar flow is M units, one after the other. The dynamics of a continuous flow is the sum of M such units, whose weights change
with time. Both minimize the Kullback-Leibler divergence KL(q || p) of their density q from the known one, p.

    python examples/flows_width.py [--quick]    # quick: two units, a few steps, one seed

Source: Chen et al. (2018), Neural Ordinary Differential Equations, NeurIPS, Figure 4 (losses for M = 2, 8, 32) and 5 (M = 64).
Losses of continuous flows after 10,000 steps are "generally" lower than those of planar flows after 500,000. Densities: Rezende,
Mohamed (2015), Variational inference with normalizing flows, ICML; a wall at |x1| = 4 makes two integrable. Writes flows_width.png.
"""

import argparse
import pathlib
import time

import keras
import matplotlib.pyplot as plt
import numpy as np
from keras import ops

from keras_ode import ODELayer, plotting

NAMES, BATCH = ("two moons", "wave", "forked wave"), 256
ODE = {"solver": "bosh3", "adjoint": "checkpointed", "rtol": 1e-3, "atol": 1e-3, "inference_rtol": 1e-4, "inference_atol": 1e-4}


def energies(x):
    """Minus the logarithm of each density, up to a constant, at points `[..., 2]`: `[..., 3]`."""
    x1, x2 = x[..., 0], x[..., 1]
    ring = 0.5 * ((ops.sqrt(x1**2 + x2**2 + 1e-6) - 2) / 0.4) ** 2
    moons = ring - ops.logaddexp(-0.5 * ((x1 - 2) / 0.6) ** 2, -0.5 * ((x1 + 2) / 0.6) ** 2)
    wall = 0.5 * (ops.relu(ops.abs(x1) - 4) / 0.4) ** 2
    above = x2 - ops.sin(np.pi / 2 * x1)
    below = above + 3 * ops.exp(-0.5 * ((x1 - 1) / 0.6) ** 2)
    fork = wall - ops.logaddexp(-0.5 * (above / 0.35) ** 2, -0.5 * (below / 0.35) ** 2)
    return ops.stack([moons, wall + 0.5 * (above / 0.4) ** 2, fork], axis=-1)


def densities(extent, cells):
    """`exp(-energies)` in the middles of the cells of a grid over `[-extent, extent]^2`, `[cells, cells, 3]`."""
    axis = (np.arange(cells, dtype="float32") + 0.5) / cells * 2 * extent - extent
    return np.exp(-ops.convert_to_numpy(energies(np.stack(np.meshgrid(axis, axis), axis=-1))))


class PlanarLayers(keras.Layer):
    """The layers `z + u tanh(w z + b)`, invertible since `softplus` makes `w u > -1`. The state is `(z, log_determinant)`."""

    def __init__(self, units):
        super().__init__()
        shapes = ((units, 2), 1.0), ((units, 2), 0.01), ((units,), 1.0)
        self.w, self.u, self.b = (self.add_weight(shape, keras.initializers.RandomNormal(stddev=s)) for shape, s in shapes)

    def call(self, state):
        z, change = state
        for w, u, b in zip(*map(ops.unstack, (self.w, self.u, self.b)), strict=True):
            product = ops.sum(w * u)
            u = u + (ops.softplus(product + np.log(np.e - 1)) - 1 - product) * w / ops.sum(w**2)
            bent = ops.tanh(ops.sum(z * w, axis=-1) + b)
            z, change = z + u * bent[:, None], change + ops.log1p((1 - bent**2) * ops.sum(u * w))
        return z, change


class MovingUnits(keras.Layer):
    """The dynamics `sum_m u_m tanh(w_m z + b_m)`, whose weights are linear in time between five knots on [0, 1]."""

    def __init__(self, units):
        super().__init__()
        self.w, self.u, self.b = (self.add_weight((5, n * units)) for n in (2, 2, 1))
        for variable, scale in (self.w, 2.0), (self.u, 0.02), (self.b, 2.0):
            variable.assign(ops.broadcast_to(keras.random.normal((1, variable.shape[1]), stddev=scale), variable.shape))

    def call(self, t, state):
        shares = ops.relu(1 - ops.abs(4 * t - ops.arange(5, dtype=t.dtype)))
        w, u, b = (ops.reshape(ops.matmul(shares, v), (n, -1)) for v, n in ((self.w, 2), (self.u, 2), (self.b, 1)))
        hidden = ops.tanh(ops.matmul(state[0], w) + b)
        return ops.matmul(hidden, ops.transpose(u)), ops.matmul(1 - hidden**2, ops.sum(w * u, axis=0))


class Sampler(keras.Model):
    """From points of a normal distribution to points of q, and `log q - log p` there, up to a constant."""

    def __init__(self, flow):
        super().__init__()
        self.flow, self.chosen = flow, self.add_weight((len(NAMES),), trainable=False)  # 1 for the density to fit, else 0

    def call(self, z):
        x, change = self.flow((z, ops.zeros_like(z[:, 0])))
        log_ratio = ops.sum(energies(x) * self.chosen, axis=-1) - 0.5 * ops.sum(z**2, axis=-1) - np.log(2 * np.pi) - change
        self.add_loss(ops.mean(log_ratio))
        return {"x": x, "log_ratio": log_ratio}


def learn(make, units, steps, rate, seeds):
    """Returns for each density the median divergence in nats, and points; and the number of weights."""
    model = Sampler(make(units))
    optimizer = keras.optimizers.Muon(keras.optimizers.schedules.CosineDecay(rate, steps), clipnorm=1.0)
    model.compile(optimizer, jit_compile=True, steps_per_execution=20 if steps > 100 else 1)
    divergences, points = np.zeros([len(NAMES), len(seeds)]), {}
    for row, column in np.ndindex(*divergences.shape):
        keras.utils.set_random_seed(seeds[column])
        model.flow.set_weights(Sampler(make(units)).flow.get_weights())  # The compiled programs are those of one model.
        model.chosen.assign(np.eye(len(NAMES))[row])
        for variable in model.optimizer.variables:
            variable.assign(ops.zeros_like(variable))
        model.fit(keras.random.normal((steps * BATCH, 2)), batch_size=BATCH, verbose=0)
        found = model.predict(keras.random.normal((20000, 2)), batch_size=5000, verbose=0)
        divergences[row, column], points[row] = found["log_ratio"].mean(), found["x"]
    log_integrals = np.log(densities(8, 800).sum(axis=(0, 1)) * (16 / 800) ** 2)
    return np.median(divergences, axis=1) + log_integrals, points, model.flow.count_params()


def draw(path, results, units):
    """As in Figure 4: a row for each density, with points of both flows of each size, and the divergences."""
    plt.style.use(plotting.STYLE)
    figure, axes = plt.subplots(3, 2 * len(units) + 2, figsize=(6 + 4 * len(units), 6.6))
    for row, (name, target) in enumerate(zip(NAMES, np.moveaxis(densities(4, 100), -1, 0), strict=True)):
        axes[row, 0].imshow(target, origin="lower")
        axes[row, 0].set(ylabel=name, title="" if row else "target")
        for i, (kind, role, style) in enumerate((("planar", "other", "s--"), ("continuous", "ode", "o-"))):
            for ax, n in zip(axes[row, 1 + i * len(units) :], units, strict=False):
                ax.hist2d(*results[kind, n][1][row].T, bins=100, range=[[-4, 4]] * 2)
                ax.set_title("" if row else f"{kind}\n{n} {'units' if i else 'layers'}")
            divergences = [results[kind, n][0][row] for n in units]
            axes[row, -1].loglog(units, divergences, style, color=plotting.COLORS[role], label=kind)
        axes[row, -1].set(xlim=(1, 100), ylim=(0.001, 5), ylabel="KL [nats]", xlabel="units or layers" if row == 2 else "")
    axes[0, -1].legend(fontsize=10)
    plt.setp(axes[:, :-1], aspect="equal", xticks=[], yticks=[])
    figure.savefig(path, dpi=80)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two units, a few steps, one seed")
    parser.add_argument("--seed", type=int, default=0, help="the first of the seeds of the weights and points")
    parser.add_argument("--output", type=pathlib.Path, default=".", help="directory to write to")
    arguments, results = parser.parse_args(), {}
    units, steps, num_seeds = ((2,), 20, 1) if arguments.quick else ((2, 8, 32, 64), 600, 3)
    arguments.output.mkdir(parents=True, exist_ok=True)
    print(f"M, median of {num_seeds} seed(s) of KL(q || p) [nats] ({', '.join(NAMES)}), weights of a flow, time so far")
    makers = (("continuous", lambda n: ODELayer(MovingUnits(n), **ODE), steps), ("planar", PlanarLayers, 2 * steps))
    for n, (kind, make, count) in [(n, maker) for n in units for maker in makers]:
        rate, seeds = 0.03 if kind == "planar" else 0.25 * n**-0.5, range(arguments.seed, arguments.seed + num_seeds)
        divergences, _, weights = results[kind, n] = learn(make, n, count, rate, seeds)
        print(f"{kind:10} {n:4} {divergences.round(3)} {weights:5} {time.process_time():5.0f} s of CPU time", flush=True)
    draw(arguments.output / "flows_width.png", results, units)


if __name__ == "__main__":
    main()
