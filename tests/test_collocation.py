"""Kernel estimates of states and slopes: exact on polynomials, close on a noisy sine."""

import numpy as np
import pytest

import keras_ode
from keras_ode.collocation import KERNELS

T = np.sort(np.random.default_rng(0).uniform(0, 6, 80))


@pytest.mark.parametrize("kernel", sorted(KERNELS))
def test_states_of_lines_and_slopes_of_parabolas_are_exact(kernel):
    line, parabola = 1 - 2 * T, 3 - T + 0.5 * T**2
    at = np.linspace(0.5, 5.5, 7)
    states, slopes = keras_ode.collocate(T, np.stack([line, parabola], axis=1), at, kernel, bandwidth=1.0)
    np.testing.assert_allclose(states[:, 0], 1 - 2 * at, atol=1e-10)
    np.testing.assert_allclose(slopes, np.stack([-2 + 0 * at, at - 1], axis=1), atol=1e-9)


def test_a_noisy_sine_is_smoothed_and_missing_values_are_skipped():
    """The mean error is well below the noise of 0.1, and the slope is known to 0.2."""
    random = np.random.default_rng(1)
    t = np.linspace(0, 6, 300)
    ys = np.sin(t) + 0.1 * random.normal(size=300)
    ys[random.uniform(size=300) < 0.2] = np.nan
    states, slopes = keras_ode.collocate(t, ys.astype("float32"), bandwidth=0.7)
    assert states.dtype == slopes.dtype == np.float32 and states.shape == (300,)
    assert np.sqrt(np.mean((states - np.sin(t)) ** 2)) < 0.05
    assert np.sqrt(np.mean((slopes - np.cos(t))[20:-20] ** 2)) < 0.2


@pytest.mark.parametrize("arguments, message", [
    ({"kernel": "box"}, "kernel must be one of .*Received: kernel='box'"),
    ({"bandwidth": 1e-3}, "observations within the bandwidth of the time .*Received: bandwidth=0.001"),
    ({"kernel": "gaussian", "bandwidth": 1e-4}, "only 1 observations within the bandwidth of the time"),
    ({"kernel": "gaussian", "bandwidth": 0.01, "at": [30.0]}, "only 0 observations within the bandwidth of the time 30"),
    ({"bandwidth": 0}, "bandwidth must be positive. Received: bandwidth=0"),
    ({"t": T[::-1]}, "t must be three or more strictly increasing times"),
])
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        keras_ode.collocate(**{"t": T, "ys": T, **arguments})
