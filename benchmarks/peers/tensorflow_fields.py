"""The operations of fields in TensorFlow, and the two programs from a solve."""

import tensorflow as tf


class Operations:
    tanh, square, concatenate, ones_like, mean = tf.tanh, tf.square, tf.concat, tf.ones_like, tf.reduce_mean

    @staticmethod
    def dense(y, weight, bias):
        return y @ weight + bias

    @staticmethod
    def conv(y, kernel, bias):
        return tf.nn.conv2d(y, kernel, 1, "SAME") + bias


def variables(workload):
    return tuple(map(tf.Variable, workload.weights))


def programs(workload, solve, weights, jit_compile):
    """`train` and `infer` from `solve(y0)`, the states after the start and a dict of facts."""
    y0 = tf.constant(workload.y0)

    @tf.function(jit_compile=jit_compile)
    def train(y0):
        with tf.GradientTape() as tape:
            tape.watch(y0)
            ys, facts = solve(y0)
            loss = workload.loss(Operations, ys)
        return loss, tape.gradient(loss, (y0, *weights)), facts

    @tf.function(jit_compile=jit_compile)
    def infer(y0):
        return workload.loss(Operations, solve(y0)[0])

    return lambda: train(y0), lambda: infer(y0)
