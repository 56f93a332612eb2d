"""Complex tensors as real ones with a trailing axis of two, the real and the imaginary part.

Solvers and adjoints see real leaves and real parameters only. What users give is made real at the door, and made complex again
for what they see: the dynamics, events, norms, and the solution. TensorFlow's own gradients of these changes are its convention:
the gradient of a real loss by `z = x + iy` is `dL/dx + i dL/dy`, the conjugate of the derivative of a holomorphic function.
"""

import tensorflow as tf


def is_complex(value):
    """Whether this is a complex number, tensor, array or variable."""
    if isinstance(value, complex):
        return True
    try:
        return tf.as_dtype(value.dtype).is_complex
    except (AttributeError, TypeError):  # no dtype, or one that TensorFlow does not have
        return False


def as_reals(tensors):
    """The tensors, a tuple, each complex one as a real one with an axis more."""
    return tuple(tf.stack([tf.math.real(x), tf.math.imag(x)], axis=-1) if is_complex(x) else x for x in tensors)


def as_given(tensors, like):
    """Real tensors as those were from which `as_reals` made them; of `like` only the types count."""
    return tuple(tf.complex(x[..., 0], x[..., 1]) if is_complex(y) else x for x, y in zip(tensors, like, strict=True))


def packed_as(structure, leaves):
    """Real leaves as a nest like `structure`, of which only the nest and the types count."""
    return tf.nest.pack_sequence_as(structure, as_given(leaves, tf.nest.flatten(structure)))


def leaves_of_nest(nest):
    """The leaves of a nest of tensors, each complex one as a real one."""
    return as_reals(tf.nest.flatten(nest))


def refuse_complex(leaf, option):
    """Refuses an option that says what each element of a state does, where the elements are complex."""
    if is_complex(leaf):
        raise TypeError(
            f"With {option} the state must be real: write the equation for the real and the imaginary parts, joined by tf.concat. "
            f"Received: a state of {leaf.dtype.name} and shape {leaf.shape}"
        )


def refuse_complex_in_layer(y):
    """Refuses complex states where there is a layer."""
    found = next((leaf for leaf in tf.nest.flatten(y) if is_complex(leaf)), None)
    if found is not None:
        raise TypeError(
            "The state of an ODELayer must be real, because a Keras layer computes in one real type. Call keras_ode.solve, which "
            "takes complex states, or make the real and the imaginary part two leaves. Received: a state of "
            f"{tf.as_dtype(found.dtype).name} and shape {found.shape}"
        )
