"""Each private interface of TensorFlow and Keras does what the package takes it for. If one fails after an upgrade, start here."""

import pathlib
import re
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ode
from keras_ode import internals

# What no module but `internals` may touch.
PRIVATE = re.compile(
    r"tensorflow\.(python|compiler)|keras\.src|__internal__|global_state|func_graph_from|gradient_registry|"
    r"\._(value|values|metrics|flatten_layers|keras_mask|direct_assign|registry|get_function|add_function_recursive|"
    r"create_op_internal|clear_attr|set_attr|maybe_autocast|layers|variables|gradient_function|thread_local_data|deferred_initialize|direction)\b|"
    r"[\"']_(values|keras_mask|direction|gradient_op_type|XlaMustCompile)[\"']|seed_generator_state"
)


def test_no_other_module_touches_what_is_private():
    package = pathlib.Path(keras_ode.__file__).parent
    found = [
        f"{path.relative_to(package)}:{number}: {line.strip()}"
        for path in sorted(package.rglob("*.py"))
        if path.name != "internals.py"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if PRIVATE.search(re.sub(r"self\._(layers|variables)", "", line))  # our own
    ]
    assert not found, "Give it an entry in keras_ode/internals.py and a test here:\n" + "\n".join(found)


def test_every_entry_has_its_test():
    ours = (name for name, x in vars(internals).items() if getattr(x, "__module__", "") == "keras_ode.internals")
    tests = pathlib.Path(__file__).read_text()
    assert not [name for name in ours if not name.startswith("_") and f"internals.{name}" not in tests]


@pytest.fixture(scope="module")
def square():
    """The graph of `x * x + v`."""
    v = tf.Variable(1.0)
    graph = internals.traced_graph("square", lambda x: [x * x + v], [tf.TensorSpec([])])
    graph.variable = v  # a graph does not keep its variables
    return graph


def test_traced_graph_tells_what_it_takes_captures_and_returns(square):
    assert [x.shape for x in square.inputs] == [()] * 2  # the argument, and the variable's handle
    ((outside, inside),) = square.captures
    assert outside is square.variable.handle and inside.dtype == tf.resource and inside is square.inputs[1]
    assert square.variables[0] is square.variable
    assert [x.dtype for x in square.outputs] == [tf.float32] and isinstance(square.control_outputs, list)


def test_traced_graph_captures_tensors_from_outside():
    outside = tf.random.uniform([300])

    def function(x):
        inside = tf.compat.v1.get_default_graph().capture(outside)
        assert inside is not outside
        return [x + inside]

    graph = internals.traced_graph("outer", function, [tf.TensorSpec([])])
    assert [x for x, _ in graph.captures][0] is outside


@pytest.fixture(scope="module")
def nested():
    """The graph of a function that calls others: one compiled, and a loop."""

    @tf.function(jit_compile=True)
    def inner(x):
        return 2 * x

    def outer(x):
        return [tf.while_loop(lambda x: x < 9, lambda x: [inner(x)], [x])[0] + inner(x)]

    return internals.traced_graph("outer", outer, [tf.TensorSpec([])])


def _only(graph, *types):
    (op,) = (op for op in graph.get_operations() if op.type in types)
    return op


def test_called_function_of_a_call_has_its_graph(nested):
    call = _only(nested, "StatefulPartitionedCall", "PartitionedCall")
    inner = internals.called_function(nested, call.get_attr("f").name).graph
    assert "Mul" in [op.type for op in inner.get_operations()] and inner.outer_graph is not None
    assert internals.called_function(nested, "no such function") is None


def test_calls_of_compiled_functions_are_marked(nested):
    assert _only(nested, "StatefulPartitionedCall", "PartitionedCall").get_attr(internals.MUST_COMPILE)


def test_is_loop_body_tells_bodies_from_conditions(nested):
    loop = _only(nested, "While", "StatelessWhile")
    body, condition = (internals.called_function(nested, loop.get_attr(a).name).graph for a in ("body", "cond"))
    assert internals.is_loop_body(body) and not internals.is_loop_body(condition) and not internals.is_loop_body(nested)


def test_created_operation_is_a_copy_with_other_inputs(square):
    multiply = _only(square, "Mul")

    def function(x):
        graph = tf.compat.v1.get_default_graph()
        copy = internals.created_operation(graph, multiply, [x, x + 1], dict(multiply.node_def.attr))
        return list(copy.outputs)

    assert tf.function(function, autograph=False)(tf.constant(2.0))[0] == 6.0


def test_added_function_can_be_called_from_another_graph(nested):
    call = _only(nested, "StatefulPartitionedCall", "PartitionedCall")

    def function(x):
        graph = tf.compat.v1.get_default_graph()
        internals.add_function(graph, internals.called_function(nested, call.get_attr("f").name))
        return list(internals.created_operation(graph, call, [x], dict(call.node_def.attr)).outputs)

    assert tf.function(function, autograph=False)(tf.constant(3.0))[0] == 6.0


def test_recorded_operation_has_its_gradient(square):
    multiply = _only(square, "Mul")

    @tf.function(autograph=False)
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            graph = tf.compat.v1.get_default_graph()
            with tape.stop_recording():
                copy = internals.created_operation(graph, multiply, [x, x], dict(multiply.node_def.attr))
            internals.record_operation("Mul", [x, x], lambda: ("T", multiply.get_attr("T")), copy.outputs)
        return tape.gradient(copy.outputs[0], x)

    assert gradient(tf.constant(3.0)) == 6.0


def test_copied_handle_data_tells_what_a_handle_holds():
    variable = tf.Variable([1.0, 2.0])

    def function(handle):
        internals.copy_handle_data(variable.handle, handle)
        return [tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.float32)]

    graph = internals.traced_graph("read", function, [tf.TensorSpec([], tf.resource)])
    assert graph.outputs[0].shape == [2]


def test_is_differentiable_looks_into_lists():
    assert internals.is_differentiable(tf.constant(1.0)) and not internals.is_differentiable(tf.constant(1))
    assert internals.is_differentiable(tf.Variable(1.0).handle)

    def lists():
        types = (tf.float32, tf.int32)
        found = [tf.raw_ops.TensorListReserve(element_shape=-1, num_elements=2, element_dtype=dtype) for dtype in types]
        return tf.constant([internals.is_differentiable(x) for x in found])

    assert tf.function(lists, autograph=False)().numpy().tolist() == [True, False]


def test_is_recorded_sees_the_tapes_of_this_thread_unless_they_stop():
    x = tf.constant(1.0)
    seen = []
    with tf.GradientTape() as tape:
        tape.watch(x)
        seen.append(internals.is_recorded(x))
        thread = threading.Thread(target=lambda: seen.append(internals.is_recorded(x)))
        thread.start()
        thread.join()
        with internals.not_recorded():
            seen.append(internals.is_recorded(x))
    assert [*seen, internals.is_recorded(x)] == [True, False, False, False]


def test_cleared_attribute_is_gone():
    function = tf.custom_gradient(lambda x: (2 * x, lambda g: 5 * g))

    def forgotten(x):
        double = function(x)
        internals.clear_attribute(double.op, internals.GRADIENT)
        return [double, *tf.gradients(double, x)]

    double, gradient = tf.function(forgotten, autograph=False)(tf.constant(1.0))
    assert (double, gradient) == (2.0, 2.0)


def test_gradients_are_registered_by_the_name_that_operations_have():
    @tf.custom_gradient
    def double(x):
        return 2 * x, lambda g: 5 * g

    graph = internals.traced_graph("double", lambda x: [double(x)], [tf.TensorSpec([])])
    op = _only(graph, "IdentityN")
    name = op.get_attr(internals.GRADIENT)
    function = internals.registered_gradient(name)
    assert internals.gradient_entry(name.decode())["type"] is function
    with graph.as_default():
        assert function(op, tf.constant(1.0), None)[-1].dtype == tf.float32
    internals.forget_gradient(name.decode())
    with pytest.raises(LookupError):
        internals.registered_gradient(name)


def test_device_variables_are_those_of_each_replica():
    class Distributed:
        _values = ("one", "other")

    variable = tf.Variable(1.0)
    assert internals.device_variables(variable) == (variable,) and internals.device_variables(Distributed) == ("one", "other")
    with tf.distribute.MirroredStrategy(["/cpu:0"]).scope():
        (inside,) = internals.device_variables(tf.Variable(1.0))
    assert type(inside).__name__ == "ResourceVariable"


def test_kernels_tell_devices_and_types():
    found = [k for k in internals.kernels_of("MatMul") if k.device_type == "CPU"]
    types = {t for k in found for c in k.constraint if c.name == "T" for t in c.allowed_values.list.type}
    assert tf.float32.as_datatype_enum in types and tf.string.as_datatype_enum not in types


def test_xla_context_is_seen_inside_and_not_outside():
    def function():
        graph = tf.compat.v1.get_default_graph()
        with internals.xla_context(True):
            inside = internals.is_in_xla_context(graph)
        with internals.xla_context(False):
            return tf.constant([inside, internals.is_in_xla_context(graph)])

    assert tf.function(function, autograph=False)().numpy().tolist() == [True, False]
    compiled = []
    tf.function(
        lambda: compiled.append(internals.is_in_xla_context(tf.compat.v1.get_default_graph())), autograph=False, jit_compile=True
    ).get_concrete_function()
    assert compiled == [True]


def test_dot_in_full_precision_contracts_inner_axes():
    a, b = tf.reshape(tf.range(6.0), [2, 3]), tf.reshape(tf.range(12.0), [3, 4])
    found = tf.function(internals.dot_in_full_precision, autograph=False, jit_compile=True)(a, b)
    assert found.numpy().tolist() == (a.numpy() @ b.numpy()).tolist()


def test_dynamic_update_slice_replaces_rows():
    buffer, values = tf.zeros([4, 2]), tf.constant([[1.0, 2.0], [3.0, 4.0]])
    found = tf.function(internals.dynamic_update_slice, autograph=False, jit_compile=True)(buffer, values, tf.constant(1))
    assert found.numpy().tolist() == [[0, 0], [1, 2], [3, 4], [0, 0]]


def test_update_in_place_replaces_rows_and_notes_the_rank():
    @tf.function(autograph=False)
    def put(buffer, place, values):
        found = internals.update_in_place(tf.raw_ops.DeepCopy(x=buffer), place + tf.range(2), values)
        ranks.append(found.op.get_attr(internals.RANK))
        return found

    ranks, values = [], tf.constant([[1.0, 2.0], [3.0, 4.0]])
    assert put(tf.zeros([4, 2]), tf.constant(1), values).numpy().tolist() == [[0, 0], [1, 2], [3, 4], [0, 0]]
    assert ranks == [2]
    buffer = tf.Variable(tf.zeros([4, 2])) + 0.0
    assert internals.update_in_place(buffer, tf.constant([1, 2]), values).numpy().tolist() == [[0, 0], [1, 2], [3, 4], [0, 0]]


class Reads(keras.layers.Layer):
    """Returns the type in which a layer reads its variable."""

    def __init__(self):
        super().__init__(autocast=False)
        self.w = self.add_weight(shape=(), name="w")

    def call(self, x):
        before = internals.set_autocast_scope(None)
        own = tf.convert_to_tensor(self.w).dtype
        internals.set_autocast_scope(before)
        return own


def test_set_autocast_scope_lets_variables_keep_their_type():
    outer = keras.layers.Dense(1, dtype="mixed_float16")
    outer.build([None, 1])
    seen = []
    outer.activation = lambda x: seen.append(Reads()(x)) or x
    outer(tf.ones([1, 1]))
    assert seen == [tf.float32]


def test_raw_variable_is_missing_until_keras_makes_it():
    with keras.StatelessScope():
        waiting = keras.Variable("ones", shape=())
        assert internals.raw_variable(waiting) is None
    assert isinstance(internals.raw_variable(waiting), tf.Variable)


def test_assign_now_writes_within_a_stateless_scope():
    variable = keras.Variable(1.0)
    with keras.StatelessScope():
        internals.assign_now(variable, 2.0)
    assert variable.numpy() == 2.0


def test_layers_within_are_of_all_depths():
    inner = keras.layers.Dense(1)
    model = keras.Sequential([keras.Sequential([inner])])
    assert inner in internals.layers_within(model) and model in internals.layers_within(model)


def test_trained_variables_are_those_that_a_layer_made_to_be_trained_frozen_or_not():
    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(1, use_bias=False, trainable=False), keras.layers.BatchNormalization()])
    gamma, beta = model.layers[1].gamma, model.layers[1].beta
    model.trainable = False
    assert internals.ids_of_trained(model) == {id(v) for v in (model.layers[0].kernel, gamma, beta)}


@pytest.fixture
def measured():
    """A model, and a metric of its layer."""
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    metric = internals.Metrics(["steps"], name="solver")
    internals.own_metrics(model.layers[0]).append(metric)
    return model, metric


def test_own_metrics_of_a_layer_are_its_models_and_are_not_saved(measured):
    model, metric = measured
    assert metric in model.metrics and not model.variables
    internals.own_metrics(model.layers[0]).remove(metric)
    assert metric not in model.metrics


def test_callbacks_find_that_less_is_better(measured):
    stop = keras.callbacks.EarlyStopping(monitor="steps", patience=1)
    stop.set_model(measured[0])
    stop.on_train_begin()
    for epoch, steps in enumerate((3.0, 2.0, 1.0)):
        stop.on_epoch_end(epoch, {"steps": steps})
    assert stop.best == 1.0


def test_masks_reach_layers():
    x = tf.ones([1, 2])
    mask = tf.constant([[True, False]])
    internals.set_mask(x, mask)
    assert internals.get_mask(x) is mask and internals.get_mask(tf.ones([1])) is None
    embedded = keras.layers.Embedding(3, 1, mask_zero=True)(tf.constant([[1, 0]]))
    assert internals.get_mask(embedded).numpy().tolist() == mask.numpy().tolist()


def test_seed_state_is_in_the_names_of_seeds():
    assert internals.SEED_STATE in keras.random.SeedGenerator(1).state.name


def test_functions_of_an_imported_graph_can_be_called_and_vectorized():
    @tf.function(autograph=False)
    def count(x):
        return tf.while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, 2 * x), (0, x))[1]

    definition = count.get_concrete_function(tf.TensorSpec([])).graph.as_graph_def()
    library = tf.compat.v1.GraphDef(library=definition.library).library
    for function in library.function:
        function.signature.name += "_again"
    for node in definition.node:
        for called in internals.called_functions(node):
            called.name += "_again"
    definition.ClearField("library")
    taken, given = definition.node[0].name, definition.node[-1].name

    @tf.function(autograph=False)
    def again(x):
        internals.import_functions(tf.compat.v1.get_default_graph(), library)
        return tf.graph_util.import_graph_def(definition, {f"{taken}:0": x}, [f"{given}:0"], name="")[0]

    assert again(tf.constant(1.5)).numpy() == 12.0
    np.testing.assert_array_equal(tf.vectorized_map(again, tf.constant([1.0, 2.0])), [8.0, 16.0])


def test_tensor_that_a_forward_accumulator_follows_is_known():
    x, y = tf.constant(2.0), tf.constant(3.0)
    with tf.autodiff.ForwardAccumulator(x, tf.constant(1.0)):
        assert internals.has_tangents([y, x * x]) and not internals.has_tangents([y])
    assert not internals.has_tangents([x])


def test_tape_that_may_record_is_known_where_a_function_is_traced():
    seen = []
    note = lambda x: (seen.append(internals.may_be_recorded()), x)[1]
    tf.function(note, autograph=False)(tf.constant(1.0))
    with tf.GradientTape():
        tf.function(note, autograph=False)(tf.constant(1.0))
    assert seen == [False, True]


def test_exporters_are_seen_among_the_callers(tmp_path):
    found, formats = [], []

    @keras.saving.register_keras_serializable()
    class Asks(keras.Layer):
        def call(self, x):
            found.append(internals.is_exporting())
            formats.append(internals.exported_format())
            return x

    model = keras.Sequential([keras.Input([1]), Asks()])
    model.predict(np.zeros([1, 1]), verbose=0)
    assert not any(found)
    model.export(str(tmp_path / "exported"))
    assert found[-1]
    assert formats[-1] is None
