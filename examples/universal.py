"""A universal differential equation: missing terms of Lotka and Volterra are learned from noisy data, and recovered as formulas.

The growth of the prey, x' = a x + ?, and the decay of the predators, y' = -d y + ?, are known. A network takes the place of the two
unknown terms. It is trained on estimated derivatives first (collocation), and then by multiple shooting and by a solve over all
times. Sparse regression of its outputs on a list of candidates finds the formulas: -b x y and c x y. Writes universal.png.

    python examples/universal.py            # about five minutes on two CPU cores
    python examples/universal.py --quick    # one seed, few steps

Source: Rackauckas et al. (2020), Universal differential equations for scientific machine learning, arXiv:2001.04385, whose
equation, rates, start and interval these are. It reports that both terms are recovered. Sparse regression is sequentially
thresholded least squares: Brunton, Proctor, Kutz (2016), Discovering governing equations from data, PNAS 113.
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

A, B, C, D = 1.3, 0.9, 0.8, 1.8
START, TIMES, NOISE = np.array([0.44249296, 4.6280594], "float32"), np.linspace(0, 3, 61), 0.005
CANDIDATES = {"x": (1, 0), "y": (0, 1), "x^2": (2, 0), "x y": (1, 1), "y^2": (0, 2)}
THRESHOLD = 0.1


def true_dynamics(t, z):
    x, y = z[..., 0], z[..., 1]
    return tf.stack([A * x - B * x * y, C * x * y - D * y], axis=-1)


@keras.saving.register_keras_serializable(package="universal")
class PartlyKnown(keras.Layer):
    """The known terms, and a network for the unknown ones."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        hidden = [keras.layers.Dense(16, activation="tanh") for _ in range(2)]
        self.unknown = keras.Sequential([keras.Input([2]), *hidden, keras.layers.Dense(2)])

    def call(self, z):
        return known(z) + self.unknown(z)


def known(z):
    return z * tf.constant([A, -D], "float32")


def trained(ys, num_steps, seed):
    keras.utils.set_random_seed(seed)
    dynamics = PartlyKnown()
    states, slopes = keras_ode.collocate(TIMES, ys, bandwidth=0.3)
    dynamics.unknown.compile(keras.optimizers.Adam(1e-2), "mse")
    dynamics.unknown.fit(states, slopes - known(states), batch_size=len(TIMES), epochs=3 * num_steps, verbose=0)
    dynamics.build((None, 2))
    for rate, group_size, starts in ((3e-3, 11, None), (1e-3, len(TIMES), START[None])):
        adam = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, num_steps))
        options = {"optimizer": adam, "num_steps": num_steps, "group_size": group_size, "starts": starts}
        keras_ode.estimate(dynamics, ys, TIMES, rtol=1e-4, atol=1e-4, **options)
    return dynamics


def sparse(z, values):
    """Coefficients of the candidates for each column of values; small ones are set to zero, and the others fitted again."""
    matrix = np.stack([z[:, 0] ** i * z[:, 1] ** j for i, j in CANDIDATES.values()], axis=1)
    kept = np.ones([matrix.shape[1], values.shape[1]], bool)
    for _ in range(10):
        found = np.zeros(kept.shape)
        for column in range(values.shape[1]):
            chosen = kept[:, column]
            found[chosen, column] = np.linalg.lstsq(matrix[:, chosen], values[:, column])[0]
        kept = np.abs(found) > THRESHOLD
    return found * kept


def formula(coefficients):
    return " ".join(f"{c:+.3f} {name}" for c, name in zip(coefficients, CANDIDATES, strict=True) if c) or "0"


def draw(path, ys, states, terms, later, truth, predicted):
    plt.style.use(plotting.STYLE)
    figure, axes = plt.subplot_mosaic("AB;CC", figsize=(9, 8))
    (a, b, c), product = axes.values(), states[:, 0] * states[:, 1]
    c.axvspan(0, TIMES[-1], color="0.9", label="observed interval")
    for i, (name, role, marker) in enumerate((("prey", "ode", "o"), ("predators", "other", "s"))):
        thick = {"color": plotting.COLORS[role], "ls": "-", "lw": 7, "alpha": 0.5}
        a.plot(TIMES, ys[:, i], marker, color=plotting.COLORS[role], mfc="white", label=f"{name}, observed")
        b.plot(TIMES, (-B, C)[i] * product, **thick)
        c.plot(later, truth[:, i], **thick, label=f"{name}, exact")
    for i, (name, line) in enumerate((("prey", "k-"), ("predators", "k--"))):
        for ax, t, learned in ((a, TIMES, states), (b, TIMES, terms), (c, later, predicted)):
            ax.plot(t, learned[:, i], line, lw=1.5, label=f"{name}, learned" if ax is c else None)
    titles = "Observations and fit", "The missing terms", "Prediction with the formulas of the first seed"
    for ax, title, unit in zip((a, b, c), titles, ("population", "population / time", "population"), strict=True):
        ax.set(title=title, xlabel="time", ylabel=unit)
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, few steps")
    parser.add_argument("--seed", type=int, default=0, help="the first of the seeds of the noise and the weights")
    parser.add_argument("--output", type=pathlib.Path, default=".", help="directory to write to")
    arguments = parser.parse_args()
    num_steps, num_seeds = (40, 1) if arguments.quick else (400, 3)
    arguments.output.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()

    exact = keras_ode.solve(true_dynamics, START, TIMES, rtol=1e-6).ys.numpy()
    later = np.linspace(0, 20, 201)
    truth = keras_ode.solve(true_dynamics, START, later, rtol=1e-6).ys.numpy()
    errors, drawn = [], None
    for seed in range(arguments.seed, arguments.seed + num_seeds):
        noise = NOISE * exact.mean(axis=0) * np.random.default_rng(seed).normal(size=exact.shape)
        ys = (exact + noise).astype("float32")
        dynamics = trained(ys, num_steps, seed)
        states = keras_ode.solve(dynamics, START[None], TIMES, rtol=1e-5).ys.numpy()[:, 0]
        terms = dynamics.unknown(states).numpy()
        found = sparse(states, terms)
        print(f"seed {seed}: x' = {A} x + ({formula(found[:, 0])}),  y' = -{D} y + ({formula(found[:, 1])})", flush=True)

        def discovered(t, z, found=found):
            rows = tf.stack([z[0] ** i * z[1] ** j for i, j in CANDIDATES.values()])
            return known(z) + tf.linalg.matvec(tf.constant(found.T, "float32"), rows)

        predicted = keras_ode.solve(discovered, START, later, on_failure="nan").ys.numpy()
        wanted = np.zeros(found.shape)
        wanted[list(CANDIDATES).index("x y")] = -B, C
        rms = (np.sqrt(np.mean((x - y) ** 2)) for x, y in ((states, exact), (predicted, truth)))
        errors.append((np.array_equal(found != 0, wanted != 0), np.abs(found - wanted).max(), *rms))
        drawn = drawn or (ys, states, terms, later, truth, predicted)
    right, *rest = np.array(errors).T
    print(f"The true terms are -{B} x y and +{C} x y. Both terms and no others: {right.sum():.0f} of {num_seeds} seeds.")
    names = "largest error of a coefficient", "RMS error of the fit", "RMS error until t = 20"
    for name, values in zip(names, rest, strict=True):
        print(f"{name:32} median {np.median(values):.4f}, largest {values.max():.4f}")
    draw(arguments.output / "universal.png", *drawn)
    print(f"All took {time.perf_counter() - began:.0f} s.")


if __name__ == "__main__":
    main()
