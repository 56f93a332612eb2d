"""Step-size control against its published formulas."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf
from scipy.integrate._ivp.common import select_initial_step

from keras_ode.controllers import PID, Constant, Predictive, Tolerance, first_step
from keras_ode.integrate import Clock
from keras_ode.solvers.base import Stage
from tests.references import FieldOf

FEW = hypothesis.settings(max_examples=50, deadline=None)
ERRORS = st.floats(1e-8, 1e8)
SIZES = st.floats(1e-6, 1e6)


def judge(controller, error, size=1.0, order=5, state=None):
    error, size = tf.constant(error, tf.float64), tf.constant(size, tf.float64)
    return controller.judge(error, order, size, state or controller.start(size))


# PID


@FEW
@hypothesis.given(error=ERRORS, size=SIZES, order=st.integers(2, 8))
def test_integral_control_takes_the_classical_factor(error, size, order):
    factor = np.clip(0.9 * error ** (-1 / order), 0.2, 10 if error <= 1 else 0.9)
    assert float(judge(PID(), error, size, order).step_size) == pytest.approx(factor * size, rel=1e-12)


@FEW
@hypothesis.given(errors=st.tuples(*[st.floats(1e-3, 1)] * 3), p=st.floats(0, 0.5), i=st.floats(0.1, 1), d=st.floats(0, 0.2))
def test_factor_after_accepted_steps_is_soderlinds(errors, p, i, d):
    controller, k, state = PID(p=p, i=i, d=d), 5, None
    for error in errors:
        verdict = judge(controller, error, state=state)
        state = verdict.state
    e2, e1, e0 = errors
    factor = 0.9 * e0 ** (-(p + i + d) / k) * e1 ** ((p + 2 * d) / k) * e2 ** (-d / k)
    assert float(verdict.step_size) == pytest.approx(np.clip(factor, 0.2, 10), rel=1e-10)


@FEW
@hypothesis.given(error=ERRORS)
def test_step_is_accepted_if_its_error_is_at_most_one(error):
    assert bool(judge(PID(), error).accept) == (error <= 1)


def test_error_of_exactly_one_is_accepted():
    assert bool(judge(PID(), 1.0).accept)


@FEW
@hypothesis.given(
    error=st.floats(1, 1e30, exclude_min=True),
    last=st.floats(1e-8, 1),
    p=st.floats(0, 1),
    d=st.floats(0, 1),
    safety=st.floats(0.1, 0.99),
)
def test_rejected_step_is_always_followed_by_a_shorter_one(error, last, p, d, safety):
    controller = PID(p=p, d=d, safety=safety)
    state = judge(controller, last).state
    assert float(judge(controller, error, state=state).step_size) <= max(safety, controller.min_factor)


@FEW
@hypothesis.given(error=st.floats(0, 1e30), size=SIZES, low=st.floats(0.01, 0.9), high=st.floats(1.1, 100))
def test_factor_stays_within_its_limits(error, size, low, high):
    factor = float(judge(PID(min_factor=low, max_factor=high), error, size).step_size) / size
    assert low * (1 - 1e-12) <= factor <= high * (1 + 1e-12)


def test_step_without_any_error_grows_by_the_largest_factor():
    assert float(judge(PID(), 0.0).step_size) == 10


@pytest.mark.parametrize("error", [np.nan, np.inf])
def test_error_that_is_not_finite_is_a_rejection_by_the_smallest_factor(error):
    verdict = judge(PID(), error, size=3.0)
    assert not bool(verdict.accept)
    assert float(verdict.step_size) == pytest.approx(0.6)


@pytest.mark.parametrize("error", [5.0, np.nan])
def test_rejected_step_does_not_enter_the_memory(error):
    controller = PID(p=0.3, d=0.1)
    state = judge(controller, 0.5).state
    after = judge(controller, error, state=state).state
    np.testing.assert_array_equal(after[:2], state[:2])


@pytest.mark.parametrize("error", [5.0, np.nan])
def test_step_after_a_rejected_one_does_not_grow(error):
    """Else a solve that meets a wall would run against it again and again."""
    after = judge(PID(), error).state
    verdict = judge(PID(), 0.0, state=after)
    assert float(verdict.step_size) == 1
    assert float(judge(PID(), 0.0, state=verdict.state).step_size) == 10


def test_samples_are_judged_apart():
    verdict = judge(PID(), [0.01, 100.0, np.nan], [1.0, 2.0, 3.0], order=2)
    assert verdict.accept.numpy().tolist() == [True, False, False]
    np.testing.assert_allclose(verdict.step_size, [9.0, 0.4, 0.6])


@pytest.mark.parametrize(
    "options, words",
    [
        ({"safety": 0.0}, "safety=0.0"),
        ({"safety": 1.5}, "safety=1.5"),
        ({"min_factor": 0.0}, "min_factor=0.0"),
        ({"min_factor": 1.0}, "min_factor=1.0"),
        ({"max_factor": 1.0}, "max_factor=1.0"),
    ],
)
def test_bad_option_of_pid_is_refused_with_what_was_received(options, words):
    with pytest.raises(ValueError, match=words):
        PID(**options)


# Constant


@FEW
@hypothesis.given(error=st.floats(0, 1e30), size=SIZES)
def test_constant_controller_accepts_every_finite_error_and_keeps_its_size(error, size):
    controller = Constant()
    verdict = judge(controller, error, size=0.3 * size, state=controller.start(tf.constant(size, tf.float64)))
    assert bool(verdict.accept)
    assert float(verdict.step_size) == size


@pytest.mark.parametrize("error", [np.nan, np.inf])
def test_constant_controller_rejects_what_is_not_finite(error):
    assert not bool(judge(Constant(), error).accept)


# Tolerance


@FEW
@hypothesis.given(
    y=hnp.arrays("float64", 3, elements=st.floats(-1e6, 1e6)),
    y_new=hnp.arrays("float64", 3, elements=st.floats(-1e6, 1e6)),
    error=hnp.arrays("float64", 3, elements=st.floats(-1e3, 1e3)),
    rtol=st.floats(1e-9, 1),
    atol=st.floats(1e-9, 1),
)
def test_scaled_error_is_the_root_mean_square_on_the_scale_of_both_ends(y, y_new, error, rtol, atol):
    tolerance = Tolerance(tf.constant(rtol, tf.float64), tf.constant(atol, tf.float64))
    # In two leaves of different shape, each element counts the same.
    leaves = [(tf.constant(x[:1]), tf.constant(x[1:])) for x in (error, y, y_new)]
    found = tolerance.scaled(*leaves, tolerance.rtol)
    expected = np.sqrt(np.mean((error / (atol + rtol * np.maximum(np.abs(y), np.abs(y_new)))) ** 2))
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_scaled_errors_of_samples_are_their_own():
    tolerance = Tolerance(tf.constant(0.0, tf.float64), tf.constant(2.0, tf.float64))
    error = (tf.constant([[2.0, 2.0], [4.0, 4.0]], tf.float64),)
    np.testing.assert_allclose(tolerance.scaled(error, error, error, tf.zeros([2], tf.float64)), [1, 2])


# The first step


def first_step_of(f, y0, span, rtol, atol, order=5):
    start, end = (tf.constant(x, tf.float64) for x in span)
    field = FieldOf(lambda t, y: Stage((f(t, y[0]),)))
    y0 = tf.constant(y0, tf.float64)
    tolerance = Tolerance(tf.constant(rtol, tf.float64), tf.constant(atol, tf.float64))
    return float(first_step(field, Clock(start, end), (y0,), field(start, (y0,)).derivative, order, tolerance))


@FEW
@hypothesis.given(
    rate=st.floats(-50, 50).filter(lambda x: abs(x) > 1e-2),
    y0=hnp.arrays("float64", 2, elements=st.floats(0.1, 10)),
    tolerance=st.sampled_from([1e-3, 1e-6, 1e-9]),
    forward=st.booleans(),
    order=st.integers(2, 8),
)
def test_first_step_is_that_of_scipy(rate, y0, tolerance, forward, order):
    f = lambda t, y: rate * y * (1 + t)
    span = (0.5, 3.5) if forward else (3.5, 0.5)
    found = first_step_of(f, y0, span, tolerance, tolerance, order)
    direction = np.sign(span[1] - span[0])
    expected = select_initial_step(
        f, span[0], y0, span[1], np.inf, f(span[0], y0), direction, order - 1, tolerance, tolerance
    )
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("slope", [0.0, 1e-300, np.nan])
def test_first_step_is_positive_and_within_the_interval_for_any_field(slope):
    step = first_step_of(lambda t, y: slope * tf.ones_like(y), [1.0], (0.0, 0.5), 1e-3, 1e-6)
    assert 0 < step <= 0.5


def test_first_step_probes_inside_the_interval():
    seen = []

    def f(t, y):
        seen.append(float(t))
        return 1e-9 * y

    first_step_of(f, [1.0], (2.0, 2.5), 1e-3, 1e-6)
    assert min(seen) >= 2.0 and max(seen) <= 2.5


@pytest.mark.parametrize("duration", [1e-30, 1e-12, 1e12, 1e30, 1e200])
@pytest.mark.parametrize("y0", [0.0, 1.0])
def test_first_step_scales_with_the_duration_of_a_slow_problem(duration, y0):
    step = first_step_of(lambda t, y: (0.5 - y) / duration, [y0], (0.0, duration), 1e-3, 1e-6)
    assert 1e-10 * duration < step <= duration


# Predictive


@FEW
@hypothesis.given(
    errors=st.tuples(*[st.floats(1e-2, 1)] * 2), sizes=st.tuples(*[st.floats(0.1, 10)] * 2), k=st.integers(2, 6)
)
def test_predictive_factor_is_gustafssons(errors, sizes, k):
    first = judge(Predictive(), errors[0], sizes[0], k)
    assert float(first.step_size) == pytest.approx(sizes[0] * min(0.9 * errors[0] ** (-1 / k), 10), rel=1e-12)
    second = judge(Predictive(), errors[1], sizes[1], k, first.state)
    trend = sizes[1] / sizes[0] * (errors[0] / errors[1]) ** (1 / k)
    factor = np.clip(0.9 * errors[1] ** (-1 / k) * min(1, trend), 0.2, 10)
    assert float(second.step_size) == pytest.approx(sizes[1] * factor, rel=1e-12)


def test_predictive_control_halves_a_step_that_is_not_finite_and_does_not_grow_after_a_rejected_one():
    failed = judge(Predictive(), np.inf, 2.0)
    assert float(failed.step_size) == 1.0 and not bool(failed.accept)
    rejected = judge(Predictive(), 1.0001, 2.0)
    assert not bool(rejected.accept) and float(rejected.step_size) <= 0.9 * 2.0
    assert float(judge(Predictive(), 1e-6, 1.0, state=rejected.state).step_size) == 1.0
