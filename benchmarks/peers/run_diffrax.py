"""diffrax: `adjoint` is `checkpointed` or `backsolve`; also the reference, with `float64`."""

import diffrax
import jax
import jax.numpy as jnp


class Operations:
    tanh, square, concatenate, ones_like, mean = jnp.tanh, jnp.square, jnp.concatenate, jnp.ones_like, jnp.mean

    @staticmethod
    def dense(y, weight, bias):
        return y @ weight + bias

    @staticmethod
    def conv(y, kernel, bias):
        return jax.lax.conv_general_dilated(y, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) + bias


def build(workload, options):
    if options.get("float64"):
        jax.config.update("jax_enable_x64", True)
    dtype = "float64" if options.get("float64") else "float32"
    y0, times, *weights = (jnp.asarray(x, dtype) for x in (workload.y0, workload.times, *workload.weights))
    tolerances = {"rtol": workload.tolerance, "atol": workload.tolerance}
    if options["adjoint"] == "backsolve":
        # As diffrax advises: error control that does not look at the weights' gradients.
        controller = diffrax.PIDController(**tolerances, norm=diffrax.adjoint_rms_seminorm)
        adjoint = diffrax.BacksolveAdjoint(solver=diffrax.Dopri5(), stepsize_controller=controller)
    else:
        adjoint = diffrax.RecursiveCheckpointAdjoint()
    solver = getattr(diffrax, options.get("solver", "Kvaerno5" if workload.stiff else "Dopri5"))()
    term = diffrax.ODETerm(lambda t, y, weights: workload.field(Operations, t, y, *weights))

    def solve(y0, weights):
        solution = diffrax.diffeqsolve(
            term,
            solver,
            times[0],
            times[-1],
            None,
            y0,
            weights,
            saveat=diffrax.SaveAt(ts=times[1:]),
            stepsize_controller=diffrax.PIDController(**tolerances),
            adjoint=adjoint,
            max_steps=options.get("max_steps", 4096),
        )
        return solution.ys

    if workload.per_sample:
        solve = jax.vmap(solve, in_axes=(0, 0 if workload.weights_of_rows else None), out_axes=1)

    def loss(y0, weights):
        return workload.loss(Operations, solve(y0, weights))

    train, infer = jax.jit(jax.value_and_grad(loss, (0, 1))), jax.jit(loss)

    def run_train():
        value, (by_state, by_weights) = jax.block_until_ready(train(y0, weights))
        return value, [by_state, *by_weights], {}

    return run_train, lambda: jax.block_until_ready(infer(y0, weights))
