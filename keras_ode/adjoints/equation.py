"""The adjoint equation, as solves backward in time take it."""

from keras_ode.solvers.base import Field


class AdjointEquation(Field):
    """The equation of the cotangent, and of what is integrated beside it. A state of it is the cotangent alone, if not said."""

    def cotangent(self, z):
        """The cotangent among the leaves of a state."""
        return z

    def with_cotangent(self, z, a):
        """The state with another cotangent."""
        return a

    def reset(self, z, here, ys):
        """The state at a saved time of the forward solve, with what is stored there.

        Args:
            z: The state.
            here: Which of the saved times it is, booleans `[K]` or `[K, B]`.
            ys: The stored leaves, `[K, ...]`.
        """
        return z
