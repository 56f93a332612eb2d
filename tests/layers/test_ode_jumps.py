"""Jump times that a call brings: the doses of each patient, against sums of exponentials."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_ode import ODELayer
from keras_ode.callbacks import SolverStepRecorder

K, RATE, END = 0.8, 3.0, 6.0
# When the infusions of each patient start and stop.
DOSES = np.array([[0.5, 0.9, 2.0, 2.1], [1.0, 1.2, 3.0, 4.5], [0.1, 0.2, 5.5, 5.6]], "float32")
SIGNS = np.array([-1, 1, -1, 1]) * RATE
# The amounts at the end, and how they change with each time.
AMOUNTS = np.sum(SIGNS / K * np.exp(-K * (END - DOSES.astype("float64"))), axis=1, keepdims=True)
BY_TIMES = SIGNS * np.exp(-K * (END - DOSES.astype("float64")))


@keras.saving.register_keras_serializable(package="tests")
class Infused(keras.layers.Layer):
    """`y' = -k y + rate` during each infusion."""

    def call(self, t, y, times):
        on = (t >= times[:, ::2]) & (t < times[:, 1::2])
        return -K * y + RATE * keras.ops.sum(keras.ops.cast(on, y.dtype), axis=1, keepdims=True)


def patients(**options):
    return ODELayer(Infused(), t=(0.0, END), rtol=1e-6, atol=1e-7, per_sample=True, jit_compile=False, **options)


@pytest.fixture(scope="module")
def model():
    y, times = keras.Input([1]), keras.Input([4])
    return keras.Model([y, times], patients()(y, args=(times,), jump_times=times))


INPUTS = [np.zeros([3, 1], "float32"), DOSES]


@pytest.mark.slow
def test_doses_of_each_patient_give_the_closed_form_and_its_gradient():
    layer, times = patients(), tf.constant(DOSES)

    @tf.function
    def value_and_gradient(times):
        with tf.GradientTape() as tape:
            tape.watch(times)
            amounts = layer(tf.zeros([3, 1]), args=(times,), jump_times=times)
        return amounts, tape.gradient(amounts, times)

    amounts, gradient = value_and_gradient(times)
    np.testing.assert_allclose(amounts, AMOUNTS, rtol=1e-4)
    np.testing.assert_allclose(gradient, BY_TIMES, rtol=1e-3, atol=1e-4)


def test_functional_model_takes_doses_as_an_input(model):
    np.testing.assert_allclose(model.predict(INPUTS, verbose=0), AMOUNTS, rtol=1e-4)


def test_functional_model_with_doses_is_saved(model, tmp_path):
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.predict(INPUTS, verbose=0), AMOUNTS, rtol=1e-4)


@pytest.mark.slow
def test_functional_model_with_doses_is_exported(model, tmp_path):
    model.export(str(tmp_path / "exported"), verbose=False)
    served = tf.saved_model.load(str(tmp_path / "exported"))
    np.testing.assert_allclose(served.serve(INPUTS), AMOUNTS, rtol=1e-4)


@pytest.mark.parametrize("jumps", [[0.3, 0.5], np.array([0.5, 0.3]), tf.constant([0.3, 0.5])], ids=["list", "array", "tensor"])
def test_shared_jumps_of_a_call_take_the_place_of_the_layers(jumps):
    pulse = lambda t, y: tf.where((t >= 0.3) & (t < 0.5), 1.0, 0.0) + 0 * y
    layer = ODELayer(pulse, rtol=1e-6, jump_times=[0.9], jit_compile=False)
    np.testing.assert_allclose(layer(tf.zeros([2, 1]), jump_times=jumps), np.full([2, 1], 0.2), rtol=1e-5)


def test_rows_of_jumps_need_rows_of_steps():
    with pytest.raises(ValueError, match=r"\[B, J\] with per_sample=True. Received: .*\(3, 4\)"):
        ODELayer(lambda y: -y)(tf.zeros([3, 1]), jump_times=tf.constant(DOSES))


def test_solves_with_jumps_of_a_call_are_not_recorded_in_silence(model):
    recorded = keras.Model(model.inputs, model.output)
    recorded.compile("sgd", "mse", jit_compile=False)
    with pytest.raises(ValueError, match="jump_times"):
        recorded.fit(INPUTS, AMOUNTS, verbose=0, callbacks=[SolverStepRecorder()])
