"""Gradients of activation functions in operations that converters know.

TensorFlow has an operation for the gradient of each activation function. Those of other runtimes are for inference alone and have
none: but a Jacobian, as implicit solvers need it, and the dynamics of some layers are made of such gradients.
"""

import tensorflow as tf

# Those of tf.nn.selu.
_SELU_SCALE, _SELU_SLOPE = 1.0507009873554805, 1.7580993408473766


def _where_positive(x, like):
    return tf.cast(x > 0, like.dtype)


# By the type of the operation: a function of the operation and of its inputs, in their order.
FORMULAS = {
    "TanhGrad": lambda op, y, g: g * (1 - y * y),
    "SigmoidGrad": lambda op, y, g: g * y * (1 - y),
    "SoftplusGrad": lambda op, g, x: g * tf.sigmoid(x),
    "SoftsignGrad": lambda op, g, x: g / tf.square(1 + tf.abs(x)),
    "ReluGrad": lambda op, g, x: g * _where_positive(x, g),
    "Relu6Grad": lambda op, g, x: g * _where_positive(x, g) * tf.cast(x < 6, g.dtype),
    "LeakyReluGrad": lambda op, g, x: g * (op.get_attr("alpha") + (1 - op.get_attr("alpha")) * _where_positive(x, g)),
    "EluGrad": lambda op, g, y: g * (1 + tf.minimum(y, 0)),
    "SeluGrad": lambda op, g, y: g * (_SELU_SCALE * _where_positive(y, g)
                                      + (tf.minimum(y, 0) + _SELU_SLOPE) * (1 - _where_positive(y, g))),
    "SqrtGrad": lambda op, y, g: 0.5 * g / y,
    "RsqrtGrad": lambda op, y, g: -0.5 * g * y * y * y,
    "ReciprocalGrad": lambda op, y, g: -g * y * y,
    "InvGrad": lambda op, y, g: -g * y * y,
}  # fmt: skip
