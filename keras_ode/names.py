"""Names that users know from elsewhere, and the names that they have here."""

import difflib
import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")

# What other packages call it, and what to write here.
_ELSEWHERE = {
    "solver=": ("method", "alg", "algorithm", "integrator"),
    "rtol=": ("reltol", "rel_tol", "relative_tolerance"),
    "atol=": ("abstol", "abs_tol", "absolute_tolerance"),
    "rtol= and atol=": ("tol", "tolerance", "tolerances"),
    "t=": ("t_eval", "t_span", "tspan", "ts", "times", "saveat", "save_at", "integration_times", "solution_times"),
    "t=(t0, t1)": ("t0", "t1"),
    "step_size=": ("dt", "dt0", "h0", "first_step", "stepsize"),
    "max_step=": ("dtmax", "hmax", "maximum_step"),
    "min_step=": ("dtmin", "hmin", "minimum_step"),
    "norm=": ("internalnorm", "error_norm", "norm_fn"),
    "max_steps=": ("maxiters", "max_num_steps", "mxstep", "max_iters"),
    "args=": ("p", "params", "parameters", "constants"),
    "event=": ("events", "event_fn", "callback", "callbacks"),
    "jump_times=": ("tstops", "d_discontinuities", "jump_ts", "jump_t", "tcrit", "step_locations"),
    "jacobian=": ("jac", "jac_fn", "Dfun", "dfdy"),
    "dense=True": ("dense_output",),
    'save="steps"': ("save_everystep", "save_steps"),
    "controller=": ("stepsize_controller", "step_size_controller"),
    "controller=keras_ode.controllers.StepTo(times)": ("grid_points", "grid_constructor", "step_ts"),
    "adjoint=": ("sensealg", "sensitivity", "adjoint_method"),
    "adjoint=keras_ode.adjoints.Interpolating(rtol=..., atol=...)": ("adjoint_rtol", "adjoint_atol", "adjoint_options"),
    "on_failure=": ("throw", "strict"),
    "progress=True": ("progress_meter", "progress_bar"),
    "dynamics": ("f", "fun", "func", "fn", "vector_field", "ode_fn", "terms"),
    "y0": ("initial_state", "initial_value", "y", "u0"),
    "these keywords themselves": ("options", "kwargs"),
}
_OURS = {theirs: ours for ours, names in _ELSEWHERE.items() for theirs in names}


def explains_keywords(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The function, which answers a keyword that it does not have with the one that was probably meant."""
    known = [name for name, p in inspect.signature(function).parameters.items() if p.kind != p.VAR_KEYWORD]

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        refuse_unknown(function.__name__, kwargs, known)
        return function(*args, **kwargs)

    return call


def refuse_unknown(function, keywords, known):
    """Raises a `TypeError` for the first keyword that a function of this name does not have."""
    for name in keywords:
        if name not in known:
            meant = _meant(name, known) or f"Its keywords are {', '.join(known)}."
            raise TypeError(f"{function}() has no keyword '{name}'. {meant} Received: {name}={keywords[name]!r}")


def refuse_known_elsewhere(function, keywords, known):
    """Raises a `TypeError` for the first keyword that has another name here; others are left to who comes next."""
    for name in keywords:
        if name not in known and name in _OURS:
            refuse_unknown(function, {name: keywords[name]}, known)


def _meant(name, known):
    """What to use in place of a keyword that is unknown, as a sentence, or `None`."""
    if name in _OURS:
        return f"Use {_OURS[name]} instead."
    close = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {close[0]}?" if close else None
