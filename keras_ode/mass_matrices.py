"""What users ask of mass matrices, checked. Errors quote what was received."""

import numpy as np
import tensorflow as tf

from keras_ode.complex_states import refuse_complex
from keras_ode.events import SteadyState
from keras_ode.solvers.mass import MassMatrix

# What an equation with a mass matrix can be solved by.
_SOLVERS = "'rodas5p', 'kvaerno5', 'kvaerno3' or 'kencarp4'"


def checked_matrix(mass_matrix):
    """A `MassMatrix`, or `None` where none is given."""
    if mass_matrix is None or isinstance(mass_matrix, MassMatrix):
        return mass_matrix
    known = tf.get_static_value(mass_matrix) if tf.is_tensor(mass_matrix) else mass_matrix
    if known is None:
        raise TypeError(
            "mass_matrix must be constant: numbers, a NumPy array or a tensor of known value. If the factor of y' varies, leave "
            f"mass_matrix out, and let the dynamics return y' itself. Received: mass_matrix={mass_matrix!r}"
        )
    try:
        matrix = np.asarray(known, np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"mass_matrix must be a matrix of real numbers. Received: mass_matrix={mass_matrix!r}") from error
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError(
            "mass_matrix must be a square matrix, shape [D, D] for a state [..., D]. Received: mass_matrix of shape "
            f"{matrix.shape}"
        )
    if not np.isfinite(matrix).all():
        raise ValueError(f"mass_matrix must be finite. Received: mass_matrix={mass_matrix!r}")
    return MassMatrix(matrix)


def check_all(mass, y0, solver, adjoint, event, jump_times, regularizers, keeps_steps, times_vary):
    """Refuses what the matrix does not fit."""
    if keeps_steps and times_vary and adjoint.has_forward_mode:
        raise ValueError(
            "With a mass_matrix, save='steps' and times that are tensors, use adjoint='checkpointed', or pass the times as "
            f"numbers. Received: adjoint={adjoint!r}"
        )
    check_size(mass, y0)
    check_solver(mass, solver)
    check_rest(mass, adjoint, event, jump_times, regularizers)


def check_is_whole(field):
    """Refuses a dynamics in two parts: the explicit one would have to be divided by the matrix."""
    if field.parts() is not None:
        raise ValueError(
            "mass_matrix cannot be combined with a Split: pass the sum of its parts as one function. Received: a dynamics that "
            "is a keras_ode.Split"
        )


def check_size(mass, y0):
    """Refuses a state that the matrix does not fit: `y0` is a nest of tensors."""
    leaves = tf.nest.flatten(y0)
    if len(leaves) > 1:
        raise ValueError(
            "With a mass_matrix the state must be one tensor, [..., D]: join its parts by tf.concat. Received: a state with "
            f"{len(leaves)} leaves"
        )
    refuse_complex(leaves[0], "mass_matrix")
    size = len(mass.matrix)
    if leaves[0].shape.rank == 0 or leaves[0].shape[-1] != size:
        raise ValueError(
            f"mass_matrix must be [D, D] for a state [..., D]. Received: mass_matrix of shape {(size, size)} and a state of shape "
            f"{leaves[0].shape}"
        )


def check_solver(mass, solver):
    """Refuses solvers that do not solve `M y' = f(t, y)`."""
    if not solver.takes_mass_matrix:
        explicit = "" if mass.is_singular else ", or let the dynamics return M^-1 f, since this matrix is not singular"
        raise ValueError(
            f"{type(solver).__name__} does not solve equations with a mass matrix. Use solver={_SOLVERS}{explicit}. Received: "
            f"solver={solver!r}, mass_matrix={mass.matrix.tolist()}"
        )
    if mass.is_singular and not solver.takes_algebraic_equations:
        raise ValueError(
            f"The mass matrix is singular, so some equations are algebraic, which {type(solver).__name__} does not solve. Use "
            f"solver={_SOLVERS}. Received: solver={solver!r}, mass_matrix={mass.matrix.tolist()}"
        )


def check_rest(mass, adjoint, event, jump_times, regularizers):
    """Refuses what a mass matrix cannot be combined with."""
    if not adjoint.differentiates_steps:
        explicit = "" if mass.is_singular else ", or let the dynamics return M^-1 f, since this matrix is not singular"
        raise ValueError(
            "With a mass_matrix, gradients are those of the steps: use adjoint='checkpointed' or 'direct'"
            f"{explicit}. Received: adjoint={adjoint!r}, mass_matrix={mass.matrix.tolist()}"
        )
    given = {"event": None if isinstance(event, SteadyState) else event, "jump_times": jump_times}
    for name, value in given.items():
        if value is not None:
            raise ValueError(
                f"mass_matrix cannot be combined with {name}: solve the segments one by one, each from a state of "
                f"keras_ode.consistent_state. Received: {name}={value!r}"
            )
    if regularizers:
        raise ValueError(
            "Regularizers cannot be combined with a mass_matrix: they measure the value of the dynamics, which is then not the "
            f"derivative of the state. Received: regularizer={list(regularizers)!r}"
        )
