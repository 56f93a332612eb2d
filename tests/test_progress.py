"""`solve(..., progress=True)`: what is printed."""

import re

import pytest
import tensorflow as tf

import keras_ode


def solve(**options):
    options = {"solver": "euler", "step_size": 0.01, "progress": True, **options}
    return keras_ode.solve(lambda y: -y, tf.ones([2]), [0.0, 4.0], **options)


def percents(text):
    return [int(x) for x in re.findall(r"(\d+)/100", text)]


def test_bar_rises_to_a_hundred_percent_and_ends_its_line(capsys):
    solve()
    text = capsys.readouterr().out
    shown = percents(text)
    assert shown == sorted(shown) and shown[-1] == 100
    assert "t: 4.0000" in text and "step_size: 0.0100" in text
    assert text.endswith("\n")


def test_bar_of_a_failed_solve_stays_where_it_stopped(capsys):
    with pytest.raises(keras_ode.SolveError):
        solve(max_steps=100)
    assert percents(capsys.readouterr().out)[-1] == 25


def test_bar_of_samples_is_that_of_the_slowest(capsys):
    keras_ode.solve(
        lambda y: -y,
        tf.ones([2, 1]),
        [[0.0, 1.0], [0.0, 4.0]],
        solver="euler",
        step_size=0.5,
        max_steps=4,
        per_sample=True,
        progress=True,
        on_failure="nan",
    )
    assert percents(capsys.readouterr().out)[-1] == 50


def test_bar_and_a_function_see_the_same_solve(capsys):
    count = tf.Variable(0)
    solve(on_step=lambda info: count.assign_add(1))
    assert int(count) == 400
    assert percents(capsys.readouterr().out)[-1] == 100


def test_bar_is_refused_in_a_graph():
    with pytest.raises(ValueError, match="progress=True works in eager code only"):
        tf.function(lambda: solve().ys)()


def test_bar_is_refused_under_xla():
    with pytest.raises(ValueError, match="XLA cannot compile a progress bar"):
        solve(jit_compile=True)
