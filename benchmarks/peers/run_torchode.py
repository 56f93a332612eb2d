"""torchode, which steps every sample alone, differentiated through its steps."""

import torchode

from benchmarks.peers.torch_fields import Operations, programs, tensors


def build(workload, options):
    y0, times, weights = tensors(workload)
    every = times.expand(len(y0), -1)

    def field(t, y):
        y = y.reshape(y0.shape)  # It knows vectors only.
        return workload.field(Operations, t[:, None], y, *weights).flatten(1)

    term = torchode.ODETerm(field, with_stats=False)
    controller = torchode.IntegralController(atol=workload.tolerance, rtol=workload.tolerance, term=term)
    adjoint = torchode.AutoDiffAdjoint(
        torchode.Dopri5(term=term), controller, backprop_through_step_size_control=False
    )

    def solve():
        solution = adjoint.solve(torchode.InitialValueProblem(y0=y0.flatten(1), t_eval=every))
        return solution.ys[:, 1:].transpose(0, 1)

    return programs(workload, solve, y0, weights, options)
