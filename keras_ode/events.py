"""Events: where a function of time and state becomes zero, and what happens there."""

import numbers
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import tensorflow as tf

from keras_ode import roots, tree
from keras_ode.dynamics import PureFunction, close_map, close_scalar
from keras_ode.typing import Tensors


class Event:
    """An event, which occurs where `fn(t, y)` becomes zero.

    Args:
        fn: A function `fn(t, y)` or `fn(y)` that returns a float scalar, or `[B]` with `per_sample=True` (where `t` is
            `[B]`). It may read variables and tensors, which have gradients. It may also return a bool: the event is where
            the condition changes, and the gradient of its time is NaN, as for other functions that jump.
        direction: `1` for roots at which `fn` rises (or becomes true) as the solve proceeds, forward or backward in time; `-1`
            for roots at which it falls (or becomes false); `0`, the default, for both. If `fn` is zero at the start, this is
            an event only if `direction` is not `0` and `fn` leaves zero in that direction.
        terminal: Whether the solve ends there. Defaults to `True`; `False` with `reset`.
        reset: A function `reset(t, y)` or `reset(y)` that returns the state from which the solve continues.
        max_events: The maximum number of events to record if they are not terminal. With `reset`, the solve ends at the last of
            them. Defaults to `16`. If an event occurs again where it has just been handled, as for a ball that comes to rest,
            the solve ends there with the status `STEP_TOO_SMALL`.
        probes: The number of points within each step, besides its end, at which `fn` is evaluated. If two roots lie between
            neighboring points, both are missed. Defaults to `10`.

    Raises:
        TypeError: If `fn` or `reset` is not a function.
        ValueError: If `direction`, `max_events` or `probes` has no valid value, or if a terminal event has a `reset`.

    Example:

    >>> event = keras_ode.Event(lambda t, y: y[0] - 0.5)
    >>> solution = keras_ode.solve(lambda t, y: -y, tf.constant([1.0]), [0.0, 2.0], event=event, rtol=1e-6)
    >>> print(f"{float(solution.event_time):.4f}")
    0.6931

    Reference: Chen, Amos, Nickel (2021), Learning neural event functions for ordinary differential equations, ICLR.
    """

    def __init__(
        self,
        fn: Callable[..., tf.Tensor],
        direction: Literal[-1, 0, 1] = 0,
        terminal: bool | None = None,
        reset: Callable[..., Tensors] | None = None,
        max_events: int = 16,
        probes: int = 10,
    ) -> None:
        if not callable(fn):
            raise TypeError(f"fn must be a function fn(t, y) or fn(y). Received: fn={fn!r}")
        if direction not in (-1, 0, 1):
            raise ValueError(f"direction must be -1, 0 or 1. Received: direction={direction!r}")
        if reset is not None and not callable(reset):
            raise TypeError(f"reset must be a function reset(t, y) or reset(y). Received: reset={reset!r}")
        if terminal and reset is not None:
            raise ValueError("A terminal event cannot have a reset: leave terminal out. Received: terminal=True")
        for name, value in (("max_events", max_events), ("probes", probes)):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
                raise ValueError(f"{name} must be a positive whole number. Received: {name}={value!r}")
        self.fn, self.direction, self.reset = fn, direction, reset
        self.max_events, self.probes = int(max_events), int(probes)
        self.terminal = reset is None if terminal is None else bool(terminal)


class SteadyState:
    """The event that the state comes to rest. It ends a solve with an infinite end time, `t=[t0, float("inf")]`.

    The solve ends where the derivative of the state is at most `atol + rtol * |y|` per unit of time, in the root mean square;
    with `per_sample=True`, in each row. With a `mass_matrix` M, this derivative is `y'` and not `M y'`. The states at the end and
    `event_state` are then the steady state. If the state does not come to rest in `max_steps` steps, the status is `MAX_STEPS` and
    they are NaN.

    The gradient follows from the implicit function theorem: the steady state depends on everything that the dynamics reads, but
    neither on the initial state nor on the times. The backward pass solves one linear equation with the transposed
    Jacobian and stores nothing of the steps, so it needs the memory of one state. If the Jacobian is singular, as with a
    quantity that the dynamics conserves, the derivative does not exist, and gradients are NaN. `event_time` has no gradient.

    Args:
        rtol, atol: The tolerances, see above. `None` selects those of the solve. They also determine the accuracy of the gradient.

    Raises:
        ValueError: If a tolerance is negative, or both are zero.

    Example:

    >>> rest = keras_ode.solve(lambda y: 1.0 - y**2, tf.constant([0.5]), float("inf"), event=keras_ode.SteadyState())
    >>> print(f"{float(rest.event_state[0]):.2f}")
    1.00

    Reference: Bai, Kolter, Koltun (2019), Deep equilibrium models, NeurIPS.
    """

    terminal = True

    def __init__(self, rtol: float | None = None, atol: float | None = None) -> None:
        for name, value in (("rtol", rtol), ("atol", atol)):
            if value is not None and (not isinstance(value, numbers.Real) or not 0 <= value < np.inf):
                raise ValueError(f"{name} must be a number that is not negative, or None. Received: {name}={value!r}")
        if rtol == 0 and atol == 0:
            raise ValueError(f"rtol and atol must not both be zero. Received: rtol={rtol!r}, atol={atol!r}")
        self.rtol, self.atol = (None if x is None else float(x) for x in (rtol, atol))

    def tensors(self):
        """Returns the tensors of the event, as for a `ClosedEvent`: it has none."""
        return ()

    def key(self):
        """Returns a hashable value, which is equal for two events that do the same."""
        return "SteadyState", self.rtol, self.atol


def ends_the_solve(event):
    """Whether an event, or one of a list, ends the solve, so that this needs no last time."""
    if isinstance(event, SteadyState):
        return True
    events = event if isinstance(event, (list, tuple)) else [event]
    return any(isinstance(e, Event) and (e.terminal or e.reset is not None) for e in events)


class ClosedEvent(NamedTuple):
    """One or several events whose functions take their parameters explicitly.

    Attributes:
        functions: The event functions, `PureFunction`s.
        directions: Their directions.
        reset: A `PureFunction`, or `None`.
        terminal: Whether the first of them ends the solve.
        max_events: How many are noted.
        probes: At how many points within each step the functions are looked at.
    """

    functions: tuple
    directions: tuple
    reset: PureFunction | None
    terminal: bool
    max_events: int
    probes: int

    def tensors(self):
        """The parameters of its functions."""
        return tuple(f.parameters for f in self.functions), self.reset.parameters if self.reset else ()

    def key(self):
        """A hashable value, equal for events that do the same."""
        reset = self.reset.fingerprint if self.reset else None
        functions = tuple(f.fingerprint for f in self.functions)
        return functions, self.directions, reset, self.terminal, self.max_events, self.probes

    def bound(self, parameters):
        """The event functions of time and state alone, each of which gives a scalar, or `[B]`."""
        return [lambda t, y, f=f, p=p: f(t, y, p)[0] for f, p in zip(self.functions, parameters, strict=True)]

    def values(self, t, y, parameters):
        """The values of the event functions, `[F]` or `[F, B]`."""
        return tf.stack([f(t, y) for f in self.bound(parameters)])


def close_events(event, t, y):
    """An `Event`, or a list of terminal ones, as pure functions of times and states like these."""
    events = event if isinstance(event, (list, tuple)) else [event]
    if not events or not all(isinstance(e, Event) for e in events):
        raise TypeError(
            f"event must be a keras_ode.Event, a list of them, or a keras_ode.SteadyState alone. Received: event={event!r}"
        )
    if len(events) > 1 and not all(e.terminal for e in events):
        raise ValueError(f"If you pass several events, each of them must be terminal. Received: event={event!r}")
    only = events[0]
    return ClosedEvent(
        functions=tuple(close_scalar(e.fn, t, y) for e in events),
        directions=tuple(e.direction for e in events),
        reset=None if only.reset is None else close_map(only.reset, t, y),
        terminal=only.terminal,
        max_events=1 if only.terminal else only.max_events,
        probes=max(e.probes for e in events),
    )


class Found(NamedTuple):
    """What a `RootFinder` knows: scalars or `[B]`, and `[F]` or `[F, B]`.

    Attributes:
        found: Whether there was a root.
        broken: Whether a function became NaN before there was one.
        since: The time since the start at the root; or of the last step's start, where a function became NaN in it.
        which: The index of the event function.
        side: Its sign behind the root.
        sides: The signs of the functions; where one is zero, that of the side from which it came, or zero if that is not
            known.
        at_zero: Where a function has been zero since the side was assumed.
    """

    found: tf.Tensor
    broken: tf.Tensor
    since: tf.Tensor
    which: tf.Tensor
    side: tf.Tensor
    sides: tf.Tensor
    at_zero: tf.Tensor


class RootFinder:
    """Observes accepted steps until an event function changes its sign, and finds the root on that step's interpolant.

    Args:
        functions: The event functions of time and state: each gives a scalar, or `[B]`.
        directions: Those of the events.
        probes: At how many points within each step to look at the functions.
        solver: The solver, which interpolates its steps.
        clock: The `Clock` of the solve.
        y: The state at the start.
        sides: On which side of zero each function was before the start: signs, `[F]` or `[F, B]`; zero if not known.
        handled: Whether the start is where an event was handled, scalar or `[B]`: the functions are zero there, to
            rounding, and `sides` says how they go on.
    """

    def __init__(self, functions, directions, probes, solver, clock, y, sides, handled):
        self.functions, self.solver, self.clock, self.y = functions, solver, clock, y
        self.sides, self.handled = sides, handled
        self.directions = tf.reshape(tf.constant(directions), [-1] + [1] * handled.shape.rank)
        self.grid = np.arange(1, probes + 2) / (probes + 1)

    def start(self):
        signs = tf.sign(tf.stack([f(self.clock.start, self.y) for f in self.functions]))
        is_nan = tf.math.is_nan(signs) & ~self.handled
        # Rounding may take a function across zero between two solves.
        crossed = self._crosses(self.sides, signs) & (signs != 0) & ~self.handled
        sides = tree.select((self.sides == 0) | ((signs != 0) & ~self.handled), signs, self.sides)
        which = tf.argmax(crossed, axis=0, output_type=tf.int32)
        return Found(
            found=tf.reduce_any(crossed, axis=0),
            broken=tf.reduce_any(is_nan, axis=0),
            since=tf.zeros_like(self.clock.duration),
            which=which,
            side=tree.take(signs, which),
            sides=sides,
            at_zero=(signs == 0) | self.handled,
        )

    def see(self, state, trial):
        looks = tf.reduce_any(trial.accept & ~state.found & ~state.broken)
        return tf.cond(looks, lambda: self._look(state, trial), lambda: state)

    def _look(self, state, trial):
        """Looks at the functions on the grid within an accepted step."""
        values = self._on_grid(trial)
        signs = tf.sign(values)
        leading = tree.all_so_far(signs == 0) & state.at_zero
        signs = tree.select(leading, state.sides, signs)
        before = tf.concat([state.sides[None], signs[:-1]], axis=0)
        is_nan = tf.reduce_any(tf.math.is_nan(values), axis=1)
        known = tree.all_so_far(~is_nan)
        looks = trial.accept & ~state.found & ~state.broken
        crossed = self._crosses(before, signs) & known[:, None] & looks
        found = tf.reduce_any(crossed, axis=[0, 1])
        broken = looks & ~found & tf.reduce_any(is_nan, axis=0)
        theta, which, side = tf.cond(
            tf.reduce_any(found),
            lambda: self._first_root(state, trial, values, before, leading, crossed),
            lambda: (tf.zeros_like(state.since), state.which, state.side),
        )
        since, until = trial.interval.since, trial.interval.until
        return Found(
            found=state.found | found,
            broken=state.broken | broken,
            since=tree.select(found | broken, since + theta * (until - since), state.since),
            which=tree.select(found, which, state.which),
            side=tree.select(found, side, state.side),
            sides=tree.select(looks & (signs[-1] != 0), signs[-1], state.sides),
            at_zero=tree.select(looks, leading[-1], state.at_zero),
        )

    def _crosses(self, before, after):
        """Where the sign changes in the event's direction, or becomes zero."""
        rises, falls = (before < 0) & (after >= 0), (before > 0) & (after <= 0)
        return (rises & (self.directions >= 0)) | (falls & (self.directions <= 0))

    def _on_grid(self, trial):
        """The functions' values at all points of the grid: `[K, F]` or `[K, F, B]`."""
        interval, step = trial.interval, trial.step
        theta = tf.constant(self.grid, interval.size.dtype)
        # Rows share the fractions, so that they are interpolated together: with steps of one and derivatives to match.
        stages = [tree.scale(interval.size, stage) for stage in step.stages]
        states = self.solver.interpolate(stages, tf.ones([], interval.size.dtype), step.start, theta)
        inner = zip(*(tf.unstack(leaf, num=len(self.grid))[:-1] for leaf in states), strict=True)
        times = tf.unstack(tree.expand(theta[:-1], interval.size[None]) * interval.size + interval.start, num=len(self.grid) - 1)
        points = zip([*times, interval.end], [*inner, step.y], strict=True)
        return tf.stack([tf.stack([f(t, tuple(y)) for f in self.functions]) for t, y in points])

    def _each(self, trial, theta):
        """The value of each function at a fraction of its own: `[F]` or `[F, B]`."""
        interval, step = trial.interval, trial.step
        fractions, values = tf.unstack(theta, num=len(self.functions)), []
        for function, fraction in zip(self.functions, fractions, strict=True):
            y = self.solver.interpolate(step.stages, interval.size, step.start, fraction)
            y = tree.where(fraction >= 1, step.y, y)
            t = tree.select(fraction >= 1, interval.end, interval.start + fraction * interval.size)
            values.append(function(t, y))
        return tf.stack(values)

    def _first_root(self, state, trial, values, before, leading, crossed):
        """The earliest root, as a fraction of the step, whose it is, and its function's sign behind it."""
        theta = tf.constant(np.concatenate([[0.0], self.grid]), values.dtype)
        index = tf.argmax(crossed, axis=0, output_type=tf.int32)

        def at(rows, shift):
            return tf.reduce_sum(tree.select(tf.one_hot(index + shift, rows.shape[0], True, False, axis=0), rows, 0), axis=0)

        grid = tf.reshape(theta, [-1] + [1] * index.shape.rank) + tf.zeros_like(values[:1])
        side = -at(before, 0)
        strict = at(tf.cast(tf.concat([state.at_zero[None], leading], axis=0), values.dtype), 0) > 0
        of_early = tree.select(index == 0, self._each(trial, tf.zeros_like(side)), at(values, -1))
        late = at(grid, 1)
        bracket = roots.Bracket(at(grid, 0), late, side * of_early, side * at(values, 0))
        epsilon = np.finfo(values.dtype.as_numpy_dtype).eps
        found = roots.narrow(lambda theta: side * self._each(trial, theta), bracket, strict, epsilon * late).late
        found = tree.select(tf.reduce_any(crossed, axis=0), found, np.inf)
        theta, which = tf.reduce_min(found, axis=0), tf.argmin(found, axis=0, output_type=tf.int32)
        return tree.select(tf.math.is_finite(theta), theta, 0), which, tree.take(side, which)
