"""keras_ode: `mode` is `xla` (one compiled program), `plain` (no XLA) or `auto` (a graph whose solve compiles itself).

With `auto` the first step is a user's first, and the later ones are those after the solve has compiled itself.
"""

import tensorflow as tf

import keras_ode.programs
from benchmarks.peers.tensorflow_fields import Operations, programs, variables


def build(workload, options):
    keras_ode.programs.STEPS_BEFORE_COMPILING = 1
    weights, times = variables(workload), tf.constant(workload.times)

    def solve(y0):
        solution = keras_ode.solve(
            lambda t, y: workload.field(Operations, t, y, *weights),
            y0,
            times,
            solver=options.get("solver", "dopri5"),
            rtol=workload.tolerance,
            atol=workload.tolerance,
            max_steps=options.get("max_steps", 4096),
            adjoint=options["adjoint"],
            per_sample=options["per_sample"],
            jit_compile="auto" if options["mode"] == "auto" else False,
        )
        facts = {"evaluations": solution.stats["num_evaluations"], "accepted": solution.stats["num_accepted"]}
        return solution.ys[1:], facts

    return programs(workload, solve, weights, options["mode"] == "xla")
