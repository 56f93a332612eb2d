"""Parameters' cotangents as integrals over backward steps of rows that have steps of their own."""

import tensorflow as tf

from keras_ode import tree

# Lobatto's rule with five nodes, of order eight, on [0, 1], and what it differs by from Simpson's on three of them.
_NODES = (0.0, (1 - (3 / 7) ** 0.5) / 2, 0.5, (1 + (3 / 7) ** 0.5) / 2, 1.0)
_WEIGHTS = (1 / 20, 49 / 180, 16 / 45, 49 / 180, 1 / 20)
_SIMPSON = (1 / 6, 0.0, 2 / 3, 0.0, 1 / 6)


class ParameterQuadrature:
    """Integrates `a^T df/dp` over the backward steps that some of the rows accept.

    A step is shared by all rows, but not its outcome: so what the accepted rows contribute is found when it is known
    which these are. The difference to Simpson's rule, which is of the fifth power of the step size, estimates the error.

    Reference: Davis, Rabinowitz (1984), Methods of Numerical Integration, section 2.7.

    Args:
        field: The vector field.
        parameters: Its parameters.
        locate: A function from an interval, a `Step` and a fraction of it to the time, the state and the cotangent there.
    """

    def __init__(self, field, parameters, locate):
        self.field, self.parameters, self.locate = field, parameters, locate

    def start(self):
        return tree.zeros_like(self.field.select(self.parameters))

    def over(self, interval, step, accept):
        """The integral over a step for the rows that accept it, the estimate of its error, and the evaluations."""
        zero = self.start()
        if not zero:
            return (), (), tf.constant(0)
        return tf.cond(
            tf.reduce_any(accept), lambda: self._over(interval, step, accept), lambda: (zero, zero, tf.constant(0))
        )

    def _over(self, interval, step, accept):
        total = error = self.start()
        size = tf.where(accept, interval.size, 0)
        for node, weight, simpson in zip(_NODES, _WEIGHTS, _SIMPSON, strict=True):
            t, y, a = self.locate(interval, step, node)
            product = self._product(t, y, tree.scale(size, a))
            # Differences, since sums of many are not safe here (see `tree`): `a` has the sign of backward time.
            total = tree.subtract(total, tree.scale(weight, product))
            error = tree.subtract(error, tree.scale(weight - simpson, product))
        return total, error, tf.constant(len(_NODES))

    def _product(self, t, y, cotangent):
        return self.field.vjp(t, y, self.parameters, cotangent)[2]
