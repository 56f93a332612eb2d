"""A pendulum learned by five kinds of dynamics, and predicted ten times further.

All learn noisy trajectories through an ODELayer. The plain network may gain or lose energy at every point, and so may the
second-order equation, which only has to learn the acceleration. The others learn an energy or a Lagrangian, and their solutions
conserve an energy, which is the true one as far as it was learned. One of them has a Fourier series in place of a network.

    python examples/mechanics.py            # about thirteen minutes on two CPU cores
    python examples/mechanics.py --quick    # three kinds, a few epochs, one seed

Writes mechanics.png.

Sources: Greydanus, Dzamba, Yosinski (2019), Hamiltonian neural networks, NeurIPS; Cranmer, Greydanus, Hoyer, Battaglia, Spergel,
Ho (2020), Lagrangian neural networks, arXiv:2003.04630. Both report that the energy of their networks stays nearly constant,
while that of a plain network drifts. Norcliffe et al. (2020), On second order behaviour in augmented neural ODEs, NeurIPS, report
smaller errors of second-order equations on such data. Rackauckas et al. (2020), arXiv:2001.04385, use tensor products of basis
functions, which need few weights for few inputs. All train on other data, so only these effects can be compared.
"""

import argparse
import pathlib
import time

import keras
import matplotlib.pyplot as plt
import numpy as np

import keras_ode
from keras_ode import plotting
from keras_ode.layers import HamiltonianDynamics, LagrangianDynamics, SecondOrderDynamics, TensorProduct

HORIZON, TIMES, NOISE = 3.0, 16, 0.05
STYLES = {kind: (plotting.COLORS[role], line) for kind, role, line in (
    ("plain", "failure", "-"), ("second order", "third", "-."), ("Hamiltonian", "ode", "--"), ("Lagrangian", "other", ":"),
    ("Hamiltonian, Fourier", "ink", (0, (1, 3))))}


def energy(y):
    """The energy of a pendulum of unit mass, length and gravity, with the angle and the angular velocity in the last axis."""
    return y[..., 1] ** 2 / 2 - np.cos(y[..., 0])


def pendulum(t, y):
    return keras.ops.stack([y[..., 1], -keras.ops.sin(y[..., 0])], axis=-1)


def trajectories(count, t, seed):
    """Initial states at rest, at random angles on both sides, and the exact states at the times `t`, `[count, T, 2]`."""
    random, start = np.random.default_rng(seed), np.zeros([count, 2])
    start[:, 0] = random.uniform(0.5, 2.0, count) * random.choice([-1, 1], count)
    states = keras_ode.solve(pendulum, start.astype("float32"), t, rtol=1e-6).ys
    return start.astype("float32"), np.swapaxes(states, 0, 1)


def build_dynamics(kind):
    hidden = keras.layers.Dense(32, activation="softplus" if kind == "Lagrangian" else "tanh")
    network = keras.Sequential([hidden, keras.layers.Dense(2 if kind == "plain" else 1)])
    if kind == "Hamiltonian, Fourier":
        return HamiltonianDynamics(TensorProduct(1, degree=4, basis="fourier"))
    of_kind = {"second order": SecondOrderDynamics, "Hamiltonian": HamiltonianDynamics, "Lagrangian": LagrangianDynamics}
    return network if kind == "plain" else of_kind[kind](network)


def trained(kind, epochs, seed):
    keras.utils.set_random_seed(seed)
    t = np.linspace(0, HORIZON, TIMES)
    start, states = trajectories(64, t, seed)
    observed = states + NOISE * np.random.default_rng(seed).normal(size=states.shape)
    options = {"solver": "bosh3", "rtol": 1e-3, "atol": 1e-3, "adjoint": "checkpointed", "max_steps": 256}
    is_long = epochs > 100  # then it pays to compile at once
    layer = keras_ode.ODELayer(build_dynamics(kind), t=t, return_sequences=True, jit_compile=is_long, **options)
    model = keras.Sequential([keras.Input([2]), layer])
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-2, 2 * epochs), clipnorm=1.0), "mse")
    model.fit(start, observed, batch_size=32, epochs=epochs, verbose=0)
    return layer.dynamics


def draw(path, t, truth, predictions, drifts):
    plt.style.use(plotting.STYLE)
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4.6))
    left.plot(*truth[0].T, color="black", lw=3, alpha=0.3, label="exact")
    middle.plot(t, truth[0, :, 0], color="black", lw=3, alpha=0.3, label="exact")
    for kind, found in predictions.items():
        color, line = STYLES[kind]
        left.plot(*found[0].T, ls=line, color=color, lw=1.5, label=kind)
        middle.plot(t, found[0, :, 0], ls=line, color=color, lw=1.5, label=kind)
        right.semilogy(t[1:], np.median(drifts[kind], axis=0)[1:], ls=line, color=color, label=kind)
    left.set(title="One prediction in phase space", xlabel="angle [rad]", ylabel="angular velocity [rad / time]")
    middle.set(title="The last 10 units of time", xlabel="time", ylabel="angle [rad]", xlim=(t[-1] - 10, t[-1]))
    right.set(title="Energy: mean absolute change", xlabel="time", ylabel="change of the true energy")
    band = right.axvspan(0, HORIZON, color="0.9")
    handles, labels = left.get_legend_handles_labels()
    figure.legend([*handles, band], [*labels, "training horizon"], loc="outside lower center", ncols=4)
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three kinds, a few epochs, one seed")
    parser.add_argument("--seed", type=int, default=0, help="the first of the seeds of the weights and the data")
    parser.add_argument("--output", type=pathlib.Path, default=".", help="directory to write to")
    arguments = parser.parse_args()
    kinds, epochs, num_seeds = (list(STYLES)[:3], 10, 1) if arguments.quick else (list(STYLES), 400, 3)
    arguments.output.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()

    t = np.linspace(0, 10 * HORIZON, 301)
    start, truth = trajectories(20, t, seed=1000)
    drifts, errors, predictions, once = {}, {}, {}, np.searchsorted(t, HORIZON)
    print(f"Medians of {num_seeds} seeds; the energies of the test trajectories lie between "
          f"{energy(start).min():.2f} and {energy(start).max():.2f}.")
    print(f"{'':22}{'weights':>8}{'error within the horizon':>26}{'change of energy, 1 horizon':>29}{'10 horizons':>13}")
    for kind in kinds:
        drifts[kind], errors[kind] = [], []
        for seed in range(arguments.seed, arguments.seed + num_seeds):
            dynamics = trained(kind, epochs, seed)
            found = np.swapaxes(keras_ode.solve(dynamics, start, t, rtol=1e-6).ys, 0, 1)
            drifts[kind].append(np.mean(np.abs(energy(found) - energy(found[:, :1])), axis=0))
            errors[kind].append(np.sqrt(np.mean((found - truth)[:, t <= HORIZON] ** 2)))
            predictions.setdefault(kind, found)
        change = np.median(drifts[kind], axis=0)
        print(f"{kind:22}{dynamics.count_params():8}{np.median(errors[kind]):26.4f}{change[once]:29.4f}"
              f"{change[-once:].max():13.4f}", flush=True)
    draw(arguments.output / "mechanics.png", t, truth, predictions, drifts)
    print(f"All took {time.perf_counter() - began:.0f} s.")


if __name__ == "__main__":
    main()
