"""The figures of the recorder. Matplotlib is imported when it is needed."""

import numpy as np

_DIRECTIONS = ("forward", "backward")


def plot_steps(records):
    """Draws step sizes and scaled errors against time.

    Each layer has two rows of axes, each direction (forward, backward) one column, and each epoch its own shade.
    """
    import matplotlib.pyplot as plt

    if not records:
        raise ValueError("There are no records to draw: pass the recorder to fit, evaluate or predict first.")
    layers = list(dict.fromkeys(record.layer for record in records))
    directions = [d for d in _DIRECTIONS if any(record.direction == d for record in records)]
    epochs = sorted({record.epoch for record in records})
    shade, rejected = _shades(epochs, "Blues"), _shades(epochs, "Reds")
    figure, axes = plt.subplots(
        2 * len(layers),
        len(directions),
        figsize=(4.8 * len(directions) + 0.8, 5 * len(layers)),
        sharex=True,
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for i, layer in enumerate(layers):
        for j, direction in enumerate(directions):
            pair = axes[2 * i : 2 * i + 2, j]
            for record in records:
                if (record.layer, record.direction) == (layer, direction):
                    _draw(*pair, record, shade.to_rgba(record.epoch), rejected.to_rgba(record.epoch))
            _label(*pair, layer, direction, j == 0)
    for axis in axes[-1]:
        axis.set_xlabel("time $t$ at the middle of the step")
    if len(epochs) > 1:
        figure.colorbar(shade, ax=axes, label="epoch", ticks=_ticks(epochs))
    axes[0, 0].legend(handles=_legend(shade.to_rgba(epochs[-1]), rejected.to_rgba(epochs[-1])), loc="best")
    return figure


def plot_nfe(history):
    """Draws the mean number of evaluations of forward and backward solves over the epochs, with one color for each layer."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    if not history:
        raise ValueError("There is no epoch to draw: pass the recorder to fit first.")
    figure, axis = plt.subplots(figsize=(6.4, 4), layout="constrained")
    layers = [name.removesuffix("_nfe") for name in history[0] if name.endswith("_nfe") and not name.startswith("val_")]
    number = np.arange(len(history))
    for i, layer in enumerate(layers):
        for name, style, direction in ((f"{layer}_nfe", "o-", "forward"), (f"{layer}_nfe_backward", "s--", "backward")):
            axis.plot(number, [logs[name] for logs in history], style, color=f"C{i}", ms=4, label=f"{layer}, {direction}")
    axis.set_xlabel("epoch")
    axis.set_ylabel("evaluations per solve\n(mean over the batches)")
    axis.set_ylim(bottom=0)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


def _draw(sizes, errors, record, color, rejected):
    middle, accepted = record.t + record.step_size / 2, record.accepted
    for axis, values in ((sizes, np.abs(record.step_size)), (errors, record.error)):
        axis.plot(middle[accepted], values[accepted], "o-", color=color, ms=4, lw=1)
        axis.plot(middle[~accepted], values[~accepted], "x", color=rejected, ms=5, mew=1.5, zorder=3)


def _label(sizes, errors, layer, direction, is_first):
    sizes.set_title(f"{layer}, {direction}")
    for axis in (sizes, errors):
        axis.set_yscale("log")
        axis.grid(alpha=0.3)
    errors.axhline(1, color="0.3", lw=1, ls=":")
    if is_first:
        sizes.set_ylabel("step size (units of $t$)")
        errors.set_ylabel("scaled error")


def _shades(epochs, name):
    """Returns a color map from light to dark over the epochs."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    shades = LinearSegmentedColormap.from_list(name, colormaps[name](np.linspace(0.3, 1, 64)))
    first, last = epochs[0], epochs[-1]
    return ScalarMappable(Normalize(first if first < last else last - 1, last), shades)


def _ticks(epochs):
    return epochs if len(epochs) <= 8 else epochs[:: -(-len(epochs) // 8)]


def _legend(accepted, rejected):
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=accepted, marker="o", ms=4, lw=1, label="accepted"),
        Line2D([], [], color=rejected, marker="x", ms=5, mew=1.5, ls="", label="rejected"),
    ]
