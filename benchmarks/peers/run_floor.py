"""What the arithmetic itself costs: the evaluations, and vector-Jacobian products, of a solve's steps in one loop each.

`evaluations` is how often the solve evaluates its field; `products` how often an exact gradient of its accepted steps
needs a vector-Jacobian product, which evaluates the field once more. Each run depends on that before, as in a solve.
"""

import tensorflow as tf

from benchmarks.peers.tensorflow_fields import Operations, variables

STEP = 1e-3


def build(workload, options):
    weights, t = variables(workload), tf.constant(workload.times[0])
    y0 = tf.constant(workload.y0)

    def field(y, weights):
        return workload.field(Operations, t, y, *weights)

    def evaluate(y, weights):
        def body(i, y):
            return i + 1, y + STEP * field(y, weights)

        return tf.while_loop(lambda i, _: i < options["evaluations"], body, (0, y))[1]

    def product(y, weights, cotangent):
        with tf.GradientTape() as tape:
            tape.watch((y, weights))
            slope = field(y, weights)
        return tape.gradient(slope, (y, weights), cotangent)

    def differentiate(y, weights):
        def body(i, cotangent, totals):
            by_state, by_weights = product(y, weights, cotangent)
            return i + 1, cotangent + STEP * by_state, [a + b for a, b in zip(totals, by_weights, strict=True)]

        start = (0, tf.ones_like(y), [tf.zeros_like(weight) for weight in weights])
        return tf.while_loop(lambda i, *_: i < options["products"], body, start)[1:]

    @tf.function(jit_compile=options["mode"] == "xla")
    def train(y0):
        values = [tf.convert_to_tensor(weight) for weight in weights]
        y = evaluate(y0, values)
        cotangent, totals = differentiate(y, values)
        return tf.reduce_mean(y), [cotangent, *totals], {}

    @tf.function(jit_compile=options["mode"] == "xla")
    def infer(y0):
        return tf.reduce_mean(evaluate(y0, weights))

    return lambda: train(y0), lambda: infer(y0)
