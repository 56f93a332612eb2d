"""How gradients go through a solve."""

from typing import Any

from keras_ode import configurable
from keras_ode.adjoints.backsolve import Backsolve
from keras_ode.adjoints.base import Adjoint
from keras_ode.adjoints.checkpointed import Checkpointed
from keras_ode.adjoints.direct import Direct
from keras_ode.adjoints.interpolating import Interpolating
from keras_ode.adjoints.reversible import Reversible

__all__ = [
    "ADJOINTS",
    "Adjoint",
    "Backsolve",
    "Checkpointed",
    "Direct",
    "Interpolating",
    "Reversible",
    "get",
]

ADJOINTS = {
    "backsolve": Backsolve,
    "interpolating": Interpolating,
    "checkpointed": Checkpointed,
    "reversible": Reversible,
    "direct": Direct,
}


def get(identifier: str | dict[str, Any] | Adjoint) -> Adjoint:
    """Returns an adjoint from its name, its configuration or an `Adjoint` object.

    Args:
        identifier: A name such as `"backsolve"`, a dictionary with the entries `"name"` and `"config"`, or an `Adjoint`, which is
            returned as it is.

    Returns:
        An `Adjoint`.

    Raises:
        ValueError: If there is no adjoint of that name, or if its class needs arguments.

    Example:

    >>> type(keras_ode.adjoints.get("backsolve")).__name__
    'Backsolve'
    """
    return configurable.get(identifier, "adjoint", Adjoint, ADJOINTS)
