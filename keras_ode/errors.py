"""How a solve ends, and what is said when it ends badly."""

import enum
import sys


class Status(enum.IntEnum):
    """How a solve ended. `Solution.status` holds one of these values, one a sample with `per_sample=True`."""

    SUCCESS = 0
    MAX_STEPS = 1
    STEP_TOO_SMALL = 2
    NON_FINITE = 3
    EVENT = 4
    NOT_CONVERGED = 5


class SolveError(RuntimeError):
    """A solve failed in eager code.

    Attributes:
        status: The `Status` of the (first) failed solve.
        time: The time that it reached.
        step_size: The last step size that it tried.
        sample: The index of the failed sample with `per_sample=True`, else `None`.
    """

    def __init__(self, message, status=None, time=None, step_size=None, sample=None):
        super().__init__(message)
        # Keras makes an error that a layer raised again from its message, while the first one is being handled.
        first = sys.exc_info()[1]
        if status is None and isinstance(first, SolveError):
            status, time, step_size, sample = first.status, first.time, first.step_size, first.sample
        self.status = status
        self.time = time
        self.step_size = step_size
        self.sample = sample


def failure_message(status, time, step_size, num_steps, max_steps, sample=None, details=""):
    """What happened, where, why that is likely, and what to change."""
    where = f"at t = {time:.6g} with step size {step_size:.3g} after {num_steps} steps"
    who = "The solve" if sample is None else f"The solve of sample {sample}"
    return f"{who} stopped {where}: {_CAUSES[status].format(max_steps=max_steps)}{details}"


_CAUSES = {
    Status.MAX_STEPS: (
        "max_steps={max_steps} was reached. If the solution is smooth, raise max_steps or loosen rtol and atol; "
        "if the steps became tiny, the equation may be stiff or grow without bound."
    ),
    Status.STEP_TOO_SMALL: (
        "the step size fell under the resolution of the time. The solution may blow up there, the dynamics may jump, "
        "or rtol and atol ask for more than the dtype can resolve: loosen them, or solve in float64."
    ),
    Status.NON_FINITE: (
        "the dynamics or the state became NaN or infinite there, however small the step. Check the dynamics at that "
        "time and state (logarithms, divisions, square roots, overflow), or the input for NaN."
    ),
    Status.NOT_CONVERGED: "the stages of the implicit method did not converge. Try a smaller step_size or another solver.",
}
