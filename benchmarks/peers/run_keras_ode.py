"""keras_ode: `mode` is `xla` (one compiled program), `plain` (no XLA) or `auto` (a graph whose solve compiles itself)."""

import tensorflow as tf

import keras_ode
from benchmarks.peers.tensorflow_fields import Operations, programs, variables


def build(workload, options):
    weights, times = variables(workload), tf.constant(workload.times)

    def solve(y0):
        solution = keras_ode.solve(
            lambda t, y: workload.field(Operations, t, y, *weights),
            y0,
            times,
            solver="dopri5",
            rtol=workload.tolerance,
            atol=workload.tolerance,
            adjoint=options["adjoint"],
            per_sample=options["per_sample"],
            jit_compile="auto" if options["mode"] == "auto" else False,
        )
        facts = {"evaluations": solution.stats["num_evaluations"], "accepted": solution.stats["num_accepted"]}
        return solution.ys[1:], facts

    return programs(workload, solve, weights, options["mode"] == "xla")
