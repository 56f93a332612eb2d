"""A solver that finds out whether an equation is stiff: explicit steps where it is not, implicit ones where it is."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_ode import tree
from keras_ode.solvers.base import Solver, Stage, Step, WrappedField
from keras_ode.solvers.esdirk import KenCarp4
from keras_ode.solvers.explicit import Tsit5
from keras_ode.solvers.linear import radius_of
from keras_ode.solvers.rosenbrock import Rodas5P

# Explicit steps are near their limit of stability, 3.5 for a real eigenvalue, where size times spectral radius is above this.
_STABLE = 2.5
# So many more steps at that limit than below it, and the implicit method takes over.
_MOST_AT_LIMIT = 10
# So many implicit steps in a row for which explicit ones would be stable, and the explicit method takes over.
_MOST_BELOW_LIMIT = 4


class Carry(NamedTuple):
    """What the solver remembers.

    Attributes:
        stage: The `Stage` at the point.
        is_stiff: One where the next step is implicit, else zero: a scalar, or `[B]`. A float, because a tape passes it by.
        count: How many steps speak for the other method.
    """

    stage: Stage
    is_stiff: tf.Tensor
    count: tf.Tensor


class Auto(Solver):
    """Tsitouras' explicit method, which switches to Steinebach's `Rodas5P` where stability limits the explicit steps.

    The spectral radius of the Jacobian is estimated at each accepted step: from the last two stages of an explicit step, and from
    the Jacobian itself in an implicit step. The solver counts the explicit steps that are as long as stability allows, and
    subtracts those that are shorter. When the count reaches ten, it switches to implicit steps. It switches back after four
    implicit steps in a row whose sizes would be stable for explicit ones. With `per_sample=True` each row switches separately,
    and a method is evaluated only if some row uses it.

    Gradients by `"checkpointed"` and `"direct"` are those of the steps that were taken. `"interpolating"` solves the adjoint
    equation in the same way, by `Tsit5` and `KenCarp4`.

    Example:

    >>> stiff = lambda t, y: -1000.0 * (y - tf.cos(t))
    >>> solution = keras_ode.solve(stiff, tf.constant([0.0]), [0.0, 1.0], solver="auto")
    >>> print(f"{float(solution.ys[-1, 0]):.3f}", int(solution.stats["num_steps"]) < 100)
    0.541 True

    References:
        Hairer, Wanner (1996), Solving Ordinary Differential Equations II, section IV.2 (detection of stiffness).
        Petzold (1983), Automatic selection of methods for solving stiff and nonstiff systems of ordinary differential equations,
            SIAM J. Sci. Stat. Comput. 4(1), 136-148.
        Rackauckas, Nie (2019), Confederated modular differential equation APIs for accelerated algorithm development and
            benchmarking, Adv. Eng. Softw. 132, 1-6 (counters of steps).
    """

    explicit: Solver = Tsit5()
    implicit: Solver = Rodas5P()
    order, error_order = Tsit5.order, Tsit5.error_order
    is_implicit = has_branches = True
    remembers = True

    @property
    def backward(self):
        return AutoAdjoint()

    @property
    def weights(self):
        """The weights of the stages, which are the coefficients of a polynomial and the slope at the end."""
        degree = max(self.explicit.degree, self.implicit.degree)
        return np.eye(degree + 1, degree)

    def polynomials(self, step, size):
        rows = [step.start, *(tree.scale(size, stage) for stage in step.stages[:-1])]
        return tuple(tf.stack(leaves, axis=size.shape.rank) for leaves in zip(*rows, strict=True))

    def start(self, field, t, y):
        stage, evaluations = self.explicit.start(field, t, y)
        return Carry(stage, tf.zeros_like(t), tf.zeros_like(t)), evaluations

    def carry_like(self, t, y):
        return Carry(Stage(tree.zeros_like(y)), tf.zeros_like(t), tf.zeros_like(t))

    def first_derivative(self, carry):
        return carry.stage.derivative

    def step(self, field, interval, y, carry, with_dense=False):
        stiff = _taken(carry.is_stiff, interval.size)

        def explicit(interval):
            return self._explicit(field, interval, y, carry.stage, with_dense)

        def implicit(interval):
            return self._implicit(field, interval, y, carry.stage, with_dense)

        if stiff.shape.rank == 0:
            step, radius = tf.cond(stiff, lambda: implicit(interval), lambda: explicit(interval))
        else:
            idle = self._idle(y, carry.stage, interval, with_dense)
            found = tf.cond(tf.reduce_any(stiff), lambda: implicit(_only(stiff, interval)), lambda: idle)
            others = tf.cond(tf.reduce_all(stiff), lambda: idle, lambda: explicit(_only(~stiff, interval)))
            step, radius = tree.where_nest(stiff, found, others)
        return step._replace(carry=_counted(carry, step.carry, stiff, tf.abs(interval.size) * radius))

    def _explicit(self, field, interval, y, stage, with_dense):
        step = self.explicit.step(field, interval, y, stage, with_dense)
        radius = _radius(field, step, interval.size)
        unused = tree.zeros_like(self.implicit.memory_like(y, with_dense))
        return self._common(self.explicit, step, interval, with_dense, (*self.explicit.memory(step), *unused)), radius

    def _implicit(self, field, interval, y, stage, with_dense):
        watched = _Watched(field)
        step = self.implicit.step(watched, interval, y, stage, with_dense)
        if watched.matrices[0] is None:
            radius = _radius(field, step, interval.size)
        else:
            radius = tf.cast(radius_of(watched.matrices[0]), interval.size.dtype)
            radius = radius if interval.size.shape.rank else tf.reduce_max(radius)
        unused = tree.zeros_like(self.explicit.memory_like(y, with_dense))
        return self._common(self.implicit, step, interval, with_dense, (*unused, *self.implicit.memory(step))), radius

    def memory_like(self, y, dense):
        return (*self.explicit.memory_like(y, dense), *self.implicit.memory_like(y, dense))

    def pullback(self, field, interval, y, carry, memory, outputs, dense, of_y, of_parameters):
        """Uses the pullback of the method that took the step. The derivative at the start follows from `y`."""
        stiff, count = _taken(carry.is_stiff, interval.size), len(self.explicit.memory_like(y, dense))
        rest = (dense, tuple(of_y), tuple(of_parameters))

        def of_method(method, memory, rows=None):
            def common(step):
                step = step._replace(stages=self._coefficients(method, step, dense), carry=carry)
                targets, weights = outputs(step)
                return targets, weights if rows is None else tree.where(rows, weights, tree.zeros_like(weights))

            within = interval if rows is None else _only(rows, interval)

            def pull(dense, of_y, of_parameters):
                of_y, _, of_parameters, evaluations = method.pullback(
                    field, within, y, (), memory, common, dense, of_y, of_parameters
                )
                return tuple(of_y), tuple(of_parameters), tf.convert_to_tensor(evaluations)

            return pull

        if stiff.shape.rank == 0:
            implicit, explicit = of_method(self.implicit, memory[count:]), of_method(self.explicit, memory[:count])
            *found, evaluations = tf.cond(stiff, lambda: implicit(*rest), lambda: explicit(*rest))
        else:
            implicit = of_method(self.implicit, memory[count:], stiff)
            explicit = of_method(self.explicit, memory[:count], ~stiff)
            none = tf.constant(0)
            *found, first = tf.cond(tf.reduce_any(stiff), lambda: implicit(*rest), lambda: (*rest[1:], none))
            *found, evaluations = tf.cond(tf.reduce_all(stiff), lambda: (*found, none), lambda: explicit(dense, *found))
            evaluations += first
        of_y, of_parameters = found
        return of_y, tuple(map(tf.zeros_like, tf.nest.flatten(carry))), of_parameters, evaluations

    def _coefficients(self, method, step, with_dense):
        """Returns the stages of a method's step as stages of this solver: without dense output, only the slope at the end."""
        if not with_dense:
            return step.stages[-1:]
        rows = [tree.combinations(method.weights.T, slopes) for slopes in zip(*step.stages, strict=True)]
        missing = self.degree - method.degree
        rows = [(*row, *[tf.zeros_like(row[0])] * missing) for row in rows]
        return (*zip(*rows, strict=True), step.stages[-1])

    def _common(self, method, step, interval, with_dense, memory):
        """Returns a method's step in the form that both methods share."""
        size = interval.size
        return step._replace(
            stages=self._coefficients(method, step, with_dense),
            evaluations=step.evaluations + tf.zeros_like(size, dtype=tf.int32),
            memory=tuple(memory) if self.memory_like(step.y, with_dense) else (),
            converged=tf.ones_like(size, dtype=tf.bool) if step.converged is None else step.converged,
        )

    def _idle(self, y, stage, interval, with_dense):
        """What rows do whose method is not needed: a step in the form of `_common` that goes nowhere, and the radius."""
        zero, none = tf.zeros_like(interval.size), tree.zeros_like(y)
        step = Step(
            start=y,
            y=y,
            error=none,
            integral=(),
            stages=(*((none,) * self.degree if with_dense else ()), stage.derivative),
            carry=stage,
            evaluations=tf.zeros_like(zero, dtype=tf.int32),
            neighbors=((y, stage.derivative),) * 2,
            memory=tree.zeros_like(self.memory_like(y, with_dense)),
            converged=tf.ones_like(zero, dtype=tf.bool),
        )
        return step, zero


class AutoAdjoint(Auto):
    """`Auto` for adjoint equations, which are never differentiated: its implicit method needs no derivative by time."""

    implicit = KenCarp4()

    def memory_like(self, y, dense):
        return ()


class _Watched(WrappedField):
    """A field that keeps the matrices of its linearizations."""

    def __init__(self, field, matrices=None):
        super().__init__(field)
        self.matrices = [] if matrices is None else matrices

    def linearize(self, t, y, exact=False):
        near = super().linearize(t, y, exact)
        self.matrices.append(None if near.matrix is None else tf.stop_gradient(near.matrix))
        return near

    def constant(self):
        return _Watched(self._field.constant(), self.matrices)


def _radius(field, step, size):
    """The spectral radius that the last two stages of an explicit step show, both at its end.

    Differences are measured in units of the tolerance: else a large component that moves smoothly would hide a small stiff one.
    """
    (near, near_slope), (end, end_slope) = tf.nest.map_structure(tf.stop_gradient, step.neighbors)
    change, distance = (
        field.scaled(tree.subtract(a, b), end, size) for a, b in ((end_slope, near_slope), (end, near))
    )
    return tf.math.divide_no_nan(change, distance)


def _taken(is_stiff, size):
    """Whether the implicit method is taken. Rows that are done take a step of no length by a method that others take too."""
    stiff = is_stiff > 0
    if stiff.shape.rank == 0:
        return stiff
    done = tf.equal(size, 0)
    return tree.select(done, tf.reduce_all(stiff | done) & ~tf.reduce_all(done), stiff)


def _only(rows, interval):
    """The interval, without length for other rows: what is computed for these is finite."""
    return interval._replace(
        end=tree.select(rows, interval.end, interval.start),
        size=tree.select(rows, interval.size, tf.zeros_like(interval.size)),
        until=tree.select(rows, interval.until, interval.since),
    )


def _counted(carry, stage, stiff, relative):
    """The next carry, after a step whose size times the spectral radius is `relative`."""
    relative = tf.stop_gradient(relative)
    one, zero = tf.ones_like(relative), tf.zeros_like(relative)
    at_limit = tree.select(relative > _STABLE, carry.count + 1, tf.maximum(carry.count - 1, 0))
    below_limit = tree.select(relative <= _STABLE, carry.count + 1, 0)
    count = tree.select(stiff, below_limit, at_limit)
    switches = count >= tree.select(stiff, _MOST_BELOW_LIMIT * one, _MOST_AT_LIMIT * one)
    is_stiff = tree.select(switches, 1 - carry.is_stiff, carry.is_stiff)
    return Carry(stage, tf.stop_gradient(is_stiff), tf.stop_gradient(tree.select(switches, zero, count)))
