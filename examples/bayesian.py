"""Hares and lynxes: the posterior of the parameters of a differential equation, by Hamiltonian Monte Carlo through the solver.

The Hudson's Bay Company counted the pelts of snowshoe hares and Canada lynxes each year from 1900 to 1920. The model is that of
Lotka and Volterra, `u' = (alpha - beta v) u` and `v' = (delta u - gamma) v`: hares u multiply and are eaten, lynxes v starve
and multiply by what they eat. Pelts have lognormal errors around the solution. Four chains of Hamiltonian Monte Carlo
(`tfp.mcmc`) sample the eight unknowns: four rates, both populations in 1900, and both errors of measurement. They use the
gradient of the solution with respect to all of these, and every chain has its own steps (`per_sample`).

    python examples/bayesian.py            # about two minutes on two CPU cores
    python examples/bayesian.py --quick    # short chains

Prints a table of the posterior and writes bayesian.png. The model and its priors are those of Carpenter (2018), Predator-prey
population dynamics: the Lotka-Volterra model in Stan.
"""

import argparse
import pathlib

import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import keras_ode

tfd = tfp.distributions
NAMES = ("alpha", "beta", "gamma", "delta", "hares 1900", "lynxes 1900", "error hares", "error lynxes")
UNITS = ("1 / year", "1 / year / thousand", "1 / year", "1 / year / thousand", "thousand", "thousand", "log", "log")
START = (0.6, 0.03, 0.8, 0.025, 30.0, 5.0, 0.3, 0.3)
CHAINS = 4
YEARS, PELTS = (x.astype("float64") for x in keras_ode.datasets.hare_lynx())


def lotka_volterra(t, log_populations, rates):
    """The derivatives of the logarithms of both populations: these stay finite, and populations positive."""
    hares, lynxes = tf.unstack(tf.exp(log_populations), axis=-1)
    alpha, beta, gamma, delta = tf.unstack(rates, axis=-1)
    return tf.stack([alpha - beta * lynxes, delta * hares - gamma], axis=-1)


def solution(unknowns, years):
    """The logarithms of the populations, `[years, chains, 2]`, from the logarithms of the unknowns, `[chains, 8]`."""
    return keras_ode.solve(
        lotka_volterra, unknowns[:, 4:6], years, args=(tf.exp(unknowns[:, :4]),), rtol=1e-5, atol=1e-5, per_sample=True,
        adjoint="checkpointed", max_steps=256, on_failure="nan",
    ).ys  # fmt: skip


def log_posterior(unknowns):
    """The log-density of the logarithms of the unknowns, `[chains]`, but for a constant."""

    def normal(mean, deviation):
        return tfd.Normal(*(tf.constant(x, tf.float64) for x in (mean, deviation)))

    rates, populations, errors = tf.split(unknowns, [4, 2, 2], axis=-1)
    prior = normal([1, 0.05, 1, 0.05], [0.5, 0.05, 0.5, 0.05]).log_prob(tf.exp(rates)) + rates  # the change to logarithms
    prior = tf.concat([prior, normal(np.log(10), 1).log_prob(populations), normal(-1, 1).log_prob(errors)], axis=-1)
    likelihood = tfd.Normal(solution(unknowns, YEARS - YEARS[0]), tf.exp(errors)).log_prob(np.log(PELTS)[:, None])
    total = tf.reduce_sum(prior, axis=-1) + tf.reduce_sum(likelihood, axis=[0, 2])
    return tf.where(tf.math.is_finite(total), total, -np.inf)  # a solve that failed is rejected


@tf.function(jit_compile=True, autograph=False)
def sample(start, num_kept, num_steps, seed):
    """Samples `[num_kept, chains, 8]` and whether they were accepted, after as many steps that adapt the step size."""
    sizes = tf.constant([0.012, 0.015, 0.011, 0.014, 0.009, 0.009, 0.016, 0.016], tf.float64)
    kernel = tfp.mcmc.HamiltonianMonteCarlo(log_posterior, step_size=sizes, num_leapfrog_steps=num_steps)
    kernel = tfp.mcmc.DualAveragingStepSizeAdaptation(kernel, int(0.8 * num_kept), target_accept_prob=np.float64(0.8))
    return tfp.mcmc.sample_chain(
        num_kept, start, kernel=kernel, num_burnin_steps=num_kept, seed=seed, trace_fn=lambda _, r: r.inner_results.is_accepted
    )


def draw(path, samples, replicated):
    """Draws the observed and the replicated pelts above, and the posterior of the rates below."""
    figure, axes = plt.subplots(2, 12, figsize=(11, 6.2), layout="constrained")
    grid = axes[0, 0].get_gridspec()
    for ax in axes.flat:
        ax.remove()
    years = np.linspace(YEARS[0], YEARS[-1], replicated.shape[0])
    for i, name in enumerate(("hares", "lynxes")):
        ax = figure.add_subplot(grid[0, 6 * i : 6 * i + 6])
        low, middle, high = np.quantile(replicated[..., i], [0.05, 0.5, 0.95], axis=1)
        ax.fill_between(years, low, high, color="0.85", label="90 % of replicated pelts")
        ax.plot(years, middle, "k--" if i else "k-", lw=1.2, label="median")
        ax.plot(YEARS, PELTS[:, i], "ko", mfc="white", ms=5, label="observed")
        ax.set(title=name, xlabel="year", ylabel="pelts (thousand)", xticks=range(1900, 1921, 5), ylim=(0, 1.3 * high.max()))
        ax.legend(frameon=False, loc="upper center", ncols=3)
    for i, (name, unit) in enumerate(zip(NAMES[:4], UNITS[:4], strict=True)):
        ax = figure.add_subplot(grid[1, 3 * i : 3 * i + 3])
        values = samples[..., i].ravel()
        ax.hist(values, bins=40, density=True, color="0.7")
        ax.axvline(values.mean(), color="k", lw=1.2, label="mean")
        for j, bound in enumerate(np.quantile(values, [0.05, 0.95])):
            ax.axvline(bound, color="k", lw=1.2, ls=":", label=None if j else "90 % interval")
        ax.set(title=name, xlabel=unit, ylabel="" if i else "posterior density", yticks=[])
    ax.legend(frameon=False, loc="upper right", fontsize="small")
    figure.savefig(path, dpi=100)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="short chains")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the starts of the chains and of their samples")
    parser.add_argument("--output", type=pathlib.Path, default=".", help="directory to write to")
    arguments = parser.parse_args()
    num_kept, num_steps = (50, 4) if arguments.quick else (1500, 12)
    arguments.output.mkdir(parents=True, exist_ok=True)

    random = np.random.default_rng(arguments.seed)
    start = np.log(START) + 0.05 * random.normal(size=(CHAINS, len(START)))
    chains, accepted = sample(tf.constant(start), num_kept, num_steps, tf.constant([arguments.seed, 1]))
    samples = np.exp(chains)
    spread = tfp.mcmc.potential_scale_reduction(samples).numpy()
    effective = tfp.mcmc.effective_sample_size(samples, cross_chain_dims=1).numpy()
    print(f"{CHAINS} chains of {num_kept} samples; {np.mean(accepted):.0%} of the proposals were accepted")
    print(f"{'':14}{'mean':>8} {'deviation':>10} {'5 %':>8} {'95 %':>8} {'R-hat':>7} {'effective samples':>18}")
    for i, name in enumerate(NAMES):
        values = samples[..., i]
        low, high = np.quantile(values, [0.05, 0.95])
        print(f"{name:14}{values.mean():8.4f} {values.std():10.4f} {low:8.4f} {high:8.4f} {spread[i]:7.3f} {effective[i]:18.0f}")

    chosen = chains.numpy().reshape(-1, len(NAMES))[random.integers(samples[..., 0].size, size=2000)]
    populations = solution(tf.constant(chosen), np.linspace(0, YEARS[-1] - YEARS[0], 101)).numpy()
    replicated = np.exp(populations + np.exp(chosen[:, 6:]) * random.normal(size=populations.shape))
    low, high = np.quantile(replicated[::5], [0.05, 0.95], axis=1)  # every fifth time is that of a year's pelts
    inside = np.mean((low <= PELTS) & (high >= PELTS))
    print(f"{inside:.0%} of the observed pelts lie within the 90 % intervals of the replicated ones")
    draw(arguments.output / "bayesian.png", samples, replicated)


if __name__ == "__main__":
    main()
