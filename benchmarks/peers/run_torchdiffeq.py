"""torchdiffeq: `adjoint` is `adjoint`, `seminorm` (the same, blind to the weights' gradients) or `direct`."""

import torchdiffeq

from benchmarks.peers.torch_fields import Operations, programs, tensors


def build(workload, options):
    y0, times, weights = tensors(workload)
    if options["adjoint"] == "direct":
        odeint, extra = torchdiffeq.odeint, {}
    else:
        odeint, extra = torchdiffeq.odeint_adjoint, {"adjoint_params": weights}
    if options["adjoint"] == "seminorm":
        extra["adjoint_options"] = {"norm": "seminorm"}

    method = "scipy_solver" if workload.stiff else options.get("solver", "dopri5")
    if workload.stiff:
        extra["options"] = {"solver": "Radau"}

    def field(t, y):
        return workload.field(Operations, t, y, *weights)

    def solve():
        return odeint(field, y0, times, rtol=workload.tolerance, atol=workload.tolerance, method=method, **extra)[1:]

    return programs(workload, solve, y0, weights, options)
