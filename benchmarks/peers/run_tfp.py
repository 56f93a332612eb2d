"""`tfp.math.ode`: `mode` is `xla` or `plain`."""

import tensorflow as tf
import tensorflow_probability as tfp

from benchmarks.peers.tensorflow_fields import Operations, programs, variables


def build(workload, options):
    weights, times = variables(workload), tf.constant(workload.times)
    solver = tfp.math.ode.DormandPrince(rtol=workload.tolerance, atol=workload.tolerance)

    def field(t, y, weights):
        return workload.field(Operations, t, y, *weights)

    def solve(y0):
        # It differentiates only by constants that are tensors.
        constants = {"weights": tuple(map(tf.convert_to_tensor, weights))}
        return solver.solve(field, times[0], y0, times[1:], constants=constants).states, {}

    return programs(workload, solve, weights, options["mode"] == "xla")
