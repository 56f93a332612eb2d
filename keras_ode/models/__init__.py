"""Keras models built on the layers."""

from keras_ode.models.flow import ContinuousNormalizingFlow
from keras_ode.models.latent_ode import LatentODE
from keras_ode.models.odenet import ODENet

__all__ = [
    "ContinuousNormalizingFlow",
    "LatentODE",
    "ODENet",
]
