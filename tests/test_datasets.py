"""The generated data sets: seeded, and of the shapes in the plane that their names promise."""

import inspect

import numpy as np
import pytest

from keras_ode import datasets

PLANE = ["spirals", "moons", "circles", "pinwheel", "eight_gaussians", "swiss_roll", "ellipses", "peaks", "spheres"]
MEASURED = ["hare_lynx"]
ALL = [
    name for name, f in inspect.getmembers(datasets, inspect.isfunction) if not name.startswith("_") and name not in MEASURED
]


def leaves(result):
    return result if isinstance(result, tuple) else (result,)


def test_all_promised_sets_are_there():
    assert set(ALL) == {*PLANE, "checkerboard", "periodic", "bidirectional_spirals"}


@pytest.mark.parametrize("name", ALL)
def test_same_seed_gives_the_same_and_another_seed_another(name):
    make = getattr(datasets, name)
    first, again, other = (leaves(make(50, seed=seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("name", ALL)
def test_floats_are_single_and_finite(name):
    floats = [x for x in leaves(getattr(datasets, name)(50)) if x.dtype != np.int32]
    assert all(x.dtype == np.float32 and np.isfinite(x).all() for x in floats)


@pytest.mark.parametrize("name", PLANE)
def test_points_come_with_the_number_of_their_class(name):
    points, labels = getattr(datasets, name)(600)
    assert points.shape == (600, 2) and labels.dtype == np.int32
    assert set(labels) == set(range({"pinwheel": 5, "eight_gaussians": 8, "peaks": 5}.get(name, 2)))


def test_spirals_without_noise_lie_on_two_arms_of_archimedes():
    points, labels = datasets.spirals(500, noise=0.0)
    radius = np.hypot(*points.T)
    np.testing.assert_allclose(points, radius[:, None] * np.stack([np.cos(a := np.pi * (radius + labels)), np.sin(a)], 1), atol=1e-5)


def test_moons_without_noise_are_half_circles_of_radius_one():
    points, labels = datasets.moons(500, noise=0.0)
    centered = points - labels[:, None] * [1.0, 0.5]
    np.testing.assert_allclose(np.hypot(*centered.T), 1, atol=1e-6)
    assert (np.where(labels == 0, centered[:, 1], -centered[:, 1]) > -1e-6).all()


def test_circles_without_noise_have_radius_one_and_two():
    points, labels = datasets.circles(500, noise=0.0)
    np.testing.assert_allclose(np.hypot(*points.T), 1 + labels, rtol=1e-6)


def test_checkerboard_fills_the_dark_squares_only():
    points = datasets.checkerboard(5000)
    squares = np.floor(points).astype(int)
    assert (squares.sum(axis=1) % 2 == 0).all() and squares.min() == -2 and squares.max() == 1
    counts = np.unique(squares, axis=0, return_counts=True)[1]
    # 625 in each of eight, with a standard deviation of 23.
    assert len(counts) == 8 and np.abs(counts - 625).max() < 100


def test_swiss_rolls_are_a_fifth_apart():
    points, labels = datasets.swiss_roll(500)
    radius = np.hypot(*points.T) - 0.2 * labels
    angle = 4 * np.pi * radius
    np.testing.assert_allclose(points, (radius + 0.2 * labels)[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1), atol=1e-5)


def test_five_classes_of_peaks_are_equally_frequent():
    assert np.bincount(datasets.peaks(500)[1]).tolist() == [100] * 5


def test_lowest_class_of_peaks_is_around_its_minimum():
    """MATLAB's `peaks` is lowest, -6.55, at (0.23, -1.63)."""
    points, labels = datasets.peaks(5000)
    assert (labels[np.linalg.norm(points - [0.23, -1.63], axis=1) < 0.3] == 0).all()


@pytest.mark.parametrize("dimension", [1, 2, 10])
def test_spheres_are_apart_in_any_dimension(dimension):
    points, labels = datasets.spheres(2000, dimension=dimension)
    radius = np.linalg.norm(points, axis=1)
    assert points.shape == (2000, dimension)
    assert radius[labels == 0].max() <= 0.5 + 1e-6
    assert radius[labels == 1].min() >= 1 - 1e-6 and radius.max() <= 1.5 + 1e-6


def test_ball_is_filled_evenly():
    """A disk of half the radius holds a quarter of it: 250 of 1,000, with a standard deviation of 14."""
    points, labels = datasets.spheres(3000)
    radius = np.hypot(*points[labels == 0].T)
    assert abs((radius < 0.25).mean() - 0.25) < 0.06


def test_periodic_times_increase_and_values_stay_within_the_amplitude():
    times, values = datasets.periodic(20, num_times=30, noise=0.0)
    assert times.shape == (20, 30) and values.shape == (20, 30, 1)
    assert (np.diff(times) > 0).all() and np.abs(values).max() <= 1


def test_bidirectional_spirals_turn_both_ways_and_outward():
    times, observed, truth = datasets.bidirectional_spirals(20, num_times=40, noise=0.0)
    np.testing.assert_array_equal(observed, truth)
    (x, y), (next_x, next_y) = np.moveaxis(truth[:, :-1], -1, 0), np.moveaxis(truth[:, 1:], -1, 0)
    turn = x * next_y - y * next_x > 0
    assert (turn == turn[:, :1]).all() and turn[:, 0].sum() == 10
    assert (np.diff(np.linalg.norm(truth, axis=-1)) > 0).all() and times.shape == (40,)


def test_hares_and_lynxes_are_those_of_the_published_table():
    years, pelts = datasets.hare_lynx()
    hare, lynx = pelts.T
    np.testing.assert_allclose([hare.sum(), lynx.sum()], [715.7, 423.5], rtol=1e-5)
    assert (years[hare.argmax()], years[hare.argmin()], years[lynx.argmax()], years[lynx.argmin()]) == (1903, 1917, 1904, 1900)
    assert years[-1] == 1920 and pelts.dtype == np.float32
