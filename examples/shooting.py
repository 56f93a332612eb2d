"""The rates of predators and prey from noisy observations: where single shooting fails, and two remedies.

A solve over many cycles depends on the rates in a complicated way: from wrong rates, single shooting ends in a local minimum,
which is an average of the cycles. Multiple shooting solves short pieces, and penalizes the gaps between them. Collocation estimates
the derivatives by kernel regression, without any solve, and gives starting values. After either of them, single shooting converges.

    python examples/shooting.py            # a few minutes on two CPU cores
    python examples/shooting.py --quick    # one seed, few steps

Writes shooting.png.

Sources: Rackauckas et al. (2020), Universal differential equations for scientific machine learning, arXiv:2001.04385, and the
documentation of DiffEqFlux, for both remedies on neural ODEs; Bock, Plitt (1984), A multiple shooting algorithm for direct solution
of optimal control problems; Liang, Wu (2008), Parameter estimation for differential equation models using a framework of
measurement error in regression models. They show other equations, so that no numbers can be compared.
"""

import argparse
import pathlib
import time

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

import keras_ode
from keras_ode import plotting

TRUE = np.array([1.5, 1.0, 3.0, 1.0], "float32")
TIMES, NOISE, GROUP = np.linspace(0, 10, 101), 0.1, 6
# What each method starts from: `None` is a wrong guess of the rates.
METHODS = {
    "single shooting": None,
    "multiple shooting": None,
    "multiple, then single": "multiple shooting",
    "collocation": None,
    "collocation, then single": "collocation",
}
STYLES = {kind: (plotting.COLORS[role], line) for kind, role, line in
          (("single shooting", "failure", "--"), ("multiple shooting", "ode", "-"), ("collocation, then single", "other", "-."))}
RATES = tf.Variable(TRUE)


def predators_and_prey(t, y):
    a, b, c, d = tf.unstack(tf.convert_to_tensor(RATES))
    prey, predators = y[..., 0], y[..., 1]
    return tf.stack([prey * (a - b * predators), predators * (d * prey - c)], axis=-1)


def observations(seed):
    truth = keras_ode.solve(predators_and_prey, tf.constant([1.0, 1.0]), TIMES, rtol=1e-6).ys.numpy()
    return (truth + NOISE * np.random.default_rng(seed).normal(size=truth.shape)).astype("float32")


def collocated(ys):
    """The rates by linear regression of estimated derivatives on estimated states."""
    (prey, predators), (of_prey, of_predators) = (x.T for x in keras_ode.collocate(TIMES, ys, bandwidth=0.5))
    a, b = np.linalg.lstsq(np.stack([prey, -prey * predators], axis=1), of_prey)[0]
    c, d = np.linalg.lstsq(np.stack([-predators, prey * predators], axis=1), of_predators)[0]
    return np.array([a, b, c, d], "float32")


def estimated(method, ys, start, num_steps):
    """The rates that a method finds, and its seconds."""
    began = time.perf_counter()
    RATES.assign(collocated(ys) if method == "collocation" else start)
    options = {"variables": [RATES], "y0": tf.constant([1.0, 1.0]), "rtol": 1e-4, "atol": 1e-4}
    if method in ("single shooting", "multiple shooting"):
        options |= {"optimizer": keras.optimizers.Adam(0.03), "num_steps": num_steps, "continuity": 10.0}
        group_size = GROUP if method == "multiple shooting" else None
        keras_ode.estimate(predators_and_prey, ys, TIMES, group_size=group_size, **options)
    if METHODS[method]:
        keras_ode.estimate(predators_and_prey, ys, TIMES, optimizer="lbfgs", num_steps=num_steps // 10, **options)
    return RATES.numpy(), time.perf_counter() - began


def losses(ys, rates, group_size):
    """The loss of shooting along the first rate."""
    found = []
    for rate in rates:
        RATES.assign([rate, *TRUE[1:]])
        found.append(keras_ode.multiple_shooting(predators_and_prey, ys, TIMES, group_size, continuity=10.0, rtol=1e-4))
    return np.array(found)


def draw(path, num_rates, ys, found):
    """The fits of the methods, and the losses that two of them minimize."""
    plt.style.use(plotting.STYLE)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 5.2))
    left.plot(TIMES, ys[:, 0], "o", color=plotting.COLORS["ink"], mfc="white", ms=5, label="observed")
    fine = np.linspace(0, TIMES[-1], 401)
    for method, (color, line) in STYLES.items():
        RATES.assign(found[method])
        fit = keras_ode.solve(predators_and_prey, tf.constant([1.0, 1.0]), fine, rtol=1e-5, on_failure="nan").ys.numpy()
        left.plot(fine, fit[:, 0], line, color=color, label=method)
    left.set(title="Fits of the first seed", xlabel="time", ylabel="prey [thousands]")
    right.axvline(TRUE[0], color=plotting.COLORS["reference"], lw=5, label="true growth rate")
    rates = np.linspace(0.5, 3.0, num_rates, dtype="float32")
    for method, size in (("single shooting", len(TIMES)), ("multiple shooting", GROUP)):
        color, line = STYLES[method]
        right.semilogy(rates, losses(ys, rates, size), line, color=color)
    right.set(title="Loss along one of the four rates", xlabel="growth rate of the prey [1 / time]", ylabel="loss [thousands$^2$]")
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, few steps, few points of the losses")
    parser.add_argument("--seed", type=int, default=0, help="the first of the seeds of the noise and the starting values")
    parser.add_argument("--output", type=pathlib.Path, default=".", help="directory to write to")
    arguments = parser.parse_args()
    num_steps, num_seeds, num_rates = (100, 1, 11) if arguments.quick else (200, 3, 51)
    arguments.output.mkdir(parents=True, exist_ok=True)

    rows, first = {method: [] for method in METHODS}, None
    for seed in range(arguments.seed, arguments.seed + num_seeds):
        RATES.assign(TRUE)
        ys = observations(seed)
        guess = (TRUE * np.random.default_rng(seed).uniform(0.4, 0.7, 4)).astype("float32")
        found = {}
        for method, before in METHODS.items():
            start, spent = found[before] if before else (guess, 0.0)
            rates, seconds = estimated(method, ys, start, num_steps)
            found[method] = rates, spent + seconds
        first = first or (ys, {method: rates for method, (rates, _) in found.items()})
        for method, (rates, seconds) in found.items():
            rows[method].append((np.max(np.abs(rates / TRUE - 1)), seconds))
    print(f"The largest relative error of the four rates, which start at 0.4 to 0.7 of their values, for {num_seeds} seeds:")
    print(f"{'':26}{'median':>9}{'smallest':>10}{'largest':>9}{'within 10 %':>15}{'median seconds':>16}")
    for method, values in rows.items():
        errors, seconds = np.array(values).T
        print(f"{method:26}{np.median(errors):9.1%}{errors.min():10.1%}{errors.max():9.1%}"
              f"{np.sum(errors < 0.1):12} of {num_seeds}{np.median(seconds):14.1f}")
    draw(arguments.output / "shooting.png", num_rates, *first)


if __name__ == "__main__":
    main()
