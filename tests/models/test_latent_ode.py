"""Latent ODEs against linear Gaussian models, whose evidence has a closed form."""

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

import keras_ode
from keras_ode.layers import ODERNN
from keras_ode.models import LatentODE

TIMES = np.array([0.0, 0.5, 1.0], "float32")
RATE, NOISE = -0.7, 0.5


def decay(noise=NOISE, **options):
    """`z' = -0.7 z` from a standard normal, seen with noise: a posterior that does not look at the data."""
    dynamics, decoder = keras.layers.Dense(1, use_bias=False), keras.layers.Dense(1, use_bias=False)
    options = {"t": TIMES, "rtol": 1e-5, "jit_compile": False, **options}
    model = LatentODE(keras.layers.GRU(2, go_backwards=True), dynamics, decoder, latent_dim=1, noise=noise, **options)
    model.compile(jit_compile=False)
    return model


def set_posterior(model, mean, scale):
    dynamics, decoder = model.ode.dynamics, model.decoder
    dynamics.set_weights([np.array([[RATE]])])
    decoder.set_weights([np.array([[1.0]])])
    model.posterior.set_weights([np.zeros((2, 2)), np.array([mean, np.log(np.expm1(scale - 1e-4))])])


def rows(series, count=4000):
    return np.tile(np.asarray(series, "float32")[None, :, None], (count, 1, 1))


SERIES = [0.9, 0.5, 0.6]
# x = h z + noise: the textbook's posterior and evidence.
H = np.exp(RATE * TIMES.astype("float64"))
VARIANCE = 1 / (1 + H @ H / NOISE**2)
MEAN = VARIANCE * (H @ SERIES) / NOISE**2
EVIDENCE = scipy.stats.multivariate_normal(np.zeros(3), np.outer(H, H) + NOISE**2 * np.eye(3)).logpdf(SERIES)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    model = decay()
    model(rows(SERIES, 2))
    return model


@pytest.mark.slow
def test_bound_is_the_evidence_where_the_posterior_is_exact(model):
    set_posterior(model, MEAN, np.sqrt(VARIANCE))
    # The standard deviation of the bound's estimate is about 0.7 / sqrt(4,000).
    np.testing.assert_allclose(-model.evaluate(rows(SERIES), batch_size=4000, verbose=0), EVIDENCE, atol=0.04)


def test_bound_falls_short_by_the_divergence_of_the_posterior_from_the_exact_one(model):
    set_posterior(model, MEAN + 0.5, np.sqrt(VARIANCE))
    gap = 0.5**2 / (2 * VARIANCE)
    np.testing.assert_allclose(-model.evaluate(rows(SERIES), batch_size=4000, verbose=0), EVIDENCE - gap, atol=0.1)


def test_encode_gives_the_posterior_and_decode_the_way_of_its_mean(model):
    set_posterior(model, MEAN, np.sqrt(VARIANCE))
    posterior = model.encode(rows(SERIES, 2))
    np.testing.assert_allclose(posterior.mean(), np.full([2, 1], MEAN), rtol=1e-5)
    np.testing.assert_allclose(posterior.stddev(), np.full([2, 1], np.sqrt(VARIANCE)), rtol=1e-5)
    np.testing.assert_allclose(model.decode(posterior.mean())[0, :, 0], MEAN * H, rtol=1e-4)


def test_posterior_is_narrow_at_the_start():
    """So that the decoder sees the latent state and not noise; the prior's standard deviation is one."""
    assert np.all(decay().encode(rows(SERIES, 2)).stddev() < 0.3)


@pytest.mark.parametrize("times", [[0.0, 1.0, 3.0], [0.0, -1.0, -2.0]], ids=["forward", "backward"])
def test_extrapolation_goes_both_ways_in_time(model, times):
    set_posterior(model, MEAN, np.sqrt(VARIANCE))
    found = model.decode(tf.ones([1, 1]), times)
    np.testing.assert_allclose(found[0, :, 0], np.exp(RATE * np.array(times)), rtol=1e-4)


def irregular(count=6, length=5):
    """Values, times of each, padded, and a mask."""
    random = np.random.default_rng(0)
    times = np.cumsum(random.uniform(0.1, 0.4, (count, length)), axis=1).astype("float32")
    mask = random.uniform(size=(count, length)) < 0.8
    times[:, -1], mask[:, -1] = times[:, -2], False
    return {"values": random.normal(size=(count, length, 1)).astype("float32"), "times": times, "mask": mask}


def encoder(kind):
    if kind == "recurrent":
        return keras.layers.GRU(4, go_backwards=True)
    return ODERNN(keras.layers.GRUCell(4), keras.layers.Dense(4, activation="tanh"), go_backwards=True, per_sample=True, jit_compile=False)


@pytest.fixture(scope="module", params=["recurrent", pytest.param("ode-rnn", marks=pytest.mark.slow)])
def irregular_model(request):
    keras.utils.set_random_seed(0)
    dynamics = keras.layers.Dense(2, activation="tanh")
    model = LatentODE(encoder(request.param), dynamics, keras.layers.Dense(1), 2, noise=1.0, per_sample=True, jit_compile=False)
    model.compile(keras.optimizers.Adam(0.03), jit_compile=False)
    losses = model.fit(irregular(), epochs=25, batch_size=6, verbose=0).history["loss"]
    return model, losses


@pytest.mark.slow
def test_fit_lowers_the_bound_on_irregular_masked_series(irregular_model):
    losses = irregular_model[1]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.1


@pytest.mark.slow
def test_what_is_masked_counts_neither_in_the_posterior_nor_in_the_bound(irregular_model):
    model, inputs = irregular_model[0], irregular()
    changed = {**inputs, "values": np.where(inputs["mask"][..., None], inputs["values"], np.nan).astype("float32")}
    np.testing.assert_array_equal(model.encode(inputs).mean(), model.encode(changed).mean())
    losses = []
    for x in (inputs, changed):
        keras.utils.set_random_seed(1)
        losses.append(float(model.compute_loss(x, None, model(x))))
    np.testing.assert_array_equal(*losses)


def test_model_is_saved_and_loaded(irregular_model, tmp_path):
    model, inputs = irregular_model[0], irregular()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.encode(inputs).mean(), model.encode(inputs).mean())


def test_times_of_each_series_need_per_sample(model):
    with pytest.raises(ValueError, match="per_sample=True"):
        model({"values": rows(SERIES, 2), "times": np.tile(TIMES, (2, 1))})


def test_missing_times_are_asked_for(model):
    with pytest.raises(ValueError, match="as many values as there are times"):
        model(tf.zeros([2, 7, 1]))


def test_weights_of_series_are_refused(irregular_model):
    with pytest.raises(ValueError, match=r"no weights of series: leave sample_weight.*Received: sample_weight of type ndarray"):
        irregular_model[0].fit(irregular(), sample_weight=np.ones(6), batch_size=6, verbose=0)


@pytest.mark.parametrize("decoded, observed", [(1, 2), (2, 1)])
def test_decoder_of_another_number_of_features_is_refused(decoded, observed):
    model, values = decay(), tf.zeros([2, 3, observed])
    with pytest.raises(ValueError, match=rf"shape \(2, 3, {observed}\). Received: decoded values of shape \(2, 3, {decoded}\)"):
        model.compute_loss(values, y_pred=tf.zeros([2, 3, decoded]))


def test_times_far_from_zero_are_subtracted_before_they_are_rounded():
    """Timestamps in seconds, of which float32 resolves 128."""
    times = np.array([[0.0, 0.5, 1.0]])
    model, values = decay(per_sample=True), tf.constant(rows(SERIES, 1))
    near, far = (model.encode({"values": values, "times": start + times}).mean() for start in (0.0, 1.7e9))
    np.testing.assert_array_equal(near, far)


def test_random_times_are_refused():
    with pytest.raises(ValueError, match="none can be random.*Received: t="):
        decay(t=keras_ode.regularizers.random_end_time())


def test_noise_must_be_positive():
    with pytest.raises(ValueError, match="noise must be a positive number. Received: noise=0"):
        decay(noise=0)


@pytest.mark.slow
def test_series_of_the_data_sets_fit_the_model():
    times, values = keras_ode.datasets.periodic(3, num_times=6)
    model = LatentODE(encoder("recurrent"), keras.layers.Dense(2, activation="tanh"), keras.layers.Dense(1), 2, per_sample=True, jit_compile=False)
    assert model({"values": values, "times": times}).shape == (3, 6, 1)


def test_sequences_are_always_returned():
    with pytest.raises(ValueError, match="leave return_sequences out. Received: return_sequences=False"):
        LatentODE(keras.layers.GRU(2), keras.layers.Dense(2), keras.layers.Dense(2), 2, t=[0.0, 1.0], return_sequences=False)
