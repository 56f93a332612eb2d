"""All public layers and models, each with arguments and input shapes, for the claims that hold for every one of them.

A new layer is covered by these claims once it has an entry here, and `tests/layers/test_harness.py` fails if it has none.
"""

from typing import Any, NamedTuple

import keras
import numpy as np

from keras_ode import ODELayer, layers, models


class Case(NamedTuple):
    """A public class of layers or models.

    Attributes:
        cls: The class.
        arguments: A function that returns the arguments of its constructor.
        shape: The shape of its input, or a dictionary of the shapes of its arguments, named as Keras' harness does.
        supports_masking: What the attribute of that name is, or `None` where it does not matter.
        prepare: Called with the model before it is compared with others.
        noise: By how much its outputs vary from call to call, or with the batch.
    """

    cls: type
    arguments: Any
    shape: Any
    supports_masking: bool | None = None
    prepare: Any = None
    noise: float = 0.0

    def make(self):
        return self.cls(**self.arguments())

    def data(self, rows=4):
        """A list of the inputs, drawn from a normal distribution."""
        shapes = self.shape.values() if isinstance(self.shape, dict) else [self.shape]
        random = np.random.default_rng(0)
        return [random.normal(size=(4, *shape[1:])).astype("float32")[:rows] for shape in shapes]

    def model(self):
        """A built model of the layer, with random weights."""
        model = self.make()
        inputs = [keras.Input(x.shape[1:]) for x in self.data()]
        outputs = model(*inputs)
        model = model if isinstance(model, keras.Model) else keras.Model(_alone(inputs), outputs)
        random = np.random.default_rng(1)
        model.set_weights([random.normal(size=w.shape, scale=0.5) for w in model.weights])
        if self.prepare is not None:
            self.prepare(model)
        return model

    def output(self, model, rows=4):
        return np.asarray(model(_alone(self.data(rows)), training=False))


def _alone(inputs):
    return inputs[0] if len(inputs) == 1 else inputs


def dense(units=2):
    return keras.layers.Dense(units, activation="tanh")


def without_variance(model):
    """Makes the samples of the posterior equal to its mean up to its smallest standard deviation, 1e-4."""
    kernel, bias = (np.array(w) for w in model.posterior.get_weights())
    kernel[:, model.latent_dim :], bias[model.latent_dim :] = 0, -30
    model.posterior.set_weights([kernel, bias])


FAST = {"solver": "euler", "step_size": 0.5, "adjoint": "direct", "max_steps": 8}
TIMES = (0.0, 0.5, 1.0)
OF_TIME = {"t_shape": (4, 1), "y_shape": (4, 2)}
IMAGES_OF_TIME = {"t_shape": (4, 1, 1, 1), "y_shape": (4, 3, 3, 2)}

LAYERS = {
    "AntisymmetricDynamics": Case(layers.AntisymmetricDynamics, lambda: {"gamma": 0.1}, (4, 2), True),
    "Augment": Case(layers.Augment, lambda: {"num_channels": 1}, (4, 2), True),
    "ConcatSquash": Case(layers.ConcatSquash, lambda: {"units": 2}, OF_TIME),
    "DepthVarying": Case(layers.DepthVarying, lambda: {"layer": dense(), "num_pieces": 2}, OF_TIME),
    "DepthVarying linear": Case(
        layers.DepthVarying, lambda: {"layer": layers.TimeDense(2), "num_pieces": 2, "kind": "linear"}, OF_TIME
    ),
    "HamiltonianBlocks": Case(layers.HamiltonianBlocks, lambda: {"num_blocks": 2, "smoothness": 0.1}, (4, 2), True),
    "HamiltonianDynamics": Case(layers.HamiltonianDynamics, lambda: {"layer": dense(1)}, OF_TIME),
    "LagrangianDynamics": Case(layers.LagrangianDynamics, lambda: {"layer": dense(1)}, OF_TIME),
    "LagrangianDynamics of the full Lagrangian": Case(  # which must be convex in the velocities
        layers.LagrangianDynamics, lambda: {"layer": keras.layers.Dense(1, activation="softplus"), "kinetic": False}, OF_TIME
    ),
    "LeapfrogBlocks": Case(layers.LeapfrogBlocks, lambda: {"num_blocks": 2}, (4, 2), True),
    "LinearMultistepBlocks": Case(
        layers.LinearMultistepBlocks, lambda: {"layer": dense(), "num_blocks": 2, "survival": 0.5, "seed": 1}, (4, 2), True
    ),
    "NeuralCDE": Case(layers.NeuralCDE, lambda: {"dynamics": dense(4), "units": 2, **FAST}, (4, 3, 1), False),
    "ODELayer": Case(ODELayer, lambda: {"dynamics": dense(), **FAST}, (4, 2), True),
    "ODELayer of steps of its own": Case(
        ODELayer,
        lambda: {"dynamics": layers.TimeDense(2, activation="tanh"), "solver": "bosh3", "t": TIMES, "return_sequences": True},
        (4, 2),
        True,
        noise=1e-3,  # the tolerance: rows share their steps
    ),
    "ODERNN": Case(
        layers.ODERNN,
        lambda: {"cell": keras.layers.GRUCell(2), "dynamics": dense(), "t": TIMES, "go_backwards": True, **FAST},
        (4, 3, 1),
        True,
    ),
    "ODERNN sequences": Case(
        layers.ODERNN,
        lambda: {
            "cell": keras.layers.LSTMCell(2),
            "dynamics": layers.TimeDense(2),
            "return_sequences": True,
            "t": TIMES,
            **FAST,
        },
        (4, 3, 1),
        True,
    ),
    "ResidualBlocks": Case(layers.ResidualBlocks, lambda: {"layer": layers.TimeDense(2), "num_blocks": 2}, (4, 2), True),
    "ResidualBlocks shared": Case(layers.ResidualBlocks, lambda: {"layer": dense(), "num_blocks": 2, "shared": True}, (4, 2), True),
    "SecondOrderDynamics": Case(layers.SecondOrderDynamics, lambda: {"layer": dense(1)}, OF_TIME),
    "TensorProduct": Case(layers.TensorProduct, lambda: {"units": 2, "degree": 2}, (4, 2), False),
    "TensorProduct chebyshev": Case(layers.TensorProduct, lambda: {"units": 2, "degree": 2, "basis": "chebyshev"}, (4, 2), False),
    "TimeConv2D": Case(
        layers.TimeConv2D, lambda: {"filters": 2, "kernel_size": 3, "padding": "same", "activation": "silu"}, IMAGES_OF_TIME
    ),
    "TimeDense": Case(layers.TimeDense, lambda: {"units": 2}, OF_TIME),
    "TimeSequential": Case(layers.TimeSequential, lambda: {"layers": [layers.TimeDense(4), keras.layers.Dense(2)]}, OF_TIME),
}


def latent(encoder):
    return {"encoder": encoder, "dynamics": dense(), "decoder": keras.layers.Dense(1), "latent_dim": 2, "t": TIMES, **FAST}


MODELS = {
    "ContinuousNormalizingFlow": Case(
        models.ContinuousNormalizingFlow, lambda: {"dynamics": layers.ConcatSquash(2, activation="tanh"), **FAST}, (4, 2)
    ),
    "LatentODE": Case(
        models.LatentODE, lambda: latent(keras.layers.GRU(2, go_backwards=True)), (4, 3, 1), prepare=without_variance, noise=2e-3
    ),
    "LatentODE of an ODERNN": Case(
        models.LatentODE,
        lambda: latent(layers.ODERNN(keras.layers.GRUCell(2), dense(), go_backwards=True, **FAST)),
        (4, 3, 1),
        prepare=without_variance,
        noise=2e-3,
    ),
    "ODENet": Case(models.ODENet, lambda: {"num_classes": 2, "channels": 4, **FAST}, (4, 8, 8, 1)),
}
CASES = {**LAYERS, **MODELS}
