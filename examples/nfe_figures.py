"""What a neural ODE costs: the evaluations of its dynamics, after Figure 3 of the paper that introduced it.

A small ODE-Net learns to read handwritten digits. Then its own ODE is solved at many tolerances: the error falls as
evaluations rise, time is proportional to them, and a backward pass needs fewer than a forward one. During training, the
dynamics grows more complex and the solver adapts: evaluations rise.

    python examples/nfe_figures.py            # a few minutes on two CPU cores
    python examples/nfe_figures.py --quick    # a quarter of the digits, two epochs

Writes nfe_figures.png. After Chen, Rubanova, Bettencourt, Duvenaud (2018), Neural Ordinary Differential Equations,
NeurIPS, Figure 3.
"""

import argparse
import pathlib
import time

import keras
import matplotlib.pyplot as plt
import numpy as np
from digits import load_digits

import keras_ode


def train(digits, epochs, seed):
    """A model, and the evaluations of each epoch."""
    keras.utils.set_random_seed(seed)
    model = keras_ode.models.ODENet(num_classes=10, channels=16, rtol=1e-3, atol=1e-3, adjoint="backsolve")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
    recorder = keras_ode.callbacks.SolverStepRecorder()
    history = model.fit(*digits, batch_size=50, epochs=epochs, verbose=2, callbacks=[recorder]).history
    return model, history


def solve_at(model, pictures, tolerance):
    """Errors, times and evaluations of the trained model's solve at a tolerance."""
    start = model.downsample(pictures)
    exact = model.ode.solve(start, rtol=1e-6, atol=1e-6).ys[-1].numpy()
    times = []
    for _ in range(4):  # The first traces.
        began = time.perf_counter()
        solution = model.ode.solve(start, rtol=tolerance, atol=tolerance)
        state = solution.ys[-1].numpy()
        times.append(time.perf_counter() - began)
    error = np.linalg.norm(state - exact) / np.linalg.norm(exact)
    return error, min(times), int(solution.stats["num_evaluations"])


def passes_at(model, digits, tolerance):
    """Forward and backward evaluations at a tolerance, of one batch, with weights that stay as they are."""
    config = {**model.get_config(), "rtol": tolerance, "atol": tolerance}
    copy = keras_ode.models.ODENet.from_config(config)
    copy.build(digits[0].shape)
    copy.set_weights(model.get_weights())
    copy.compile(keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    recorder = keras_ode.callbacks.SolverStepRecorder()
    copy.fit(*digits, batch_size=len(digits[0]), verbose=0, callbacks=[recorder])
    return recorder.means["ode_nfe"], recorder.means["ode_nfe_backward"]


def draw(path, tolerances, errors, times, evaluations, forward, backward, history):
    figure, (left, second, third, right) = plt.subplots(1, 4, figsize=(14, 3.6), layout="constrained")
    points = left.scatter(evaluations, errors, c=np.log10(tolerances), cmap="viridis")
    left.set(title="(a) error", xlabel="forward evaluations", ylabel="relative error", xscale="log", yscale="log")
    second.scatter(evaluations, 1e3 * np.array(times), c=np.log10(tolerances), cmap="viridis")
    second.set(title="(b) time", xlabel="forward evaluations", ylabel="forward solve [ms]", xlim=(0, None), ylim=(0, None))
    third.scatter(forward, backward, c=np.log10(tolerances), cmap="viridis", zorder=3)
    ends = np.array([0, 1.05 * max(forward)])
    for share, style in ((1, "-"), (0.5, "--")):
        third.plot(ends, share * ends, style, color="0.6", lw=1, label=f"backward = {share:g} forward")
    third.set(title="(c) the two passes", xlabel="forward evaluations", ylabel="backward evaluations")
    third.legend(frameon=False, fontsize="small")
    epochs = range(1, len(history["loss"]) + 1)
    for name, label, color in (("ode_nfe", "forward", "C0"), ("ode_nfe_backward", "backward", "C1")):
        right.plot(epochs, history[name], "o-", ms=3, color=color, label=label)
    right.set(title="(d) over training", xlabel="epoch", ylabel="evaluations", ylim=(0, None))
    right.legend(frameon=False)
    figure.colorbar(points, ax=third, label="log10 of the tolerance")
    for ax in (left, second, third, right):
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a quarter of the digits, two epochs")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    parser.add_argument("--output", type=pathlib.Path, default=".", help="directory to write to")
    arguments = parser.parse_args()
    epochs, num_train, num_tolerances = (2, 1000, 3) if arguments.quick else (30, 4000, 9)
    tolerances = np.logspace(-1, -5, num_tolerances)
    arguments.output.mkdir(parents=True, exist_ok=True)

    digits, test = load_digits(num_train)
    model, history = train(digits, epochs, arguments.seed)
    batch = [values[:50] for values in test]
    errors, times, evaluations = zip(*(solve_at(model, batch[0], tolerance) for tolerance in tolerances), strict=True)
    forward, backward = zip(*(passes_at(model, batch, tolerance) for tolerance in tolerances), strict=True)

    print(f"\ntest accuracy {model.evaluate(*test, verbose=0, return_dict=True)['accuracy']:.1%}")
    print(f"{'tolerance':>9} {'relative error':>15} {'time':>9} {'forward':>8} {'backward':>9} {'ratio':>6}")
    for row in zip(tolerances, errors, times, forward, backward, strict=True):
        print(f"{row[0]:9.1e} {row[1]:15.1e} {1e3 * row[2]:6.1f} ms {row[3]:8.0f} {row[4]:9.0f} {row[4] / row[3]:6.2f}")
    ratios = np.divide(history["ode_nfe_backward"], history["ode_nfe"])
    print(f"Over training, forward evaluations go from {history['ode_nfe'][0]:.1f} to {history['ode_nfe'][-1]:.1f};")
    print(f"backward ones are {ratios.min():.2f} to {ratios.max():.2f} times as many. The paper reports roughly half for an implicit")
    print("Adams method, a time proportional to the evaluations, and evaluations that rise over training.")
    draw(arguments.output / "nfe_figures.png", tolerances, errors, times, evaluations, forward, backward, history)


if __name__ == "__main__":
    main()
