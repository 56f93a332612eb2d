"""`solve(..., on_step=fn)`: what the function is called with, and when."""

import numpy as np
import pytest
import tensorflow as tf

import keras_ode
from keras_ode.execution import _compiled
from tests.gradients import quick
from tests.references import cosine


class Recording:
    """An `on_step` function that keeps what it sees in variables, so that XLA can compile it."""

    def __init__(self, *shape, capacity=64, dtype="float64"):
        self.count = tf.Variable(0)
        self.columns = {
            name: tf.Variable(tf.zeros([capacity, *shape], dtype)) for name in ("t", "step_size", "error", "accepted", "running")
        }

    def __call__(self, info):
        for name, column in self.columns.items():
            column.scatter_nd_update([[self.count]], [tf.cast(getattr(info, name), column.dtype)])
        self.count.assign_add(1)

    def take(self):
        count = int(self.count)
        self.count.assign(0)
        return {name: column.numpy()[:count] for name, column in self.columns.items()}


def solve(on_step, t=(0.0, 3.0), **options):
    options = {"rtol": 1e-4, "jit_compile": False, **options}
    return keras_ode.solve(cosine, tf.constant([1.0], "float64"), t, on_step=on_step, **options)


@pytest.fixture(scope="module")
def seen():
    """A solve whose first step is far too long, and what its function saw."""
    recording = Recording()
    solution = solve(recording, step_size=3.0)
    return solution, recording.take()


def test_accepted_steps_tile_the_interval(seen):
    steps = seen[1]
    accepted = steps["accepted"] == 1
    np.testing.assert_allclose(steps["t"][accepted], np.cumsum([0, *steps["step_size"][accepted][:-1]]), atol=1e-12)
    np.testing.assert_allclose(steps["step_size"][accepted].sum(), 3.0, rtol=1e-12)


def test_rejected_steps_are_seen_with_errors_above_one(seen):
    solution, steps = seen
    assert len(steps["t"]) == solution.stats["num_steps"]
    assert np.sum(steps["accepted"] == 0) == solution.stats["num_rejected"] > 0
    np.testing.assert_array_equal(steps["error"] <= 1, steps["accepted"] == 1)


def test_constant_steps_start_at_multiples_of_the_step_size():
    recording = Recording()
    solve(recording, controller="constant", step_size=0.25, t=(1.0, 0.0))
    steps = recording.take()
    np.testing.assert_allclose(steps["t"], [1.0, 0.75, 0.5, 0.25])
    np.testing.assert_allclose(steps["step_size"], np.full(4, 0.25))


def test_state_is_the_one_that_the_step_reached_as_a_nest_like_the_first(capfd):
    y0 = {"b": tf.constant([2.0]), "a": tf.constant(1.0)}

    def on_step(info):
        tf.print("seen", info.y["a"], info.y["b"])

    keras_ode.solve(lambda y: {"a": -2 * y["a"], "b": y["b"] * 0}, y0, [0.0, 1.0], solver="euler", step_size=0.25, on_step=on_step)
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("seen")]
    assert lines == ["seen 0.5 [2]", "seen 0.25 [2]", "seen 0.125 [2]", "seen 0.0625 [2]"]


@pytest.mark.parametrize("adjoint", quick("interpolating", slow_ones=["direct"]))
def test_backward_pass_does_not_call_the_function(adjoint):
    recording = Recording()
    y0 = tf.constant([1.0], "float64")
    with tf.GradientTape() as tape:
        tape.watch(y0)
        last = keras_ode.solve(
            cosine, y0, [0.0, 1.0], controller="constant", step_size=0.125, adjoint=adjoint, max_steps=8, on_step=recording
        ).ys[-1]
    gradient = tape.gradient(last, y0)
    assert len(recording.take()["t"]) == 8
    np.testing.assert_allclose(gradient, [np.exp(np.sin(1.0))], rtol=1e-4)


def test_samples_have_steps_of_their_own():
    recording = Recording(2)
    keras_ode.solve(
        cosine,
        tf.ones([2, 1], "float64"),
        [[0.0, 1.0], [0.0, 3.0]],
        controller="constant",
        step_size=0.5,
        per_sample=True,
        jit_compile=False,
        on_step=recording,
    )
    steps = recording.take()
    np.testing.assert_array_equal(steps["running"], [[1, 1], [1, 1], [0, 1], [0, 1], [0, 1], [0, 1]])
    np.testing.assert_array_equal(steps["accepted"], steps["running"])
    np.testing.assert_allclose(steps["step_size"].sum(axis=0), [1.0, 3.0])


@pytest.mark.slow
def test_steps_up_to_an_event_are_seen_once():
    recording = Recording()
    event = keras_ode.Event(lambda t, y: t - 0.6)
    solve(recording, controller="constant", step_size=0.25, event=event)
    steps = recording.take()
    np.testing.assert_allclose(steps["t"], [0.0, 0.25, 0.5])
    np.testing.assert_allclose(steps["step_size"], [0.25, 0.25, 0.1], rtol=1e-9)


def test_xla_compiles_a_function_of_tensors_and_variables():
    recording = Recording()
    solve(recording, controller="constant", step_size=0.75, jit_compile=True)
    np.testing.assert_allclose(recording.take()["t"], [0.0, 0.75, 1.5, 2.25])


def test_functions_that_do_the_same_share_a_compiled_solve_and_others_do_not():
    total = tf.Variable(0.0, dtype="float64")
    solve(lambda info: total.assign_add(info.step_size), controller="constant", step_size=1.0)
    before = len(_compiled)
    solve(lambda info: total.assign_add(info.step_size), controller="constant", step_size=1.0)
    assert len(_compiled) == before
    solve(lambda info: total.assign_sub(info.step_size), controller="constant", step_size=1.0)
    assert len(_compiled) == before + 1
    np.testing.assert_allclose(total, 3.0)


@pytest.mark.parametrize(
    "on_step",
    [lambda info: tf.print(info.t), lambda info: tf.py_function(lambda t: None, [info.t], [])],
    ids=["print", "py_function"],
)
def test_function_that_needs_the_host_is_refused_under_xla(on_step):
    with pytest.raises(ValueError, match="which XLA cannot compile"):
        solve(on_step, jit_compile=True)


def test_function_that_needs_the_host_within_a_branch_is_refused_in_an_outer_xla_function():
    def on_step(info):
        if info.accepted:
            tf.print(info.t)

    with pytest.raises(ValueError, match="PrintV2 on the host"):
        tf.function(lambda: solve(on_step, jit_compile="auto").ys, jit_compile=True)()


@pytest.mark.parametrize("order", [1, -1])
def test_solve_with_jumps_is_another_than_one_without(order):
    """There are as many jumps as times, so that their tensors are alike."""
    _compiled.clear()
    ends = [solve(lambda info: None, (0.0, 1.0), solver="bosh3", **options).ys[-1] for options in [{}, {"jump_times": [0.3, 0.6]}][::order]]
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-3)


def test_what_is_no_function_is_refused():
    with pytest.raises(TypeError, match="on_step=3"):
        solve(3)
