"""How the arguments of a dynamics are told apart, and which are refused."""

import dataclasses
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ode
from keras_ode.signature import arguments_of, check_signature, takes_time
from tests.marks import slow


def odeint_order(y, t):
    return -y


class TimeBehind(keras.layers.Layer):
    def call(self, y, t):
        return -y


class Bound:
    def field(self, state, time):
        return -state


def model_of(*shapes, names=None):
    inputs = [keras.Input(shape, name=name) for shape, name in zip(shapes, names or [None] * len(shapes), strict=True)]
    return keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Concatenate()(inputs)))


REFUSED = [
    (odeint_order, 0, "takes the time after the state, \\(y, t\\).*`lambda t, y: odeint_order\\(y, t\\)` in its place"),
    (lambda x, time: x, 0, "`lambda time, x: f\\(x, time\\)`"),
    (lambda y, t=0.0: y, 0, "`lambda t, y: f\\(y, t\\)`"),
    (lambda y, t, k: y, 1, "`lambda t, y, k: f\\(y, t, k\\)`"),
    (lambda u, p, t: u, 1, "`lambda t, u, p: f\\(u, p, t\\)`"),
    (Bound().field, 0, "`lambda time, state: field\\(state, time\\)`"),
    (functools.partial(lambda k, y, t: y, 1.0), 0, "takes the time after the state"),
    (tf.function(odeint_order), 0, "takes the time after the state"),
    (TimeBehind(), 0, "Define its call as call\\(self, t, y\\)"),
    (model_of([2], [1], names=["x", "t"]), 0, "keras.Model\\(\\[t, x\\], ...\\)"),
    (lambda t: tf.cos(t), 0, "depends on the time alone, take the state as well: \\(t, y\\)"),
    (lambda t, k: k, 1, "take the state as well: \\(t, y, k\\)"),
    (lambda y, *, t: y, 0, "'t' by name only.*`lambda t, y: f\\(y, t=t\\)`"),
    (lambda y, *, t=0.0: y, 0, "'t' by name only"),
    (lambda t, y, *, k: y, 0, "'k' can be passed by name only.*functools.partial\\(f, k=...\\)"),
    (lambda y=0.0, k=1.0: y, 0, "All arguments .* have defaults"),
    (lambda t, y, u: y, 0, "Pass the further arguments as args"),
]


@pytest.mark.parametrize("function, num_args, words", REFUSED)
def test_what_is_no_dynamics_is_refused_with_the_fix(function, num_args, words):
    with pytest.raises(TypeError, match=words):
        takes_time(function, num_args)


def test_model_of_too_many_inputs_is_refused():
    with pytest.raises(TypeError, match="keras.Model\\(\\[t, y\\], ...\\).*for a state and 0 args"):
        takes_time(model_of([2], [1], [1]), 0, tf.ones([3, 2]))


@pytest.mark.parametrize(
    "function, num_args, expected",
    [
        (functools.partial(lambda y, t: y, t=0.5), 0, False),  # a partial has given the time
        (lambda *args: args[1], 0, True),
        (lambda t, *rest: rest[0], 0, True),
        (lambda y, *rest: y, 0, False),
        (lambda t=0.0, y=0.0: y, 0, True),
        (lambda t, y, time=None: y, 0, True),
        (lambda y, *, k=1.0: y, 0, False),
        (model_of([1], [2]), 0, True),
        (model_of([1], [2], names=["t", "y"]), 0, True),
        (model_of([1], [2], [1]), 1, True),
        (model_of([2], [1]), 1, False),
    ],
)
def test_what_is_clear_is_taken(function, num_args, expected):
    assert takes_time(function, num_args) == expected


def test_scipy_order_is_refused_by_solve_and_by_the_layer_alike():
    for make in (lambda: keras_ode.solve(odeint_order, tf.ones([1]), [0.0, 1.0]), lambda: keras_ode.ODELayer(TimeBehind())):
        with pytest.raises(TypeError, match="after the state"):
            make()


def test_layer_accepts_a_dynamics_whose_further_arguments_come_with_the_call():
    check_signature(lambda t, y, u, v: y)
    with pytest.raises(TypeError, match="after the state"):
        check_signature(lambda y, t, u: y)


def product_model(t_shape, **options):
    """A functional model of `y' = t y`, so that `y(1) = exp(1 / 2)`."""
    t, y = keras.Input(t_shape, **options), keras.Input([2])
    time = keras.layers.Reshape([1])(t) if not t_shape else t
    return keras.Model([t, y], keras.layers.Multiply()([time, y]))


@pytest.mark.parametrize("per_sample", [slow(False), True])
@pytest.mark.parametrize("t_shape", [(1,), ()])
def test_functional_model_of_two_inputs_is_a_dynamics_of_time(t_shape, per_sample):
    layer = keras_ode.ODELayer(product_model(t_shape), rtol=1e-6, per_sample=per_sample, jit_compile=False)
    np.testing.assert_allclose(layer(tf.ones([3, 2])), np.full([3, 2], np.exp(0.5)), rtol=1e-5)


def test_functional_model_of_a_dict_takes_the_time_by_name():
    inputs = {"t": keras.Input([1], name="t"), "y": keras.Input([2], name="y")}
    model = keras.Model(inputs, keras.layers.Multiply()([inputs["t"], inputs["y"]]))
    ys = keras_ode.odeint(model, tf.ones([3, 2]), [0.0, 1.0], rtol=1e-6, jit_compile=False)
    np.testing.assert_allclose(ys[-1], np.full([3, 2], np.exp(0.5)), rtol=1e-5)


def test_functional_model_of_two_inputs_is_a_dynamics_of_a_pair():
    q, p = keras.Input([1]), keras.Input([1])
    model = keras.Model([q, p], [p, keras.layers.Rescaling(-1.0)(q)])
    q, p = keras_ode.odeint(model, (tf.ones([3, 1]), tf.zeros([3, 1])), [0.0, 1.0], rtol=1e-6, jit_compile=False)
    np.testing.assert_allclose(q[-1], np.full([3, 1], np.cos(1)), rtol=1e-5)


def test_functional_model_of_time_stands_in_a_stack():
    model = product_model((1,))
    (inputs,) = arguments_of(model, tf.constant(2.0), tf.ones([3, 2]))
    np.testing.assert_array_equal(model(inputs), np.full([3, 2], 2))
    stack = keras_ode.layers.TimeSequential([model, keras.layers.Dense(2, kernel_initializer="identity")])
    np.testing.assert_array_equal(stack(tf.constant(2.0), tf.ones([3, 2])), np.full([3, 2], 2))


def pendulum(t, y):
    return [y[1], -y[0]]


HOW = pytest.mark.parametrize("how", [lambda f: f, tf.function], ids=["eager", "graph"])


@HOW
@pytest.mark.parametrize("dtype", [tf.float32, slow(tf.float64)])
def test_list_of_numbers_is_the_derivative_of_a_vector(how, dtype):
    y0 = tf.constant([1.0, 0.0], dtype)
    ys = how(lambda: keras_ode.odeint(pendulum, y0, [0.0, 1.0], rtol=1e-6, jit_compile=False))()
    np.testing.assert_allclose(ys[-1], [np.cos(1), -np.sin(1)], rtol=1e-5)


def test_python_numbers_take_the_precision_of_the_state():
    y0 = tf.zeros([2], tf.float64)
    ys = keras_ode.odeint(lambda t, y: [2.0, t], y0, [0.0, 1.0], jit_compile=False)
    np.testing.assert_allclose(ys[-1], [2, 0.5], rtol=1e-12)
    y = keras_ode.odeint(lambda t, y: 3.0, tf.constant(0.0, tf.float64), [0.0, 1.0], jit_compile=False)
    np.testing.assert_allclose(y[-1], 3, rtol=1e-12)


@pytest.mark.parametrize("of_state, of_derivative", [(list, tuple), (tuple, list)])
def test_list_stands_for_a_tuple_and_a_tuple_for_a_list(of_state, of_derivative):
    y0 = of_state([tf.ones([1]), {"p": (tf.zeros([1]),)}])
    field = lambda t, y: of_derivative([y[1]["p"][0], {"p": [-y[0]]}])
    q, p = keras_ode.odeint(field, y0, [0.0, 1.0], rtol=1e-6, jit_compile=False)
    np.testing.assert_allclose([q[-1], p["p"][0][-1]], [[np.cos(1)], [-np.sin(1)]], rtol=1e-5)


@pytest.mark.parametrize("derivative", [
    lambda y: [y, y],
    lambda y: {"q": y},
    lambda y: [y[0], y[1]],
])
def test_nest_of_another_kind_is_refused(derivative):
    with pytest.raises(ValueError, match="must return the nested structure of the state"):
        keras_ode.odeint(lambda t, y: derivative(y), tf.ones([2, 2]), [0.0, 1.0])


def test_list_of_columns_is_refused_with_the_fix():
    with pytest.raises(ValueError, match=r"tf.stack\(\[...\], axis=-1\)"):
        keras_ode.odeint(lambda t, y: [y[:, 1], -y[:, 0]], tf.ones([3, 2]), [0.0, 1.0])


# What holds methods, and what TensorFlow takes for one value


class Decay(tf.Module):
    @tf.function
    def field(self, t, y):
        return -y

    def plain(self, y):
        return -y


@pytest.mark.parametrize("method", [Decay.field, Decay.plain], ids=["tf.function", "function"])
def test_method_without_its_object_is_refused_for_that_reason(method):
    with pytest.raises(TypeError, match=r"is a method of a class, without an object to call it on: its arguments are \(self, "):
        takes_time(method)


def test_methods_of_an_object_and_functions_of_layers_are_understood():
    decay, one = Decay(), tf.constant([[1.0]])
    dense = keras.layers.Dense(1, use_bias=False, kernel_initializer=lambda *_, **__: [[-1.0]])
    for dynamics in (decay.field, decay.plain, functools.partial(Decay.field, decay), tf.function(dense)):
        found = keras_ode.odeint(dynamics, one, [0.0, 1.0], rtol=1e-5, jit_compile=False)[-1]
        np.testing.assert_allclose(found, [[np.exp(-1.0)]], rtol=1e-4)


@dataclasses.dataclass
class Plain:
    a: tf.Tensor


@dataclasses.dataclass
class Nest(Plain):
    def __tf_flatten__(self):
        return (), (self.a,)

    @classmethod
    def __tf_unflatten__(cls, _, parts):
        return cls(*parts)


def test_dataclass_is_a_state_and_an_argument_where_tensorflow_takes_it_for_a_nest():
    one, rate = tf.constant([1.0]), Nest(tf.constant(2.0))
    options = {"rtol": 1e-5, "jit_compile": False}
    found = keras_ode.solve(lambda t, y, k: Nest(-k.a * y.a), Nest(one), [0.0, 1.0], args=(rate,), **options).ys
    assert isinstance(found, Nest)
    np.testing.assert_allclose(found.a[-1], [np.exp(-2.0)], rtol=1e-4)


def test_other_dataclasses_are_refused_with_what_to_write():
    one, hint = tf.constant([1.0]), "The dataclass Plain is a nested structure for TensorFlow only if .* use a dict or a NamedTuple"
    with pytest.raises(TypeError, match=f"y0 must be .*{hint}"):
        keras_ode.solve(lambda y: y, Plain(one), [0.0, 1.0])
    with pytest.raises(TypeError, match=f"args must contain .*{hint}"):
        keras_ode.solve(lambda y, k: -k.a * y, one, [0.0, 1.0], args=(Plain(one),))
    with pytest.raises(TypeError, match=f"must return dense tensors.*{hint}"):
        keras_ode.solve(lambda y: Plain(-y), one, [0.0, 1.0])
    with pytest.raises(ValueError, match="must return the nested structure of the state.*Received: Plain"):
        keras_ode.solve(lambda a, b: Plain(-b[0]), (one, one), [0.0, 1.0])
