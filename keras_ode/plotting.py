"""Plots of solutions and of vector fields. Matplotlib is imported when a plot is made."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from keras_ode import internals
from keras_ode.layers import ODELayer
from keras_ode.mass_matrices import checked_matrix
from keras_ode.signature import arguments_of
from keras_ode.solution import Solution
from keras_ode.solve import solve
from keras_ode.typing import Dynamics, TensorsLike, Times

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "COLORS",
    "STYLE",
    "plot_phase_portrait",
    "plot_trajectories",
    "plot_vector_field",
]

_SMOOTH = 201
_LINE_STYLES = ("-", "--", "-.", ":")

# Roles of lines and areas, with a color for each. Their brightness falls in this order, so that they also differ in grey.
COLORS = {
    "reference": "#CCCCCC",  # what others are compared with: data, the truth, training
    "other": "#E69F00",  # a second model or method
    "third": "#2A9D78",
    "failure": "#C02040",  # mistakes, limits
    "ode": "#003F80",  # the model with the differential equation
    "ink": "#000000",
}

# Settings for `matplotlib.pyplot.style.use` or `.context`: legible at the width of a phone, and in grey.
STYLE = {
    "axes.prop_cycle": (
        "cycler(color=['#003F80', '#E69F00', '#2A9D78', '#C02040', '#CCCCCC', '#000000'])"
        " + cycler(linestyle=['-', '--', '-.', ':', '-', '--'])"
    ),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 14,
    "axes.labelsize": 13,
    "xtick.labelsize": 12,
    "ytick.labelsize": 12,
    "legend.fontsize": 12,
    "legend.frameon": False,
    "font.size": 12,
    "lines.linewidth": 2.0,
    "image.cmap": "viridis",
    "savefig.dpi": 120,
    "figure.constrained_layout.use": True,
}


def plot_trajectories(
    model: Dynamics | Solution,
    y0: TensorsLike | None = None,
    t: Times | None = None,
    *,
    labels: Sequence[str] | None = None,
    units: Sequence[str | None] | None = None,
    time_unit: str | None = None,
    ax: "Axes | None" = None,
    **options: Any,
) -> "Axes":
    """Draws every component of the state against time, with one color for each component and one line for each sample.

    Args:
        model: What to solve: an `ODELayer`, a Keras model that contains one, or a dynamics as in `keras_ode.solve`. A
            `Solution` is drawn without solving again.
        y0: The state at the first time, shape `[D]` or `[B, D]`. For a layer or a model, the input of its `ODELayer`.
        t: The times to draw, shape `[T]`. Defaults to 201 times over the interval of the layer.
        labels: The names of the `D` components. Default to `y1`, `y2`, ...
        units: The units of the components, shown in brackets.
        time_unit: The unit of time.
        ax: Matplotlib axes to draw into. Defaults to a new figure.
        **options: Options of `keras_ode.solve` that replace those of the layer.

    Returns:
        The Matplotlib axes.

    Example:

    >>> ax = keras_ode.plotting.plot_trajectories(lambda y: -y, tf.constant([[1.0, 2.0]]), [0.0, 1.0, 2.0])
    >>> ax.get_xlabel()
    't'
    """
    ts, ys = _solved(model, y0, t, options)
    ax = _axes(ax)
    names = _names(labels, units, ys.shape[-1])
    for i, name in enumerate(names):
        look: dict[str, Any] = {"color": f"C{i}", "linestyle": _LINE_STYLES[i % len(_LINE_STYLES)]}
        ax.plot(ts, ys[..., i], alpha=_alpha(ys.shape[1]), **look)
        ax.plot([], [], label=name, **look)
    ax.set_xlabel(_with_unit("t", time_unit))
    ax.set_ylabel(names[0] if len(names) == 1 else "state")
    if len(names) > 1:
        ax.legend()
    return ax


def plot_phase_portrait(
    model: Dynamics | Solution,
    y0: TensorsLike | None = None,
    t: Times | None = None,
    *,
    vector_field: bool = True,
    labels: Sequence[str] | None = None,
    units: Sequence[str | None] | None = None,
    ax: "Axes | None" = None,
    **options: Any,
) -> "Axes":
    """Draws trajectories of a two-dimensional state in its plane. Circles mark their starts and squares their ends.

    Args:
        model, y0, t: As in `plot_trajectories`, with two components.
        vector_field: Whether to draw the vector field at the first time behind the trajectories, if the model has one. With a
            `mass_matrix`, it is that of the derivative of the state. Defaults to `True`.
        labels, units: The names and units of the two components.
        ax: Matplotlib axes to draw into. Defaults to a new figure.
        **options: Options of `keras_ode.solve` that replace those of the layer.

    Returns:
        The Matplotlib axes.

    Raises:
        ValueError: If the state does not have two components, or with `vector_field` and a singular `mass_matrix`.

    Example:

    >>> turn = tf.constant([[0.0, -1.0], [1.0, 0.0]])
    >>> ax = keras_ode.plotting.plot_phase_portrait(lambda y: y @ turn, tf.eye(2), [0.0, 0.5, 1.0])
    >>> len(ax.lines[0].get_xdata())
    3
    """
    ts, ys = _solved(model, y0, t, options)
    _check_two(ys.shape[-1])
    ax = _axes(ax)
    alpha = _alpha(ys.shape[1])
    # Other colors than `plot_trajectories` has for the first components: here a color is a sample.
    colors = [f"C{(b + 2) % 10}" for b in range(ys.shape[1])]
    for b, color in enumerate(colors):
        ax.plot(ys[:, b, 0], ys[:, b, 1], color=color, linestyle="-", alpha=alpha, zorder=2)
    for index, marker, face in ((0, "o", "white"), (-1, "s", colors)):
        x, y = ys[index].T
        ax.scatter(
            x, y, marker=marker, s=30 * alpha, facecolors=face, edgecolors=colors, label=f"t = {ts[index]:g}", zorder=3
        )
    if vector_field and not isinstance(model, Solution):
        limits = ax.get_xlim(), ax.get_ylim()
        arrows = _field_on_grid(model, *limits, ts[0], 20, tf.rank(y0) == 2, **_given(options, "args", "mass_matrix"))
        _draw_field(ax, *arrows, color="0.75", zorder=1)
        ax.set(xlim=limits[0], ylim=limits[1])
    _name_plane(ax, labels, units)
    ax.legend(frameon=True)
    return ax


def plot_vector_field(
    model: Dynamics,
    xlim: tuple[float, float] = (-1.0, 1.0),
    ylim: tuple[float, float] = (-1.0, 1.0),
    t: float | None = None,
    *,
    num_points: int = 20,
    batched: bool = True,
    labels: Sequence[str] | None = None,
    units: Sequence[str | None] | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws the directions of a two-dimensional vector field as arrows, and its magnitude as their color.

    For a layer with a `mass_matrix`, it is that of the derivative of the state.

    Args:
        model: An `ODELayer`, a Keras model that contains one, or a dynamics as in `keras_ode.solve`.
        xlim, ylim: The ranges of the first and the second component. Default to `(-1, 1)`.
        t: The time. Defaults to the first time of the layer, or `0`.
        num_points: The number of arrows along each axis. Defaults to `20`.
        batched: Whether the dynamics takes states of shape `[B, 2]` (`True`) or `[2]` (`False`).
        labels, units: The names and units of the two components.
        ax: Matplotlib axes to draw into. Defaults to a new figure.

    Returns:
        The Matplotlib axes.

    Raises:
        ValueError: If the state does not have two components, or if the `mass_matrix` of the layer is singular.

    Example:

    >>> ax = keras_ode.plotting.plot_vector_field(lambda y: -y, num_points=5)
    >>> ax.collections[0].N
    25
    """
    layer = _layer_of(model)
    if t is None:
        t = 0.0 if layer is None else layer.t[0]
    ax = _axes(ax)
    x, y, u, v = _field_on_grid(model, xlim, ylim, t, num_points, batched)
    size = np.hypot(u, v)
    arrows = _draw_field(ax, x, y, u, v, size, cmap="viridis")
    ax.figure.colorbar(arrows, ax=ax, label=f"|f| at t = {t:g}")
    _name_plane(ax, labels, units)
    return ax


def _solved(model, y0, t, options):
    """Returns the times `[T]` and the states `[T, B, D]`, as arrays."""
    if isinstance(model, Solution):
        solution = model
    else:
        if y0 is None:
            raise ValueError("y0 is needed to solve the model: the state at the first time. Received: y0=None")
        layer = _layer_of(model)
        if layer is not None:
            t = np.linspace(layer.t[0], layer.t[-1], _SMOOTH) if t is None else t
            solution = layer.solve(y0, t, **options)
        elif t is None:
            raise ValueError("t is needed to solve a dynamics: the times to draw. Received: t=None")
        else:
            solution = solve(model, y0, t, **options)
    ts, ys = np.asarray(solution.ts), solution.ys
    if tf.nest.is_nested(ys) or ys.shape.rank not in (2, 3) or ts.ndim != 1:
        raise ValueError(
            "Only states of shape [D] or [B, D] at times [T] can be drawn. Received: states "
            f"{tf.nest.map_structure(lambda x: x.shape, ys)} at times {ts.shape}, time first"
        )
    ys = ys.numpy()
    return ts, ys[:, None] if ys.ndim == 2 else ys


def _layer_of(model):
    """Returns the `ODELayer` that a model is or contains, or `None` for a dynamics."""
    if not isinstance(model, keras.Layer):
        return None
    found = [layer for layer in internals.layers_within(model) if isinstance(layer, ODELayer)]
    if len(found) > 1:
        raise ValueError(f"The model holds {len(found)} ODELayers: pass the one to draw. Received: {model!r}")
    return found[0] if found else None


def _given(options, *names):
    return {name: options[name] for name in names if name in options}


def _field_on_grid(model, xlim, ylim, t, num_points, batched, args=(), mass_matrix=None):
    """Returns the points of a grid and the derivatives there: four arrays of shape `[num_points ** 2]`."""
    layer = _layer_of(model)
    mass = checked_matrix(mass_matrix) or (None if layer is None else layer.mass_matrix)
    if mass is not None and mass.is_singular:
        raise ValueError(
            "With a singular mass_matrix there is no derivative at most points, so no vector field can be drawn: use "
            f"vector_field=False. Received: mass_matrix={mass.matrix.tolist()}"
        )
    dynamics = model if layer is None else layer.dynamics
    x, y = (a.ravel() for a in np.meshgrid(np.linspace(*xlim, num_points), np.linspace(*ylim, num_points)))
    points = tf.constant(np.stack([x, y], axis=-1), "float32" if layer is None else layer.variable_dtype)
    time = tf.constant(t, points.dtype)

    def derivative(states):
        return dynamics(*arguments_of(dynamics, time, states, args))

    found = derivative(points) if batched else tf.map_fn(derivative, points)
    if found.shape != points.shape:
        _check_two(found.shape[-1])
    found = np.asarray(tf.cast(found, tf.float64))
    return x, y, *(found if mass is None else found @ mass.inverse.T).T


def _draw_field(ax, x, y, u, v, *color, **options):
    """Draws arrows of equal lengths."""
    size = np.hypot(u, v)
    size = np.where(size > 0, size, 1)
    return ax.quiver(x, y, u / size, v / size, *color, angles="xy", pivot="mid", width=0.004, scale=30, **options)


def _axes(ax):
    if ax is None:
        import matplotlib.pyplot as plt

        ax = plt.subplots(layout="constrained")[1]
    return ax


def _name_plane(ax, labels, units):
    x, y = _names(labels, units, 2)
    ax.set_xlabel(x)
    ax.set_ylabel(y)


def _names(labels, units, count):
    """Returns the names of the components with their units."""
    labels = [f"y{i + 1}" for i in range(count)] if labels is None else labels
    units = [None] * count if units is None else units
    for name, values in (("labels", labels), ("units", units)):
        if len(values) != count:
            raise ValueError(f"{name} must hold one for each of the {count} components. Received: {name}={values!r}")
    return [_with_unit(label, unit) for label, unit in zip(labels, units, strict=True)]


def _with_unit(label, unit):
    return label if unit is None else f"{label} [{unit}]"


def _alpha(num_samples):
    """The opacity of a line, lower for many lines."""
    return max(0.3, min(1.0, 10 / num_samples))


def _check_two(count):
    if count != 2:
        raise ValueError(f"Only states of two components lie in a plane. Received: states of {count} components")
