"""Layers to add to models."""

from keras_ode.layers.ode import ODELayer
