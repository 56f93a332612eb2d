"""Parameters' cotangents as integrals over backward steps."""

import tensorflow as tf
from numpy.polynomial.legendre import leggauss

from keras_ode import tree

# Gauss and Legendre's rule with three nodes, of order six, on [0, 1].
_NODES = ((1 + leggauss(3)[0]) / 2).tolist()
_WEIGHTS = (leggauss(3)[1] / 2).tolist()


class ParameterQuadrature:
    """Observes accepted backward steps and sums `a^T df/dp` over them by Gauss quadrature.

    Reference: Rackauckas et al. (2020), Universal differential equations for scientific machine learning.

    Args:
        field: The vector field.
        parameters: Its parameters.
        locate: A function from a `Trial` and a fraction of its step to the time, the state and the cotangent there.
    """

    def __init__(self, field, parameters, locate):
        self.field, self.parameters, self.locate = field, parameters, locate

    def start(self):
        return tree.zeros_like(self.field.select(self.parameters)), tf.constant(0)

    def see(self, state, trial):
        if not any(self.field.differentiable):
            return state
        return tf.cond(tf.reduce_any(trial.accept), lambda: self._add(state, trial), lambda: state)

    def _add(self, state, trial):
        total, evaluations = state
        size = tf.where(trial.accept, trial.interval.size, 0)
        for node, weight in zip(_NODES, _WEIGHTS, strict=True):
            t, y, a = self.locate(trial, node)
            # A difference, since sums of many are not safe here (see `tree`): `a` has the sign of backward time.
            total = tree.subtract(total, self._product(t, y, tree.scale(weight * size, a)))
        evaluations += len(_NODES)
        if not trial.step.extra:
            return total, evaluations
        slope, applied = trial.step.extra
        return tf.cond(
            tf.reduce_any(applied & trial.accept),
            lambda: (tree.add(total, self._jump(trial, slope)), evaluations + 1),
            lambda: (total, evaluations),
        )

    def _jump(self, trial, slope):
        """What a cotangent of the derivative where the step starts means for the parameters."""
        t, y, _ = self.locate(trial, 0.0)
        none = tree.zeros_like(slope)
        return self._product(t, y, tree.where(trial.accept, slope, none))

    def _product(self, t, y, cotangent):
        return self.field.vjp(t, y, self.parameters, cotangent)[2]
