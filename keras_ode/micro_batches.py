"""A batch of rows solved a few at a time, so that what the gradient needs is in memory for these only."""

import numbers
from collections.abc import Mapping
from typing import NamedTuple

import tensorflow as tf

from keras_ode import tree
from keras_ode.adjoints.base import Adjoint
from keras_ode.adjoints.fields import from_consistent
from keras_ode.adjoints.problem import Outcome
from keras_ode.custom_gradient import custom_gradient, first_order_only
from keras_ode.paths import Path

# What is of one solve, with the value that leaves it out.
_ALONE = {
    "event": None, "jump_times": None, "dense": False, "save": "times", "on_step": None, "progress": False, "mask": None,
    "regularizers": (), "recorder": None,
}  # fmt: skip


class Rows(NamedTuple):
    """How the rows of a batch are divided: into parts of one size, of which the last may hold its last row again and again.

    Attributes:
        total: The number of rows.
        size: The number of rows of a part.
    """

    total: int
    size: int

    @property
    def num_parts(self):
        return -(-self.total // self.size)

    def places(self, part):
        return tf.minimum(part * self.size + tf.range(self.size), self.total - 1)

    def take(self, tensors, axes, part):
        """The rows of one part, of tensors with their rows along these axes (`None`: without rows)."""
        places = self.places(part)
        return [x if axis is None else tf.gather(x, places, axis=axis) for x, axis in zip(tensors, axes, strict=True)]

    def without_repeated(self, cotangents, part):
        """Cotangents of the states of a part, `[T, size, ...]`, zero for what is there again and again."""
        once = part * self.size + tf.range(self.size) < self.total
        return [tf.where(tf.reshape(once, [1, -1, *[1] * (x.shape.rank - 2)]), x, tf.zeros_like(x)) for x in cotangents]

    def join(self, parts, axis):
        """The rows of all parts, `[parts, ...]`, along the axis."""
        parts = tf.transpose(parts, [*range(1, axis + 1), 0, *range(axis + 1, parts.shape.rank)])
        shape = [*parts.shape[:axis], self.num_parts * self.size, *parts.shape[axis + 2 :]]
        return tf.gather(tf.reshape(parts, shape), tf.range(self.total), axis=axis)


class InMicroBatches(Adjoint):
    """Solves parts of the rows one after the other with another adjoint. The gradient solves each part once more.

    Its problem has the tensors of all rows, and a field for the rows of one part.

    Args:
        adjoint: The `Adjoint`.
        rows: The `Rows`.
        axes: For each of the problem's tensors the axis of its rows, or `None`.
    """

    compiles_alone = True

    def __init__(self, adjoint, rows, axes):
        self.adjoint, self.rows, self.axes = adjoint, rows, tuple(axes)
        self.pays_to_compile = adjoint.pays_to_compile

    def __eq__(self, other):
        return isinstance(other, InMicroBatches) and self._key() == other._key()

    def __hash__(self):
        return hash(self._key())

    def _key(self):
        return self.adjoint, self.rows, self.axes

    def with_compiled_parts(self, problem):
        return self.adjoint.with_compiled_parts(problem)

    def part(self, problem, part):
        """The problem of one part."""
        return problem.with_tensors(self.rows.take(problem.tensors(), self.axes, part))

    def part_of(self, outcome, part):
        """The outcome of one part."""
        axes = [1] * len(outcome.ys) + [0] * (len(tf.nest.flatten(outcome)) - len(outcome.ys))
        return tf.nest.pack_sequence_as(outcome, self.rows.take(tf.nest.flatten(outcome), axes, part))

    def solve(self, problem):
        like = self._outcome_like(problem)
        axes = [1] * len(like.ys) + [0] * (len(tf.nest.flatten(like)) - len(like.ys))

        def solve_part(tensors):
            return tf.nest.flatten(self.adjoint.solve(from_consistent(problem.with_tensors(tensors))))

        @custom_gradient
        def solve(*tensors):
            # The gradient function may use only what is made in here: then it works inside a differentiated loop.
            stopped = [tf.stop_gradient(x) for x in tensors]
            found, _ = self._each(lambda part: (solve_part(self.rows.take(stopped, self.axes, part)), ()), tf.nest.flatten(like))

            def gradient(*cotangents):
                found = self._gradients(solve_part, stopped, cotangents[: len(like.ys)])
                return first_order_only(found, tensors, "A solve with batch_size", "leave batch_size out")

            return [self.rows.join(x, axis) for x, axis in zip(found, axes, strict=True)], gradient

        flat = solve(*(tf.identity(x) for x in problem.tensors()))
        outcome = tf.nest.pack_sequence_as(like, flat)
        rest = {name: tf.nest.map_structure(tf.stop_gradient, x) for name, x in outcome._asdict().items()}
        return Outcome(**{**rest, "ys": outcome.ys})

    def _gradients(self, solve_part, tensors, cotangents):
        """Those by the tensors, from the cotangents of the states at all times: each part is solved again, with its gradient."""
        cotangents = [tf.convert_to_tensor(c) for c in cotangents]
        axes = self.axes

        def pull_back(part):
            taken = self.rows.take(tensors, axes, part)
            given = self.rows.without_repeated(self.rows.take(cotangents, [1] * len(cotangents), part), part)
            with tf.GradientTape() as tape:
                tape.watch(taken)
                ys = solve_part(taken)[: len(given)]
            found = tape.gradient(ys, taken, given, unconnected_gradients="zero")
            return [g for g, a in zip(found, axes, strict=True) if a is not None], [
                g for g, a in zip(found, axes, strict=True) if a is None
            ]

        sample = self.rows.take(tensors, axes, 0)
        by_rows, shared = self._each(
            pull_back,
            [x for x, a in zip(sample, axes, strict=True) if a is not None],
            [x for x, a in zip(sample, axes, strict=True) if a is None],
        )
        joined = (self.rows.join(x, a) for x, a in zip(by_rows, (a for a in axes if a is not None), strict=True))
        shared = iter(shared)
        return [next(shared) if a is None else next(joined) for a in axes]

    def _outcome_like(self, problem):
        """The `Outcome` of one part, in specs."""
        size, times = self.rows.size, problem.times
        y = tuple(tf.TensorSpec([size, *leaf.shape[1:]], leaf.dtype) for leaf in problem.y)
        number, count = tf.TensorSpec([size], times.dtype), tf.TensorSpec([size], tf.int32)
        ys = tuple(tf.TensorSpec([times.shape[0], *leaf.shape], leaf.dtype) for leaf in y)
        return Outcome(ys, (), count, number, number, count, count, count, number, y, ())

    def _each(self, function, like_rows, like_sums=()):
        """What a function of the number of a part gives by rows, stacked, and what it gives to be summed.

        `like_rows` has the tensors by rows of one part, or their specs, and `like_sums` tensors like those to be summed.
        """
        parts = self.rows.num_parts
        arrays = [tf.TensorArray(x.dtype, parts, element_shape=x.shape) for x in like_rows]

        def body(part, arrays, totals):
            found, more = function(part)
            arrays = [array.write(part, x) for array, x in zip(arrays, found, strict=True)]
            return part + 1, arrays, tree.add(totals, more)

        first = tf.constant(0), arrays, tuple(tf.zeros_like(x) for x in like_sums)
        _, arrays, totals = tf.while_loop(lambda part, *_: part < parts, body, first, parallel_iterations=1)
        return [array.stack() for array in arrays], totals


def axes_of_rows(args, rows):
    """The axis of its rows, or `None`, for each tensor of further arguments of the dynamics, in the order of `tf.nest.flatten`."""
    if isinstance(args, Path):  # its first axes may be times
        has_rows = (len(args.times.shape) == 2, len(args.nodes.shape) == 4)
        return [_axis(x, rows) if has else None for x, has in zip(args, has_rows, strict=True)]
    if isinstance(args, (list, tuple)):
        return [axis for x in args for axis in axes_of_rows(x, rows)]
    if isinstance(args, Mapping):
        return [axis for key in sorted(args) for axis in axes_of_rows(args[key], rows)]
    return [_axis(args, rows)]


def _axis(x, rows):
    shape = tf.TensorShape(getattr(x, "shape", ()))
    return 0 if shape.rank and shape[0] == rows.total else None


def checked_rows(batch_size, y0, options):
    """The `Rows` for an option `batch_size`, or `None` where all are solved at once; `options` are those of the solve."""
    if batch_size is None:
        return None
    if not isinstance(batch_size, numbers.Integral) or isinstance(batch_size, bool) or batch_size < 1:
        raise ValueError(f"batch_size must be a positive whole number, or None. Received: batch_size={batch_size!r}")
    if not options.per_sample:
        raise ValueError(
            "batch_size solves some rows at a time. The result stays the same only if every row has its own steps: use "
            f"per_sample=True. Received: batch_size={batch_size!r}, per_sample={options.per_sample!r}"
        )
    for name, none in _ALONE.items():
        value = getattr(options, name)
        if value is not none and not (isinstance(value, (bool, str, tuple)) and value == none):
            raise ValueError(
                f"batch_size cannot be combined with {name}: leave one of them out. Received: batch_size={batch_size!r}, "
                f"{name}={value!r}"
            )
    total = tf.nest.flatten(y0)[0].shape[0]
    if total is None or any(leaf.shape[0] != total for leaf in tf.nest.flatten(y0)):
        raise ValueError(
            "batch_size needs a state with a known number of rows, the first axis of all leaves: use tf.ensure_shape, or an "
            f"input_signature with it. Received: batch_size={batch_size!r}, shapes {[x.shape for x in tf.nest.flatten(y0)]}"
        )
    if options.step_size is not None and tree.as_tensor(options.step_size).shape.rank != 0:
        raise ValueError(f"With batch_size, step_size must be one number. Received: step_size={options.step_size!r}")
    return Rows(total, int(batch_size)) if batch_size < total else None
