"""What is drawn: the data of lines, markers and arrows, and their names."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ode
from keras_ode import ODELayer, plotting

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

TIMES = np.linspace(0.0, 2.0, 9)
STARTS = tf.constant([[1.0, 0.0], [0.0, 2.0], [-1.0, 1.0]])
OPTIONS = {"rtol": 1e-6, "jit_compile": False}


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


def turn(y):
    """`y' = (-y2, y1)`, of one state or of rows."""
    return tf.stack([-y[..., 1], y[..., 0]], axis=-1)


def turned(starts, times):
    """Its solution, `[T, B, 2]`."""
    c, s = np.cos(times)[:, None], np.sin(times)[:, None]
    x, y = np.asarray(starts).T
    return np.stack([c * x - s * y, s * x + c * y], axis=-1)


def drawn_lines(ax):
    return [line for line in ax.lines if len(line.get_xdata())]


def new_model():
    layer = ODELayer(turn, t=(0.0, 2.0), rtol=1e-6, jit_compile=False)
    return keras.Sequential([keras.Input([2]), layer, keras.layers.Dense(1)])


@pytest.fixture(scope="module")
def solution():
    return keras_ode.solve(turn, STARTS, TIMES, **OPTIONS)


# Trajectories


def test_trajectories_are_the_components_against_time(solution):
    lines = drawn_lines(plotting.plot_trajectories(solution))
    expected = turned(STARTS, TIMES)
    for i in range(2):
        for b in range(3):
            np.testing.assert_allclose(lines[3 * i + b].get_xdata(), TIMES)
            np.testing.assert_allclose(lines[3 * i + b].get_ydata(), expected[:, b, i], atol=1e-5)


def test_trajectories_name_components_and_units(solution):
    ax = plotting.plot_trajectories(solution, labels=("x", "v"), units=("m", "m/s"), time_unit="s")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["x [m]", "v [m/s]"]
    assert ax.get_xlabel() == "t [s]"


def test_trajectories_of_a_model_are_those_of_its_layer():
    line = drawn_lines(plotting.plot_trajectories(new_model(), STARTS))[0]
    t = np.linspace(0.0, 2.0, 201)
    np.testing.assert_allclose(line.get_xdata(), t, atol=1e-6)
    np.testing.assert_allclose(line.get_ydata(), np.cos(t), atol=1e-5)


def test_axes_that_are_given_are_drawn_into(solution):
    import matplotlib.pyplot as plt

    _, ax = plt.subplots()
    assert plotting.plot_trajectories(solution, ax=ax) is ax
    assert len(plt.get_fignums()) == 1


# Phase portraits


def test_portrait_is_the_path_in_the_plane_with_its_ends_marked(solution):
    ax = plotting.plot_phase_portrait(solution)
    expected = turned(STARTS, TIMES)
    for b, line in enumerate(drawn_lines(ax)):
        np.testing.assert_allclose(np.stack(line.get_data(), axis=-1), expected[:, b], atol=1e-5)
    first, last = ax.collections
    np.testing.assert_allclose(first.get_offsets(), expected[0], atol=1e-5)
    np.testing.assert_allclose(last.get_offsets(), expected[-1], atol=1e-5)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["t = 0", "t = 2"]


@pytest.mark.parametrize("rank", [1, 2])
def test_portrait_of_a_dynamics_has_its_field_behind(rank):
    """A dynamics of one state `[2]` is called point by point."""
    start = STARTS if rank == 2 else STARTS[0]
    f = turn if rank == 2 else lambda y: tf.stack([-y[1], y[0]])
    arrows = plotting.plot_phase_portrait(f, start, TIMES, **OPTIONS).collections[-1]
    x, y = arrows.X.ravel(), arrows.Y.ravel()
    np.testing.assert_allclose(np.stack([arrows.U, arrows.V]), np.stack([-y, x]) / np.hypot(x, y), atol=1e-5)


def test_field_behind_a_portrait_has_the_further_arguments_of_the_dynamics():
    """With a rate of 2 all arrows point to zero; with the time in place of the state there would be none."""
    ax = plotting.plot_phase_portrait(lambda y, rate: -rate * y, tf.constant([[1.0, 2.0]]), [0.0, 0.5], args=(2.0,))
    (arrows,) = (c for c in ax.collections if hasattr(c, "U"))
    points = np.stack([arrows.X, arrows.Y])
    np.testing.assert_allclose([arrows.U, arrows.V], -points / np.hypot(*points), atol=1e-5)


# Vector fields


def test_field_is_directions_as_arrows_and_sizes_as_colors():
    ax = plotting.plot_vector_field(lambda t, y: (1 + t) * turn(y), (-2.0, 2.0), (0.5, 3.0), t=1.0, num_points=4, units=("m", "s"))
    arrows = ax.collections[0]
    x, y = (a.ravel() for a in np.meshgrid(np.linspace(-2, 2, 4), np.linspace(0.5, 3, 4)))
    np.testing.assert_allclose(np.stack([arrows.X, arrows.Y]), np.stack([x, y]))
    np.testing.assert_allclose(np.stack([arrows.U, arrows.V]), np.stack([-y, x]) / np.hypot(x, y), atol=1e-6)
    np.testing.assert_allclose(arrows.get_array(), 2 * np.hypot(x, y), rtol=1e-6)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("y1 [m]", "y2 [s]")
    assert ax.figure.axes[1].get_ylabel() == "|f| at t = 1"


def test_field_of_a_model_is_that_of_its_layer():
    arrows = plotting.plot_vector_field(new_model(), num_points=3).collections[0]
    np.testing.assert_allclose(arrows.get_array(), np.hypot(arrows.X, arrows.Y).ravel(), rtol=1e-6)


def test_field_of_an_equation_with_a_mass_matrix_is_the_derivative_of_the_state():
    layer = ODELayer(turn, mass_matrix=[[10.0, 0.0], [0.0, 1.0]], solver="rodas5p")
    arrows = plotting.plot_vector_field(layer, num_points=3).collections[0]
    np.testing.assert_allclose(arrows.get_array(), np.hypot(-arrows.Y / 10, arrows.X).ravel(), rtol=1e-6)


# Refusals


def test_field_with_a_singular_mass_matrix_is_refused():
    layer = ODELayer(turn, mass_matrix=[[1.0, 0.0], [0.0, 0.0]], solver="rodas5p")
    with pytest.raises(ValueError, match="singular mass_matrix.*use vector_field=False. Received: mass_matrix="):
        plotting.plot_vector_field(layer)


def test_states_that_are_no_plane_are_refused():
    with pytest.raises(ValueError, match="states of 3 components"):
        plotting.plot_phase_portrait(lambda y: -y, tf.ones([1, 3]), TIMES, jit_compile=False)
    with pytest.raises(ValueError, match="states of 3 components"):
        plotting.plot_vector_field(lambda y: tf.concat([y, y[:, :1]], axis=-1))


def test_images_are_refused():
    with pytest.raises(ValueError, match="Only states of shape"):
        plotting.plot_trajectories(lambda y: -y, tf.ones([1, 3, 3]), TIMES, jit_compile=False)


def test_a_missing_start_or_missing_times_are_refused():
    with pytest.raises(ValueError, match="y0 is needed"):
        plotting.plot_trajectories(turn)
    with pytest.raises(ValueError, match="t is needed"):
        plotting.plot_trajectories(turn, STARTS)


def test_names_that_do_not_fit_are_refused(solution):
    with pytest.raises(ValueError, match=r"units=\('m',\)"):
        plotting.plot_trajectories(solution, units=("m",))


# Style


def test_colors_of_roles_differ_in_grey():
    brightness = sorted(np.dot(matplotlib.colors.to_rgb(color), [0.299, 0.587, 0.114]) for color in plotting.COLORS.values())
    assert min(np.diff(brightness)) > 0.1


def test_a_color_is_not_a_component_in_one_plot_and_a_sample_in_the_other(solution):
    """Lines of the two components against time share no color with those of the first two samples in the plane."""
    import matplotlib.pyplot as plt

    with plt.style.context(plotting.STYLE):
        components = {line.get_color() for line in drawn_lines(plotting.plot_trajectories(solution))}
        samples = {line.get_color() for line in drawn_lines(plotting.plot_phase_portrait(solution))}
    assert len(components) == 2 and len(samples) == 3 and not components & samples
