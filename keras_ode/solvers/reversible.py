"""Reversible methods: a step can be taken back exactly, so that a gradient needs no stored states."""

import numbers
from typing import NamedTuple

import tensorflow as tf

from keras_ode import configurable, tree
from keras_ode.solvers import explicit
from keras_ode.solvers.base import Solver, Stage, Step, hermite_stages
from keras_ode.solvers.runge_kutta import ExplicitRungeKutta

# The methods that `Reversible` knows by their names.
METHODS = {name.lower(): cls for name, cls in vars(explicit).items() if getattr(cls, "tableau", None) is not None}

# The two states of a `Reversible` method may differ by so many times the tolerance.
_MOST_APART = 100


class AsynchronousLeapfrog(Solver):
    """The asynchronous leapfrog method: order 2, one evaluation per step, reversible.

    In addition to the state it has a velocity, which follows the derivative. The difference between the new derivative and the
    velocity estimates the error.

    Args:
        eta: The fraction of that difference that changes the velocity, more than `0.5` and at most `1`. Below `1` the method is
            more stable but has order 1, and each reversed step multiplies rounding errors of the velocity by `1 / (2 eta - 1)`.
            Defaults to `1`.

    Example:

    >>> x = tf.Variable([1.0])
    >>> with tf.GradientTape() as tape:
    ...     end = keras_ode.odeint(lambda t, y: -y, x, [0.0, 1.0], adjoint="reversible", solver="asynchronous_leapfrog")[-1]
    >>> print(f"{float(tape.gradient(end, x)[0]):.3f}")
    0.368

    References:
        Mutze (2013), An asynchronous leapfrog method II, arXiv:1311.6602.
        Zhuang, Dvornek, Tatikonda, Duncan (2021), MALI: A memory efficient and reverse accurate integrator for Neural ODEs, ICLR.
    """

    order = error_order = 2
    remembers = is_reversible = True

    def __init__(self, eta: float = 1.0) -> None:
        self.eta = _number(eta, "eta", 0.5)
        self.order = 2 if self.eta == 1 else 1

    @property
    def backward(self):
        return explicit.Midpoint()

    def start(self, field, t, y):
        return Stage(field(t, y).derivative), 1

    def step(self, field, interval, y, carry, with_dense=False):
        velocity = carry.derivative
        near, slope = self._middle(field, interval, y, velocity, 0.5)
        change = tree.subtract(slope, velocity)
        new = _added(velocity, 2 * self.eta, change)
        end = tree.add_scaled(y, interval.size, _added(velocity, self.eta, change))
        return Step(
            start=y,
            y=end,
            error=tree.scale(0.5 * interval.size, change),
            integral=(),
            stages=hermite_stages(interval, y, velocity, end, new),
            carry=Stage(new),
            evaluations=1,
            neighbors=((y, velocity), (near, slope)),
        )

    def unstep(self, field, interval, y, carry):
        new = carry.derivative
        middle, slope = self._middle(field, interval, y, new, -0.5)
        velocity = _added(slope, -1 / (2 * self.eta - 1), tree.subtract(new, slope))
        return _less(middle, 0.5 * interval.size, velocity), Stage(velocity), 1

    def _middle(self, field, interval, y, velocity, part):
        """Returns the state in the middle of the step, computed from one of its ends, and the derivative there."""
        middle = tree.add_scaled(y, part * interval.size, velocity)
        return middle, field(interval.start + 0.5 * interval.size, middle).derivative


class _HeunCarry(NamedTuple):
    """The second state of the reversible Heun method, leaves, and the derivative there."""

    other: tuple
    slope: tuple


class ReversibleHeun(Solver):
    """The reversible Heun method: order 2, one evaluation per step.

    In addition to the state it has a second state, at which it evaluates the dynamics. Half of the difference of the
    derivatives at the ends of a step estimates the error. The method is stable for oscillations only: use short steps.

    Example:

    >>> x = tf.Variable([1.0])
    >>> with tf.GradientTape() as tape:
    ...     end = keras_ode.odeint(lambda t, y: -y, x, [0.0, 1.0], adjoint="reversible", solver="reversible_heun")[-1]
    >>> print(f"{float(tape.gradient(end, x)[0]):.3f}")
    0.368

    Reference: Kidger, Foster, Li, Lyons (2021), Efficient and accurate gradients for neural SDEs, NeurIPS.
    """

    order = error_order = 2
    remembers = is_reversible = True

    @property
    def backward(self):
        return explicit.Heun()

    def start(self, field, t, y):
        return _HeunCarry(tuple(map(tf.identity, y)), field(t, y).derivative), 1

    def carry_like(self, t, y):
        return _HeunCarry(tree.zeros_like(y), tree.zeros_like(y))

    def first_derivative(self, carry):
        return carry.slope

    def step(self, field, interval, y, carry, with_dense=False):
        new = self._turned(field, interval.end, interval.size, y, carry)
        half, change = 0.5 * interval.size, tree.subtract(new.slope, carry.slope)
        end = tree.add_scaled(y, half, tree.add(carry.slope, new.slope))
        return Step(
            start=y,
            y=end,
            error=tree.scale(half, change),
            integral=(),
            stages=hermite_stages(interval, y, carry.slope, end, new.slope),
            carry=new,
            evaluations=1,
            neighbors=((carry.other, carry.slope), (new.other, new.slope)),
        )

    def unstep(self, field, interval, y, carry):
        old = self._turned(field, interval.start, -interval.size, y, carry)
        return _less(y, 0.5 * interval.size, tree.add(old.slope, carry.slope)), old, 1

    def _turned(self, field, t, size, y, carry):
        """Returns the carry after one more step, or before the last one."""
        other = tree.subtract(tree.add_scaled(y, size, carry.slope), tree.subtract(carry.other, y))
        return _HeunCarry(other, field(t, other).derivative)


class _Carry(NamedTuple):
    """The second state of a `Reversible` method, leaves, and the derivative at the first one."""

    other: tuple
    slope: tuple


class Reversible(Solver):
    """Makes an explicit Runge-Kutta method reversible: it has the same order and twice as many evaluations per step.

    In addition to the state `y` it has a second state, `z`, which is equal to `y` at the start. A step of the method from
    `z` updates a mean of both states, which becomes the new `y`, and a step backward from the new `y` updates `z`. The
    error estimate is that of the method. An adaptive solve rejects a step after which the two states differ by more than a
    hundred tolerances.

    Args:
        solver: The method: a name or an `ExplicitRungeKutta`. Defaults to `"tsit5"`.
        coupling: The weight of `y` in the mean, more than `0` and at most `1`. With a smaller weight the method is more stable,
            but each reversed step multiplies rounding errors by `1 / coupling`. Defaults to `0.999`.

    Example:

    >>> solver = keras_ode.solvers.Reversible("bosh3")
    >>> x = tf.Variable([1.0])
    >>> with tf.GradientTape() as tape:
    ...     end = keras_ode.odeint(lambda t, y: -y, x, [0.0, 1.0], adjoint="reversible", solver=solver, rtol=1e-5)[-1]
    >>> print(f"{float(tape.gradient(end, x)[0]):.3f}")
    0.368

    Reference: McCallum, Foster (2024), Efficient, accurate and stable gradients for neural ODEs, arXiv:2410.11648.
    """

    order: int = explicit.Tsit5.order
    error_order: int | None = explicit.Tsit5.error_order
    remembers = is_reversible = True

    def __init__(self, solver: str | ExplicitRungeKutta = "tsit5", coupling: float = 0.999) -> None:
        self.solver = configurable.get(solver, "solver", ExplicitRungeKutta, METHODS)
        self.coupling = _number(coupling, "coupling", 0)
        self.order, self.error_order = self.solver.order, self.solver.error_order

    def get_config(self):
        return {"solver": configurable.describe(self.solver, METHODS), "coupling": self.coupling}

    @property
    def backward(self):
        return self.solver

    def start(self, field, t, y):
        return _Carry(tuple(map(tf.identity, y)), field(t, y).derivative), 1

    def carry_like(self, t, y):
        return _Carry(tree.zeros_like(y), tree.zeros_like(y))

    def first_derivative(self, carry):
        return carry.slope

    def step(self, field, interval, y, carry, with_dense=False):
        z, size = carry.other, interval.size
        mean, slopes, near = self._mean(field, interval, z)
        middle = tree.add_scaled(y, self._drawn(size), tree.subtract(z, y))
        end = _less(middle, -size, mean)
        slope = field(interval.end, end).derivative
        back, *_ = self.solver.mean_slope(field, interval.turned(), end, slope)
        other = tree.add_scaled(z, size, back)
        return Step(
            start=y,
            y=end,
            error=self.solver.error([*slopes, slope], size),
            integral=(),
            stages=hermite_stages(interval, y, carry.slope, end, slope),
            carry=_Carry(other, slope),
            evaluations=2 * len(slopes),
            neighbors=((near, slopes[-1]), (end, slope)),
            converged=self._are_near(field, end, other, size) if field.adaptive else None,
        )

    def unstep(self, field, interval, y, carry):
        size = interval.size
        back, slopes, _ = self.solver.mean_slope(field, interval.turned(), y, carry.slope)
        z = _less(carry.other, size, back)
        mean, *_ = self._mean(field, interval, z)
        away = tree.subtract(_less(y, size, mean), z)
        start = tree.add_scaled(z, 1 / (1 - self._drawn(size)), away)
        return start, _Carry(z, field(interval.start, start).derivative), 2 * len(slopes)

    def _are_near(self, field, y, z, size):
        """Returns whether the two states are close enough: no error estimate shows that the method is unstable."""
        apart = field.scaled(tree.subtract(y, z), y, size)
        return tf.stop_gradient(apart) <= _MOST_APART

    def _mean(self, field, interval, z):
        """Returns the mean slope of the method from the second state: see `ExplicitRungeKutta.mean_slope`."""
        return self.solver.mean_slope(field, interval, z, field(interval.start, z).derivative)

    def _drawn(self, size):
        """Returns the weight of the second state in the mean. It is zero for a step without length, which changes no state."""
        return tree.select(size == 0, tf.zeros_like(size), tf.constant(1 - self.coupling, size.dtype))


def _added(leaves, weight, increments):
    """`leaves + weight * increments` with a Python number as weight."""
    return tuple(x + tf.constant(weight, x.dtype) * dx for x, dx in zip(leaves, increments, strict=True))


def _less(leaves, size, slopes):
    """`leaves - size * slopes`. Differences, not sums: sums of three are not safe here (see `tree`)."""
    return tree.subtract(leaves, tree.scale(size, slopes))


def _number(value, name, above):
    """A number of the given name that is above this and at most one."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not above < value <= 1:
        raise ValueError(f"{name} must be a number above {above} and at most 1. Received: {name}={value!r}")
    return float(value)
