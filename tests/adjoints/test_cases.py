"""What all adjoints promise, on the cases that tell them apart."""

import functools

import hypothesis
import keras
import numpy as np
import pytest
import scipy.linalg
import tensorflow as tf

import keras_ode
from tests.gradients import ADJOINTS, compiled, eager, gradients, quick
from tests.marks import nightly, slow
from tests.references import (
    MATRIX,
    START,
    TanhNetwork,
    gradients_by_complex_step,
    linear_gradients,
    relative_error,
)
from tests.seeds import seed

EVERY = pytest.mark.parametrize("adjoint", ADJOINTS)
TIGHT = {"rtol": 1e-9, "atol": 1e-9}


# Cases 1, 2 and 4 are of one field, whose coefficients tell them apart, so that TensorFlow traces it once for each adjoint


MONOMIALS = ["p", "q", "pq", "ppq", "ppp", "qqq"]


def monomials(p, q, stack):
    """The monomials at a point, of which the derivative is a matrix of coefficients times them."""
    pq = p * q
    return stack([p, q, pq, p * pq, p * p * p, q * q * q])


def coefficients(first, second):
    """Those of `MONOMIALS`, from each coordinate's coefficients by monomial."""
    return np.array([[row.get(name, 0.0) for name in MONOMIALS] for row in (first, second)])


def planar_gradients(a, start, times, loss, adjoint, tolerance=1e-9):
    return gradients(
        lambda t, y, a: tf.linalg.matvec(a, monomials(y[0], y[1], tf.stack)),
        np.array(start),
        times,
        [a],
        loss,
        adjoint=adjoint,
        rtol=tolerance,
        atol=tolerance,
    )


def planar_reference(a, start, times, loss):
    def field(t, y, a):
        return np.einsum("nij,jn->ni", a, monomials(y[:, 0], y[:, 1], np.stack))

    return gradients_by_complex_step(field, start, times, [a], loss)


# Case 1: the cubic spiral, at ten times


SPIRAL = coefficients({"ppp": -0.1, "qqq": -2.0}, {"ppp": 2.0, "qqq": -0.1})
SPIRAL_TIMES = np.linspace(0, 25, 10)
SPIRAL_WEIGHTS = np.random.default_rng(0).normal(size=(10, 2))


@pytest.fixture(scope="module")
def spiral_reference():
    return planar_reference(SPIRAL, [2.0, 0.0], SPIRAL_TIMES, lambda ys: np.sum(ys * SPIRAL_WEIGHTS))


# Van der Pol's oscillator, in case 4, is a test of "backsolve", and case 5 one of the adjoints that differentiate the steps.
@pytest.fixture(scope="module", params=quick("interpolating"))
def spiral(request):
    return planar_gradients(SPIRAL, [2.0, 0.0], SPIRAL_TIMES, lambda ys: tf.reduce_sum(ys * SPIRAL_WEIGHTS), request.param)


@pytest.mark.parametrize("which", [0, 1, 2], ids=["state", "times", "matrix"])
def test_gradients_of_the_cubic_spiral_are_those_of_complex_steps(spiral, spiral_reference, which):
    found, expected = spiral[which], spiral_reference[which]
    if which == 2:  # the matrix is what stands before the cubes
        found, expected = found[:, 4:], expected[:, 4:]
    assert relative_error(found, expected) < 1e-4


# Case 2: a constant solution, along which steps grow without limit


LOTKA_VOLTERRA = coefficients({"p": 1.0, "pq": -1.0}, {"q": -1.0, "pq": 1.0})
# By `a`, which is in the two linear terms. The sensitivities of the states are 1 - cos t + sin t and 1 - cos t - sin t.
CONSTANT_TIMES = np.linspace(0, 10, 10)
CONSTANT_SOLUTION = np.sum(2 - 2 * np.cos(CONSTANT_TIMES))


@pytest.mark.parametrize("adjoint", [slow("backsolve"), "interpolating"])
def test_continuous_adjoints_do_not_trust_the_steps_along_a_constant_solution(adjoint):
    *_, by_coefficients = planar_gradients(LOTKA_VOLTERRA, [1.0, 1.0], CONSTANT_TIMES, tf.reduce_sum, adjoint, 1e-6)
    assert by_coefficients[0, 0] - by_coefficients[1, 1] == pytest.approx(CONSTANT_SOLUTION, abs=1e-3)


# Case 3: relaxation to a moving equilibrium


def forced_gradients(adjoint, matrix, force, start, loss):
    """The gradients of `y' = matrix y + force cos t` at ten times, in float32; one trace for each adjoint."""
    by_start, by_times, by_matrix, by_force = gradients(
        lambda t, y, a, b: tf.linalg.matvec(a, y) + b * tf.cos(t),
        np.float32(start),
        np.linspace(0, 2, 10),
        [np.float32(matrix), np.float32(force)],
        loss,
        adjoint=adjoint,
        rtol=1e-5,
        atol=1e-5,
        max_steps=128,
    )
    return {"state": by_start, "matrix": by_matrix, "times": by_times}, by_force


@pytest.mark.parametrize("adjoint", quick("interpolating"))
@pytest.mark.parametrize("rate", [1.0, 10.0, 30.0])
def test_gradient_by_the_rate_of_a_relaxation_is_that_of_the_closed_form(adjoint, rate):
    """Of `y' = -k (y - cos t)`, three times, from zero."""

    def end(k):
        forced = k / (1 + k * k)
        return forced * (k * np.cos(2) + np.sin(2)) - forced * k * np.exp(-2 * k)

    expected = end(rate + 1e-30j).imag / 1e-30
    found, by_force = forced_gradients(adjoint, -rate * np.eye(3), [rate] * 3, np.zeros(3), lambda ys: tf.reduce_mean(ys[-1]))
    assert by_force.sum() - np.trace(found["matrix"]) == pytest.approx(expected, rel=0.01)


# Case 4: Van der Pol's oscillator, whose limit cycle repels backward in time


VAN_DER_POL = coefficients({"q": 1.0}, {"p": -1.0, "q": 5.0, "ppq": -5.0})


def van_der_pol(adjoint, times, tolerance=1e-9):
    """The gradients of the end by the start, by the times, and by the damping."""
    *found, by_coefficients = planar_gradients(
        VAN_DER_POL, [2.0, 0.0], times, lambda ys: tf.reduce_sum(ys[-1]), adjoint, tolerance
    )
    return *found, by_coefficients[1, 1] - by_coefficients[1, 3]


@functools.cache
def van_der_pol_reference(end):
    *found, by_coefficients = planar_reference(VAN_DER_POL, [2.0, 0.0], [0.0, end], lambda ys: np.sum(ys[-1]))
    return *found, by_coefficients[1, 1] - by_coefficients[1, 3]


@pytest.mark.parametrize("adjoint", ["interpolating", slow("checkpointed"), slow("direct")])
def test_gradients_on_the_limit_cycle_of_van_der_pol_are_those_of_complex_steps(adjoint):
    by_state, by_times, by_mu = van_der_pol(adjoint, np.linspace(0, 20, 10))
    np.testing.assert_array_equal(by_times[1:-1], 0)  # where the loss has no state
    found, expected = (by_state, by_times[[0, -1]], by_mu), van_der_pol_reference(20.0)
    assert max(map(relative_error, found, expected)) < 1e-4


@pytest.mark.parametrize("tolerance", [1e-4, 1e-6, 1e-9])
@pytest.mark.parametrize("end", [5.0, 10.0, slow(20.0)])
def test_backsolve_on_the_limit_cycle_of_van_der_pol_is_right_or_nan(end, tolerance):
    by_state, by_times, by_mu = van_der_pol("backsolve", [0.0, end], tolerance)
    if np.isnan(by_mu):
        assert np.isnan(by_state).all()
        return
    expected = van_der_pol_reference(end)
    # Its drift is refused from the square root of the tolerance on, and the gradient's error follows the drift.
    assert max(map(relative_error, (by_state, by_mu), (expected[0], expected[2]))) < 3 * np.sqrt(tolerance)


def test_backsolve_where_it_fails_is_nan():
    assert np.isnan(van_der_pol("backsolve", [0.0, 20.0])[2])


# Case 5: Lorenz' system, where the gradient of the steps is all there is


def lorenz(stack, t, y, p):
    return stack([p[0] * (y[1] - y[0]), y[0] * (p[1] - y[2]) - y[1], y[0] * y[1] - p[2] * y[2]])


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", quick("checkpointed")[2:])
def test_discrete_adjoints_are_the_derivative_of_the_steps_of_a_chaotic_system(adjoint):
    parameters, h = np.array([10.0, 28.0, 8 / 3]), 0.01
    found = gradients(
        lambda t, y, p: lorenz(tf.stack, t, y, p),
        np.ones(3),
        [0.0, 10.0],
        [parameters],
        lambda ys: tf.reduce_sum(ys[-1]),
        adjoint=adjoint,
        solver="rk4",
        step_size=h,
    )
    # The classical method, written out; copy i has an imaginary part in scalar i.
    copies = np.concatenate([np.ones(3), parameters])[:, None] + 1e-30j * np.eye(6)
    y, p = copies[:3], copies[3:]
    for _ in range(1000):
        k1 = lorenz(np.stack, None, y, p)
        k2 = lorenz(np.stack, None, y + h / 2 * k1, p)
        k3 = lorenz(np.stack, None, y + h / 2 * k2, p)
        k4 = lorenz(np.stack, None, y + h * k3, p)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    expected = y.sum(axis=0).imag / 1e-30
    assert relative_error(found[0], expected[:3]) < 1e-6
    assert relative_error(found[2], expected[3:]) < 1e-6


# Case 6: layers


def linear_layer(matrix, adjoint, **options):
    """A layer of `y' = y M`, over one unit of time unless `options` say else."""
    dynamics = keras.layers.Dense(len(matrix), use_bias=False, dtype="float64")
    dynamics.build((None, len(matrix)))
    dynamics.kernel.assign(matrix)
    options = {"jit_compile": False, "max_steps": 64, **TIGHT, **options}
    return keras_ode.ODELayer(dynamics, adjoint=adjoint, dtype="float64", **options)


BATCH = np.stack([START, -2 * START[::-1]])


def flow_gradient(matrix, start, cotangent):
    """That of `sum(cotangent * (start expm(matrix)))` by the matrix."""
    return scipy.linalg.expm_frechet(matrix.T, start.T @ cotangent, compute_expm=False)


# That gradients go on from layer to layer, and add up, is no matter of the adjoint: one is quick, in the second of two tests.
@pytest.mark.parametrize("adjoint", quick())
def test_gradients_of_two_stacked_layers_are_those_of_matrix_exponentials(adjoint):
    first, second = MATRIX, MATRIX.T / 2
    model = keras.Sequential([linear_layer(first, adjoint), linear_layer(second, adjoint)])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(tf.constant(BATCH)))
    found = tape.gradient(loss, [v.value for v in model.trainable_variables])
    one, middle = np.ones_like(BATCH), BATCH @ scipy.linalg.expm(first)
    expected = [
        flow_gradient(first, BATCH, one @ scipy.linalg.expm(second).T),
        flow_gradient(second, middle, one),
    ]
    assert max(map(relative_error, found, expected)) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", quick("interpolating", slow_ones=[]))
def test_a_network_shared_by_two_layers_gets_the_sum_of_their_gradients(adjoint):
    first = linear_layer(MATRIX, adjoint)
    options = {"max_steps": 64, "jit_compile": False, **TIGHT}
    second = keras_ode.ODELayer(first.dynamics, t=(0.0, -0.5), adjoint=adjoint, dtype="float64", **options)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(second(first(tf.constant(BATCH))))
    # Half a unit of time in all.
    expected = flow_gradient(MATRIX / 2, BATCH, np.ones_like(BATCH)) / 2
    assert relative_error(tape.gradient(loss, first.dynamics.kernel.value), expected) < 1e-6


@pytest.mark.parametrize("adjoint", quick("backsolve"))
def test_gradients_pass_through_a_frozen_dynamics(adjoint):
    layer = linear_layer(MATRIX, adjoint)
    layer.dynamics.trainable = False
    start = tf.Variable(BATCH)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(tf.convert_to_tensor(start)))
    assert layer.trainable_variables == []
    expected = np.ones_like(BATCH) @ scipy.linalg.expm(MATRIX).T
    assert relative_error(tape.gradient(loss, start), expected) < 1e-6


@pytest.mark.parametrize("adjoint", quick("interpolating"))
@pytest.mark.slow
def test_gradients_reach_every_leaf_of_a_state_that_is_a_dict(adjoint):
    # q' = w p, p' = -w q: a turn by the angle w t.
    start = {"q": tf.constant([1.0, 2.0], tf.float64), "p": tf.constant([3.0, -1.0], tf.float64)}
    rate = tf.constant(0.8, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch((start, rate))
        ys = keras_ode.odeint(
            lambda t, y: {"q": rate * y["p"], "p": -rate * y["q"]},
            start,
            [0.0, 0.4, 1.5],
            adjoint=adjoint,
            jit_compile=False,
            **TIGHT,
        )
        loss = tf.reduce_sum(ys["q"][1] + ys["p"][2])
    by_start, by_rate = tape.gradient(loss, (start, rate))
    a, b = 0.32, 1.2
    # A hundred tolerances: the cosine and the sine nearly cancel.
    np.testing.assert_allclose(by_start["q"], [np.cos(a) - np.sin(b)] * 2, atol=1e-7)
    np.testing.assert_allclose(by_start["p"], [np.sin(a) + np.cos(b)] * 2, atol=1e-7)
    # Of the sums of both samples: q = 3, p = 2.
    expected = 0.4 * (-3 * np.sin(a) + 2 * np.cos(a)) + 1.5 * (-2 * np.sin(b) - 3 * np.cos(b))
    assert float(by_rate) == pytest.approx(expected, rel=1e-7)


# The casts stand around the network, where no adjoint sees them: each policy with two adjoints. The tests of layers train
# in "mixed_float16" too.
@pytest.mark.parametrize(
    "adjoint, policy",
    [
        nightly("backsolve", "mixed_float16"),
        ("interpolating", "mixed_bfloat16"),
        nightly("checkpointed", "mixed_bfloat16"),
        nightly("direct", "mixed_float16"),
    ],
)
@pytest.mark.slow
def test_gradients_of_a_dynamics_with_mixed_precision_are_near_those_of_float32(adjoint, policy):
    def kernel_gradients(policy):
        seed(0)
        dynamics = keras.Sequential(
            [keras.layers.Dense(16, "tanh", dtype=policy), keras.layers.Dense(3, dtype=policy)]
        )
        options = {"solver": "bosh3", "rtol": 1e-2, "atol": 1e-2, "max_steps": 64, "jit_compile": False}
        layer = keras_ode.ODELayer(dynamics, adjoint=adjoint, **options)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(tf.constant(BATCH, tf.float32)) ** 2)
        return tape.gradient(loss, [v.value for v in layer.trainable_variables])

    for found, expected in zip(kernel_gradients(policy), kernel_gradients("float32"), strict=True):
        assert found.dtype == tf.float32
        # bfloat16 has 8 bits, and some ten operations a step round to it.
        assert relative_error(found, expected) < 0.05


# The same numbers everywhere


def linear_gradients_by(adjoint, times, how=eager, **options):
    weights = np.random.default_rng(1).normal(size=(len(times), 3))
    by_state, by_times, by_matrix = gradients(
        lambda t, y, a: tf.linalg.matvec(a, y),
        START,
        times,
        [MATRIX],
        lambda ys: tf.reduce_sum(ys * weights),
        how,
        adjoint=adjoint,
        max_steps=64,
        **options,
    )
    return {"state": by_state, "matrix": by_matrix, "times": by_times}, linear_gradients(times, weights)


def largest_error(found, expected):
    return max(relative_error(found[name], expected[name]) for name in expected)


# Case 5 is a test of "checkpointed". Of two times, van der Pol's oscillator tells the same.
@pytest.mark.parametrize(
    "adjoint, number",
    [
        *((adjoint, 10) if adjoint == "interpolating" else slow(adjoint, 10) for adjoint in ADJOINTS),
        *(nightly(adjoint, 2) for adjoint in ADJOINTS),
    ],
)
@pytest.mark.parametrize("end", [2.5, -1.5])
def test_gradients_of_state_matrix_and_times_are_those_of_the_matrix_exponential(adjoint, end, number):
    found, expected = linear_gradients_by(adjoint, np.linspace(0.5, end, number), **TIGHT)
    # Tolerance 1e-9 a step, some twenty steps.
    assert largest_error(found, expected) < 1e-7


@pytest.mark.parametrize("adjoint", quick("interpolating"))
def test_float32_gradients_are_those_of_the_matrix_exponential(adjoint):
    times, weights = np.linspace(0, 2, 10), np.random.default_rng(1).normal(size=(10, 3))
    found, _ = forced_gradients(adjoint, MATRIX, np.zeros(3), START, lambda ys: tf.reduce_sum(ys * np.float32(weights)))
    assert largest_error(found, linear_gradients(times, weights)) < 5e-4


@pytest.mark.parametrize(
    "adjoint, how, number",
    [
        *((adjoint, compiled, 10) for adjoint in ADJOINTS),
        ("interpolating", tf.function, 10),
        *(nightly(adjoint, tf.function, 10) for adjoint in ADJOINTS if adjoint != "interpolating"),
        *(nightly("interpolating", how, 2) for how in (tf.function, compiled)),
    ],
)
@pytest.mark.slow
def test_gradients_in_graphs_are_those_of_eager_code(adjoint, how, number):
    # With half of the stages, XLA compiles it in half of the time; those with two times have the default.
    times, solver = np.linspace(0, 2, number), "bosh3" if number == 10 else "tsit5"
    found, _ = linear_gradients_by(adjoint, times, how, solver=solver)
    expected, _ = linear_gradients_by(adjoint, times, solver=solver)
    for name, gradient in found.items():
        # Rounding: XLA fuses and reorders; some hundred operations a step.
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-11, atol=1e-12)


# That XLA compiles the gradients of all adjoints is claimed above.
@pytest.mark.slow
@pytest.mark.parametrize(
    "adjoint, jit_compile",
    [
        *((adjoint, False) if adjoint == "interpolating" else nightly(adjoint, False) for adjoint in ADJOINTS),
        *(nightly(adjoint, True) for adjoint in ADJOINTS),
    ],
)
def test_a_step_of_fit_follows_the_gradient_of_the_matrix_exponential(adjoint, jit_compile):
    model = keras.Sequential([linear_layer(MATRIX, adjoint)])
    model.compile(keras.optimizers.SGD(0.1), lambda _, y: tf.reduce_sum(y), jit_compile=jit_compile)
    model.fit(BATCH, BATCH, epochs=1, batch_size=2, verbose=0)
    expected = MATRIX - 0.1 * flow_gradient(MATRIX, BATCH, np.ones_like(BATCH))
    np.testing.assert_allclose(model.trainable_variables[0], expected, atol=1e-6)


# What is not used, and what cannot be done


class Lazy(keras.layers.Layer):
    """A dynamics that does not use one of its layers, and one of its weights in vain."""

    def __init__(self):
        super().__init__(dtype="float64")
        self.used = keras.layers.Dense(3, use_bias=False, dtype="float64")
        self.unused = keras.layers.Dense(3, dtype="float64")

    def build(self, shape):
        self.used.build(shape)
        self.unused.build(shape)
        self.vain = self.add_weight(shape=(3,), name="vain")

    def call(self, y):
        return self.used(y) + 0 * self.vain


@pytest.mark.parametrize(
    "adjoint, how",
    [
        pytest.param("backsolve", tf.function, marks=pytest.mark.slow),
        pytest.param("interpolating", eager, marks=pytest.mark.slow),  # tests/test_dynamics.py has weights without use
        pytest.param("checkpointed", tf.function, marks=pytest.mark.slow),
        pytest.param("direct", eager, marks=pytest.mark.slow),
    ],
    ids=["backsolve-graph", "interpolating-eager", "checkpointed-graph", "direct-eager"],
)
def test_gradients_of_unused_parameters_are_zero(adjoint, how):
    layer = keras_ode.ODELayer(Lazy(), adjoint=adjoint, solver="bosh3", dtype="float64", max_steps=64, jit_compile=False)
    layer.build(BATCH.shape)
    paths = [v.path for v in layer.trainable_variables]

    @how
    def compute(y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(y))
        return tape.gradient(loss, [v.value for v in layer.trainable_variables], unconnected_gradients="zero")

    found = dict(zip(paths, compute(tf.constant(BATCH)), strict=True))
    used = layer.dynamics.used.kernel.path
    assert len(found) == 4
    assert np.all(found.pop(used) != 0)
    for path, gradient in found.items():
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient), err_msg=path)


# A backward pass of the package takes products of the field, and TensorFlow differentiates the steps of "direct".
@pytest.mark.slow
@pytest.mark.parametrize("adjoint", quick("backsolve", slow_ones=["direct"]))
def test_a_tape_inside_the_dynamics_gives_hamiltonian_gradients(adjoint):
    def hamiltonian(t, y, frequency):
        q, p = y[0], y[1]
        with tf.GradientTape() as tape:
            tape.watch([q, p])
            energy = (p**2 + frequency**2 * q**2) / 2
        by_q, by_p = tape.gradient(energy, [q, p])
        return tf.stack([by_p, -by_q])

    end, w = 2.0, 1.3
    by_start, _, by_frequency = gradients(
        hamiltonian, np.array([1.0, 0.5]), [0.0, end], [np.float64(w)], lambda ys: ys[-1, 0], adjoint=adjoint, **TIGHT
    )
    # q(t) = q0 cos w t + p0 sin(w t) / w.
    c, s = np.cos(w * end), np.sin(w * end)
    np.testing.assert_allclose(by_start, [c, s / w], rtol=1e-7)
    np.testing.assert_allclose(by_frequency, -end * s + 0.5 * (end * c / w - s / w**2), rtol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", quick("backsolve", slow_ones=["direct"]))
def test_gradients_of_operations_that_have_gradients_of_their_own_are_those_of_complex_steps(adjoint):
    # TensorFlow gives silu its derivative by a Python function.
    found = gradients(
        lambda t, y, w: tf.nn.silu(w * y),
        np.array([0.5, -1.0]),
        [0.0, 1.0],
        [np.float64(1.5)],
        lambda ys: tf.reduce_sum(ys[-1] ** 2),
        adjoint=adjoint,
        **TIGHT,
    )
    expected = gradients_by_complex_step(
        lambda t, y, w: w[:, None] * y / (1 + np.exp(-w[:, None] * y)),
        [0.5, -1.0],
        [0.0, 1.0],
        [1.5],
        lambda ys: np.sum(ys[-1] ** 2),
    )
    assert max(map(relative_error, found, expected)) < 1e-7


@pytest.mark.parametrize(
    "adjoint, how",
    [slow("backsolve", eager), ("interpolating", tf.function), slow("checkpointed", compiled)],
    ids=["backsolve-eager", "interpolating-graph", "checkpointed-compiled"],
)
def test_second_derivatives_are_refused_with_what_to_use(adjoint, how):
    @how
    def second(y):
        with tf.GradientTape() as outer:
            outer.watch(y)
            with tf.GradientTape() as inner:
                inner.watch(y)
                ys = keras_ode.odeint(lambda t, y: -(y**3), y, [0.0, 1.0], adjoint=adjoint, jit_compile=False)
                loss = tf.reduce_sum(ys[-1])
            first = inner.gradient(loss, y)
        return outer.gradient(first, y)

    with pytest.raises(NotImplementedError, match="first derivatives only.*adjoint='direct'"):
        second(tf.constant([1.0]))


# TensorFlow vectorizes the whole backward pass, which takes it up to fifteen seconds.
@pytest.mark.parametrize("adjoint", ["checkpointed", nightly("interpolating")])
@pytest.mark.slow
def test_jacobian_of_the_states_is_the_matrix_exponential(adjoint):
    start = tf.constant(START)
    with tf.GradientTape() as tape:
        tape.watch(start)
        end = keras_ode.odeint(
            lambda t, y: tf.linalg.matvec(tf.constant(MATRIX), y),
            start,
            [0.0, 1.0],
            adjoint=adjoint,
            jit_compile=False,
            **TIGHT,
        )[-1]
    np.testing.assert_allclose(tape.jacobian(end, start), scipy.linalg.expm(MATRIX), atol=1e-7)


# Case 9: random networks, times, directions and tolerances


@functools.cache
def network_solve(adjoint):
    """One function for all examples, so that each is traced once."""

    def solve(start, times, weights, tolerance):
        with tf.GradientTape() as tape:
            tape.watch((start, weights))
            ys = keras_ode.odeint(
                lambda t, y, w1, b1, w2, b2: tf.tanh(tf.tanh(y @ w1 + b1) @ w2 + b2),
                start,
                times,
                args=weights,
                adjoint=adjoint,
                rtol=tolerance,
                atol=tolerance,
                max_steps=512,
                jit_compile=False,
            )
            loss = tf.reduce_sum(ys[1:] ** 2)
        return tape.gradient(loss, (start, *weights))

    return solve


@pytest.mark.slow
@hypothesis.settings(max_examples=15, deadline=None, derandomize=True)
@hypothesis.given(
    seed=hypothesis.strategies.integers(0, 2**16),
    first=hypothesis.strategies.floats(-2, 2),
    gaps=hypothesis.strategies.lists(hypothesis.strategies.floats(0.05, 1.5), min_size=3, max_size=3),
    sign=hypothesis.strategies.sampled_from([-1, 1]),
    digits=hypothesis.strategies.integers(4, 9),
)
def test_all_adjoints_agree_with_complex_steps_on_random_networks(seed, first, gaps, sign, digits):
    network, times = TanhNetwork(seed=seed), first + sign * np.cumsum([0, *gaps])
    expected = network.gradients_by_complex_step(lambda ys: np.sum(ys[1:] ** 2), times)
    weights = tuple(map(tf.constant, network.weights))
    for adjoint in ADJOINTS:
        found = network_solve(adjoint)(tf.constant(network.start), tf.constant(times), weights, 10.0**-digits)
        found, whole = (np.concatenate([np.ravel(g) for g in gs]) for gs in (found, expected))
        # The promise of docs/gradients.md, relative to the whole gradient: parts of it may be small.
        assert np.linalg.norm(found - whole) < 100 * 10.0**-digits * np.linalg.norm(whole), adjoint


# Another: a loss that is a mean, whose cotangents are smaller than the tolerance


OF_A_MEAN = pytest.mark.parametrize("adjoint, per_sample", [slow("backsolve", True), ("interpolating", False)])


def gradient_of_a_mean(adjoint, per_sample, scale=1.0):
    """That by the rate of a turn, in single precision; each of the 2,000 rows has a cotangent of half the absolute tolerance."""
    *_, by_rate = gradients(
        lambda t, y, rate: tf.stack([rate * y[:, 1], -rate * y[:, 0]], axis=1),
        np.ones([2_000, 2], "float32"),
        np.array([0.0, 5.0], "float32"),
        [np.float32(2.0)],
        lambda ys: scale * tf.reduce_mean(ys[-1, :, 0]),
        adjoint=adjoint,
        per_sample=per_sample,
        rtol=1e-3,
        atol=1e-3,
    )
    return by_rate


@OF_A_MEAN
@pytest.mark.parametrize("scale", [slow(1e-30), nightly(1e-4), nightly(1e4)])
def test_the_gradient_of_a_scaled_loss_is_the_scaled_gradient(adjoint, scale, per_sample):
    # Rounding apart, the backward steps are the same.
    found = gradient_of_a_mean(adjoint, per_sample, scale) / scale
    np.testing.assert_allclose(found, gradient_of_a_mean(adjoint, per_sample), rtol=1e-4, atol=1e-5)


@OF_A_MEAN
def test_the_gradient_of_a_mean_over_a_batch_is_within_the_tolerance(adjoint, per_sample):
    # The first is cos rt + sin rt, whose derivative by the rate is t (cos rt - sin rt): in size up to 7.
    assert float(gradient_of_a_mean(adjoint, per_sample)) == pytest.approx(5 * (np.cos(10) - np.sin(10)), abs=0.1)


@pytest.mark.parametrize("per_sample", [True, nightly(False)])
@pytest.mark.slow
def test_the_gradient_of_a_mean_by_the_start_of_each_row_is_within_the_tolerance(per_sample):
    """There are no parameters, whose integrals would keep the backward steps short; nothing but the cotangents does."""
    by_start, _ = gradients(
        lambda t, y: tf.stack([2 * y[:, 1], -2 * y[:, 0]], axis=1),
        np.ones([2_000, 2]),
        np.array([0.0, 5.0]),
        [],
        lambda ys: tf.reduce_mean(ys[-1, :, 0]),
        adjoint="interpolating",
        per_sample=per_sample,
        rtol=1e-3,
        atol=1e-3,
    )
    expected = np.array([[np.cos(10), np.sin(10)]] * 2_000) / 2_000
    assert relative_error(by_start, expected) < 0.02


# Case 10: a stiff field, which multiplies the errors of states that are interpolated


@pytest.mark.parametrize("adjoint, solver, per_sample", [
    slow("interpolating", "rodas5p", False),
    slow("checkpointed", "kvaerno5", False),
    nightly("interpolating", "kvaerno5", True),
    nightly("checkpointed", "auto", False),
    nightly("interpolating", "bdf", False),
])
def test_gradients_by_times_within_a_stiff_solve_are_those_of_the_closed_form(adjoint, solver, per_sample):
    """`y' = -10,000 (y - cos t) - sin t` from one has the solution `cos t`."""
    grid, weights = np.array([0.0, 0.3, 0.7, 1.1, 2.0]), np.array([0.0, 2.0, -1.0, 0.5, 0.0])
    t = tf.constant(np.stack([grid, grid]) if per_sample else grid)
    with tf.GradientTape() as tape:
        tape.watch(t)
        ys = keras_ode.odeint(
            lambda t, y: -1e4 * (y - tf.cos(t)) - tf.sin(t),
            tf.ones([2, 1], tf.float64),
            t,
            solver=solver, adjoint=adjoint, per_sample=per_sample, rtol=1e-6, atol=1e-6, jit_compile=False,
        )  # fmt: skip
        loss = tf.reduce_sum(weights[:, None] * ys[:, 0])
    found = tape.gradient(loss, t)
    # Interpolants of order three to five: about ten thousand tolerances. The field would be wrong by one.
    np.testing.assert_allclose(found[0] if per_sample else found, -weights * np.sin(grid), atol=0.01)
