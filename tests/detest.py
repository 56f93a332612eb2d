"""The 25 problems of DETEST, each written once for NumPy and TensorFlow.

Reference: Hull, Enright, Fellen, Sedgwick (1972), Comparing numerical methods for ordinary differential equations, SIAM J.
Numer. Anal. 9(4).
"""

import functools
from typing import Any, NamedTuple

import numpy as np
import scipy.integrate
import tensorflow as tf

END = 20.0


class Problem(NamedTuple):
    """`derivative(xp, t, y)` of a state `[size]`, an array or a list of its components; `xp` is `np` or `tf`."""

    name: str
    start: tuple
    derivative: Any

    @property
    def size(self):
        return len(self.start)

    def __call__(self, xp, t, y):
        derivative = self.derivative(xp, t, y)
        return xp.stack(derivative) if isinstance(derivative, list) else derivative

    def solved_by(self, method, tolerance):
        """The state at the end, by one of SciPy's methods."""
        options = {"method": method, "rtol": tolerance, "atol": tolerance}
        return scipy.integrate.solve_ivp(lambda t, y: self(np, t, y), (0, END), self.start, **options).y[:, -1]

    def reference(self):
        """The state at the end, by DOP853 at 1e-13."""
        return self.solved_by("DOP853", 1e-13)


def _chain(rates):
    """A chain of decays, each into the next; the last member only gathers."""
    rates = np.array([*rates, 0.0])

    def derivative(xp, t, y):
        lost = rates * y
        return xp.concat([-lost[:1], lost[:-1] - lost[1:]], 0)

    return derivative


def _diffusion(xp, t, y):
    """The second difference, with zeros beyond both ends."""
    padded = xp.concat([0 * y[:1], y, 0 * y[:1]], 0)
    return padded[:-2] - 2 * padded[1:-1] + padded[2:]


_GRAVITY, _SUN = 2.95912208286, 1.00000597682
_PLANETS = np.array([0.000954786104043, 0.000285583733151, 0.0000437273164546, 0.0000517759138449, 0.00000277777777778])
_POSITIONS = (
    (3.42947415189, 3.35386959711, 1.35494901715),
    (6.64145542550, 5.97156957878, 2.18231499728),
    (11.2630437207, 14.6952576794, 6.27960525067),
    (-30.1552268759, 1.65699966404, 1.43785752721),
    (-21.1238353380, 28.4465098142, 15.3882659679),
)
_VELOCITIES = (
    (-0.557160570446, 0.505696783289, 0.230578543901),
    (-0.415570776342, 0.365682722812, 0.169143213293),
    (-0.325325669158, 0.189706021964, 0.0877265322780),
    (-0.0240476254170, -0.287659532608, -0.117219543175),
    (-0.176860753121, -0.216393453025, -0.0148647893090),
)


def _five_bodies(xp, t, y):
    """Five outer planets, seen from the sun that they pull as well."""
    at = xp.reshape(y[:15], [5, 3])
    apart = at[None] - at[:, None]
    from_sun = xp.sqrt(xp.einsum("ki,ki->k", at, at))[:, None] ** 3
    # A planet does not pull itself: zero divided by one.
    distances = xp.sqrt(xp.einsum("jki,jki->jk", apart, apart) + np.eye(5))[..., None] ** 3
    pulls = _PLANETS[:, None] * (apart / distances - at / from_sun)
    acceleration = _GRAVITY * (xp.einsum("jki->ji", pulls) - _SUN * at / from_sun)
    return xp.concat([y[15:], xp.reshape(acceleration, [15])], 0)


def _orbit(xp, t, y):
    cubed = xp.sqrt(y[0] ** 2 + y[1] ** 2) ** 3
    return [y[2], y[3], -y[0] / cubed, -y[1] / cubed]


def _torus(xp, t, y):
    radius = xp.sqrt(y[0] ** 2 + y[1] ** 2)
    return [-y[1] - y[0] * y[2] / radius, y[0] - y[1] * y[2] / radius, y[0] / radius]


def _bessel(xp, t, y):
    return [y[1], -(y[1] / (t + 1) + (1 - 0.25 / (t + 1) ** 2) * y[0])]


def _first(size):
    return (1.0,) + (0.0,) * (size - 1)


def _ellipse(eccentricity):
    return (1 - eccentricity, 0.0, 0.0, ((1 + eccentricity) / (1 - eccentricity)) ** 0.5)


CLASSES = {
    "A": (
        Problem("A1", (1.0,), lambda xp, t, y: [-y[0]]),
        Problem("A2", (1.0,), lambda xp, t, y: [-(y[0] ** 3) / 2]),
        Problem("A3", (1.0,), lambda xp, t, y: [y[0] * xp.cos(t)]),
        Problem("A4", (1.0,), lambda xp, t, y: [y[0] / 4 * (1 - y[0] / 20)]),
        Problem("A5", (4.0,), lambda xp, t, y: [(y[0] - t) / (y[0] + t)]),
    ),
    "B": (
        Problem("B1", (1.0, 3.0), lambda xp, t, y: [2 * (y[0] - y[0] * y[1]), -(y[1] - y[0] * y[1])]),
        Problem("B2", (2.0, 0.0, 1.0), lambda xp, t, y: [-y[0] + y[1], y[0] - 2 * y[1] + y[2], y[1] - y[2]]),
        Problem("B3", (1.0, 0.0, 0.0), lambda xp, t, y: [-y[0], y[0] - y[1] ** 2, y[1] ** 2]),
        Problem("B4", (3.0, 0.0, 0.0), _torus),
        Problem("B5", (0.0, 1.0, 1.0), lambda xp, t, y: [y[1] * y[2], -y[0] * y[2], -0.51 * y[0] * y[1]]),
    ),
    "C": (
        Problem("C1", _first(10), _chain((1,) * 9)),
        Problem("C2", _first(10), _chain(range(1, 10))),
        Problem("C3", _first(10), _diffusion),
        Problem("C4", _first(51), _diffusion),
        Problem("C5", sum(_POSITIONS + _VELOCITIES, ()), _five_bodies),
    ),
    "D": tuple(Problem(f"D{i + 1}", _ellipse(0.1 + 0.2 * i), _orbit) for i in range(5)),
    "E": (
        Problem("E1", (0.6713967071418030, 0.09540051444747446), _bessel),
        Problem("E2", (2.0, 0.0), lambda xp, t, y: [y[1], (1 - y[0] ** 2) * y[1] - y[0]]),
        Problem("E3", (0.0, 0.0), lambda xp, t, y: [y[1], y[0] ** 3 / 6 - y[0] + 2 * xp.sin(2.78535 * t)]),
        Problem("E4", (30.0, 0.0), lambda xp, t, y: [y[1], 0.032 - 0.4 * y[1] ** 2]),
        Problem("E5", (0.0, 0.0), lambda xp, t, y: [y[1], xp.sqrt(1 + y[1] ** 2) / (25 - t)]),
    ),
}


class Tiled:
    """Several problems in states of one size: each holds as many copies as fit, so that its mean error is its own."""

    def __init__(self, problems):
        self.problems = problems
        self.size = int(np.lcm.reduce([problem.size for problem in problems]))
        self.starts = np.array([np.tile(p.start, self.size // p.size) for p in problems])

    def derivative(self, i, t, y):
        """That of problem `i` at a state `[size]`."""
        problem = self.problems[i]
        return tf.tile(problem(tf, t, y[: problem.size]), [self.size // problem.size])

    def rows(self, t, y):
        """The dynamics of all problems at once, each a row."""
        return tf.stack([self.derivative(i, t[i, 0], y[i]) for i in range(len(self.problems))])

    def one(self, t, y, which):
        """The dynamics of the problem `which`, a tensor: one trace for all of them."""
        return tf.switch_case(which, [functools.partial(self.derivative, i, t, y) for i in range(len(self.problems))])
