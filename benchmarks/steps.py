"""How many steps each solver tries on five problems, beside diffrax and SciPy, and with which error, as one Markdown table.

    python -m benchmarks.steps

All use the root mean square as norm, and the same tolerance as `rtol` and `atol`. Errors are those at the end, the largest of all
elements, against SciPy's DOP853 at 1e-13. SciPy has no Tsit5, and counts no rejected steps.
"""

import json
import math
import subprocess
import sys

import numpy as np


def lotka_volterra(xp, y):
    return xp.stack([1.5 * y[0] - y[0] * y[1], y[0] * y[1] - 3 * y[1]])


def van_der_pol(xp, y):
    return xp.stack([y[1], 5 * (1 - y[0] ** 2) * y[1] - y[0]])


def brusselator(xp, y):
    return xp.stack([1 + y[0] ** 2 * y[1] - 4 * y[0], 3 * y[0] - y[0] ** 2 * y[1]])


def kepler(xp, y):
    cube = (y[0] ** 2 + y[1] ** 2) ** 1.5
    return xp.stack([y[2], y[3], -y[0] / cube, -y[1] / cube])


def lorenz(xp, y):
    return xp.stack([10 * (y[1] - y[0]), y[0] * (28 - y[2]) - y[1], y[0] * y[1] - 8 / 3 * y[2]])


PROBLEMS = {
    "Lotka and Volterra": (lotka_volterra, [1.0, 1.0], 10.0),
    "van der Pol, 5": (van_der_pol, [2.0, 0.0], 15.0),
    "Brusselator": (brusselator, [1.5, 3.0], 20.0),
    "Kepler, 0.6": (kepler, [0.4, 0.0, 0.0, 2.0], 10.0),
    "Lorenz": (lorenz, [1.0, 1.0, 1.0], 3.0),
}
SOLVERS = {"bosh3": "RK23", "dopri5": "RK45", "tsit5": None, "dopri8": "DOP853"}
TOLERANCES = (1e-3, 1e-6, 1e-9)


def cases():
    for solver in SOLVERS:
        for problem in PROBLEMS:
            for tolerance in TOLERANCES[: 2 if solver == "bosh3" else 3]:
                yield solver, problem, tolerance


def of_diffrax():
    """Steps tried and the state at the end of each case."""
    import diffrax
    import jax

    jax.config.update("jax_enable_x64", True)
    for solver, problem, tolerance in cases():
        field, y0, end = PROBLEMS[problem]
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args, field=field: field(jax.numpy, y)),
            getattr(diffrax, solver.capitalize())(),
            0.0,
            end,
            None,
            jax.numpy.array(y0),
            stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
            max_steps=10**6,
        )
        yield int(solution.stats["num_steps"]), np.asarray(solution.ys[-1]).tolist()


def main():
    if "--diffrax" in sys.argv:
        print(json.dumps(list(of_diffrax())))
        return
    import scipy.integrate
    import tensorflow as tf

    import keras_ode
    from benchmarks.peers import environments

    command = [environments.python("diffrax"), "-m", "benchmarks.steps", "--diffrax"]
    theirs = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    exact = {
        name: scipy.integrate.solve_ivp(lambda t, y, f=f: f(np, y), (0, end), y0, "DOP853", rtol=1e-13, atol=1e-13).y[:, -1]
        for name, (f, y0, end) in PROBLEMS.items()
    }
    ratios = {solver: [] for solver in SOLVERS}
    print("| solver | problem | tolerance | steps | diffrax | over diffrax | accepted | SciPy | error | diffrax | SciPy |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for (solver, problem, tolerance), (steps, end_state) in zip(cases(), theirs, strict=True):
        field, y0, end = PROBLEMS[problem]
        ours = keras_ode.solve(
            lambda t, y, field=field: field(tf, y),
            tf.constant(y0, tf.float64),
            [0.0, end],
            solver=solver,
            rtol=tolerance,
            atol=tolerance,
            max_steps=10**5,
            jit_compile=False,
        )
        count, accepted = int(ours.stats["num_steps"]), int(ours.stats["num_accepted"])
        ratios[solver].append(count / steps)
        of_scipy, states = "", [ours.ys[-1].numpy(), end_state]
        if SOLVERS[solver]:
            found = scipy.integrate.solve_ivp(
                lambda t, y, f=field: f(np, y), (0, end), y0, SOLVERS[solver], rtol=tolerance, atol=tolerance
            )
            of_scipy = str(len(found.t) - 1)
            states.append(found.y[:, -1])
        errors = [f"{np.max(np.abs(np.asarray(state) - exact[problem])):.0e}" for state in states] + [""] * (3 - len(states))
        cells = [solver, problem, f"{tolerance:.0e}", count, steps, f"{ratios[solver][-1]:.2f}", accepted, of_scipy, *errors]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
    print("\n| solver | steps over diffrax, geometric mean | at worst |\n|---|---|---|")
    for solver, found in ratios.items():
        print(f"| {solver} | {math.exp(sum(map(math.log, found)) / len(found)):.2f} | {max(found):.2f} |")


if __name__ == "__main__":
    main()
