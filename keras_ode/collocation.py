"""Smoothed collocation: states and their derivatives from noisy observations, without solving an equation."""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

KERNELS = {
    "epanechnikov": lambda u: 0.75 * (1 - u**2),
    "gaussian": lambda u: np.exp(-(u**2) / 2) / np.sqrt(2 * np.pi),
    "quartic": lambda u: 15 / 16 * (1 - u**2) ** 2,
    "triangular": lambda u: 1 - np.abs(u),
    "tricube": lambda u: 70 / 81 * (1 - np.abs(u) ** 3) ** 3,
    "uniform": lambda u: 0.5 + 0 * u,
}
# A local quadratic polynomial has this many coefficients.
_FEWEST = 3
# Observations whose weights have smaller square roots, as a fraction of the largest, are lost in rounding.
_LEAST = 1e-12


class Collocation(NamedTuple):
    """The result of `collocate`.

    Attributes:
        states: The smoothed states, `[K, ...]`.
        slopes: Their derivatives with respect to time, `[K, ...]`.

    Example:

    >>> t = np.linspace(0.0, 1.0, 20)
    >>> found = keras_ode.collocate(t, np.stack([t, 2 * t], axis=-1), bandwidth=0.3)
    >>> found.states.shape, found.slopes.shape
    ((20, 2), (20, 2))
    >>> np.allclose(found.slopes, [1.0, 2.0])
    True
    """

    states: np.ndarray
    slopes: np.ndarray


def collocate(
    t: ArrayLike,
    ys: ArrayLike,
    at: ArrayLike | None = None,
    kernel: Literal["epanechnikov", "gaussian", "quartic", "triangular", "tricube", "uniform"] = "epanechnikov",
    bandwidth: float | None = None,
) -> Collocation:
    """Estimates states and their derivatives from noisy observations by kernel regression.

    With these, you can train a dynamics as an ordinary regression, `dynamics.fit(states, slopes)`, which solves no equation. Use
    it as a fast start, and then train on a solve.

    The state at a time is the value of the local linear polynomial there, and the derivative is the slope of the local quadratic
    polynomial. Both minimize the sum of squared residuals, weighted by the kernel.

    Args:
        t: The times of the observations, `[T]`, strictly increasing.
        ys: The observations, `[T, ...]`. NaN where a value is missing.
        at: The times of the estimates, `[K]`. Defaults to `t`. Estimates near the ends have larger errors.
        kernel: `"epanechnikov"` (the default), `"gaussian"`, `"quartic"`, `"triangular"`, `"tricube"` or `"uniform"`.
        bandwidth: The half width of the kernel, in the units of `t` (for `"gaussian"`, the standard deviation). Defaults to
            `(t[-1] - t[0]) * T**(-1 / 5 - 3 / 35) * log(T)**(-1 / 16)`.

    Returns:
        A `Collocation`, the pair `states, slopes`: arrays `[K, ...]` in the dtype of `ys`.

    Raises:
        ValueError: For invalid arguments, and if there are fewer than three observations within the bandwidth of a time (for
            `"gaussian"`, three whose weights are not lost in rounding).

    Example:

    >>> t = np.linspace(0, 6, 200)
    >>> states, slopes = keras_ode.collocate(t, np.sin(t)[:, None], at=[1.0, 3.0], bandwidth=0.5)
    >>> bool(np.abs(slopes[:, 0] - np.cos([1.0, 3.0])).max() < 0.02)
    True

    Reference: Liang, Wu (2008), Parameter estimation for differential equation models using a framework of measurement error in
    regression models, J. Am. Stat. Assoc. 103.
    """
    t, ys = np.asarray(t, "float64"), np.asarray(ys)
    if t.ndim != 1 or len(t) < _FEWEST or not np.all(np.diff(t) > 0) or ys.shape[:1] != t.shape:
        raise ValueError(
            "t must be three or more strictly increasing times, and ys must have one entry for each. Received: t of shape "
            f"{t.shape}, ys of shape {ys.shape}"
        )
    if kernel not in KERNELS:
        raise ValueError(f"kernel must be one of {tuple(KERNELS)}. Received: kernel={kernel!r}")
    count = len(t)
    if bandwidth is None:
        bandwidth = (t[-1] - t[0]) * count ** (-1 / 5 - 3 / 35) * np.log(count) ** (-1 / 16)
    if not bandwidth > 0:
        raise ValueError(f"bandwidth must be positive. Received: bandwidth={bandwidth!r}")
    at = t if at is None else np.atleast_1d(np.asarray(at, "float64"))
    columns = ys.reshape(count, -1).astype("float64")
    found = np.stack([[_estimates(t, y, time, kernel, bandwidth) for y in columns.T] for time in at])
    dtype = ys.dtype if ys.dtype.kind == "f" else np.dtype("float64")
    return Collocation(*(found[..., i].reshape(-1, *ys.shape[1:]).astype(dtype) for i in range(2)))


def _estimates(t, y, time, kernel, bandwidth):
    """The state and the slope of one channel at one time."""
    place = (t - time) / bandwidth
    known = ~np.isnan(y) & ((np.abs(place) < 1) | (kernel == "gaussian"))
    place, y = place[known], y[known]
    root = np.sqrt(KERNELS[kernel](place))
    count = np.sum(root > _LEAST * np.max(root, initial=0))
    if count < _FEWEST:
        raise ValueError(
            f"There are only {count} observations within the bandwidth of the time {time:g}, and a slope needs {_FEWEST}. "
            f"Use a larger bandwidth. Received: bandwidth={bandwidth!r}"
        )
    linear, quadratic = (
        np.linalg.lstsq(root[:, None] * np.vander(place, size, increasing=True), root * y)[0] for size in (2, 3)
    )
    return linear[0], quadratic[1] / bandwidth
