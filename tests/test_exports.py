"""What the forward solve of a graph that is traced for an export selects numbers by."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf

import keras_ode
from keras_ode import graphs

PACKAGE = pathlib.Path(keras_ode.__file__).parent


def exported(**options):
    """The graph of a solve as Keras traces it when it exports a model."""
    namespace = {"__name__": "keras.src.export.saved_model", "solve": keras_ode.solve, "options": options}
    exec("def convert(y):\n    return solve(lambda t, y: -t * y, y, **options).ys", namespace)
    return tf.function(namespace["convert"], autograph=False).get_concrete_function(tf.TensorSpec([3, 2])).graph


def operations(graph):
    """All operations, also those of functions, branches and loops."""
    waiting = [graph]
    while waiting:
        for op in waiting.pop().get_operations():
            yield op
            if graphs.is_nesting(op):
                waiting += graphs.inner_graphs(op)


def is_kept(op):
    """Whether tf2onnx keeps a selection: its condition is that a number is not finite, or one of its values is such a constant."""
    condition, *values = op.inputs
    constants = [tf.get_static_value(x) for x in values]
    return condition.op.type in ("IsNan", "IsInf") or any(x is not None and not np.isfinite(x).all() for x in constants)


def place(op):
    """Where the package made an operation."""
    frames = [f for f in op.traceback if PACKAGE in pathlib.Path(f.filename).parents and not f.filename.endswith("tree.py")]
    return f"{pathlib.Path(frames[-1].filename).relative_to(PACKAGE)}: {frames[-1].name}" if frames else op.name


@pytest.mark.parametrize(
    "options",
    [
        {"t": [0.0, 0.5, 1.0], "solver": "bosh3"},
        {"t": [0.0, 0.5, 1.0], "solver": "bosh3", "per_sample": True},
        {"t": 1.0, "solver": "heun", "step_size": 0.3},
        {"t": 1.0, "solver": "abm2", "step_size": 0.3},
        {"t": 1.0, "solver": "rosenbrock23"},
        {"t": 1.0, "solver": "kvaerno3"},
        {"t": 1.0, "solver": "bdf"},
        {"t": 1.0, "solver": "reversible_heun"},
        {"t": float("inf"), "solver": "bosh3", "event": keras_ode.SteadyState()},
    ],
    ids=["shared", "per_sample", "constant", "adams", "rosenbrock", "esdirk", "bdf", "reversible", "steady"],
)
def test_no_number_of_the_forward_solve_is_selected_by_a_product(options):
    """tf2onnx makes `c * a + (1 - c) * b` of `tf.where(c, a, b)`, which is NaN for a rejected step that is infinite."""
    selections = [op for op in operations(exported(**options)) if op.type in ("Select", "SelectV2")]
    numbers = [op for op in selections if op.outputs[0].dtype.is_floating]
    assert numbers
    assert {place(op) for op in numbers if not is_kept(op)} == set(), "Use tree.select in the place of tf.where."
