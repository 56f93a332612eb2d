"""Finds the layers of a model that a callback records or changes."""

from keras_ode import internals
from keras_ode.layers.ode import ODELayer


def find_layers(model, wanted=None):
    """Returns a dictionary from labels (unique names) to the `ODELayer`s of a model.

    Args:
        model: The model.
        wanted: A list of layers or names of layers. `None` means all `ODELayer`s of the model.
    """
    found = {}
    for layer in internals.layers_within(model):
        if isinstance(layer, ODELayer) and not any(layer is other for other in found.values()):
            label, count = layer.name, 1
            while label in found:
                label, count = f"{layer.name}_{count}", count + 1
            found[label] = layer
    missing = [w for w in wanted or () if not any(w in (label, layer) for label, layer in found.items())]
    if missing or not found:
        raise ValueError(
            f"layers must be among the model's ODELayers, {sorted(found)}, or their names. Received: layers={wanted!r} for "
            f"the model '{model.name}'"
        )
    return {a: b for a, b in found.items() if wanted is None or a in wanted or b in wanted}
