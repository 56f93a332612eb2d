"""Reversible methods: orders, error estimates, steps that are taken back, and gradients, against closed forms."""

import numpy as np
import pytest
import tensorflow as tf

import keras_ode
from keras_ode import configurable, solvers
from keras_ode.solvers import AsynchronousLeapfrog, Reversible, ReversibleHeun
from keras_ode.solvers.base import Field, Interval, Stage
from tests.marks import slow
from tests.references import cosine

METHODS = {
    "alf": AsynchronousLeapfrog(),
    "damped alf": AsynchronousLeapfrog(eta=0.9),
    "heun": ReversibleHeun(),
    "tsit5": Reversible(),
    "midpoint": Reversible("midpoint", coupling=0.9),
    "euler": Reversible("euler"),
    "rk4": Reversible("rk4"),
    "dopri8": Reversible("dopri8"),
}
EVERY = pytest.mark.parametrize("solver", METHODS.values(), ids=METHODS)

def quick(*names):
    """All methods, of which only those named are tested where there is little time."""
    marked = [pytest.param(solver, marks=[pytest.mark.slow] * (name not in names), id=name) for name, solver in METHODS.items()]
    return pytest.mark.parametrize("solver", marked)


def solve(solver, t, step_size=None, start=1.0, **options):
    options = {"dynamics": cosine, "jit_compile": False, "max_steps": 1000, **options}
    return keras_ode.solve(y0=tf.constant([start], tf.float64), t=t, solver=solver, step_size=step_size, **options)


@quick("alf", "damped alf", "heun", "tsit5")
def test_error_falls_with_the_order_of_the_method_as_steps_are_halved(solver):
    sizes = np.array([4.0, 2.0, 1.0]) * {1: 0.005, 2: 0.02, 4: 0.05, 5: 0.05, 8: 0.1}[solver.order]
    errors = [abs(float(solve(solver, [0.0, 2.0], h, controller="constant").ys[-1, 0]) - np.exp(np.sin(2))) for h in sizes]
    slopes = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.all(slopes >= solver.order - 0.25), slopes


@pytest.mark.parametrize("name, each", [("alf", 1), ("heun", 1), ("midpoint", 4), ("tsit5", 12)])
def test_evaluations_are_counted(name, each):
    stats = solve(METHODS[name], [0.0, 2.0], 0.125, controller="constant").stats
    assert int(stats["num_evaluations"]) == 1 + 16 * each


@pytest.mark.parametrize("name", ["alf", slow("heun"), slow("midpoint"), "tsit5"])
def test_adaptive_steps_keep_to_the_tolerance_forward_and_backward_in_time(name):
    for ends in ([0.0, 2.0], [2.0, 0.0]):
        start, end = np.exp(np.sin(ends))
        solution = solve(METHODS[name], ends, start=start, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(solution.ys[-1, 0], end, rtol=1e-3)


def test_states_that_come_apart_make_controlled_steps_shorter():
    """No error estimate sees that the second solution grows while the equation decays: the state would be wrong by 2.6."""
    solution = solve(Reversible("bosh3"), [0.0, 8.0], rtol=1e-3, atol=1e-3, dynamics=lambda t, y: -y, max_steps=8192)
    np.testing.assert_allclose(solution.ys[-1, 0], np.exp(-8.0), atol=1e-2)


class Nonlinear(Field):
    """`y' = sin(y + t) M`, in either shape of a state."""

    def __call__(self, t, y, with_integrand=True):
        t = t[:, None] if t.shape.rank else t
        return Stage(tuple(tf.sin(leaf + tf.cast(t, leaf.dtype)) * leaf[..., ::-1] for leaf in y))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@EVERY
def test_step_that_is_taken_back_leads_to_where_it_began(solver, dtype):
    """After two steps the carry is not what it is at a start; one row goes back in time, and another does not move."""
    field, rng, eps = Nonlinear(), np.random.default_rng(0), np.finfo(dtype).eps
    y = tuple(tf.constant(rng.normal(size=(3, n)), dtype) for n in (2, 4))
    ends = tf.constant([[0.0, 1.0, 2.0], [0.25, 0.875, 2.0], [0.5, 0.625, 2.0], [0.625, 0.5, 2.0]], dtype)
    points = [(y, solver.start(field, ends[0], y)[0])]
    intervals = [Interval(a, b, b - a, tf.abs(a - ends[0]), tf.abs(b - ends[0])) for a, b in zip(ends[:-1], ends[1:], strict=True)]
    for interval in intervals:
        step = solver.step(field, interval, *points[-1])
        points.append((step.y, step.carry))
    at = points[-1]
    for interval, expected in zip(reversed(intervals), reversed(points[:-1]), strict=True):
        *at, count = solver.unstep(field, interval, *at)
        assert count == step.evaluations
        for a, b in zip(at[0], expected[0], strict=True):
            np.testing.assert_allclose(a, b, atol=50 * eps)
        for a, b in zip(tf.nest.flatten(at[1]), tf.nest.flatten(expected[1]), strict=True):
            np.testing.assert_allclose(a[:2], b[:2], atol=200 * eps)  # errors of velocities are divided by the step size
        at[1] = tf.nest.map_structure(lambda a, b: tf.concat([a[:2], b[2:]], axis=0), at[1], expected[1])


def test_coupling_keeps_a_method_stable_where_it_decays():
    """The second solution of a reversible method grows where the equation decays; the coupling draws both together."""
    weak, strong = (
        solve(Reversible("midpoint", c), [0.0, 100.0], 0.1, controller="constant", dynamics=lambda t, y: -0.5 * y).ys[-1, 0]
        for c in (1.0, 0.9)
    )
    assert abs(strong) < 1e-6 < abs(weak)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: AsynchronousLeapfrog(eta=0.5), r"eta must be a number above 0.5 and at most 1. Received: eta=0.5"),
        (lambda: Reversible(coupling=0), r"coupling must be a number above 0 and at most 1. Received: coupling=0"),
        (lambda: Reversible(coupling=1.5), r"Received: coupling=1.5"),
        (lambda: Reversible("kvaerno5"), r"solver must be one of 'euler'.*ExplicitRungeKutta object. Received: solver='kvaerno5'"),
    ],
)
def test_what_no_method_can_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_wrapped_method_is_in_the_configuration_by_its_name():
    solver = Reversible("bosh3", coupling=0.99)
    described = configurable.describe(solver, solvers.SOLVERS)
    assert described == {"name": "reversible", "config": {"solver": "bosh3", "coupling": 0.99}}
    assert solvers.get(described) == solver != Reversible("midpoint", coupling=0.99)
    assert solvers.get("reversible") == Reversible("tsit5", 0.999)
    assert (solver.order, solver.error_order) == (3, 3)


@pytest.mark.parametrize(
    "name, adjoint",
    [
        (name, adjoint) if (name, adjoint) == ("heun", "backsolve") else slow(name, adjoint)
        for name in ("alf", "heun", "midpoint")
        for adjoint in ("interpolating", "backsolve", "checkpointed")
    ],
)
def test_gradients_of_all_adjoints_are_those_of_the_closed_form(name, adjoint):
    rate, start = tf.constant(1.5, tf.float64), tf.constant([1.2], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch((start, rate))
        ys = keras_ode.odeint(
            lambda t, y: rate * y * tf.cos(t), start, [0.0, 0.333, 1.1], solver=METHODS[name], adjoint=adjoint,
            controller="constant", step_size=0.01, max_steps=200, jit_compile=False,
        )  # fmt: skip
        loss = tf.reduce_sum(ys[1:])
    by_start, by_rate = tape.gradient(loss, (start, rate))
    grown = np.exp(1.5 * np.sin([0.333, 1.1]))
    np.testing.assert_allclose(by_start, [grown.sum()], rtol=1e-3)
    np.testing.assert_allclose(by_rate, (1.2 * grown * np.sin([0.333, 1.1])).sum(), rtol=1e-3)
