"""A latent ODE observes a noisy part of a spiral and continues it, forward and backward in time.

Spirals wind outward, half of them clockwise. Each is observed with noise at 30, 50 or 100 of 100 times. The observed parts begin
at different points of the spirals, so what follows one part was observed in others. For comparison, a recurrent network with as
many parameters predicts each next observation. The error is that of the 100 times after the observed ones, without noise.
`--quick` uses one seed. Writes latent_ode.png. After Chen, Rubanova, Bettencourt, Duvenaud (2018), NeurIPS (section 5.1).
"""

import argparse
import pathlib

import keras
import matplotlib.pyplot as plt
import numpy as np
from keras import layers, ops

import keras_ode
from keras_ode import plotting

OBSERVED = (30, 50, 100)
LENGTH = 100  # times of a window
TIMES = np.linspace(0, 3, 3 * LENGTH + 1)  # tests see the middle of them: there is as much before it and after it


def load(num_observed, num_series, seed, anywhere):
    """Whole spirals without noise; noisy values and the mask of a window, anywhere or in the middle."""
    _, noisy, truth = keras_ode.datasets.bidirectional_spirals(num_series, len(TIMES), noise=0.1, seed=seed)
    random = np.random.default_rng(seed)
    start = random.integers(2 * LENGTH + 1, size=(num_series, 1)) if anywhere else LENGTH
    window = np.broadcast_to(start + np.arange(LENGTH), (num_series, LENGTH))
    ranks = random.random((num_series, LENGTH)).argsort(axis=1).argsort(axis=1)
    return truth, np.take_along_axis(noisy, window[..., None], axis=1), ranks < num_observed


def latent_ode():
    """Its ODE and its decoder see positions in the latent space only, not times."""
    model = keras_ode.models.LatentODE(
        encoder=layers.GRU(32, go_backwards=True),
        dynamics=keras.Sequential([layers.Dense(26, activation="tanh"), layers.Dense(26, activation="tanh"), layers.Dense(4)]),
        decoder=keras.Sequential([layers.Dense(32, activation="tanh"), layers.Dense(2)]),
        latent_dim=4, noise=0.1, t=TIMES[LENGTH : 2 * LENGTH], rtol=1e-3, atol=1e-3,
    )
    model.build([None, LENGTH, 2])
    return model


def recurrent():
    """Given a value and the time to the next observation, predicts the next value."""
    return keras.Sequential([layers.Input([None, 3]), layers.GRU(38, return_sequences=True), layers.Dense(2)])


def in_sequence(values, mask):
    """The observations of each series with the number of times to the next of them, `[series, observed, 3]`."""
    positions = np.nonzero(mask)[1].reshape(len(mask), -1)
    gaps = np.diff(positions, axis=1, append=LENGTH)
    return np.concatenate([values[mask].reshape(*gaps.shape, 2), gaps[..., None]], axis=-1).astype("float32")


def go_on(network, sequence, stride):
    """The recurrent network's predictions at every `stride`-th time after the window, fed with themselves."""
    gru, head = network.layers
    state, gap = gru(sequence)[:, -1], np.full((len(sequence), 1), stride, "float32")
    predicted = [head(state)]
    while len(predicted) * stride <= LENGTH:
        state, _ = gru.cell(ops.concatenate([predicted[-1], gap], axis=-1), [state])
        predicted.append(head(state))
    return np.stack(predicted, axis=1)


def train(model, new, x, y, epochs):
    """Trains from the weights of a new model, because all seeds use the compiled programs of one model."""
    model.set_weights(new.get_weights())
    for variable in model.optimizer.variables:
        variable.assign(ops.zeros_like(variable))
    model.fit(x, y, batch_size=50, epochs=epochs, verbose=0)


def compare(ode, network, num_observed, seed, epochs, num_series):
    """Trains both models: their errors at later times, and what to draw."""
    keras.utils.set_random_seed(seed)
    _, values, mask = load(num_observed, num_series, seed, anywhere=True)
    truth, test_values, test_mask = load(num_observed, 200, 1000 + seed, anywhere=False)
    later = np.arange(2 * LENGTH, 3 * LENGTH + 1, LENGTH // num_observed)  # in steps that the recurrent network has learned
    train(ode, latent_ode(), {"values": values, "mask": mask}, None, epochs)
    posterior = ode.encode({"values": test_values, "mask": test_mask})
    ahead = ode.decode(posterior.mean(), TIMES[LENGTH:]).numpy()
    sequence = in_sequence(values, mask)
    train(network, recurrent(), sequence[:, :-1], sequence[:, 1:, :2], epochs)
    continued = go_on(network, in_sequence(test_values, test_mask), LENGTH // num_observed)
    errors = [float(np.sqrt(np.mean((p - truth[:, later]) ** 2))) for p in (ahead[:, later - LENGTH], continued)]

    # The figure shows ten samples of the posterior of the first series that turns right, or left for 50 observations.
    turns = truth[:, 0, 0] * truth[:, 1, 1] - truth[:, 0, 1] * truth[:, 1, 0]
    n = np.argmax(turns > 0 if num_observed == 50 else turns < 0)
    z = posterior.sample(10)[:, n]
    samples = np.concatenate([ode.decode(z, TIMES[LENGTH::-1])[:, :0:-1], ode.decode(z, TIMES[LENGTH:])], axis=1)
    return errors, (truth[n], test_values[n, test_mask[n]], samples, continued[n])


def draw(path, shown, errors):
    """A spiral for each number of observations, and the errors of all seeds."""
    plt.style.use(plotting.STYLE)
    figure, axes = plt.subplots((len(shown) + 2) // 2, 2, figsize=(9, 4.5 + 2 * len(shown)))
    ink, pale, blue, other = (plotting.COLORS[role] for role in ("ink", "reference", "ode", "other"))
    parts = {"before": (":", 0, LENGTH), "reconstructed": ("-", LENGTH, 2 * LENGTH), "after": ("--", 2 * LENGTH, 3 * LENGTH)}
    for ax, (num_observed, (truth, observed, samples, continued)) in zip(axes.flat, shown.items(), strict=False):
        ax.plot(*truth.T, color=pale, lw=9, label="spiral without noise")
        for part, (style, start, end) in parts.items():
            ax.plot(*samples[:, start : end + 1].T, style, color=blue, lw=1)[0].set_label(f"samples of the latent ODE, {part}")
        ax.plot(*continued.T, "-.", color=other, lw=3, label="recurrent network, after")
        ax.plot(*observed.T, "o", color=ink, mfc="white", ms=4, label="observed")
        ax.plot(*truth[[LENGTH, 2 * LENGTH]].T, "D", color=ink, ms=8, label="ends of the observed interval")
        ax.set(title=f"{num_observed} observations", aspect="equal", xlabel="x", ylabel="y")
    ax, values = axes.flat[-1], np.array(list(errors.values()))
    for i, (name, color, style) in enumerate((("latent ODE", blue, "o-"), ("recurrent network", other, "s-."))):
        ax.plot(list(shown), values[..., i], style[0], color=color, mfc="white")
        ax.plot(list(shown), np.median(values[..., i], axis=1), style, color=color, label=name)
    ax.set(title="Error after the observed interval", xlabel="observations", ylabel="root mean square error", ylim=0)
    ax.legend(title="median, and each seed", loc="lower left")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, handlelength=3)
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, 30 observations, a few epochs")
    parser.add_argument("--seed", type=int, default=0, help="the first of the seeds")
    parser.add_argument("--output", type=pathlib.Path, default=".", help="directory to write to")
    arguments = parser.parse_args()
    count, observed, epochs, num_series = (1, OBSERVED[:1], 3, 300) if arguments.quick else (3, OBSERVED, 80, 1000)
    arguments.output.mkdir(parents=True, exist_ok=True)
    errors, shown, ode, network = {n: [] for n in observed}, {}, latent_ode(), recurrent()
    for model, loss in ((ode, None), (network, "mse")):
        rates = keras.optimizers.schedules.CosineDecay(1e-2, epochs * num_series // 50)
        model.compile(keras.optimizers.Adam(rates, clipnorm=10.0), loss, jit_compile=not arguments.quick)
    for num_observed in observed:
        for seed in range(arguments.seed, arguments.seed + count):
            found, shown[num_observed] = compare(ode, network, num_observed, seed, epochs, num_series)
            errors[num_observed].append(found)
            print(f"{num_observed} observations, seed {seed}: {found}", flush=True)
    print("\nExtrapolation error (root mean square, median of seeds);", ode.count_params(), network.count_params(), "parameters")
    print("observations latent ODE  recurrent")
    for num_observed in observed:
        print(f"{num_observed:12}", *(f"{error:10.3f}" for error in np.median(errors[num_observed], axis=0)))
    print("Table 2 of the paper, for other spirals: 0.16, 0.15, 0.13; and 0.39, 0.32, 0.18 for its recurrent network.")
    draw(arguments.output / "latent_ode.png", shown, errors)


if __name__ == "__main__":
    main()
