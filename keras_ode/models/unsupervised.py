"""What models without targets share."""

from typing import Any

import keras


class Unsupervised(keras.Model):
    """A model whose loss needs no targets: `fit(x)`. Keras drops `sample_weight` in silence where there are no targets."""

    def fit(self, x: Any = None, y: Any = None, *args: Any, sample_weight: Any = None, **kwargs: Any) -> Any:
        self._check_weights(y, sample_weight)
        return super().fit(x, y, *args, sample_weight=sample_weight, **kwargs)

    def evaluate(self, x: Any = None, y: Any = None, *args: Any, sample_weight: Any = None, **kwargs: Any) -> Any:
        self._check_weights(y, sample_weight)
        return super().evaluate(x, y, *args, sample_weight=sample_weight, **kwargs)

    def _check_weights(self, y, sample_weight):
        if sample_weight is not None and y is None:
            raise ValueError(
                "Keras ignores sample_weight if there are no targets: pass the inputs as targets too, "
                f"fit(x, x, sample_weight=weights). Received: y=None, sample_weight of type {type(sample_weight).__name__}"
            )
