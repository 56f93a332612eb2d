"""Products of basis functions, against NumPy's polynomials."""

import keras
import numpy as np
import pytest

from keras_ode.layers import TensorProduct

X = np.random.default_rng(0).uniform(-1, 1, (5, 2)).astype("float32")
WEIGHTS = np.random.default_rng(1).normal(size=(4, 4))


@pytest.mark.parametrize("basis, expected", [
    ("legendre", np.polynomial.legendre.legval2d),
    ("chebyshev", np.polynomial.chebyshev.chebval2d),
    ("polynomial", np.polynomial.polynomial.polyval2d),
    ("fourier", lambda x, y, w: np.einsum("ni,nj,ij->n", *(np.stack([0 * z + 1, np.sin(z), np.cos(z), np.sin(2 * z)], 1) for z in (x, y)), w)),
])
def test_it_is_the_sum_over_all_products(basis, expected):
    layer = TensorProduct(1, 3, basis)
    layer.build((None, 2))
    layer.set_weights([WEIGHTS.reshape(-1, 1)])
    np.testing.assert_allclose(layer(X)[:, 0], expected(*X.T, WEIGHTS), rtol=1e-4, atol=1e-5)


def test_it_has_leading_axes():
    model = keras.Sequential([keras.Input([3, 2]), TensorProduct(4, 1, "chebyshev")])
    y = np.stack([X[:3], X[2:]])
    assert model(y).shape == (2, 3, 4)


def test_an_unknown_basis_is_refused():
    with pytest.raises(ValueError, match="basis must be one of .*Received: basis='wavelet'"):
        TensorProduct(1, 2, "wavelet")
