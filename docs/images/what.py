"""Draws what.png: states that jump through residual blocks, and the smooth trajectories of a differential equation."""

import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np


def velocity(t, h):
    return np.sin(2.2 * h + 2.5 * t) - 0.35 * h


def euler(start, steps):
    times, states = np.linspace(0, 1, steps + 1), [start]
    for t in times[:-1]:
        states.append(states[-1] + 2 / steps * velocity(t, states[-1]))
    return times, np.array(states)


plt.rcParams.update({"font.size": 12, "axes.spines.top": False, "axes.spines.right": False})
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
starts = np.linspace(-1.8, 1.8, 7)
times, states = euler(starts, 4)
for row in states.T:
    left.step(times * 4, row, where="post", color="#9aa5b1", linewidth=1)
    left.plot(times * 4, row, "o", color="#0b6e99", markersize=6)
left.set(title="Residual network: four blocks", xlabel="block", ylabel="state h", xticks=range(5))
grid_t, grid_h = np.meshgrid(np.linspace(0, 1, 15), np.linspace(-2.2, 2.2, 12))
right.quiver(grid_t, grid_h, np.full_like(grid_t, 0.5), velocity(grid_t, grid_h), angles="xy", color="#c3ccd5", width=0.004)
right.plot(*euler(starts, 400), color="#0b6e99", linewidth=2)
right.set(title="Neural ODE: continuous time", xlabel="time t")
figure.savefig(pathlib.Path(__file__).with_suffix(".png"), dpi=90)
