"""How a solve ends, and what is said when it ends badly."""

import enum
import sys
import warnings

# Whose lines a warning does not point to: those between the package and its user.
_BETWEEN = ("keras_ode", "tensorflow", "keras")


class Status(enum.IntEnum):
    """How a solve ended. `Solution.status` contains one of these values, or one for each sample with `per_sample=True`.

    Example:

    >>> solution = keras_ode.solve(lambda y: y**2, tf.constant([1.0]), [0.0, 2.0], on_failure="nan")
    >>> keras_ode.Status(int(solution.status)).name
    'STEP_TOO_SMALL'
    """

    SUCCESS = 0
    MAX_STEPS = 1
    STEP_TOO_SMALL = 2
    NON_FINITE = 3
    EVENT = 4
    NOT_CONVERGED = 5
    STIFF = 6
    INCONSISTENT = 7


class EventTrouble(enum.IntEnum):
    """Why an event could not be handled."""

    NONE = 0
    AGAIN = 1
    NOT_A_NUMBER = 2
    MISSED = 3
    NOT_STEADY = 4


class SolveError(RuntimeError):
    """The error that a failed solve raises in eager code.

    Attributes:
        status: The `Status` of the (first) failed solve.
        time: The time that it reached.
        step_size: The last step size that it tried.
        sample: The index of the failed sample with `per_sample=True`, else `None`.

    Example:

    >>> try:
    ...     solution = keras_ode.solve(lambda y: y**2, tf.constant([1.0]), [0.0, 2.0])
    ... except keras_ode.SolveError as error:
    ...     print(error.status.name, f"{error.time:.2f}")
    STEP_TOO_SMALL 1.00
    """

    def __init__(
        self,
        message: str,
        status: Status | None = None,
        time: float | None = None,
        step_size: float | None = None,
        sample: int | None = None,
    ) -> None:
        super().__init__(message)
        # Keras makes an error that a layer raised again from its message, while the first one is being handled.
        first = sys.exc_info()[1]
        if status is None and isinstance(first, SolveError):
            status, time, step_size, sample = first.status, first.time, first.step_size, first.sample
        self.status: Status | None = status
        self.time: float | None = time
        self.step_size: float | None = step_size
        self.sample: int | None = sample


def failure_message(
    status,
    time,
    step_size,
    num_steps,
    max_steps,
    sample=None,
    cause=None,
    details="",
    trouble=EventTrouble.NONE,
    least="the resolution of the time",
):
    """What happened and where, why that is likely and what to change, and what else is known.

    Args:
        status: The `Status`.
        time, step_size, num_steps: The time reached, the last step size tried, and how many were tried.
        max_steps: How many were allowed.
        sample: The index of the sample, or `None`.
        cause: A likely cause with its remedy, where one was found; `None`: what may be said of every such failure.
        details: A further sentence.
        trouble: An `EventTrouble`, where an event is why the solve stopped.
        least: What limits how small steps are.
    """
    who = "The solve" if sample is None else f"The solve of sample {sample}"
    where = f"at t = {time:.6g} with step size {step_size:.3g} after {num_steps} steps"
    happened = _HAPPENED[status].format(max_steps=max_steps, least=least)
    if trouble:
        happened, cause = _OF_EVENTS[trouble]
        cause = cause.format(max_steps=max_steps)
    return " ".join(filter(None, (f"{who} stopped {where}: {happened}.", cause or _CAUSES[status], details)))


_HAPPENED = {
    Status.MAX_STEPS: "max_steps={max_steps} was reached",
    Status.STEP_TOO_SMALL: "no step was accurate enough, down to {least}",
    Status.NON_FINITE: "the dynamics or the state became NaN or infinite there",
    Status.NOT_CONVERGED: (
        "the stages of the implicit method did not converge, or the two states of a reversible one drifted apart"
    ),
    Status.STIFF: "max_steps={max_steps} was reached",
    Status.INCONSISTENT: "the state does not fulfill the algebraic equations",
}
_CAUSES = {
    Status.MAX_STEPS: "The tolerances need more steps than that: raise max_steps, or loosen rtol and atol.",
    Status.STEP_TOO_SMALL: (
        "Probably the solution grows without bound there, or the dynamics jumps: look at the dynamics near that time, "
        "end the solve earlier (or with an event), pass jump_times, or loosen rtol and atol."
    ),
    Status.NON_FINITE: (
        "Check the dynamics at that time and state (logarithms, divisions, square roots, overflow), and the input for NaN."
    ),
    Status.NOT_CONVERGED: "Try a smaller step_size or another solver.",
    Status.STIFF: (
        "The equation is stiff: stability, and not the tolerances, keeps the steps of an explicit method small there. Use an "
        "implicit method, solver='rodas5p', or 'auto', which switches to it where that is needed."
    ),
    Status.INCONSISTENT: "Let keras_ode.consistent_state(f, y0, t0, mass_matrix) solve them for the algebraic unknowns first.",
}
_OF_EVENTS = {
    EventTrouble.AGAIN: (
        "the event happened again where it had just been handled",
        "Either events follow each other faster and faster, like the bounces of a ball that comes to rest, until the time "
        "between them is too short to be represented; or the reset returns a state from which the event's fn crosses zero "
        "at once. End the solve earlier with a smaller max_events or a terminal event, set the direction of the event, or "
        "return a state that leaves the surface fn = 0 on the side from which it came.",
    ),
    EventTrouble.NOT_A_NUMBER: (
        "the event's fn became NaN in the next step",
        "NaN has no sign, so an event could be missed. Make sure that fn returns numbers wherever the solution goes: look "
        "for logarithms, divisions and square roots in it.",
    ),
    EventTrouble.MISSED: (
        "no event had happened by then",
        "The end of t is infinite, so only an event can end the solve: check that the event's fn becomes zero along the "
        "solution, in the event's direction, raise max_steps={max_steps}, or pass a finite end in t.",
    ),
    EventTrouble.NOT_STEADY: (
        "the state was not steady by then",
        "SteadyState ends a solve only where the dynamics comes to rest: check that it has an equilibrium that the solution "
        "approaches, loosen rtol and atol of SteadyState, or raise max_steps={max_steps}.",
    ),
}


def warn(message):
    """Warns at the line of the user's code that led here, however many wrappers lie between."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in _BETWEEN:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
