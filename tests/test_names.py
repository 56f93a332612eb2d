"""Keywords that are unknown are answered with those that were meant."""

import inspect

import pytest
import tensorflow as tf

import keras_ode
from keras_ode.names import _OURS

ONE = tf.ones([1, 1])


def decay(t, y):
    return -y


CALLS = {
    "solve": lambda **options: keras_ode.solve(decay, ONE, [0.0, 1.0], **options),
    "odeint": lambda **options: keras_ode.odeint(decay, ONE, [0.0, 1.0], **options),
    "ODELayer": lambda **options: keras_ode.ODELayer(decay, **options),
    "ODELayer.solve": lambda **options: keras_ode.ODELayer(decay).solve(ONE, **options),
}


@pytest.mark.parametrize("function", CALLS)
def test_name_from_elsewhere_is_answered_with_ours_under_the_name_that_was_called(function):
    with pytest.raises(TypeError, match=rf"^{function}\(\) has no keyword 'method'. Use solver= .*method='dopri5'"):
        CALLS[function](method="dopri5")


@pytest.mark.parametrize("function", ["solve", "odeint", "ODELayer.solve"])
def test_misspelled_keyword_is_answered_with_the_nearest(function):
    with pytest.raises(TypeError, match=r"'maxsteps'. Did you mean max_steps\? Received: maxsteps=7"):
        CALLS[function](maxsteps=7)


def test_keyword_that_resembles_none_is_answered_with_all():
    with pytest.raises(TypeError, match=r"Its keywords are .*solver, rtol, atol.*Received: xyz=1"):
        CALLS["odeint"](xyz=1)


def test_every_answer_is_a_keyword_of_solve():
    keywords = inspect.signature(keras_ode.solve).parameters
    answers = {part.split("=")[0] for ours in _OURS.values() for part in ours.split(" and ")}
    assert answers - set(keywords) == {"these keywords themselves"}
    assert not set(_OURS) & set(keywords)
