"""Continuous normalizing flows in TensorFlow Probability. Imported only when used: TensorFlow Probability is slow to load."""

import tensorflow as tf
import tensorflow_probability as tfp


class FlowBijector(tfp.bijectors.Bijector):
    """The bijector that `ContinuousNormalizingFlow.as_bijector` returns."""

    def __init__(self, flow, name="continuous_normalizing_flow", parameters=None):
        parameters = {"flow": flow, "name": name} if parameters is None else parameters
        super().__init__(
            forward_min_event_ndims=len(flow.event_shape), dtype=flow.variable_dtype, parameters=parameters, name=name
        )
        self._flow = flow
        # A tf.Module finds the TensorFlow variables, not Keras', in its attributes.
        self._tracked = [variable.value for variable in flow.variables]

    def _forward(self, z):
        return self._transport(z, inverse=False)[0]

    def _inverse(self, x):
        return self._transport(x, inverse=True)[0]

    def _forward_log_det_jacobian(self, z):
        return self._transport(z, inverse=False)[1]

    def _inverse_log_det_jacobian(self, x):
        return self._transport(x, inverse=True)[1]

    def _transport(self, points, inverse):
        """Calls the flow's `transport` for points with any number of batch axes."""
        event = self._flow.event_shape
        batch = tf.shape(points)[: points.shape.rank - len(event)]
        ends, change = self._flow.transport(tf.reshape(points, [-1, *event]), inverse)
        return tf.ensure_shape(tf.reshape(ends, tf.shape(points)), points.shape), tf.reshape(change, batch)
