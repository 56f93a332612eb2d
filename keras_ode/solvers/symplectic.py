"""Symplectic methods for positions and momenta: over long times their energy error stays bounded."""

import itertools
from collections.abc import Mapping, Sequence

import tensorflow as tf

from keras_ode import tree
from keras_ode.errors import warn
from keras_ode.solvers.base import Solver, Step, hermite_stages
from keras_ode.solvers.explicit import RK4


class Symplectic(Solver):
    """A method for a state `(q, p)` whose `q'` depends on `p` and the time alone, and whose `p'` on `q` and the time alone.

    A step changes `p` by `kicks[0]` times its derivative and the size of the step, then `q` by `drifts[0]` times its own, then `p`
    by `kicks[1]`, and so on. Where the dynamics is not of that form, the method has a lower order and is not symplectic.

    Penalties of regularizers are integrated along by the trapezoidal rule.

    Args:
        parts: Which leaves of the state are positions and which are momenta: two tuples of their numbers. `bind` finds them;
            defaults to `None`.

    Reference: Hairer, Lubich, Wanner (2006), Geometric Numerical Integration, sections I.1, II.4 and VI.3.
    """

    kicks: tuple
    drifts: tuple
    is_reversible = True

    def __init__(self, parts: Sequence[Sequence[int]] | None = None) -> None:
        self.parts = None if parts is None else tuple(tuple(numbers) for numbers in parts)

    @property
    def backward(self):
        return RK4()

    def bind(self, structure):
        return type(self)(_parts(structure, type(self).__name__))

    def check(self, field):
        for part, leaves in zip(("q", "p"), self._parts(), strict=True):
            if field.depends(leaves, leaves):
                other = "p" if part == "q" else "q"
                warn(
                    f"{type(self).__name__} is for dynamics where the derivative of {part} depends on {other} and the time only. "
                    f"Here it depends on {part} too, so the method has a lower order and the energy may drift: use another "
                    "solver, such as 'rk4'."
                )

    def start(self, field, t, y):
        return field(t, y), 1

    def step(self, field, interval, y, carry, with_dense=False):
        state, end, count = self._moved(field, interval, y, carry, self.kicks, self.drifts)
        return Step(
            start=y,
            y=state,
            error=None,
            integral=(),
            stages=hermite_stages(interval, y, carry.derivative, state, end.derivative),
            carry=end,
            evaluations=count,
            neighbors=((y, carry.derivative), (state, end.derivative)),
        )

    def unstep(self, field, interval, y, carry):
        return self._moved(field, interval.turned(), y, carry, self.kicks[::-1], self.drifts[::-1])

    def _moved(self, field, interval, y, carry, kicks, drifts):
        """The state at the end of an interval, the carry there, and the number of evaluations."""
        positions, momenta = self._parts()
        last, count = len(drifts) - 1, 0
        state = _moved(y, momenta, kicks[0], interval.size, carry.derivative)
        for i, (since, until) in enumerate(itertools.pairwise(itertools.accumulate(drifts, initial=0.0))):
            slope = field(interval.at((since + until) / 2), state).derivative
            state = _moved(state, positions, drifts[i], interval.size, slope)
            count += 1
            if kicks[i + 1]:
                slope = field(interval.end if i == last else interval.at(until), state).derivative
                state = _moved(state, momenta, kicks[i + 1], interval.size, slope)
                count += 1
        others = range(len(positions) + len(momenta), len(y))
        # What accumulates only does not change the derivatives, so that it can wait for those at the end.
        end = field(interval.end, state)
        for slopes in (carry.derivative, end.derivative):
            state = _moved(state, others, 0.5, interval.size, slopes)
        return state, end, count + 1

    def _parts(self):
        if self.parts is None:
            raise ValueError(
                f"{type(self).__name__} does not know which leaves of the state are positions and which are momenta: use "
                f"solver.bind((q, p)). Received: solver={self!r}"
            )
        return self.parts


class SemiImplicitEuler(Symplectic):
    """The symplectic Euler method: order 1.

    Example:

    >>> pendulum = lambda t, state: (state[1], -tf.sin(state[0]))
    >>> start = (tf.constant([1.0]), tf.constant([0.0]))
    >>> q, p = keras_ode.odeint(pendulum, start, [0.0, 20.0], solver="semi_implicit_euler", step_size=0.01)
    >>> energy = p**2 / 2 - tf.cos(q)
    >>> print(f"{float(energy[0, 0]):.2f} {float(energy[-1, 0]):.2f}")
    -0.54 -0.54

    Reference: Hairer, Lubich, Wanner (2006), Geometric Numerical Integration, section I.1.2.
    """

    order = 1
    kicks, drifts = (1.0, 0.0), (1.0,)


class Leapfrog(Symplectic):
    """The Störmer-Verlet method in its velocity form: order 2, reversible in time.

    Example:

    >>> pendulum = lambda t, state: (state[1], -tf.sin(state[0]))
    >>> start = (tf.constant([1.0]), tf.constant([0.0]))
    >>> q, p = keras_ode.odeint(pendulum, start, [0.0, 20.0], solver="leapfrog", step_size=0.1)
    >>> energy = p**2 / 2 - tf.cos(q)
    >>> print(f"{float(energy[0, 0]):.2f} {float(energy[-1, 0]):.2f}")
    -0.54 -0.54

    Reference: Verlet (1967), Computer "experiments" on classical fluids I, Phys. Rev. 159(1), 98-103.
    """

    order = 2
    kicks, drifts = (0.5, 0.5), (1.0,)


_OUTER = 1 / (2 - 2 ** (1 / 3))
_INNER = 1 - 2 * _OUTER


class Yoshida4(Symplectic):
    """A composition of three steps of `Leapfrog`, the second of which goes backward: order 4, reversible in time.

    It evaluates the dynamics up to 0.36 steps outside of each step.

    Example:

    >>> pendulum = lambda t, state: (state[1], -tf.sin(state[0]))
    >>> start = (tf.constant([1.0]), tf.constant([0.0]))
    >>> q, p = keras_ode.odeint(pendulum, start, [0.0, 20.0], solver="yoshida4", step_size=0.1)
    >>> energy = p**2 / 2 - tf.cos(q)
    >>> print(f"{float(energy[0, 0]):.2f} {float(energy[-1, 0]):.2f}")
    -0.54 -0.54

    Reference: Yoshida (1990), Construction of higher order symplectic integrators, Phys. Lett. A 150(5-7), 262-268.
    """

    order = 4
    kicks = (_OUTER / 2, (_OUTER + _INNER) / 2, (_OUTER + _INNER) / 2, _OUTER / 2)
    drifts = (_OUTER, _INNER, _OUTER)


def _parts(structure, name):
    """The numbers of the leaves of positions and of momenta."""
    numbered = tf.nest.pack_sequence_as(structure, list(range(len(tf.nest.flatten(structure)))))
    parts = ()
    if isinstance(numbered, Mapping):
        parts = (numbered["q"], numbered["p"]) if set(numbered) == {"q", "p"} else ()
    elif isinstance(numbered, (tuple, list)):
        parts = numbered
    parts = tuple(tuple(tf.nest.flatten(part)) for part in parts)
    if len(parts) != 2 or not all(parts):
        received = tf.nest.map_structure(lambda leaf: tuple(leaf.shape), structure)
        raise ValueError(
            f"{name} needs a state of two parts, positions and momenta: pass a tuple (q, p), or a dict with the keys 'q' and 'p'. "
            f"Each part may be any nested structure of tensors. Received: y0 of the shapes {received}"
        )
    return parts


def _moved(state, numbers, factor, size, slopes):
    """The leaves of which those with these numbers are moved along their slopes."""
    state = list(state)
    for i in numbers:
        (state[i],) = tree.add_scaled((state[i],), tf.constant(factor, size.dtype) * size, (slopes[i],))
    return tuple(state)
