"""What an exported graph holds: the forward solve alone, of operations that other runtimes know."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ode
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


@pytest.mark.slow
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
@pytest.mark.slow
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


@pytest.mark.slow
def test_request_of_tensorflow_serving_fits_the_signature(tmp_path):
    """The two forms of its predict API: https://www.tensorflow.org/tfx/serving/api_rest#predict_api."""
    network = keras.Sequential([keras.Input([2], name="x"), ODELayer(keras.layers.Dense(2), solver="heun", step_size=0.5)])
    signature = exported(network, tmp_path).signatures["serving_default"]
    ((name, spec),) = signature.structured_input_signature[1].items()
    assert (name, spec.dtype, spec.shape.as_list()) == ("x", tf.float32, [None, 2])
    (output,) = signature.structured_outputs.values()
    assert (output.dtype, output.shape.as_list()) == (tf.float32, [None, 2])
    rows = json.loads('{"signature_name": "serving_default", "instances": [[0.5, -1.0], [2.0, 0.1]]}')["instances"]
    columns = json.loads('{"signature_name": "serving_default", "inputs": {"x": [[0.5, -1.0], [2.0, 0.1]]}}')["inputs"]
    assert set(columns) == {name}
    for x in (rows, columns[name]):
        (answer,) = signature(**{name: tf.constant(x, spec.dtype)}).values()
        np.testing.assert_allclose(answer, network(np.array(rows, "float32")), rtol=1e-5)


@pytest.mark.slow
def test_solver_with_complex_numbers_is_refused_by_formats_that_have_none(tmp_path):
    network = model(solver="radau")
    network(np.zeros([1, 2], "float32"))
    pytest.importorskip("tf2onnx")
    with pytest.raises(ValueError, match="ONNX has no complex numbers.*'kvaerno5'.*Received: solver=Radau5"):
        network.export(str(tmp_path / "model.onnx"), format="onnx", verbose=False)


@pytest.mark.parametrize(
    "options",
    [
        {"solver": "auto"},
        {"solver": "abm2", "step_size": 0.5},
        {"event": keras_ode.Event(lambda t, y: tf.reduce_sum(y) - 9)},
    ],
    ids=["auto", "adams", "event"],
)
def test_solves_with_branches_are_refused_by_onnx(options):
    """Seen from a module that is named like the converter's: no graph is needed for the refusal."""
    pytest.importorskip("tf2onnx")
    namespace = {"__name__": "tf2onnx.convert", "solve": keras_ode.solve, "tf": tf, "options": options}
    exec("def convert(y):\n    return solve(lambda y: -y, y, 1.0, **options).ys", namespace)
    with pytest.raises(ValueError, match="branches.*SavedModel. Received"):
        tf.function(namespace["convert"], autograph=False).get_concrete_function(tf.TensorSpec([None, 2]))


def rotation(y):
    """`y' = i y` for the complex number `y_0 + i y_1`."""
    turned = tf.complex(y[..., 0], y[..., 1]) * 1j
    return tf.stack([tf.math.real(turned), tf.math.imag(turned)], axis=-1)


@pytest.mark.parametrize("dynamics, dtype", [(rotation, tf.float32), (lambda y: 1j * y, tf.complex64)], ids=["parts", "state"])
@pytest.mark.parametrize("form, module", [("ONNX", "tf2onnx.convert"), ("LiteRT", "tensorflow.lite.python.lite")])
def test_dynamics_with_complex_numbers_is_refused_by_formats_that_have_none(form, module, dynamics, dtype):
    namespace = {"__name__": module, "solve": keras_ode.solve, "dynamics": dynamics}
    exec("def convert(y):\n    return solve(dynamics, y, 1.0, solver='euler', step_size=0.5).ys", namespace)
    with pytest.raises(ValueError, match=f"{form} has no arithmetic of complex numbers.*export a SavedModel. Received"):
        tf.function(namespace["convert"], autograph=False).get_concrete_function(tf.TensorSpec([None, 2], dtype))
