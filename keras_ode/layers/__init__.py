"""Layers for differential equations and their dynamics."""

from keras_ode.layers.augment import Augment
from keras_ode.layers.cde import NeuralCDE
from keras_ode.layers.depth import DepthVarying, ResidualBlocks
from keras_ode.layers.mechanics import HamiltonianDynamics, LagrangianDynamics, SecondOrderDynamics
from keras_ode.layers.multistep import LinearMultistepBlocks
from keras_ode.layers.ode import ODELayer
from keras_ode.layers.rnn import ODERNN
from keras_ode.layers.stable import AntisymmetricDynamics, HamiltonianBlocks, LeapfrogBlocks
from keras_ode.layers.tensor_product import TensorProduct
from keras_ode.layers.time import ConcatSquash, TimeConv2D, TimeDense, TimeSequential

__all__ = [
    "AntisymmetricDynamics",
    "Augment",
    "ConcatSquash",
    "DepthVarying",
    "HamiltonianBlocks",
    "HamiltonianDynamics",
    "LagrangianDynamics",
    "LeapfrogBlocks",
    "LinearMultistepBlocks",
    "NeuralCDE",
    "ODELayer",
    "ODERNN",
    "ResidualBlocks",
    "SecondOrderDynamics",
    "TensorProduct",
    "TimeConv2D",
    "TimeDense",
    "TimeSequential",
]
