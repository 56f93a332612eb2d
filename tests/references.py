"""Problems with answers from outside the package, and dynamics that watch how they are called."""

import numpy as np
import scipy.integrate
import scipy.linalg
import tensorflow as tf

from keras_ode.solvers import SOLVERS
from keras_ode.solvers.adams import Adams
from keras_ode.solvers.base import Field
from keras_ode.solvers.runge_kutta import ExplicitRungeKutta
from keras_ode.solvers.symplectic import Symplectic


def registered(family):
    """The names of all solvers of a family."""
    return tuple(name for name in SOLVERS if issubclass(SOLVERS[name], family))


EXPLICIT, ADAMS, SYMPLECTIC = map(registered, (ExplicitRungeKutta, Adams, Symplectic))
# The symplectic methods solve for positions and momenta only.
SOLVERS_OF_ANY_STATE = tuple(name for name in SOLVERS if name not in SYMPLECTIC)
# These are of the same kind as others, and have nothing but another table.
LIKE_OTHERS = (
    *("euler", "midpoint", "heun", "ralston", "dopri5", "dopri8", "vern9", "ab2", "ab3", "ab4", "abm2", "abm3", "abm5"),
    *("rosenbrock23", "kvaerno5", "kencarp4", "implicit_euler", "trapezoid", "reversible_heun"),
)

# Three decaying, coupled oscillators' worth of a matrix: no symmetry, so that a transpose in the wrong place shows.
MATRIX = np.array([[-0.2, 1.0, 0.0], [-1.0, -0.2, 0.5], [0.1, -0.3, -0.4]])
START = np.array([1.0, 0.5, -1.0])


def cosine(t, y):
    """`y' = y cos t`; from `y(0) = 1` the solution is `exp(sin t)`."""
    return y * tf.cos(t)


def lotka_volterra(t, y):
    """Lotka and Volterra's equations with coefficients 1.5, 1, 3, 1."""
    prey, predators = y[0], y[1]
    return tf.stack([1.5 * prey - prey * predators, prey * predators - 3 * predators])


def solved_by_scipy(f, y0, t):
    """States at `t` (`[T, *y0.shape]`), by DOP853 at 1e-13; `f(t, y)` of NumPy arrays, real or complex."""
    y0 = np.asarray(y0)
    solution = scipy.integrate.solve_ivp(
        lambda t, y: f(t, y.reshape(y0.shape)).ravel(),
        (t[0], t[-1]),
        y0.ravel(),
        method="DOP853",
        rtol=1e-13,
        atol=1e-13,
        t_eval=t,
    )
    assert solution.success
    return solution.y.T.reshape(len(t), *y0.shape)


def gradients_by_complex_step(f, start, times, parameters, loss):
    """The gradients of `loss(ys)` by the start, the times and each parameter of `f(t, y, *parameters)`; both are analytic.

    All perturbed copies are solved as one system, by DOP853 at 1e-13: copy i has an imaginary part in scalar i. `f`
    takes NumPy arrays whose first axis counts the copies. The times' gradients come from `f` itself.
    """
    inputs = [np.asarray(x, "float64") for x in (start, *parameters)]
    sizes = [x.size for x in inputs]
    copies = np.concatenate([x.ravel() for x in inputs]) + 1e-30j * np.eye(sum(sizes))
    parts = np.split(copies, np.cumsum(sizes)[:-1], axis=1)
    y0, *others = (part.reshape(-1, *x.shape) for part, x in zip(parts, inputs, strict=True))
    times = np.asarray(times, "float64")
    ys = solved_by_scipy(lambda t, y: f(t, y, *others), y0, times)
    flat = np.array([loss(ys[:, i]).imag for i in range(sum(sizes))]) / 1e-30
    by_start, *by_parameters = (
        g.reshape(x.shape) for g, x in zip(np.split(flat, np.cumsum(sizes)[:-1]), inputs, strict=True)
    )
    rates = np.array([f(t, y, *others)[0].real for t, y in zip(times, ys, strict=True)])
    # A saved state moves along the field with its time; the start moves against it with the first.
    by_times = np.array([_moved(loss, ys[:, 0].real, rates, i) for i in range(len(times))])
    by_times[0] -= np.sum(by_start * rates[0])
    return [by_start, by_times, *by_parameters]


def _moved(loss, ys, rates, i):
    """The derivative of the loss where state `i` moves at its rate."""
    ys = ys.astype(complex)
    ys[i] += 1e-30j * rates[i]
    return loss(ys).imag / 1e-30


def linear_gradients(times, weights, matrix=MATRIX, start=START):
    """The gradients of `sum_i weights[i] . expm(matrix (t_i - t_0)) start` by start, matrix and times."""
    by_start, by_matrix, by_times = np.zeros_like(start), np.zeros_like(matrix), np.zeros(len(times))
    for i, (since, weight) in enumerate(zip(np.asarray(times) - times[0], weights, strict=True)):
        propagator = scipy.linalg.expm(matrix * since)
        by_start += propagator.T @ weight
        by_matrix += since * scipy.linalg.expm_frechet((matrix * since).T, np.outer(weight, start), compute_expm=False)
        rate = weight @ matrix @ propagator @ start
        by_times[i] += rate
        by_times[0] -= rate
    return {"state": by_start, "matrix": by_matrix, "times": by_times}


class TanhNetwork:
    """`y' = tanh(tanh(y W1 + b1) W2 + b2)` in NumPy and in TensorFlow."""

    def __init__(self, width=6, seed=0):
        rng = np.random.default_rng(seed)
        self.start = rng.normal(size=(2, 2))
        self.weights = [rng.normal(size=shape) for shape in ((2, width), (width,), (width, 2), (2,))]

    def of_tensors(self, weights):
        w1, b1, w2, b2 = weights
        return lambda t, y: tf.tanh(tf.tanh(y @ w1 + b1) @ w2 + b2)

    def gradients_by_complex_step(self, loss, times):
        """The gradients of `loss(ys)` by the start and by each weight array; `loss` is analytic, of NumPy arrays.

        All perturbed copies are solved as one batch: copy i has a small imaginary part in scalar i.
        """
        found = gradients_by_complex_step(
            lambda t, y, w1, b1, w2, b2: np.tanh(np.tanh(y @ w1 + b1[:, None]) @ w2 + b2[:, None]),
            self.start,
            times,
            self.weights,
            loss,
        )
        return [found[0], *found[2:]]


class FieldOf(Field):
    """The field, as a loop takes it, of a function `f(t, y)` that gives a `Stage`."""

    def __init__(self, f):
        self._f = f

    def __call__(self, t, y, with_integrand=True):
        return self._f(t, y)


class Counting:
    """A dynamics that counts its evaluations, in eager code, graphs and XLA."""

    def __init__(self, f):
        self._f = f
        self._count = tf.Variable(0, trainable=False)

    def __call__(self, t, y):
        self._count.assign_add(1)
        return self._f(t, y)

    def take(self):
        """The number of evaluations since the last `take`."""
        count = int(self._count)
        self._count.assign(0)
        return count


class Clocked:
    """A dynamics that remembers the first and the last of the times it was called at."""

    def __init__(self, f, dtype="float64"):
        self._f = f
        self._earliest = tf.Variable(np.inf, dtype=dtype, trainable=False)
        self._latest = tf.Variable(-np.inf, dtype=dtype, trainable=False)

    def __call__(self, t, y):
        self._earliest.assign(tf.minimum(self._earliest, t))
        self._latest.assign(tf.maximum(self._latest, t))
        return self._f(t, y)

    def take(self):
        """The first and the last time since the last `take`."""
        span = float(self._earliest), float(self._latest)
        self._earliest.assign(np.inf)
        self._latest.assign(-np.inf)
        return span


def relative_error(value, expected):
    """The largest difference, relative to the largest expected element."""
    expected = np.asarray(expected)
    return np.max(np.abs(np.asarray(value) - expected)) / np.max(np.abs(expected))
