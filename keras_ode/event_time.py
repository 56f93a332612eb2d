"""When an event happened, exactly and with its derivative; and on which side of zero its function goes on."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_ode import roots, tree

# How far a root may lie from where the step's interpolant has it, in parts of a step.
_FARTHEST = 0.1
# Events that are no more than this many units in the last place of the time apart are the same.
_SAME_TIME_ULPS = 8
# Values of no more than this many rounding errors count as zero.
_ROUNDING = 32


class Happened(NamedTuple):
    """An event: scalars or `[B]`, and leaves.

    Attributes:
        time, y: When and where, without a derivative by the event's condition.
        event_time, event_y: The same, with it.
        noise: How large a value of the function is still zero, to rounding.
        is_smooth: Whether the function has a slope there, and no jump.
    """

    time: tf.Tensor
    y: tuple
    event_time: tf.Tensor
    event_y: tuple
    noise: tf.Tensor
    is_smooth: tf.Tensor


class EventOutcome(NamedTuple):
    """When and where events happened, and which: `[E]` or `[E, B]`, leaves `[E, ...]`.

    Of a terminal event, without the first axis. Where there were fewer events, times and states are NaN, and indices -1.
    `trouble` is an `EventTrouble`, a scalar or `[B]`.
    """

    times: tf.Tensor
    states: tuple
    indices: tf.Tensor
    trouble: tf.Tensor

    @classmethod
    def none(cls, time, y, count):
        """Room for `count` events at times and states like these."""

        def room(leaf, value):
            return tf.fill(tf.concat([[count], tf.shape(leaf)], axis=0), tf.constant(value, leaf.dtype))

        nothing = tf.zeros_like(time, dtype=tf.int32)
        return cls(room(time, np.nan), tuple(room(leaf, np.nan) for leaf in y), room(nothing, -1), nothing)

    def noted(self, handled, number, happened, which, trouble):
        """The events with one more, the `number`-th, where one was `handled`."""
        numbers = tf.reshape(tf.range(tf.shape(self.indices)[0]), [-1] + [1] * which.shape.rank)
        here = (numbers == number) & handled

        def put(old, new):
            return tree.select(tree.expand(here, old), new[None], old)

        return EventOutcome(
            times=put(self.times, happened.event_time),
            states=tuple(put(a, b) for a, b in zip(self.states, happened.event_y, strict=True)),
            indices=put(self.indices, which),
            trouble=tf.maximum(self.trouble, trouble),
        )

    def first(self):
        """The first event alone."""
        return EventOutcome(self.times[0], tuple(leaf[0] for leaf in self.states), self.indices[0], self.trouble)


class EventFunction:
    """The function of an event that happened, along the solution.

    Args:
        value: A function `value(t, y)`: a scalar, or `[B]` for the event function of each row.
        parameters: What it reads besides.
        clock: The `Clock` of the solve.
    """

    def __init__(self, value, parameters, clock):
        self.value, self.clock = value, clock
        self.parameters = [p for p in tf.nest.flatten(parameters) if p.dtype.is_floating]

    def happened(self, found, side, time, y, slope, reach_back, reach_ahead):
        """The event near a time at which the interpolant of a step has its root.

        The root is looked for again along the tangent of the solution, since an interpolant is less accurate than the
        solution at the end of a step; where there is none near, it stays where it was.

        Args:
            found: Whether there is an event.
            side: The sign of the function after the event.
            time, y, slope: The time, the state and its derivative.
            reach_back, reach_ahead: How far from there the event may be, at most.
        """
        direction, epsilon = self.clock.direction, np.finfo(time.dtype.as_numpy_dtype).eps
        near = tf.nest.map_structure(tf.stop_gradient, (time, y, slope))

        def along(shift):
            t, y, slope = near
            return side * self.value(t + direction * shift, tree.add_scaled(y, direction * shift, slope))

        value = side * self.value(*near[:2])
        smallest = 2 * epsilon * tf.maximum(tf.abs(near[0]), epsilon * self.clock.duration)
        guess = 2 * tf.abs(tf.math.divide_no_nan(value, self._rate(*near)[0]))
        first = tf.maximum(tree.select(tf.math.is_finite(guess), guess, 0), smallest)
        strict = tf.zeros_like(found)
        reaches = [tree.select(found, reach, 0) for reach in (reach_back, reach_ahead)]
        is_near, bracket = roots.search(along, value, strict, first, *reaches)
        bracket = roots.narrow(along, bracket, strict, smallest / 2)
        shift = tf.stop_gradient(tree.select(is_near & found, direction * bracket.late, 0))
        time, y = time + shift, tree.add_scaled(y, shift, slope)
        rate, size = self._rate(*tf.nest.map_structure(tf.stop_gradient, (time, y)), near[2])
        jump = tree.select(is_near, tf.abs(bracket.of_early) + tf.abs(bracket.of_late), tf.abs(value))
        noise = _ROUNDING * epsilon * size
        is_smooth = (rate != 0) & (jump <= tf.abs(rate) * np.sqrt(epsilon) * self.clock.duration + noise)
        noise, is_smooth = tf.stop_gradient(noise + 2 * jump), tf.stop_gradient(is_smooth)
        change = self._change(found, is_smooth, rate, time, y)
        event_y = tree.add_scaled(y, change, near[2])
        return Happened(time, y, time + change, event_y, noise, is_smooth)

    def _change(self, found, is_smooth, rate, time, y):
        """Zero, with the derivative of the root by all that moves it: NaN where there is none, if it is asked for; and so are
        second derivatives, which would lack the part that moves the event."""
        read = [tf.reduce_sum(tf.cast(p, time.dtype)) for p in self.parameters]
        everything = tree.dot(y, [tf.ones_like(leaf) for leaf in y], time) + time + sum(read)
        unknown = tf.fill(tf.shape(rate), tf.constant(np.nan, rate.dtype))
        slope = tree.select(is_smooth, -1 / rate, 0) + _zero_with_slope(unknown, everything)
        change = _zero_with_slope(slope, self.value(time, y))
        # A function that jumps passes no derivative on, not even NaN.
        change += _zero_with_slope(tree.select(is_smooth, tf.zeros_like(rate), np.nan), everything)
        return tree.select(found, change, 0)

    def _rate(self, time, y, slope):
        """The derivative of the function by time along a solution; and the size of what it is made of."""
        with tf.GradientTape() as tape:
            tape.watch((time, y))
            value = self.value(time, y)
        by_time, by_y = tape.gradient(value, (time, y), unconnected_gradients="zero")
        rate = by_time + tree.dot(by_y, slope, time)
        size = tf.abs(by_time * time) + tree.dot(*map(_absolute, (by_y, y)), time)
        return tf.stop_gradient(rate), tf.stop_gradient(size)

    def side(self, time, y, slope):
        """The sign that the function takes as the solve leaves a point where it is zero: zero where its slope is none."""
        return _sign(self.clock.direction * self._rate(*tf.nest.map_structure(tf.stop_gradient, (time, y, slope)))[0])

    def side_after(self, happened, side, time, y, slope):
        """On which side of zero the function is to be taken to be after a reset.

        A state that is still on the surface goes to where its slope leads; without a slope, it is on the side from which
        it came, so that it is found again if it does not stay there.

        Args:
            happened: The `Happened` before.
            side: The sign of the function after the event.
            time, y, slope: The time, the state after the reset and its derivative.
        """
        value = tf.stop_gradient(self.value(time, y))
        ahead = self.side(time, y, slope)
        on_surface = (tf.abs(value) <= happened.noise) & happened.is_smooth
        sign = tree.select(on_surface, ahead, _sign(value))
        return tree.select(sign == 0, -side, sign)


def _zero_with_slope(slope, value):
    """Zero, whose derivative by the value is `slope`; NaN counts only where it is asked for."""
    return tf.math.multiply_no_nan(slope, value - tf.stop_gradient(value))


def is_same_time(time, other):
    """Whether two times cannot be told from each other."""
    return tf.abs(time - other) <= _SAME_TIME_ULPS * np.finfo(time.dtype.as_numpy_dtype).eps * tf.abs(time)


def farthest(step_size):
    """How far from the root on a step's interpolant that of the solution may be."""
    return _FARTHEST * step_size


def _absolute(leaves):
    return tuple(tf.abs(leaf) for leaf in leaves)


def _sign(x):
    """The sign; zero for NaN."""
    return tree.select(tf.math.is_nan(x), tf.zeros_like(x), tf.sign(x))
