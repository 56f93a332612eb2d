"""What models without targets share."""

from typing import Any

import keras


class Unsupervised(keras.Model):
    """A model with a loss of its own that needs no targets: `fit(x)`.

    Keras drops `sample_weight` in silence if there are no targets, and would never call the loss that `compile` was given.
    """

    def compile(self, optimizer: Any = "rmsprop", loss: Any = None, **kwargs: Any) -> None:
        if loss is not None:
            raise ValueError(
                f"{type(self).__name__} has a loss of its own, {self._own_loss}: leave loss out. Received: loss={loss!r}"
            )
        super().compile(optimizer, **kwargs)

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
