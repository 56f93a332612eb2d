"""Plain automatic differentiation through the loop over steps."""

import numpy as np
import tensorflow as tf

from keras_ode import tree
from keras_ode.adjoints.base import Adjoint
from keras_ode.adjoints.forward import solve_forward
from keras_ode.custom_gradient import custom_gradient, is_followed

# XLA is worth its calls from so many weights on, and so many for every number of the state: TensorFlow's own product of a
# few rows with a large transposed matrix takes several times as long.
_MANY_WEIGHTS = 2**18
_WEIGHTS_PER_STATE = 2**12


class Direct(Adjoint):
    """Automatic differentiation through the solver's own steps: second and higher derivatives work.

    Memory grows with the number of tried steps. XLA reserves memory for `max_steps` steps, so set `max_steps` as low as the
    solve allows. The choice of the step sizes is not differentiated.

    With `jit_compile="auto"`, XLA compiles the calls of a dynamics that has many weights compared to the size of the state.

    Example:

    >>> x = tf.Variable([1.0])
    >>> with tf.GradientTape() as outer, tf.GradientTape() as inner:
    ...     end = keras_ode.odeint(lambda t, y: -(y**2), x, [0.0, 1.0], solver="rk4", step_size=0.1, adjoint="direct")[-1]
    ...     first = inner.gradient(end, x)
    >>> print(f"{float(outer.gradient(first, x)[0]):.3f}")
    -0.250

    Reference: Kidger (2021), On neural differential equations, chapter 5 (discretize-then-optimize).
    """

    compiles_alone = False
    pays_to_compile = False
    differentiates_steps = True
    has_forward_mode = True

    def with_compiled_parts(self, problem):
        weights, state = _size(problem.field.select(problem.parameters)), _size(problem.y)
        pays = weights >= _MANY_WEIGHTS and weights >= _WEIGHTS_PER_STATE * state
        return problem._replace(field=problem.field.compiled()) if pays else problem

    def solve(self, problem):
        if tree.is_compiled():
            if is_followed(problem.tensors()):
                raise NotImplementedError(
                    "XLA cannot compile a solve with a forward accumulator (tf.autodiff.ForwardAccumulator) in the same function: "
                    "leave jit_compile=True out of the tf.function."
                )
            problem = problem.with_tensors([_opaque(tensor) for tensor in problem.tensors()])
        problem = problem._replace(field=problem.field.inlined())
        return solve_forward(problem, bound=problem.method.max_steps)[0]._replace(ended=())


def _size(tensors):
    """How many numbers they hold together; NaN where that is not known."""
    return sum(np.nan if x.shape.num_elements() is None else x.shape.num_elements() for x in tensors)


@custom_gradient
def _opaque(tensor):
    """The tensor, as one that is no constant to XLA.

    XLA puts constants that pass through a loop into its body; TensorFlow 2.21 loses that body where they pass through
    three loops, as those of a loop and its first and second derivatives do (TensorFlow's issue 122886). It does not look
    into lists.
    """
    if not tensor.dtype.is_floating:  # a shape may depend on it
        return tf.identity(tensor), lambda g: g
    known = -1 if tensor.shape.rank is None else [-1 if size is None else size for size in tensor.shape]
    shape = {"element_shape": tf.constant(known, tf.int32)}
    items = tf.raw_ops.TensorListFromTensor(tensor=tensor[None], **shape)
    item = tf.raw_ops.TensorListGetItem(input_handle=items, index=0, element_dtype=tensor.dtype, **shape)
    return tf.ensure_shape(item, tensor.shape), lambda g: g
