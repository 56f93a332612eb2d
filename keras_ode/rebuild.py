"""Builds a traced graph again, inside another graph, where variables are tensors.

So a function of variables becomes a function of their values, whatever way it reads them: in an inner `tf.function`, in
a branch, in a loop, by a gather, under a custom gradient. Nothing is changed but the graph that is built.
"""

import contextlib
import functools

import tensorflow as tf

from keras_ode import internals, tree
from keras_ode.activation_gradients import FORMULAS
from keras_ode.custom_gradient import custom_gradient
from keras_ode.graphs import (
    BRANCHES,
    CALLS,
    GRADIENT,
    LOOPS,
    assigned,
    function_of,
    has_attribute,
    in_order,
    inner_graphs,
    is_custom_gradient,
    sources_of,
)

_UPDATE = {
    "AssignVariableOp": lambda old, new: new,
    "AssignAddVariableOp": lambda old, new: old + new,
    "AssignSubVariableOp": lambda old, new: old - new,
}
_READ = {
    "ReadVariableOp": lambda op, value: value,
    "ResourceGather": lambda op, value, indices: tf.gather(value, indices, batch_dims=op.get_attr("batch_dims")),
    "ResourceGatherNd": lambda op, value, indices: tf.gather_nd(value, indices),
    "VariableShape": lambda op, value: tf.shape(value, out_type=op.get_attr("out_type")),
    "VarIsInitializedOp": lambda op, value: tf.constant(True),
}


class Reference:
    """A variable in a graph that is built again: its value, which assignments replace.

    As in TensorFlow, what reads the variable after an assignment has a gradient by the variable, not by what was assigned.
    """

    def __init__(self, value):
        self.value = self._start = value
        self.history = ()  # the values before each assignment

    def assign(self, value):
        self.history = (*self.history, self.value)
        self.value = _replaced(self._start, value) if internals.is_differentiable(value) else value


@custom_gradient
def _replaced(old, new):
    return tf.identity(new), lambda g: (g, None)


class Environment:
    """What stands for the tensors of a source graph: tensors, or references for the handles of variables."""

    def __init__(self, outer=None):
        self._outer, self._found, self.operations = outer, {}, {}

    def __setitem__(self, tensor, value):
        self._found[id(tensor)] = value

    def __contains__(self, tensor):
        return id(tensor) in self._found or (self._outer is not None and tensor in self._outer)

    def __getitem__(self, tensor):
        return self._found[id(tensor)] if id(tensor) in self._found else self._outer[tensor]

    def stands_for(self, tensor):
        """What stands for a tensor, or else the tensor itself."""
        if tensor in self:
            return self[tensor]
        return tensor


class Rebuilder:
    """Builds a source graph again in the graph that is the default.

    Args:
        gradients: The `Gradients` of the source, which outlive a rebuilder.
        sources: The tensors that gradients are asked by.
        others: Further tensors that the source reads.
        references: Those that stand for its variables.
    """

    def __init__(self, gradients, sources, others, references):
        self._gradients, self._references = gradients, references
        self._is_source = {**{id(x): False for x in others}, **{id(x): True for x in sources}}

    def run(self, graph, env, wanted=None):
        """The results of a graph, whose inputs `env` holds; `wanted`, a slice of them, with what these take alone.

        A graph that TensorFlow has differentiated can have more results than its callers know: those come last.
        """
        results = graph.outputs if wanted is None else graph.outputs[wanted]
        needed = None if wanted is None else sources_of(results)
        for op in in_order(graph):
            if op.outputs and op.outputs[0] in env:
                continue  # an input
            if needed is not None and op not in needed:
                continue
            inputs = [env[x] for x in op.inputs]
            before = [env.operations[x] for x in op.control_inputs if x in env.operations]
            with _after(before):
                outputs = self._build(op, inputs, env)
            for old, new in zip(op.outputs, outputs, strict=False):
                env[old] = new
        return [env[x] for x in results]

    def _inline(self, graph, inputs, env):
        inner = Environment(env)
        for old, new in zip(graph.inputs, inputs, strict=True):
            inner[old] = new
        return self.run(graph, inner)

    def _build(self, op, inputs, env):
        if op.type in CALLS:
            return self._call(op, inputs, env)
        if op.type in BRANCHES:
            return self._branch(op, inputs, env)
        if op.type in LOOPS:
            return self._loop(op, inputs, env)
        if is_custom_gradient(op):
            return self._custom_gradient(op, inputs, env)
        if inputs and isinstance(inputs[0], Reference):
            return _use(op, *inputs)
        if op.type in FORMULAS and tree.is_standard():
            result = FORMULAS[op.type](op, *inputs)
            env.operations[op] = result.op
            return [result]
        copy = _copy(op, inputs)
        env.operations[op] = copy
        return copy.outputs

    def _call(self, op, inputs, env):
        (graph,) = inner_graphs(op)
        is_compiled = has_attribute(op, internals.MUST_COMPILE) and op.get_attr(internals.MUST_COMPILE)
        if not is_compiled or _assigned_among(graph, inputs):
            return self._inline(graph, inputs, env)
        tensors = [x for x in inputs if not isinstance(x, Reference)]

        def compiled(*tensors):
            given = iter(tensors)
            return self._inline(graph, [x if isinstance(x, Reference) else next(given) for x in inputs], env)

        return tf.function(compiled, autograph=False, jit_compile=True)(*tensors)

    def _branch(self, op, inputs, env):
        choice, inputs = inputs[0], inputs[1:]
        graphs = inner_graphs(op)
        assigned = _unique(r for graph in graphs for r in _assigned_among(graph, inputs))

        def branch(graph):
            with _restored(assigned):
                # A branch without results is there for what it does.
                results = [*self._inline(graph, inputs, env), *(r.value for r in assigned)]
                return results or [tf.constant(0)]

        functions = [functools.partial(branch, graph) for graph in graphs]
        if op.type.endswith("If"):
            results = tf.cond(choice if choice.dtype == tf.bool else tf.cast(choice, tf.bool), *functions)
        else:
            results = tf.switch_case(choice, functions)
        for reference, value in zip(assigned, results[len(op.outputs) :], strict=False):
            reference.value = value
        return results[: len(op.outputs)]

    def _loop(self, op, inputs, env):
        condition, body = inner_graphs(op)
        assigned = _assigned_among(body, inputs)
        varying = [i for i, x in enumerate(body.outputs) if x is not body.inputs[i] and not isinstance(inputs[i], Reference)]
        count = len(varying)

        def run(graph, state):
            for reference, value in zip(assigned, state[count:], strict=True):
                reference.value = value
            now = list(inputs)
            for i, value in zip(varying, state, strict=False):
                now[i] = value
            return self._inline(graph, now, env)

        def keeps_on(*state):
            with _restored(assigned):
                return run(condition, state)[0]

        def once_more(*state):
            with _restored(assigned):
                results = run(body, state)
                return (*(results[i] for i in varying), *(r.value for r in assigned))

        limit = tf.get_static_value(inputs[1])
        results = tf.while_loop(
            keeps_on,
            once_more,
            (*(inputs[i] for i in varying), *(r.value for r in assigned)),
            shape_invariants=(*(op.outputs[i].shape for i in varying), *(r.value.shape for r in assigned)),
            parallel_iterations=op.get_attr("parallel_iterations"),
            maximum_iterations=None if limit is None or limit < 0 else int(limit),
        )
        outputs = list(inputs)
        for i, value in zip(varying, results, strict=False):
            outputs[i] = value
        for reference, value in zip(assigned, results[count:], strict=True):
            reference.value = value
        return outputs

    def _custom_gradient(self, op, inputs, env):
        values = {r: (*r.history, r.value) for r in self._references if r.history}

        def gradient(*cotangents):
            with _restored(values):
                found = self._gradients.of(op).rebuilt(self, env, cotangents, values)
            self._check_nothing_hidden(inputs, [x is not None for x in found])
            return found

        @custom_gradient
        def pass_on(*tensors):
            return [tf.identity(x) for x in tensors], gradient  # tensors of this graph, as parameters need not be

        return pass_on(*inputs)

    def _check_nothing_hidden(self, inputs, has_gradient):
        """The results of a function with a custom gradient may depend on sources by its arguments only.

        Args:
            inputs: What its operation got: the results, the arguments, and the values of variables.
            has_gradient: Which of them its gradient knows.
        """
        known = {id(x) for x in inputs}
        within, reached = set(), []
        for x in (x for x, has in zip(inputs, has_gradient, strict=True) if not has):
            hidden, passed = self._ancestors(x, known)
            within |= passed
            reached.append((x, hidden))
        # An argument that the gradient leaves out has its results behind it: that is the user's word.
        if any(hidden for x, hidden in reached if id(x) not in within):
            raise ValueError(
                "A function with a custom gradient in the dynamics (tf.custom_gradient, tf.recompute_grad, keras.remat) reads a "
                "tensor from outside that its gradient does not cover, so this part of the derivative would be lost. "
                "Pass that tensor as an argument of the function, or wrap it in tf.stop_gradient if it needs no gradient."
            )

    def _ancestors(self, tensor, known):
        """Whether a tensor depends on sources other than by known tensors, and the ids of those that it depends on."""
        hidden, passed, seen, stack = False, set(), {id(tensor)}, list(_parents(tensor))
        while stack:
            x = stack.pop()
            if id(x) in seen:
                continue
            seen.add(id(x))
            if id(x) in known:
                passed.add(id(x))
            elif id(x) in self._is_source:
                hidden = hidden or self._is_source[id(x)]
            else:
                parents = _parents(x)
                hidden = hidden or (not parents and _is_changed_by_loop(x))
                stack += parents
        return hidden, passed


def _is_changed_by_loop(tensor):
    """Whether it is what a loop has reached."""
    return not _is_eager(tensor) and internals.is_loop_body(tensor.graph) and tensor.op.type == "Placeholder"


def _is_eager(tensor):
    return not tf.is_symbolic_tensor(tensor)


def _parents(tensor):
    """The tensors that a tensor's derivative follows to."""
    if _is_eager(tensor) or tensor.op.type == "StopGradient" or not internals.is_differentiable(tensor):
        return []
    if tensor.op.type == "Placeholder":
        return [outside for outside, inside in getattr(tensor.graph, "captures", ()) if inside is tensor]
    return list(tensor.op.inputs)


class CustomGradient:
    """The gradient function of a custom gradient, traced where its operation stands."""

    def __init__(self, op):
        function = internals.registered_gradient(op.get_attr(GRADIENT))
        self._seen = [internals.is_differentiable(x) for x in op.outputs]
        specs = [tf.TensorSpec(x.shape, x.dtype) for x, seen in zip(op.outputs, self._seen, strict=True) if seen]

        def gradient(*cotangents):
            given = iter(cotangents)
            found = function(op, *(next(given) if seen else None for seen in self._seen))
            self.exists = [x is not None for x in found]
            return [tf.convert_to_tensor(x) for x in found if x is not None]

        with op.graph.as_default():
            self.graph = internals.traced_graph("gradient", gradient, specs)

    def outside(self):
        """What it reads besides cotangents."""
        return [outside for outside, _ in self.graph.captures]

    def rebuilt(self, rebuilder, env, cotangents, values):
        """One gradient or `None` for each of the operation's inputs.

        Args:
            values: The values that references had, up to that at the operation. What computes anew and draws random numbers
                starts from the seed that the first computation started from.
        """
        inner = Environment(env)
        given = [g for g, seen in zip(cotangents, self._seen, strict=True) if seen]
        for old, new in zip(self.graph.inputs, given, strict=False):
            inner[old] = new
        for outside, inside in self.graph.captures:
            inner[inside] = env.stands_for(outside)
        drawn = list(assigned(self.graph, {id(i): inner[i] for i in self.graph.inputs if isinstance(inner[i], Reference)}))
        for reference, known in values.items():
            reference.value = known[-1 - min(drawn.count(reference), len(known) - 1)]
        found = iter(rebuilder.run(self.graph, inner))
        return [next(found) if exists else None for exists in self.exists]


class Gradients:
    """The `CustomGradient`s of operations, each traced once, where it is first needed.

    Args:
        surroundings: Makes the context in which to trace them.
    """

    def __init__(self, surroundings=contextlib.nullcontext):
        self._surroundings, self._found = surroundings, {}

    def of(self, op):
        if op not in self._found:
            with self._surroundings():
                self._found[op] = CustomGradient(op)
        return self._found[op]


def rebuilt(graph, inputs):
    """The results of a traced function without variables, built again in the default graph."""
    env = Environment()
    for old, new in (*zip(graph.inputs, inputs, strict=False), *((inside, outside) for outside, inside in graph.captures)):
        env[old] = new
    return Rebuilder(Gradients(), (), (), ()).run(graph, env)


def _use(op, reference, *arguments):
    """What an operation makes of a variable."""
    if op.type == "Identity":
        return [reference]
    if op.type in _READ:
        return [_READ[op.type](op, reference.value, *arguments)]
    reference.assign(_UPDATE[op.type](reference.value, *arguments))
    return []


def _copy(op, inputs):
    """The same operation on other inputs, in the default graph."""
    graph = tf.compat.v1.get_default_graph()
    attributes = {name: value for name, value in op.node_def.attr.items() if name != "_class"}
    for value in attributes.values():
        for function in (value.func, *value.list.func):
            if function.name:
                internals.add_function(graph, function_of(op.graph, function.name))
    with graph.device(op.device) if op.device else contextlib.nullcontext():
        copy = internals.created_operation(graph, op, inputs, attributes)
    for old, new in zip(op.outputs, copy.outputs, strict=True):
        new.set_shape(old.shape)
        internals.copy_handle_data(old, new)
    internals.record_operation(
        op.type, inputs, lambda: tuple(x for a in op.op_def.attr for x in (a.name, op.get_attr(a.name))), copy.outputs
    )
    return copy


@contextlib.contextmanager
def _restored(references):
    """What is assigned inside, as in a branch, is not seen outside."""
    before = [(r.value, r.history) for r in references]
    try:
        yield
    finally:
        for reference, (value, history) in zip(references, before, strict=True):
            reference.value, reference.history = value, history


def _after(operations):
    return tf.control_dependencies(operations) if operations else contextlib.nullcontext()


def _unique(items):
    return list(dict.fromkeys(items))


def _assigned_among(graph, inputs):
    """The references among a graph's inputs that it assigns to."""
    keys = {id(x): i for x, i in zip(graph.inputs, inputs, strict=True) if isinstance(i, Reference)}
    return _unique(assigned(graph, keys)) if keys else []


