"""Events: where a function of time and state becomes zero, and what happens there."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_ode import tree
from keras_ode.dynamics import PureFunction, close_map, close_scalar

# Where the event function is looked at within a step, as fractions of it: a sign that changes twice between two of
# these is not seen.
_PROBES = (0.25, 0.5, 0.75, 1.0)
# Right after a reset the function is zero, to rounding: its sign is read this far into the next step.
_AFTER_RESET = 1e-3


class Event:
    """Something that happens where `fn(t, y)` becomes zero.

    Args:
        fn: A function `fn(t, y)` or `fn(y)` that returns a float scalar, or `[B]` with `per_sample=True` (where `t` is
            `[B]`). It may read variables and tensors: gradients reach them.
        direction: `1` for roots where `fn` rises as the solve goes on (forward or backward in time), `-1` where it falls,
            `0` (the default) for both. Where `fn` is zero at the start there is an event, whatever the direction.
        terminal: Whether the solve ends there. Defaults to `True`; `False` with `reset`.
        reset: A function `reset(t, y)` or `reset(y)` that returns the state from which the solve goes on.
        max_events: How many events that are not terminal are noted. With `reset`, the solve ends at the last of them.
            Defaults to `16`.

    Example:

    >>> event = keras_ode.Event(lambda t, y: y[0] - 0.5)
    >>> solution = keras_ode.solve(lambda t, y: -y, tf.constant([1.0]), [0.0, 2.0], event=event, rtol=1e-6)
    >>> print(f"{float(solution.event_time):.4f}")
    0.6931

    Reference: Chen, Amos, Nickel (2021), Learning neural event functions for ordinary differential equations, ICLR.
    """

    def __init__(self, fn, direction=0, terminal=None, reset=None, max_events=16):
        if not callable(fn):
            raise TypeError(f"fn must be a function fn(t, y) or fn(y). Received: fn={fn!r}")
        if direction not in (-1, 0, 1):
            raise ValueError(f"direction must be -1, 0 or 1. Received: direction={direction!r}")
        if reset is not None and not callable(reset):
            raise TypeError(f"reset must be a function reset(t, y) or reset(y). Received: reset={reset!r}")
        if terminal and reset is not None:
            raise ValueError("A terminal event cannot have a reset: leave terminal out. Received: terminal=True")
        if not isinstance(max_events, int) or max_events < 1:
            raise ValueError(f"max_events must be a positive whole number. Received: max_events={max_events!r}")
        self.fn, self.direction, self.reset, self.max_events = fn, direction, reset, max_events
        self.terminal = reset is None if terminal is None else bool(terminal)


class ClosedEvent(NamedTuple):
    """One or several events whose functions take their parameters explicitly.

    Attributes:
        functions: The event functions, `PureFunction`s.
        directions: Their directions.
        reset: A `PureFunction`, or `None`.
        terminal: Whether the first of them ends the solve.
        max_events: How many are noted.
    """

    functions: tuple
    directions: tuple
    reset: PureFunction | None
    terminal: bool
    max_events: int

    def tensors(self):
        """The parameters of its functions."""
        return tuple(f.parameters for f in self.functions), self.reset.parameters if self.reset else ()

    def key(self):
        """A hashable value, equal for events that do the same."""
        reset = self.reset.fingerprint if self.reset else None
        return tuple(f.fingerprint for f in self.functions), self.directions, reset, self.terminal, self.max_events

    def values(self, t, y, parameters):
        """The values of the event functions, `[F]` or `[F, B]`."""
        return tf.stack([f(t, y, p)[0] for f, p in zip(self.functions, parameters, strict=True)])


def close_events(event, t, y):
    """An `Event`, or a list of terminal ones, as pure functions of times and states like these."""
    events = event if isinstance(event, (list, tuple)) else [event]
    if not events or not all(isinstance(e, Event) for e in events):
        raise TypeError(f"event must be a keras_ode.Event or a list of them. Received: event={event!r}")
    if len(events) > 1 and not all(e.terminal for e in events):
        raise ValueError(f"Of several events, each must be terminal. Received: event={event!r}")
    only = events[0]
    return ClosedEvent(
        functions=tuple(close_scalar(e.fn, t, y) for e in events),
        directions=tuple(e.direction for e in events),
        reset=None if only.reset is None else close_map(only.reset, t, y),
        terminal=only.terminal,
        max_events=1 if only.terminal else only.max_events,
    )


class Found(NamedTuple):
    """What a `RootFinder` knows: scalars or `[B]`.

    Attributes:
        found: Whether there was a root.
        since: The time since the start at the root.
        which: The index of the event function.
        values: The functions' last values, `[F]` or `[F, B]`; NaN where only the next step tells.
    """

    found: tf.Tensor
    since: tf.Tensor
    which: tf.Tensor
    values: tf.Tensor


class RootFinder:
    """Observes accepted steps until an event function changes its sign, and finds the root on that step's interpolant.

    Args:
        functions: A function `functions(t, y)` that gives the values of the event functions, `[F]` or `[F, B]`.
        directions: Those of the events.
        solver: The solver, which interpolates its steps.
        clock: The `Clock` of the solve.
        y: The state at the start.
        after_reset: Whether the start is where an event was, which is not to be found again: scalar or `[B]`.
    """

    def __init__(self, functions, directions, solver, clock, y, after_reset):
        self.functions, self.directions, self.solver, self.clock = functions, directions, solver, clock
        self.y, self.after_reset = y, after_reset

    def start(self):
        values = self.functions(self.clock.start, self.y)
        here = (values == 0) & ~self.after_reset
        return Found(
            found=tf.reduce_any(here, axis=0),
            since=tf.zeros_like(self.clock.duration),
            which=tf.argmax(here, axis=0, output_type=tf.int32),
            values=tf.where(self.after_reset, tf.constant(np.nan, values.dtype), values),
        )

    def see(self, state, trial):
        def values_at(theta):
            return self._values(trial, tf.fill(tf.shape(trial.interval.size), tf.constant(theta, state.values.dtype)))

        first = tf.where(tf.math.is_nan(state.values), values_at(_AFTER_RESET), state.values)
        values = tf.stack([first, *map(values_at, _PROBES)])
        crossed = self._crosses(values[:-1], values[1:]) & trial.accept & ~state.found
        found = tf.reduce_any(crossed, axis=[0, 1])
        theta, which = tf.cond(
            tf.reduce_any(found),
            lambda: self._first_root(trial, values, crossed),
            lambda: (tf.zeros_like(state.since), state.which),
        )
        since, until = trial.interval.since, trial.interval.until
        return Found(
            found=state.found | found,
            since=tf.where(found, since + theta * (until - since), state.since),
            which=tf.where(found, which, state.which),
            values=tf.where(trial.accept, values[-1], state.values),
        )

    def _values(self, trial, theta):
        interval = trial.interval
        y = self.solver.interpolate(trial.step.stages, interval.size, trial.step.start, theta)
        y = tree.where(theta >= 1, trial.step.y, y)
        return self.functions(interval.start + theta * interval.size, y)

    def _crosses(self, before, after):
        """Where the sign changes in the event's direction: `[P, F]` or `[P, F, B]`."""
        rises, falls = (before < 0) & (after >= 0), (before > 0) & (after <= 0)
        directions = tf.reshape(tf.constant(self.directions), [1, -1] + [1] * (before.shape.rank - 2))
        return (rises & (directions >= 0)) | (falls & (directions <= 0))

    def _first_root(self, trial, values, crossed):
        """The earliest root, as a fraction of the step, and whose it is."""
        roots = []
        for f in range(len(self.directions)):
            index = tf.argmax(crossed[:, f], axis=0, output_type=tf.int32)
            late = tf.gather(tf.constant(_PROBES, values.dtype), index)
            sign = tf.sign(tree.take(values[:, f], index))
            root = self._root(f, trial, late - 0.25, late, sign)
            roots.append(tf.where(tf.reduce_any(crossed[:, f], axis=0), root, np.inf))
        roots = tf.stack(roots)
        return tf.reduce_min(roots, axis=0), tf.argmin(roots, axis=0, output_type=tf.int32)

    def _root(self, f, trial, early, late, sign):
        """Bisection between two fractions of the step, where the function has `sign` at the early one only."""

        def halve(i, early, late):
            middle = (early + late) / 2
            before = self._values(trial, middle)[f] * sign > 0
            return i + 1, tf.where(before, middle, early), tf.where(before, late, middle)

        bits = np.finfo(early.dtype.as_numpy_dtype).nmant + 2
        return tree.while_loop(lambda i, *_: i < bits, halve, (0, early, late))[2]
