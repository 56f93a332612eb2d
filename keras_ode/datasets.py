"""Small data sets as NumPy arrays: generated ones, which depend only on the seed, and one of measurements.

Data sets of points in the plane return `points`, float32 `[N, 2]`, and, if the points have classes, also `labels`, int32 `[N]`.
"""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "bidirectional_spirals",
    "checkerboard",
    "circles",
    "eight_gaussians",
    "ellipses",
    "hare_lynx",
    "moons",
    "peaks",
    "periodic",
    "pinwheel",
    "spheres",
    "spirals",
    "swiss_roll",
]

Floats: TypeAlias = NDArray[np.float32]
Labels: TypeAlias = NDArray[np.int32]

def spirals(num_samples: int = 1000, noise: float = 0.1, seed: int = 0) -> tuple[Floats, Labels]:
    """Returns points of two classes on the two arms of a spiral, which make one and a half turns around each other.

    Args:
        num_samples: The number of points. Defaults to `1000`.
        noise: The standard deviation of the normal noise that is added to each coordinate. Defaults to `0.1`.
        seed: The seed of the random numbers. Defaults to `0`.

    Returns:
        `points`, float32 `[num_samples, 2]`, and `labels`, int32 `[num_samples]`.

    Example:

    >>> points, labels = keras_ode.datasets.spirals(100)
    >>> points.shape, labels.shape
    ((100, 2), (100,))

    Reference: Grathwohl, Chen, Bettencourt, Sutskever, Duvenaud (2019), FFJORD, ICLR, whose code draws such points.
    """
    random = np.random.default_rng(seed)
    labels = random.integers(2, size=num_samples)
    angle = 3 * np.pi * np.sqrt(random.uniform(size=num_samples))
    arms = _circle(angle + np.pi * labels) * (angle / np.pi)[:, None]
    return _labeled(arms + noise * random.normal(size=arms.shape), labels)


def moons(num_samples: int = 1000, noise: float = 0.1, seed: int = 0) -> tuple[Floats, Labels]:
    """Returns points of two classes on two interlocking half circles.

    Args:
        num_samples: The number of points. Defaults to `1000`.
        noise: The standard deviation of the normal noise that is added to each coordinate. Defaults to `0.1`.
        seed: The seed of the random numbers. Defaults to `0`.

    Returns:
        `points`, float32 `[num_samples, 2]`, and `labels`, int32 `[num_samples]`.

    Example:

    >>> points, labels = keras_ode.datasets.moons(100)
    >>> points.shape, labels.shape
    ((100, 2), (100,))

    Reference: Pedregosa et al. (2011), Scikit-learn: machine learning in Python, J. Mach. Learn. Res. 12, whose `make_moons`
    has these half circles.
    """
    random = np.random.default_rng(seed)
    labels = random.integers(2, size=num_samples)
    arcs = _circle(np.pi * (random.uniform(size=num_samples) + labels)) + labels[:, None] * [1.0, 0.5]
    return _labeled(arcs + noise * random.normal(size=arcs.shape), labels)


def circles(num_samples: int = 1000, noise: float = 0.08, seed: int = 0) -> tuple[Floats, Labels]:
    """Returns points of two classes on concentric circles with the radii 1 and 2.

    Args:
        num_samples: The number of points. Defaults to `1000`.
        noise: The standard deviation of the normal noise that is added to each coordinate. Defaults to `0.08`.
        seed: The seed of the random numbers. Defaults to `0`.

    Returns:
        `points`, float32 `[num_samples, 2]`, and `labels`, int32 `[num_samples]`.

    Example:

    >>> points, labels = keras_ode.datasets.circles(100)
    >>> points.shape, labels.shape
    ((100, 2), (100,))

    Reference: Grathwohl, Chen, Bettencourt, Sutskever, Duvenaud (2019), FFJORD, ICLR, whose code draws such points.
    """
    random = np.random.default_rng(seed)
    labels = random.integers(2, size=num_samples)
    rings = _circle(random.uniform(0, 2 * np.pi, num_samples)) * (1 + labels)[:, None]
    return _labeled(rings + noise * random.normal(size=rings.shape), labels)


def pinwheel(num_samples: int = 1000, noise: float = 0.1, seed: int = 0, num_arms: int = 5) -> tuple[Floats, Labels]:
    """Returns points on the arms of a pinwheel, with one class for each arm.

    The arms are Gaussian clusters around the origin that are stretched outward and bent.

    Args:
        num_samples: The number of points. Defaults to `1000`.
        noise: The width of an arm. Defaults to `0.1`.
        seed: The seed of the random numbers. Defaults to `0`.
        num_arms: The number of arms. Defaults to `5`.

    Returns:
        `points`, float32 `[num_samples, 2]`, and `labels`, int32 `[num_samples]`.

    Example:

    >>> points, labels = keras_ode.datasets.pinwheel(100)
    >>> points.shape, labels.shape
    ((100, 2), (100,))

    Reference: Johnson, Duvenaud, Wiltschko, Datta, Adams (2016), Composing graphical models with neural networks for
    structured representations and fast inference, NeurIPS.
    """
    random = np.random.default_rng(seed)
    labels = random.integers(num_arms, size=num_samples)
    arm = random.normal(size=(num_samples, 2)) * [0.3, noise] + [1, 0]
    angle = 2 * np.pi * labels / num_arms + 0.25 * np.exp(arm[:, 0])
    x, y = 2 * arm.T
    return _labeled(np.stack([x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)], axis=1), labels)


def checkerboard(num_samples: int = 1000, seed: int = 0) -> Floats:
    """Returns points that are distributed uniformly over the eight dark squares of a four-by-four board on `[-2, 2]^2`.

    Args:
        num_samples: The number of points. Defaults to `1000`.
        seed: The seed of the random numbers. Defaults to `0`.

    Returns:
        `points`, float32 `[num_samples, 2]`.

    Example:

    >>> points = keras_ode.datasets.checkerboard(100)
    >>> points.shape
    (100, 2)

    Reference: Grathwohl, Chen, Bettencourt, Sutskever, Duvenaud (2019), FFJORD, ICLR, whose code draws such points.
    """
    random = np.random.default_rng(seed)
    x = random.uniform(-2, 2, num_samples)
    y = random.uniform(0, 1, num_samples) + 2 * random.integers(-1, 1, num_samples) + np.floor(x) % 2
    return np.stack([x, y], axis=1).astype("float32")


def eight_gaussians(num_samples: int = 1000, noise: float = 0.2, seed: int = 0) -> tuple[Floats, Labels]:
    """Returns points of eight classes: eight Gaussian distributions whose means lie on a circle of radius 2.

    Args:
        num_samples: The number of points. Defaults to `1000`.
        noise: The standard deviation of each distribution. Defaults to `0.2`.
        seed: The seed of the random numbers. Defaults to `0`.

    Returns:
        `points`, float32 `[num_samples, 2]`, and `labels`, int32 `[num_samples]`.

    Example:

    >>> points, labels = keras_ode.datasets.eight_gaussians(100)
    >>> points.shape, labels.shape
    ((100, 2), (100,))

    Reference: Grathwohl, Chen, Bettencourt, Sutskever, Duvenaud (2019), FFJORD, ICLR, whose code draws such points.
    """
    random = np.random.default_rng(seed)
    labels = random.integers(8, size=num_samples)
    centers = 2 * _circle(np.pi / 4 * labels)
    return _labeled(centers + noise * random.normal(size=centers.shape), labels)


def swiss_roll(num_samples: int = 1000, noise: float = 0.0, seed: int = 0) -> tuple[Floats, Labels]:
    """Returns points of two classes on two parallel spirals of two turns, at a distance of 0.2 from each other.

    Args:
        num_samples: The number of points. Defaults to `1000`.
        noise: The standard deviation of the normal noise that is added to each coordinate. Defaults to `0.0`.
        seed: The seed of the random numbers. Defaults to `0`.

    Returns:
        `points`, float32 `[num_samples, 2]`, and `labels`, int32 `[num_samples]`.

    Example:

    >>> points, labels = keras_ode.datasets.swiss_roll(100)
    >>> points.shape, labels.shape
    ((100, 2), (100,))

    Reference: Haber, Ruthotto (2017), Stable architectures for deep neural networks, Inverse Problems 34.
    """
    random = np.random.default_rng(seed)
    labels = random.integers(2, size=num_samples)
    along = random.uniform(size=num_samples)
    rolls = _circle(4 * np.pi * along) * (along + 0.2 * labels)[:, None]
    return _labeled(rolls + noise * random.normal(size=rolls.shape), labels)


def ellipses(num_samples: int = 1000, noise: float = 0.1, seed: int = 0) -> tuple[Floats, Labels]:
    """Returns points of two classes: a filled ellipse, and an elliptic ring around it.

    Args:
        num_samples: The number of points. Defaults to `1000`.
        noise: The standard deviation of the normal noise that is added to each coordinate. Defaults to `0.1`.
        seed: The seed of the random numbers. Defaults to `0`.

    Returns:
        `points`, float32 `[num_samples, 2]`, and `labels`, int32 `[num_samples]`.

    Example:

    >>> points, labels = keras_ode.datasets.ellipses(100)
    >>> points.shape, labels.shape
    ((100, 2), (100,))

    Reference: Haber, Ruthotto (2017), Stable architectures for deep neural networks, Inverse Problems 34.
    """
    random = np.random.default_rng(seed)
    labels = random.integers(2, size=num_samples)
    inside, outside = np.sqrt(random.uniform(size=(2, num_samples)))
    radius = np.where(labels == 0, 0.5 * inside, 1 + 0.3 * outside)
    points = _circle(random.uniform(0, 2 * np.pi, num_samples)) * radius[:, None] * [2.0, 1.0]
    return _labeled(points + noise * random.normal(size=points.shape), labels)


def peaks(num_samples: int = 1000, seed: int = 0) -> tuple[Floats, Labels]:
    """Returns points in `[-3, 3]^2` of five equally frequent classes, by the value of MATLAB's `peaks` function.

    Args:
        num_samples: The number of points. Defaults to `1000`.
        seed: The seed of the random numbers. Defaults to `0`.

    Returns:
        `points`, float32 `[num_samples, 2]`, and `labels`, int32 `[num_samples]`.

    Example:

    >>> points, labels = keras_ode.datasets.peaks(100)
    >>> points.shape, labels.shape
    ((100, 2), (100,))

    Reference: Haber, Ruthotto (2017), Stable architectures for deep neural networks, Inverse Problems 34.
    """
    points = np.random.default_rng(seed).uniform(-3, 3, size=(num_samples, 2))
    x, y = points.T
    height = (
        3 * (1 - x) ** 2 * np.exp(-(x**2) - (y + 1) ** 2)
        - 10 * (x / 5 - x**3 - y**5) * np.exp(-(x**2) - y**2)
        - np.exp(-((x + 1) ** 2) - y**2) / 3
    )
    return _labeled(points, np.searchsorted(np.quantile(height, [0.2, 0.4, 0.6, 0.8]), height))


def spheres(num_samples: int = 1000, dimension: int = 2, seed: int = 0) -> tuple[Floats, Labels]:
    """Returns points of a ball (class 0, radius 0.5) and of a spherical shell around it (class 1, radii 1 to 1.5).

    A homeomorphism, such as the flow of an ODE, cannot map the two classes to the two sides of a hyperplane.

    Args:
        num_samples: The number of points, about a third of which lie in the ball. Defaults to `1000`.
        dimension: The dimension of the space. Defaults to `2`.
        seed: The seed of the random numbers. Defaults to `0`.

    Returns:
        `points`, float32 `[num_samples, dimension]`, and `labels`, int32 `[num_samples]`.

    Example:

    >>> points, labels = keras_ode.datasets.spheres(100)
    >>> points.shape, labels.shape
    ((100, 2), (100,))

    Reference: Dupont, Doucet, Teh (2019), Augmented Neural ODEs, NeurIPS.
    """
    random = np.random.default_rng(seed)
    labels = (random.uniform(size=num_samples) > 1 / 3).astype(int)
    direction = random.normal(size=(num_samples, dimension))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    inner, outer = np.where(labels, 1.0, 0.0), np.where(labels, 1.5, 0.5)
    # Even in volume: the radius to the power of the dimension is uniform.
    radius = random.uniform(inner**dimension, outer**dimension) ** (1 / dimension)
    return _labeled(direction * radius[:, None], labels)


def periodic(
    num_samples: int = 1000, num_times: int = 100, noise: float = 0.1, seed: int = 0, duration: float = 5.0
) -> tuple[Floats, Floats]:
    """Returns sine waves of the same amplitude, each with its own frequency and phase, at irregular times.

    Args:
        num_samples: The number of series. Defaults to `1000`.
        num_times: The number of observations in each series. Defaults to `100`.
        noise: The standard deviation of the normal noise that is added to each value. Defaults to `0.1`.
        seed: The seed of the random numbers. Defaults to `0`.
        duration: The end of the time interval, which starts at 0. Defaults to `5.0`.

    Returns:
        `times`, float32 `[num_samples, num_times]`, increasing, and `values`, float32 `[num_samples, num_times, 1]`.

    Example:

    >>> times, values = keras_ode.datasets.periodic(8, num_times=10)
    >>> times.shape, values.shape
    ((8, 10), (8, 10, 1))

    Reference: Rubanova, Chen, Duvenaud (2019), Latent ODEs for irregularly-sampled time series, NeurIPS.
    """
    random = np.random.default_rng(seed)
    # Jittered cells, so that float32 times are never equal.
    times = duration * (np.arange(num_times) + random.uniform(0.05, 0.95, (num_samples, num_times))) / num_times
    frequency = random.uniform(0.4, 0.8, (num_samples, 1))
    phase = random.uniform(0, 2 * np.pi, (num_samples, 1))
    values = np.sin(2 * np.pi * frequency * times + phase) + noise * random.normal(size=times.shape)
    return times.astype("float32"), values[..., None].astype("float32")


def bidirectional_spirals(
    num_samples: int = 1000, num_times: int = 100, noise: float = 0.1, seed: int = 0
) -> tuple[Floats, Floats, Floats]:
    """Returns pieces of spirals that wind outward, half of them counterclockwise and half clockwise.

    Each piece starts at a random point of its spiral and continues for one and a half turns.

    Args:
        num_samples: The number of spirals. Defaults to `1000`.
        num_times: The number of observations of each spiral, at equal distances in time. Defaults to `100`.
        noise: The standard deviation of the normal noise that is added to each coordinate. Defaults to `0.1`.
        seed: The seed of the random numbers. Defaults to `0`.

    Returns:
        `times`, float32 `[num_times]`, from 0 to 1; `observed`, float32 `[num_samples, num_times, 2]`; and `truth`, the same
        as `observed` but without the noise.

    Example:

    >>> times, noisy, truth = keras_ode.datasets.bidirectional_spirals(8, num_times=30)
    >>> times.shape, noisy.shape, truth.shape
    ((30,), (8, 30, 2), (8, 30, 2))

    Reference: Chen, Rubanova, Bettencourt, Duvenaud (2018), Neural Ordinary Differential Equations, NeurIPS.
    """
    random = np.random.default_rng(seed)
    times = np.linspace(0, 1, num_times)
    start = random.uniform(np.pi, 4 * np.pi, (num_samples, 1))
    turn = np.where(random.permutation(num_samples) < num_samples // 2, 1, -1)[:, None]
    angle = start + 3 * np.pi * times
    truth = _circle(turn * angle) * (angle / (3 * np.pi))[..., None]
    observed = truth + noise * random.normal(size=truth.shape)
    return times.astype("float32"), observed.astype("float32"), truth.astype("float32")


def hare_lynx() -> tuple[Floats, Floats]:
    """Returns the pelts of snowshoe hares and Canada lynxes that the Hudson's Bay Company collected from 1900 to 1920.

    Returns:
        `years`, float32 `[21]`, and `pelts`, float32 `[21, 2]`: hares and lynxes, in thousands.

    Example:

    >>> years, pelts = keras_ode.datasets.hare_lynx()
    >>> print(years[0], pelts[0])
    1900.0 [30.  4.]

    References: Hewitt (1921), The conservation of the wild life of Canada, Scribner; the numbers are those of Carpenter (2018),
    Predator-prey population dynamics: the Lotka-Volterra model in Stan, and of Howard (2009), Modeling basics, Texas A&M
    University.
    """
    pelts = np.array(_HARE_LYNX, "float32").reshape(-1, 2)
    return np.arange(1900, 1900 + len(pelts), dtype="float32"), pelts


# fmt: off
_HARE_LYNX = (
    30.0, 4.0, 47.2, 6.1, 70.2, 9.8, 77.4, 35.2, 36.3, 59.4, 20.6, 41.7, 18.1, 19.0, 21.4, 13.0, 22.0, 8.3, 25.4, 9.1, 27.1, 7.4,
    40.3, 8.0, 57.0, 12.3, 76.6, 19.5, 52.3, 45.7, 19.5, 51.1, 11.2, 29.7, 7.6, 15.8, 14.6, 9.7, 16.2, 10.1, 24.7, 8.6,
)
# fmt: on


def _circle(angle):
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def _labeled(points, labels):
    return points.astype("float32"), labels.astype("int32")
