"""These names stand for the types that public signatures have in common.

TensorFlow and Keras come without types: to a type checker, their tensors, variables and layers are `Any`, which fits everywhere.
The names tell what is meant, and refuse what cannot become a tensor, such as a function or `None`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, SupportsFloat, SupportsIndex, TypeAlias, TypeVar

import numpy as np
import tensorflow as tf

Number: TypeAlias = SupportsFloat | SupportsIndex
"""A number, or a scalar array, tensor or variable."""

Times: TypeAlias = Number | np.ndarray | Sequence[Number | Sequence[Number]]
"""A number, an array, a tensor, or a list of numbers and scalar tensors; or a list of such lists, one for each row."""

Tensors: TypeAlias = Any
"""A tensor, or a nested structure of tensors."""

TensorsLike: TypeAlias = Number | complex | np.ndarray | Sequence["TensorsLike"] | Mapping[Any, "TensorsLike"]
"""A number, an array, a tensor or a variable, or a nested structure of them: tuples, lists and dicts."""

Dynamics: TypeAlias = Callable[..., Tensors]
"""A Keras layer, a model or a function, `f(y)` or `f(t, y, *args)`, that returns the derivative of the state."""

_Function = TypeVar("_Function", bound=Callable[..., Any])


def do_not_convert(function: _Function) -> _Function:
    """`tf.autograph.experimental.do_not_convert`, which alone would hide the types of a function."""
    return tf.autograph.experimental.do_not_convert(function)
