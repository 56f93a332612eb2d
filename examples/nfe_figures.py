"""What an ODE network's solver does: four figures of evaluations, of error, time, gradients and training.

A small ODE-Net learns the digits, once with each of three adjoints, while `SolverStepRecorder` counts the evaluations of its
dynamics in every forward and backward solve. Then the trained network is solved at falling tolerances.

    python examples/nfe_figures.py            # five minutes of two CPU cores
    python examples/nfe_figures.py --quick    # few digits, two epochs, tolerances and adjoints

Writes nfe_figures.png.

Source: Chen, Rubanova, Bettencourt, Duvenaud (2018), Neural Ordinary Differential Equations, NeurIPS, Figure 3: (a) error
falls as evaluations rise, (b) time is proportional to evaluations, (c) a backward solve takes about half the evaluations
of a forward one, (d) evaluations grow over training. The paper integrates the state backward (here "backsolve") by an
implicit Adams method; here it is an explicit Runge-Kutta pair, without memory of earlier steps, and the tolerances of a
backward solve are those of cotangents as large as the states, however small the loss makes them: so counts differ. The
third adjoint has backward tolerances 30 times those of the forward solve.
"""

import argparse
import pathlib
import time

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from digits import augmented, load_digits

import keras_ode

ADJOINTS = {
    "backsolve": lambda tolerance: keras_ode.adjoints.Backsolve(),
    "interpolating": lambda tolerance: keras_ode.adjoints.Interpolating(),
    "30 x looser": lambda tolerance: keras_ode.adjoints.Interpolating(rtol=30 * tolerance, atol=30 * tolerance),
}


def build_model(tolerance, adjoint, learning_rate):
    model = keras_ode.models.ODENet(10, channels=16, rtol=tolerance, atol=tolerance, adjoint=ADJOINTS[adjoint](tolerance))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(learning_rate), loss, metrics=["accuracy"])
    return model


def trained(adjoint, batches, test, epochs, seed):
    """The model, and its evaluations forward and backward, means over each epoch."""
    keras.utils.set_random_seed(seed)
    model = build_model(1e-3, adjoint, 3e-3)
    recorder = keras_ode.callbacks.SolverStepRecorder()
    history = model.fit(batches, epochs=epochs, callbacks=[recorder], shuffle=False, verbose=2).history
    print(f"{adjoint}: test accuracy {model.evaluate(*test, verbose=0, return_dict=True)['accuracy']:.1%}")
    return model, np.array([history["ode_nfe"], history["ode_nfe_backward"]])


def gradient_evaluations(weights, tolerance, adjoint, pictures, labels):
    """Evaluations forward and backward of one batch: an epoch of `fit` that learns nothing."""
    model = build_model(tolerance, adjoint, learning_rate=0.0)
    model.build(pictures.shape)
    model.set_weights(weights)
    recorder = keras_ode.callbacks.SolverStepRecorder()
    history = model.fit(pictures, labels, batch_size=len(labels), callbacks=[recorder], verbose=0).history
    return history["ode_nfe"][0], history["ode_nfe_backward"][0]


def traced_solve(model, tolerance):
    return tf.function(lambda y: model.ode.solve(y, rtol=tolerance, atol=tolerance), autograph=False)


def forward_solves(model, pictures, tolerances):
    """Evaluations, relative error of the end state, and milliseconds, of a forward solve at each tolerance."""
    start = model.downsample(pictures)
    exact = model.ode.solve(start, solver="dopri8", rtol=2e-7, atol=2e-7).ys[-1].numpy()
    rows = []
    for tolerance in tolerances:
        seconds = []
        solve = traced_solve(model, tolerance)
        for _ in range(20):  # the first traces
            began = time.perf_counter()
            solution = solve(start)
            end = solution.ys[-1].numpy()
            seconds.append(time.perf_counter() - began)
        error = np.linalg.norm(end - exact) / np.linalg.norm(exact)
        rows.append((int(solution.stats["num_evaluations"]), error, 1e3 * min(seconds)))
    return np.array(rows).T


def draw(path, tolerances, forward, gradients, trainings):
    figure, ((a, b), (c, d)) = plt.subplots(2, 2, figsize=(10, 7.5), layout="constrained")
    evaluations, errors, milliseconds = forward
    a.loglog(evaluations, errors, "0.8")
    shades = a.scatter(evaluations, errors, c=tolerances, norm="log", zorder=2)
    figure.colorbar(shades, ax=a, label="tolerance")
    a.set(title="(a) Error falls with evaluations", xlabel="forward evaluations", ylabel="relative error")
    b.plot(evaluations, milliseconds, "o-", color="0.3")
    b.set(title="(b) Time grows with evaluations", xlabel="forward evaluations", ylabel="forward solve, ms", xlim=0, ylim=0)
    for number, (adjoint, (ahead, back)) in enumerate(gradients.items()):
        c.plot(ahead, back, "o-", color=f"C{number}", label=adjoint, zorder=1)
        for counts, style, direction in zip(trainings[adjoint], ("o-", "s--"), ("forward", "backward"), strict=True):
            d.plot(range(1, len(counts) + 1), counts, style, ms=4, color=f"C{number}", label=f"{adjoint}, {direction}")
    most = max(ahead.max() for ahead, _ in gradients.values())
    for slope, name in ((1, "as many"), (0.5, "half as many")):
        c.plot([0, most], [0, slope * most], ":", color="0.6", zorder=0)
        c.annotate(name, (most, slope * most), (-4, 6), textcoords="offset points", ha="right", color="0.4")
    c.set(title="(c) Backward against forward", xlabel="forward evaluations", ylabel="backward evaluations")
    d.set(title="(d) Evaluations over training", xlabel="epoch", ylabel="evaluations (mean over batches)")
    d.set_ylim(0, 1.5 * max(counts.max() for counts in trainings.values()))  # room for the legend
    d.xaxis.get_major_locator().set_params(integer=True)
    for axes in (a, b, c, d):
        axes.spines[["top", "right"]].set_visible(False)
    c.legend(frameon=False)
    d.legend(frameon=False, loc="upper left", fontsize="small")
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few digits, two epochs, tolerances and adjoints")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the augmentation")
    parser.add_argument("--output", type=pathlib.Path, default=".", help="directory to write to")
    arguments = parser.parse_args()
    epochs, num_train, num_tolerances, adjoints = (2, 200, 2, [*ADJOINTS][1:]) if arguments.quick else (10, 2000, 7, ADJOINTS)
    arguments.output.mkdir(parents=True, exist_ok=True)

    train, test = load_digits(num_train)
    runs = {a: trained(a, augmented(*train, batch_size=100), test, epochs, arguments.seed) for a in adjoints}
    trainings = {adjoint: counts for adjoint, (_, counts) in runs.items()}
    model, batch = runs["interpolating"][0], (test[0][:100], test[1][:100])
    tolerances = np.logspace(-2, -6, num_tolerances)
    forward = forward_solves(model, batch[0], tolerances)
    gradients = {
        a: np.array([gradient_evaluations(model.get_weights(), x, a, *batch) for x in tolerances]).T for a in adjoints
    }

    print("\n(a-c) tolerance  evaluations     error       ms   backward / forward:  " + "  ".join(adjoints))
    for i, tolerance in enumerate(tolerances):
        nfe, error, milliseconds = forward[:, i]
        ratios = [f"{back[i] / ahead[i]:>{len(a)}.2f}" for a, (ahead, back) in gradients.items()]
        print(f"{tolerance:15.0e}{nfe:13.0f}{error:10.1e}{milliseconds:9.1f}{'':24}" + "  ".join(ratios))
    for adjoint, (ahead, back) in trainings.items():
        print(f"\n(d) {adjoint}\n  epoch  forward  backward  backward / forward")
        for epoch, pair in enumerate(zip(ahead, back, strict=True), start=1):
            print(f"{epoch:7}{pair[0]:9.1f}{pair[1]:10.1f}{pair[1] / pair[0]:20.2f}")
        ratio = back / ahead
        print(f"  from {ratio.min():.2f} to {ratio.max():.2f} backward evaluations a forward one. In the paper it is about half.")
    draw(arguments.output / "nfe_figures.png", tolerances, forward, gradients, trainings)


if __name__ == "__main__":
    main()
