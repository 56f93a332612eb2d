"""What a traced function reads from outside, made explicit: no gradient is lost to a closure."""

import contextlib
import functools
import threading
from collections.abc import Hashable

import keras
import tensorflow as tf

from keras_ode import internals
from keras_ode.complex_states import as_given, as_reals, is_complex
from keras_ode.custom_gradient import is_followed
from keras_ode.fingerprints import fingerprint, scalars
from keras_ode.graphs import READS, UPDATES, inner_graphs, inner_uses, is_nesting, uses
from keras_ode.rebuild import Environment, Gradients, Rebuilder, Reference

# Operations that draw other numbers every time they run.
_RANDOM = {
    "Multinomial", "ParameterizedTruncatedNormal", "RandomGamma", "RandomPoisson", "RandomPoissonV2", "RandomShuffle",
    "RandomStandardNormal", "RandomUniform", "RandomUniformInt", "RngReadAndSkip", "RngSkip", "StatefulRandomBinomial",
    "StatefulStandardNormalV2", "StatefulTruncatedNormal", "StatefulUniform", "StatefulUniformInt", "TruncatedNormal",
}  # fmt: skip
# From so many numbers on, a tensor from outside a graph is a constant unless a tape watches it.
_LARGE = 2**16
_SHORT_SEARCH = 64
# The numbers of eager dynamics, by what these compute: those seen first, and which of them have changed since.
_MOST_SEEN = 1024
_seen_numbers: dict[Hashable, tuple] = {}
_current = threading.local()  # the report of each thread


class Closure:
    """A function traced as it is, and its members: the variables and tensors that it reads from outside.

    Nothing is bound and nothing is written while the user's code is traced. What was traced is then built again, with the
    values of its members as inputs, wherever it is needed (see `rebuild`).

    Attributes:
        graph: The traced graph.
        num_losses: How many losses Keras layers added. They are the graph's last results.
    """

    def __init__(self, call, dynamics, specs):
        self._name = call.name
        self._num_arguments, self._gradients = len(specs), Gradients(no_autocast)
        self.graph, scope = _traced(call, specs)
        self.num_losses = len(scope.losses)
        own = dynamics.variables if isinstance(dynamics, keras.Layer) else ()
        self._num_own = len(own)
        self._keras_variables = list({id(v): v for v in (*own, *scope.seen.values())}.values())
        self._find_numbers()
        self._uses = _Uses(self.graph)
        self._find_members()
        self._check_functional()

    def _find_numbers(self):
        """Python numbers that have changed since an earlier solve are members, for which nothing is compiled anew."""
        self._numbers, self._identity = [], None
        if not tf.executing_eagerly():
            return
        captured = self._captured_constants()
        found = scalars(self.graph)
        constants = [op for op in found if op not in captured]
        # In hexadecimal, 0.0 is another number than -0.0. NaN always varies, so that a failed solve can name it.
        values = [float(tf.get_static_value(op.outputs[0])).hex() for op in constants]
        structure = fingerprint(self.graph, self._gradients, captured.union(constants)), tuple(op in captured for op in found)
        first, varying = _seen_numbers.setdefault(structure, (values, set()))
        varying.update(i for i, (a, b) in enumerate(zip(first, values, strict=True)) if a != b or a == "nan")
        self._numbers = [constants[i].outputs[0] for i in sorted(varying)]
        fixed = tuple((i, value) for i, value in enumerate(values) if i not in varying)
        self._identity = (structure, fixed)
        for oldest in list(_seen_numbers)[:-_MOST_SEEN]:
            _seen_numbers.pop(oldest, None)

    def _find_members(self):
        """Finds `tf.Variable`s and tensors among what the graph captured, and which capture belongs to which member."""
        self._places = {}
        for place, variable in enumerate(self._keras_variables):
            self._places.update((id(raw.handle), place) for raw in _components(internals.raw_variable(variable)))
        others = {id(raw.handle): v for v in self.graph.variables for raw in _components(v)}
        captured = [outside for outside, _ in self.graph.captures]
        found = [others[id(x)] for x in captured if id(x) in others and id(x) not in self._places]
        self._variables = [v for v in found if not self._is_live(v)]
        self._tensors = [x for x in captured if x.dtype not in (tf.resource, tf.variant)]
        rest = (*(v.handle for v in self._variables), *self._tensors)
        self._places.update((id(x), place) for place, x in enumerate(rest, len(self._keras_variables)))
        self._assigned = sorted({self._places[x] for x in self._uses.assigned if x in self._places})

    def _is_live(self, variable):
        """Whether a variable changes at every evaluation, as a counter does: then it stays one."""
        handle = id(variable.handle)
        unusual = self._uses.unusual.get(handle)
        if not (unusual or handle in self._uses.assigned) or internals.SEED_STATE in variable.name:
            return False
        if variable.trainable and _has_gradient(variable) and handle in self._uses.read:
            raise ValueError(
                f"The dynamics '{self._name}' both reads and changes the trainable variable '{variable.name}'"
                f"{f' (by {unusual})' if unusual else ''}, so it cannot have a gradient. Create it with trainable=False, or "
                "do not change it."
            )
        return True

    def values(self):
        """The members' values, as real tensors that tapes around the solve can see."""
        return as_reals(
            [
                *(tf.convert_to_tensor(v.value) for v in self._keras_variables),
                *(v.read_value() for v in self._variables),
                *self._tensors,
                *(tf.constant(tf.get_static_value(x)) for x in self._numbers),
            ]
        )

    def _members(self):
        """Variables, tensors and numbers, in the order of `values`."""
        return [*self._keras_variables, *self._variables, *self._tensors, *self._numbers]

    def labels(self):
        """What a user calls the members, in the order of `values`."""
        return [
            *(f"The weight '{v.path}'" for v in self._keras_variables),
            *(f"The variable '{v.name.removesuffix(':0')}'" for v in self._variables),
            *("A tensor that the dynamics reads from outside," for _ in self._tensors),
            *("A number in the dynamics" for _ in self._numbers),
        ]

    def differentiable(self, values):
        """Whether each member may need a gradient. Untrained ones of TensorFlow may, if a tape watches them by now."""
        others = zip(self._variables, values[len(self._keras_variables) :], strict=False)
        return [
            *(v.trainable and _has_gradient(v) for v in self._keras_variables),  # tapes watch frozen ones, too, by themselves
            *((v.trainable or is_watched(value)) and _has_gradient(v) for v, value in others),
            *(may_need_gradient(tensor) for tensor in self._tensors),
            *(False for _ in self._numbers),
        ]

    def build(self, inputs, differentiable, wanted=None):
        """The results for the values of arguments and members, built in the current graph; and the members' references.

        Args:
            inputs: The tensors.
            differentiable: For each of them, whether a gradient by it is asked for.
            wanted: A slice of the results; all by default.
        """
        arguments = inputs[: self._num_arguments]
        members = as_given(inputs[self._num_arguments :], self._members())
        num_variables = len(self._keras_variables) + len(self._variables)
        references = [Reference(v) for v in members[:num_variables]]
        stand_ins = [*references, *members[num_variables:]]
        env = Environment()
        for placeholder, value in zip(self.graph.inputs, arguments, strict=False):
            env[placeholder] = value
        for outside, inside in self.graph.captures:
            place = self._places.get(id(outside))
            env[inside] = env[outside] = outside if place is None else stand_ins[place]
        for number, value in zip(reversed(self._numbers), reversed(inputs), strict=False):
            env[number] = value
        sources = [x for x, wanted in zip(inputs, differentiable, strict=True) if wanted]
        return Rebuilder(self._gradients, sources, inputs, references).run(self.graph, env, wanted), references

    def has_effects(self):
        """Whether an evaluation does more than give results: it adds losses, or assigns to seeds or moving statistics."""
        return bool(self.num_losses or self._assigned)

    def effects(self, inputs, differentiable):
        """The losses, and behind them what an evaluation assigns, built in the current graph."""
        results, references = self.build(inputs, differentiable)
        losses = results[len(results) - self.num_losses :]
        return [*losses, *(references[place].value for place in self._assigned)]

    def apply(self, effects):
        """Assigns what an evaluation assigns, and returns the losses."""
        variables = (*self._keras_variables, *self._variables)
        for place, value in zip(self._assigned, effects[self.num_losses :], strict=True):
            variables[place].assign(value)
        return effects[: self.num_losses]

    def weights_of_functions(self):
        """The trainable variables that are read and belong to no layer that is the dynamics."""
        of_functions = self._keras_variables[self._num_own :]
        return [v for v in (*of_functions, *self._variables) if v.trainable and _has_gradient(v)]

    def operations(self):
        """All operations, those of inner functions too."""
        graphs = [self.graph]
        while graphs:
            for op in graphs.pop().get_operations():
                yield op
                if is_nesting(op):
                    graphs += inner_graphs(op)

    def fingerprint(self):
        """A hashable value, equal for two that do the same with the values of their members."""
        captures = tuple(self._places.get(id(x), ("captured", id(x))) for x, _ in self.graph.captures)
        identity = self._identity or fingerprint(self.graph, self._gradients, self._captured_constants())
        return identity, captures, len(self._places)

    def _captured_constants(self):
        """What stands in the graph for small tensors from outside, whose values are those of members."""
        return {inside.op for _, inside in self.graph.captures if inside.op.type == "Const"}

    def _check_functional(self):
        """What cannot be built again, or would not be a function, is refused."""
        for place, variable in enumerate(self._keras_variables):
            kinds = [kind for handle, kind in self._uses.unusual.items() if self._places.get(handle) == place]
            if kinds:
                raise ValueError(
                    f"The dynamics '{self._name}' uses the variable '{variable.path}' in an operation that a gradient cannot "
                    f"follow, {kinds[0]}. Read it with keras.ops.convert_to_tensor(variable), and use the tensor."
                )
        if self._uses.random:
            raise ValueError(
                f"The dynamics '{self._name}' draws new random numbers at each evaluation ({', '.join(self._uses.random)}), "
                "so it is not a function of the time and the state, and no step size would be small enough. Draw them before "
                "the solve and pass them in args, or use keras.random or a Keras layer, whose numbers stay the same within a "
                "solve."
            )


class _Uses:
    """What a graph, with all that it calls, does with the handles that it captured.

    Attributes:
        read, assigned: The ids of the handles that are read, and assigned to.
        unusual: The type of an operation that is neither, by the handle's id.
        random: The types of operations that draw other numbers every time.
    """

    def __init__(self, graph):
        self.read, self.assigned, self.unusual, self.random = set(), set(), {}, []
        self._look_at(graph, {id(inside): id(outside) for outside, inside in graph.captures if outside.dtype == tf.resource})

    def _look_at(self, graph, keys):
        self.random += sorted({op.type for op in graph.get_operations()} & _RANDOM - set(self.random))
        for op, handles in uses(graph, keys):
            if is_nesting(op):
                for inner, inner_keys in inner_uses(op, keys):
                    self._look_at(inner, inner_keys)
            elif op.type in UPDATES:
                self.assigned.update(handles)
            elif op.type in READS:
                self.read.update(handles)
            elif handles:
                self.unusual.update((handle, op.type) for handle in handles)


class _Scope(keras.StatelessScope):
    """Notes the variables that are read and the losses that are added; assignments go into the graph.

    Without it, layers would keep tensors of the traced graph as their losses.
    """

    def __init__(self):
        super().__init__(collect_losses=True, initialize_variables=False)
        self.seen = {}

    def get_current_value(self, variable):
        self.seen[id(variable)] = variable
        return None

    def add_update(self, update):
        variable, value = update
        self.seen[id(variable)] = variable
        if internals.raw_variable(variable) is not None:
            internals.assign_now(variable, value)


def _traced(call, specs):
    """The graph of the user's code, and the scope that it ran in."""
    graph, scope = _traced_once(call, specs)
    waiting = [v for v in scope.seen.values() if internals.raw_variable(v) is None]
    if waiting:  # made by a layer that the trace was the first to call
        with keras.StatelessScope():
            """At the end of the outermost scope, Keras initializes the variables that wait for it."""
        if internals.raw_variable(waiting[0]) is not None:
            graph, scope = _traced_once(call, specs)
    return graph, scope


def _traced_once(call, specs):
    scope = _Scope()
    num_leaves = call.num_leaves()

    def flat(convert, t, *rest):
        scope.losses = []
        results = call(t, rest[:num_leaves], rest[num_leaves:], convert)
        graph = tf.compat.v1.get_default_graph()
        if any(loss.graph is not graph for loss in scope.losses):
            raise ValueError(
                f"The dynamics '{call.name}' adds a loss (by add_loss or activity_regularizer) inside a tf.function, a branch "
                "or a loop, where it cannot be taken out. Add it in the layer's own call."
            )
        return [*results, *scope.losses]

    with scope, reporting(None):
        try:
            return _graph(functools.partial(flat, False), specs), scope
        except tf.errors.OperatorNotAllowedInGraphError:
            return _graph(functools.partial(flat, True), specs), scope


def _graph(function, specs):
    try:
        return internals.traced_graph("dynamics", function, specs)
    except ValueError as error:
        if "init_scope" not in str(error):
            raise
        # It makes its variables in its first call, and from tensors: tf.function takes these out of the graph.
        concrete = trace(function, specs)
        concrete.graph.keras_ode_function = concrete  # takes its graph apart when it goes
        return concrete.graph


class Report:
    """What a solve tells the layer that asked for it, beside the solution.

    Attributes:
        losses: The losses that layers in the dynamics added at the start of the solve.
        weights_of_functions: See `Closure`.
    """

    def __init__(self):
        self.losses, self.weights_of_functions = [], []


@contextlib.contextmanager
def reporting(report):
    """Inside, in this thread, solves report to `report`."""
    before, _current.report = current_report(), report
    try:
        yield report
    finally:
        _current.report = before


def current_report():
    return getattr(_current, "report", None)


def _components(variable):
    """A `tf.Variable`, or those that a distributed one consists of."""
    return () if variable is None else internals.device_variables(variable)


@contextlib.contextmanager
def no_autocast():
    """The solve keeps the variables' own precision; the dynamics casts for itself."""
    scope = internals.set_autocast_scope(None)
    try:
        yield
    finally:
        internals.set_autocast_scope(scope)


def trace(function, specs, jit_compile=None):
    return tf.function(function, autograph=False, jit_compile=jit_compile).get_concrete_function(*specs)


def spec(x):
    return tf.TensorSpec(x.shape, x.dtype)


def may_need_gradient(tensor):
    """Floats and complex numbers may, unless it is known already that no tape watches them.

    In a graph a tape may come later, around the call of a function that is traced now. No tape comes to what the graph made of
    constants alone; and large constants from outside are taken for what they are, as their gradients cost much.
    """
    if not _has_gradient(tensor):
        return False
    return is_watched(tensor) or (not tf.executing_eagerly() and not _is_constant(tensor))


def _has_gradient(value):
    return tf.as_dtype(value.dtype).is_floating or is_complex(value)


def _is_constant(tensor):
    """Whether a tensor depends on constants only, as far as a short search shows."""
    seen, stack = set(), [tensor]
    while stack:
        x = stack.pop()
        if id(x) in seen:
            continue
        seen.add(id(x))
        if not tf.is_symbolic_tensor(x):
            if x.dtype in (tf.resource, tf.variant) or x.shape.num_elements() <= _LARGE:
                return False
        elif x.op.type == "Placeholder":
            outside = [outside for outside, inside in getattr(x.graph, "captures", ()) if inside is x]
            if not outside:
                return False
            stack += outside
        elif len(seen) > _SHORT_SEARCH or x.op.op_def.is_stateful or x.dtype in (tf.resource, tf.variant):
            return False
        else:
            stack += x.op.inputs
    return True


def is_watched(tensor):
    """Whether a tape, or a forward accumulator, records what happens to this eager tensor."""
    return internals.is_recorded(tensor) or is_followed([tensor])
