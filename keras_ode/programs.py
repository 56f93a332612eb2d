"""Parts of a solve that are traced once, run as plain graphs at first, and are compiled by XLA when that pays.

Compiling takes seconds, and makes each iteration of a solver's loop cheaper by some microseconds for each of its operations. Both
grow with the number of operations, so what pays is a matter of the number of steps alone. A program counts the steps that its
solves have taken, for each size of their inputs, and has XLA compile it for a size that has reached `STEPS_BEFORE_COMPILING`. So a
short training never waits for the compiler, a long one gets its speed, and sizes that are rare are never compiled.
"""

import itertools
import threading

import tensorflow as tf

from keras_ode import internals
from keras_ode.recent import Recent

STEPS_BEFORE_COMPILING = 10_000

_kept = Recent(256)  # the programs of solves, by what they compute
_numbers = itertools.count()


def programs_of(key):
    """The `Programs` of a solve, the same for an equal hashable `key`, or new ones where it is `None`."""
    return Programs() if key is None else _kept.get(key, Programs)


class Programs:
    """The programs of one kind of solve, by name, and the number of steps that they took."""

    def __init__(self):
        self._programs = {}
        self._lock = threading.RLock()
        self._number = next(_numbers)

    def is_worth_compiling(self, size):
        """Whether solves of inputs of this size have taken enough steps; a boolean tensor."""
        return self._steps(size) >= STEPS_BEFORE_COMPILING

    def count(self, size, num_steps):
        """Adds to the number of steps of a size; the operation that does."""
        total = self._steps(size) + tf.cast(num_steps, tf.int64)
        return tf.raw_ops.LookupTableInsertV2(table_handle=self._table(), keys=size, values=total)

    def run(self, name, function, inputs, compiled=None, count=None, used=lambda found: found):
        """The nest of tensors that a function gives, which is traced when a name is run for the first time.

        Args:
            name: What names the function among these programs.
            function: A function of flat tensors. Only its trace is kept.
            inputs: A list of tensors, of the same dtypes and static shapes in every run.
            compiled: A boolean tensor: whether to run it by XLA; or `None`, for never.
            count: A function of the nest that returns an operation, which runs wherever XLA does not; or `None`.
            used: A function that picks from the nest what is wanted, which XLA alone computes then.
        """
        with self._lock:
            if name not in self._programs:
                self._programs[name] = _Program(function, inputs)
            program = self._programs[name]
            return used(program.plain(inputs)) if compiled is None else program(inputs, compiled, count, used)

    def _steps(self, size):
        zero = tf.zeros([], tf.int64)
        return tf.raw_ops.LookupTableFindV2(table_handle=self._table(), keys=size, default_value=zero)

    def _table(self):
        # A resource that each graph finds by its name: a variable would have to be tracked to be saved with the graph.
        return tf.raw_ops.MutableHashTableV2(
            key_dtype=tf.int64, value_dtype=tf.int64, shared_name=f"keras_ode_steps_{self._number}"
        )


class _Program:
    """One traced function, as a plain graph and for XLA."""

    def __init__(self, function, inputs):
        specs = [tf.TensorSpec(x.shape, x.dtype) for x in inputs]
        attributes = {"_noinline": True}  # so that several calls are optimized once
        plain = tf.function(lambda *inputs: function(*inputs), autograph=False, experimental_attributes=attributes)
        self._plain = plain.get_concrete_function(*specs)
        self._compiled = {}

    def plain(self, inputs):
        """What the plain graph gives."""
        return self._plain(*inputs)

    def __call__(self, inputs, compiled, count, used):
        """What is used of what the plain graph or XLA gives, as the tensor `compiled` says."""
        outputs = self._plain.structured_outputs
        places = tf.nest.pack_sequence_as(outputs, range(len(tf.nest.flatten(outputs))))
        places = tuple(tf.nest.flatten(used(places)))
        if places not in self._compiled:
            self._compiled[places] = self._for_xla(places)

        def run_plain():
            found = self._plain(*inputs)
            with tf.control_dependencies([] if count is None else [count(found)]):
                return [tf.identity(x) for x in tf.nest.flatten(used(found))]

        given = [*inputs, *self._plain.captured_inputs]
        found = tf.cond(compiled, lambda: self._compiled[places](*given), run_plain)
        for x, like in zip(found, tf.nest.flatten(used(outputs)), strict=True):
            x.set_shape(like.shape)
        return tf.nest.pack_sequence_as(used(outputs), found)

    def _for_xla(self, places):
        """A function for XLA that gives the outputs at some places."""
        graph = self._plain.graph
        taken, given = [x.name for x in graph.inputs], [graph.outputs[i].name for i in places]
        definition = for_xla(graph.as_graph_def(), {x.op.name for x in graph.inputs})
        library = tf.compat.v1.GraphDef(library=definition.library).library
        definition.ClearField("library")
        needed = {name if ":" in name else f"{name}:0" for node in definition.node for name in node.input}

        def build(*inputs):
            internals.import_functions(tf.compat.v1.get_default_graph(), library)
            # The importer refuses names that no operation takes.
            inputs = {name: x for name, x in zip(taken, inputs, strict=True) if name in needed}
            return tf.graph_util.import_graph_def(definition, input_map=inputs, return_elements=given, name="")

        return tf.function(build, autograph=False, jit_compile=True)


_PUT_IN_PLACE, _COPY = "InplaceUpdate", "DeepCopy"  # what XLA has no kernels for, among what `tree` makes of buffers


def for_xla(definition, left_out):
    """A `GraphDef` with operations in place of those that XLA lacks, under other names of functions.

    Args:
        definition: A `GraphDef`, which is changed.
        left_out: The names of nodes to leave out.
    """
    names = {f.signature.name: f"{f.signature.name}_for_xla" for f in definition.library.function}
    nodes = [node for node in definition.node if node.name not in left_out]
    del definition.node[:]
    definition.node.extend(nodes)
    _replace_in(definition.node, names, "")
    for function in definition.library.function:
        function.signature.name = names[function.signature.name]
        renamed = _replace_in(function.node_def, names, ":output:0")
        for node in function.node_def:
            for i, name in enumerate(node.input):
                node.input[i] = renamed.get(name, name)
        for result, name in function.ret.items():
            function.ret[result] = renamed.get(name, name)
    return definition


def _replace_in(nodes, names, output):
    """Replaces operations among nodes, and gives the new names of their outputs; `output`: how inputs name the first one."""
    renamed = {}
    for node in list(nodes):
        # A program is never differentiated; a SavedModel would miss the custom gradients that its operations name.
        node.attr.pop(internals.GRADIENT, None)
        # Traced by tf.gradients, an operation is to be placed beside one of the graph around the program, which is not in here.
        node.attr.pop("_class", None)
        for function in internals.called_functions(node):
            function.name = names.get(function.name, function.name)
        if node.op in (_PUT_IN_PLACE, _COPY):
            renamed[f"{node.name}:y:0"] = f"{node.name}:output:0"
        if node.op == _COPY:
            node.op = "Identity"
        elif node.op == _PUT_IN_PLACE:
            _put_by_slice(node, nodes, output)
    return renamed


def _put_by_slice(node, nodes, output):
    """Makes `InplaceUpdate(x, i, v)` an `XlaDynamicUpdateSlice(x, v, [i[0], 0, ...])`: `internals.update_in_place` writes rows
    one behind the other.

    A `TensorScatterUpdate` becomes the same with tests of the place, which take kernels of their own.
    """

    def add(name, op, *inputs, **types):
        added = nodes.add(name=f"{node.name}_{name}", op=op, input=inputs)
        for attribute, dtype in types.items():
            added.attr[attribute].type = dtype.as_datatype_enum
        return added

    def constant(name, value):
        added = add(name, "Const", dtype=tf.int32)
        added.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value, tf.int32))
        return added.name + output

    x, places, values = node.input
    none, one = constant("none", [0]), constant("one", [1])
    first = add("first", "Slice", places, none, one, T=tf.int32, Index=tf.int32)
    zeros, axis = constant("zeros", [0] * (node.attr[internals.RANK].i - 1)), constant("axis", 0)
    start = add("start", "ConcatV2", first.name + output, zeros, axis, T=tf.int32, Tidx=tf.int32)
    start.attr["N"].i = 2
    node.op = "XlaDynamicUpdateSlice"
    node.input[:] = x, values, start.name + output
    node.attr["Tindices"].type = tf.int32.as_datatype_enum
