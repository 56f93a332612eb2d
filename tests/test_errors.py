"""What is said when a solve fails."""

import pickle

import pytest

from keras_ode import SolveError, Status
from keras_ode.errors import failure_message


def test_status_values_are_the_documented_ones():
    names = ["SUCCESS", "MAX_STEPS", "STEP_TOO_SMALL", "NON_FINITE", "EVENT", "NOT_CONVERGED"]
    assert [Status(value).name for value in range(6)] == names


FAILURES = [Status.MAX_STEPS, Status.STEP_TOO_SMALL, Status.NON_FINITE, Status.NOT_CONVERGED]


@pytest.mark.parametrize("status", FAILURES)
def test_message_names_time_step_size_and_number_of_steps(status):
    message = failure_message(status, time=1.25, step_size=3e-7, max_steps=4096, num_steps=17)
    assert "t = 1.25 with step size 3e-07 after 17 steps" in message


@pytest.mark.parametrize(
    "status, remedy",
    list(zip(FAILURES, ["raise max_steps", "loosen", "Check the dynamics", "smaller step_size"], strict=True)),
)
def test_message_names_a_remedy(status, remedy):
    assert remedy in failure_message(status, time=1.25, step_size=3e-7, max_steps=4096, num_steps=17)


def test_message_names_the_sample_where_there_are_many():
    assert failure_message(Status.NON_FINITE, time=1.0, step_size=0.1, max_steps=10, num_steps=1, sample=3).startswith("The solve of sample 3 stopped")


def test_error_carries_what_happened():
    error = SolveError("text", Status.MAX_STEPS, 1.5, 0.1, sample=2)
    assert (str(error), error.status, error.time, error.step_size, error.sample) == ("text", Status.MAX_STEPS, 1.5, 0.1, 2)


def test_error_is_a_runtime_error():
    assert issubclass(SolveError, RuntimeError)


def test_error_survives_pickling():
    """As it must to reach the user from a worker process."""
    error = pickle.loads(pickle.dumps(SolveError("text", Status.MAX_STEPS, 1.5, 0.1)))
    assert (str(error), error.status, error.time) == ("text", Status.MAX_STEPS, 1.5)
