"""The 25 problems of DETEST, one by one and by class as rows of a batch, against SciPy."""

import numpy as np
import pytest
import tensorflow as tf

import keras_ode
from tests import detest
from tests.marks import graded

TOLERANCE = 1e-6
# No observer keeps anything for a gradient.
OPTIONS = {
    "rtol": TOLERANCE,
    "atol": TOLERANCE,
    "max_steps": 2000,
    "jit_compile": False,
    "adjoint": keras_ode.adjoints.Backsolve(checkpoints=0),
}
# The method of the same order in SciPy: the errors of a problem depend on how it amplifies those of the steps, the same for both.
PEERS = {"bosh3": "RK23", "dopri5": "RK45", "tsit5": "RK45", "dopri8": "DOP853"}
# Between pairs of one order, at one tolerance.
MOST = 5

EVERY = [(name, solver) for name in detest.CLASSES for solver in PEERS]
# Every class with two solvers, and one class with all of them.
AS_ROWS = [case for case in EVERY if case[1] in ("dopri8", "tsit5") or case[0] == "E"]


def check(problem, solver, state):
    expected = problem.reference()
    peer = np.max(np.abs(problem.solved_by(PEERS[solver], TOLERANCE) - expected))
    assert np.max(np.abs(state[: problem.size] - expected)) <= MOST * max(peer, TOLERANCE), problem.name


@pytest.mark.parametrize("case", graded(EVERY, quick=[("A", "tsit5")], slow_ones=[("B", "dopri8"), ("D", "bosh3")]), ids="-".join)
def test_problems_solved_one_by_one_are_as_accurate_as_by_scipy(case):
    name, solver = case
    tiled = detest.Tiled(detest.CLASSES[name])

    @tf.function(autograph=False)
    def solve(start, which):
        return keras_ode.solve(tiled.one, start, [0.0, detest.END], args=(which,), solver=solver, **OPTIONS).ys[-1]

    for i, problem in enumerate(tiled.problems):
        check(problem, solver, solve(tf.constant(tiled.starts[i]), tf.constant(i)).numpy())


@pytest.mark.parametrize("case", graded(EVERY, quick=[("B", "tsit5")], slow_ones=AS_ROWS), ids="-".join)
def test_problems_solved_as_rows_of_a_batch_are_as_accurate_as_by_scipy(case):
    name, solver = case
    tiled = detest.Tiled(detest.CLASSES[name])
    states = keras_ode.solve(tiled.rows, tiled.starts, [0.0, detest.END], solver=solver, per_sample=True, **OPTIONS).ys[-1]
    for i, problem in enumerate(tiled.problems):
        check(problem, solver, states[i].numpy())
