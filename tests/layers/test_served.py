"""What an exported graph holds: the forward solve alone, of operations that other runtimes know."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_ode import ODELayer

# What has no counterpart outside of TensorFlow, or waits for a compiler.
NOT_SERVED = {"Empty", "InplaceUpdate", "DeepCopy", "MutableHashTableV2", "LookupTableFindV2"}


def model(**options):
    dynamics = keras.Sequential([keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(2)])
    return keras.Sequential([keras.Input([2]), ODELayer(dynamics, **options)])


def nodes(graph):
    """The nodes of a graph and of what it calls, by the ways from its outputs."""
    definition = tf.compat.v1.graph_util.extract_sub_graph(graph.as_graph_def(), [x.op.name for x in graph.outputs])
    functions = {f.signature.name: f for f in definition.library.function}
    found, waiting = [], list(definition.node)
    while waiting:
        node = waiting.pop()
        found.append(node)
        for attribute in node.attr.values():
            for called in [attribute.func] if attribute.HasField("func") else attribute.list.func:
                function = functions.pop(called.name, None)
                waiting += [] if function is None else function.node_def
    return found


def exported(layer, path):
    layer.export(str(path), verbose=False)
    return tf.saved_model.load(str(path))


def test_exported_graph_holds_the_forward_solve_alone(tmp_path):
    """As many operations as with `adjoint="direct"`, which stores nothing for a backward pass."""
    options = {"solver": "rk4", "step_size": 0.1}
    served, direct = (
        nodes(exported(model(adjoint=adjoint, **options), tmp_path / adjoint).signatures["serving_default"].graph)
        for adjoint in ("interpolating", "direct")
    )
    assert len(served) < 1.1 * len(direct)
    assert not any("_XlaMustCompile" in node.attr and node.attr["_XlaMustCompile"].b for node in served)


@pytest.mark.parametrize("options", [{}, {"per_sample": True, "adjoint": "checkpointed"}], ids=["shared", "per_sample"])
def test_exported_graph_has_standard_operations_only(options, tmp_path):
    times = {"t": (0.0, 0.3, 1.0), "return_sequences": True, "solver": "bosh3"}
    found = nodes(exported(model(**times, **options), tmp_path).signatures["serving_default"].graph)
    assert NOT_SERVED.isdisjoint(node.op for node in found)
    assert not any(node.attr["T"].type == tf.float64.as_datatype_enum for node in found if "T" in node.attr)


@pytest.mark.slow
def test_gradient_of_an_exported_graph_is_that_of_the_solve(tmp_path):
    """y' = -y from 1 over a unit of time has the derivative exp(-1) by its start, also where no tape saw the trace."""
    loaded = exported(keras.Sequential([keras.Input([1]), ODELayer(lambda y: -y, rtol=1e-5, solver="bosh3")]), tmp_path)
    x = tf.ones([3, 1])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = loaded.serve(x)
    np.testing.assert_allclose(tape.gradient(y, x), np.full([3, 1], np.exp(-1)), rtol=1e-4)


LITE = {
    "constant": {"solver": "rk4", "step_size": 0.25},
    "adaptive": {"solver": "bosh3", "adjoint": "backsolve"},
    "per_sample": {
        "solver": "tsit5",
        "per_sample": True,
        "return_sequences": True,
        "t": (0.0, 0.3, 0.7, 1.0),
        "adjoint": "checkpointed",
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("options", LITE.values(), ids=LITE)
def test_litert_answers_as_keras_at_any_batch_size(options, tmp_path):
    """Converted without TensorFlow's own operations, which SELECT_TF_OPS would ask for."""
    network = model(**options)
    network.export(str(tmp_path / "exported"), verbose=False)
    converted = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "exported")).convert()
    interpreter = tf.lite.Interpreter(model_content=converted)
    runner = interpreter.get_signature_runner()
    (name,) = runner.get_input_details()
    for rows in (1, 7, 300):
        x = np.random.default_rng(rows).normal(size=[rows, 2]).astype("float32")
        (y,) = runner(**{name: x}).values()
        np.testing.assert_allclose(y, network(x, training=False), rtol=1e-4, atol=1e-4)
