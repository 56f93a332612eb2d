"""The loop over steps, with a solver that computes nothing."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from keras_ode.controllers import PID, Constant, Tolerance
from keras_ode.errors import Status
from keras_ode.integrate import Method, integrate
from keras_ode.observers import SaveAt
from keras_ode.solvers.base import Solver, Stage, Step
from tests.references import FieldOf


class Stub(Solver):
    """The state is the time since the start; the error is what `error(interval)` says.

    The interpolant is the time too, but NaN outside of the inside of a step: ends must come from the steps themselves.
    The carry counts accepted steps. The integrand is one, so that the integral is the time too.
    """

    order = error_order = degree = 1

    def __init__(self, error=lambda interval: 0.0):
        self.error = error

    def start(self, field, t, y):
        return tf.zeros_like(t), 1

    def first_derivative(self, carry):
        return (tf.ones_like(carry)[..., None],)

    def step(self, field, interval, y, carry, with_dense=False):
        end = (interval.until[..., None],)
        slope = (tf.ones_like(end[0]),)
        return Step(
            start=y,
            y=end,
            error=(tf.cast(self.error(interval), tf.float64)[..., None] + tf.zeros_like(end[0]),),
            integral=(tf.abs(interval.size),),
            stages=(y, slope),
            carry=carry + 1,
            evaluations=2,
            neighbors=((y, slope), (end, slope)),
        )

    def interpolate(self, stages, size, y, theta):
        inside = (theta > 0) & (theta < 1)
        y = y[0] + tf.abs(size * theta)[..., None]
        return (tf.where(inside[..., None], y, np.nan),)


class Seen(NamedTuple):
    trials: Any
    sizes: Any
    accepted: Any


class Watch:
    """Observes everything: sizes and verdicts of at most a thousand tries."""

    def start(self):
        return Seen(tf.constant(0), tf.fill([1000], tf.constant(np.nan, tf.float64)), tf.fill([1000], False))

    def see(self, seen, trial):
        at = seen.trials[None, None]
        return Seen(
            seen.trials + 1,
            tf.tensor_scatter_nd_update(seen.sizes, at, trial.interval.size[None]),
            tf.tensor_scatter_nd_update(seen.accepted, at, trial.accept[None]),
        )


class Line(Stub):
    """The stub with the solution of `y' = 2`, forward or backward in time."""

    def step(self, field, interval, y, carry, with_dense=False):
        return super().step(field, interval, y, carry)._replace(y=self.interpolate((), interval.size, y, 1.0))

    def interpolate(self, stages, size, y, theta):
        return (y[0] + 2 * (size * theta)[..., None],)


def run(end, step_size=1.0, start=0.0, error=None, controller=None, max_steps=50, saved=None, solver=None, y=0.0, **options):
    """Integrates from `start` to `end` with the stub; scalars, or lists for samples with their own steps."""
    start, end, step_size, y = (tf.constant(x, tf.float64) for x in np.broadcast_arrays(start, end, step_size, y))
    solver = solver or (Stub() if error is None else Stub(error))
    # With these, the scaled error is the stub's, and a rejected step of error e is tried again with 0.9 / e of itself.
    method = Method(
        solver=solver,
        controller=controller or (Constant() if error is None else PID()),
        tolerance=Tolerance(tf.constant(0.0, tf.float64), tf.constant(1.0, tf.float64)),
        step_size=step_size,
        max_steps=max_steps,
        per_sample=start.shape.rank == 1,
    )
    y = (y[..., None],)
    observers = () if start.shape.rank else (Watch(),)
    if saved is not None:
        observers += (SaveAt(tf.constant(saved, tf.float64), y, solver),)
    integral = () if start.shape.rank else (tf.constant(0.0, tf.float64),)
    field = FieldOf(lambda t, y: Stage((tf.ones_like(y[0]),)))
    result = integrate(
        field, start, end, y, method, integral=integral, observers=observers, dense=saved is not None, **options
    )
    if saved is None:
        return result
    return result._replace(observed=(*result.observed[:-1], observers[-1].saved(result.observed[-1])))


def run_in_a_graph(*args, **options):
    """The same, where a thousand tries in eager code would take seconds."""
    return tf.function(lambda: run(*args, **options), autograph=False)()


def saved_states(result):
    """The states at the saved times, `[K]` or `[K, B]`."""
    return result.observed[-1][0][..., 0].numpy()


def sizes(result):
    seen = result.observed[0]
    return seen.sizes[: seen.trials].numpy()


# Saving


def test_several_saved_times_within_one_step_are_all_saved():
    result = run(3.0, saved=[0.1, 0.2, 0.9, 2.5, 2.75])
    np.testing.assert_allclose(saved_states(result), [0.1, 0.2, 0.9, 2.5, 2.75])
    assert int(result.num_steps) == 3


def test_saved_time_at_the_end_of_a_step_is_the_state_of_that_step():
    np.testing.assert_array_equal(saved_states(run(3.0, saved=[1.0, 2.0])), [1, 2])


def test_saved_times_that_are_not_reached_are_nan():
    np.testing.assert_array_equal(saved_states(run(5.0, max_steps=2, saved=[0.5, 2.0, 2.5, 4.0])), [0.5, 2, np.nan, np.nan])


def test_saved_time_at_the_start_is_the_first_state():
    np.testing.assert_array_equal(saved_states(run(3.0, y=7.0, saved=[0.0, 1.0, 2.0])), [7, 1, 2])


def test_rejected_steps_save_nothing_and_the_retry_saves_once():
    # Steps over 0.3 are rejected, from there on each state is the time of its own step.
    result = run(1.0, error=lambda interval: 4 * tf.cast(tf.abs(interval.size) > 0.3, tf.float64) + 0.5, saved=[0.15, 0.6])
    assert int(result.num_steps) > int(result.num_accepted)
    np.testing.assert_allclose(saved_states(result), [0.15, 0.6])


def test_saved_times_count_from_the_start_in_either_direction():
    np.testing.assert_allclose(saved_states(run(2.0, start=5.0, saved=[0.5, 2.5])), [0.5, 2.5])


# Accepting and rejecting


def first_is_too_long(interval):
    return 2 * tf.cast(tf.abs(interval.size) > 0.99, tf.float64)


def test_rejected_first_step_keeps_state_time_carry_and_integral():
    result = run(1.0, error=lambda interval: tf.constant(4.0), max_steps=1)
    assert (float(result.y[0][0]), float(result.time), float(result.carry), float(result.integral[0])) == (0, 0, 0, 0)
    assert (int(result.num_steps), int(result.num_accepted)) == (1, 0)


def test_rejected_step_is_tried_again_shorter_from_the_same_place():
    result = run(1.0, error=first_is_too_long)
    # 0.9 / 2 of the first.
    np.testing.assert_allclose(sizes(result)[:2], [1.0, 0.45])
    assert float(result.y[0][0]) == 1


def test_accepted_steps_cover_the_interval_exactly_once():
    result = run(1.0, error=first_is_too_long)
    seen = result.observed[0]
    assert float(tf.reduce_sum(tf.boolean_mask(seen.sizes, seen.accepted))) == pytest.approx(1)
    assert float(result.integral[0]) == pytest.approx(1)
    assert float(result.carry) == int(result.num_accepted) == int(result.num_steps) - 1


def test_evaluations_are_those_of_the_start_and_of_every_try():
    result = run(1.0, error=first_is_too_long)
    assert int(result.num_evaluations) == 1 + 2 * int(result.num_steps)


def test_observers_see_every_try():
    result = run(1.0, error=first_is_too_long)
    seen = result.observed[0]
    assert int(seen.trials) == int(result.num_steps)
    assert seen.accepted[:3].numpy().tolist() == [False, True, True]


# Landing


@pytest.mark.parametrize("start, end", [(0.1, 0.7), (0.7, 0.1), (-3.0, 1e3), (1e6, 1e6 + 1)])
def test_solve_lands_exactly_on_the_end(start, end):
    result = run(end, start=start, step_size=abs(end - start) / 7.3)
    assert float(result.time) == end
    assert int(result.num_steps) == 8
    assert int(result.status) == Status.SUCCESS


def test_step_that_would_leave_almost_nothing_takes_it_along():
    np.testing.assert_array_equal(sizes(run(1.0005)), [1.0005])
    assert len(sizes(run(1.01))) == 2


def test_step_lands_on_a_stop_it_would_pass():
    result = run(3.0, stops=tf.constant([0.9, 3.0], tf.float64))
    np.testing.assert_allclose(sizes(result), [0.9, 1.0, 1.0, 0.1])


def test_step_lands_on_the_last_of_the_stops_it_would_pass():
    result = run(3.0, stops=tf.constant([0.1, 0.5, 0.9, 3.0], tf.float64))
    assert sizes(result)[0] == 0.9


def test_step_cut_short_by_a_stop_does_not_shorten_the_next():
    small_errors = lambda interval: 0.5 * tf.abs(interval.size)
    result = run(3.0, error=small_errors, controller=PID(max_factor=1.01), stops=tf.constant([0.85, 3.0], tf.float64))
    assert sizes(result)[0] == 0.85
    assert sizes(result)[1] >= 1.0


def test_every_state_after_stops_is_that_of_the_end():
    assert float(run(3.0, stops=tf.constant([0.9, 1.3, 3.0], tf.float64)).y[0][0]) == 3


# Ending


def test_cap_ends_the_loop():
    result = run(1e9, max_steps=7)
    assert (int(result.status), int(result.num_steps), float(result.time)) == (Status.MAX_STEPS, 7, 7.0)


def test_end_reached_by_the_last_step_allowed_is_a_success():
    assert int(run(3.0, max_steps=3).status) == Status.SUCCESS


def test_no_time_to_integrate_over_is_a_success_without_steps():
    result = run(2.0, start=2.0)
    assert (int(result.status), int(result.num_steps), float(result.y[0][0])) == (Status.SUCCESS, 0, 0.0)


@pytest.mark.parametrize("end", [np.nan, np.inf])
def test_time_that_cannot_be_reached_ends_at_once(end):
    result = run(end)
    assert (int(result.status), int(result.num_steps)) == (Status.NON_FINITE, 0)


def test_errors_of_nan_end_the_solve_within_a_hundred_tries():
    result = run(1.0, error=lambda interval: tf.constant(np.nan), max_steps=1000)
    assert int(result.status) == Status.NON_FINITE
    assert int(result.num_steps) <= 100
    assert int(result.num_accepted) == 0


def test_constant_step_of_nan_ends_the_solve_at_once():
    result = run(1.0, step_size=0.1, error=lambda interval: tf.constant(np.nan), controller=Constant())
    assert (int(result.status), int(result.num_steps), float(result.y[0][0])) == (Status.NON_FINITE, 1, 0.0)


@pytest.mark.parametrize("error", [1.001, 1.5, 1e6])
def test_errors_that_no_step_size_cures_end_the_solve(error):
    result = run_in_a_graph(1.0, error=lambda interval: tf.constant(error), max_steps=1000)
    assert int(result.status) == Status.STEP_TOO_SMALL


@pytest.mark.parametrize("wall, error", [(0.3, 1.001), (0.7, 1.1), (0.3, 1.5)])
def test_solve_ends_at_a_wall_and_does_not_try_one_step_for_ever(wall, error):
    """Steps that would pass the wall are rejected, by errors that shrink them by little."""
    passes = lambda interval: error * tf.cast(interval.until > wall, tf.float64)
    result = run_in_a_graph(1.0, step_size=0.1, error=passes, max_steps=1000)
    assert int(result.status) == Status.STEP_TOO_SMALL
    assert float(result.time) == pytest.approx(wall, abs=1e-12)


def test_no_step_of_zero_length_is_accepted():
    """A step far under the resolution of the time would not move it."""
    result = run(1.0, step_size=1e-20, controller=Constant())
    assert int(result.status) == Status.STEP_TOO_SMALL or float(result.time) > 0


# Samples with steps of their own


def test_every_sample_ends_at_its_own_time():
    result = run([1.0, 2.5, 0.5], start=[0.0, 0.0, 1.0])
    np.testing.assert_array_equal(result.time, [1.0, 2.5, 0.5])
    np.testing.assert_array_equal(result.num_steps, [1, 3, 1])
    np.testing.assert_allclose(result.y[0][:, 0], [1.0, 2.5, 0.5])


def test_failure_of_one_sample_leaves_the_others_alone():
    fails_first = lambda interval: tf.where([True, False], tf.constant(np.nan, tf.float64), 0.5)
    result = run([1.0, 1.0], error=fails_first)
    assert result.status.numpy().tolist() == [Status.NON_FINITE, Status.SUCCESS]
    np.testing.assert_allclose(result.y[0][:, 0], [0, 1])


def test_rejection_of_one_sample_does_not_hold_up_the_others():
    first_rejects = lambda interval: tf.where([True, False], first_is_too_long(interval), 0.0)
    result = run([1.0, 1.0], error=first_rejects)
    assert int(result.num_steps[0]) > int(result.num_steps[1]) == 1


def test_accepted_steps_of_samples_carry_on_by_sample():
    result = run([1.0, 2.5])
    np.testing.assert_array_equal(result.carry, [1, 3])


def test_samples_go_in_opposite_directions():
    result = run([5.0, -8.0], start=[0.0, 2.0], y=[1.0, 9.0], solver=Line(), saved=[[3.0, 1.5]])
    np.testing.assert_array_equal(saved_states(result), [[7, 6]])
    np.testing.assert_array_equal(result.y[0][:, 0], [11, -11])
    np.testing.assert_array_equal(result.num_steps, [5, 10])


def test_several_times_of_one_sample_are_saved_while_another_saves_none():
    result = run([2.0, 2.0], saved=[[0.25, 1.25], [0.5, 1.5], [0.75, 1.75]])
    np.testing.assert_array_equal(saved_states(result), [[0.25, 1.25], [0.5, 1.5], [0.75, 1.75]])


def test_sample_with_no_time_to_integrate_over_takes_no_step_and_keeps_its_state():
    result = run([3.0, 1.0, -1.0], start=[0.0, 1.0, -1.0], y=[0.0, 4.0, 5.0], saved=[[1.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    np.testing.assert_array_equal(result.num_steps, [3, 0, 0])
    np.testing.assert_array_equal(result.status, [Status.SUCCESS] * 3)
    np.testing.assert_array_equal(saved_states(result), [[1, 4, 5], [2, 4, 5]])


def test_cap_is_that_of_every_sample_alone():
    result = run([1e9, 3.0, 7.0], max_steps=7)
    np.testing.assert_array_equal(result.status, [Status.MAX_STEPS, Status.SUCCESS, Status.SUCCESS])
    np.testing.assert_array_equal(result.num_steps, [7, 3, 7])


def test_first_step_rejected_for_one_sample_is_accepted_for_another():
    errors = lambda interval: tf.where([True, False], 4.0, 0.5)
    result = run([1.0, 1.0], error=errors, max_steps=1)
    np.testing.assert_array_equal(result.num_accepted, [0, 1])
    np.testing.assert_array_equal(result.y[0][:, 0], [0, 1])


def test_sample_that_is_done_is_frozen():
    result = run([1.0, 30.0], saved=[[0.5, 0.5]])
    assert (float(result.y[0][0, 0]), float(result.time[0]), int(result.num_steps[0]), int(result.num_evaluations[0])) == (1, 1, 1, 3)
