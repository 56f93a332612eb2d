"""Error against work for three problems, ours beside SciPy and diffrax: a picture and its numbers.

    python -m benchmarks.work_precision [--output docs/images/work_precision.png] [--no-diffrax]

Work is the number of evaluations of the dynamics, which no load of the machine changes. A Jacobian of D unknowns counts as D: ours
and diffrax's are found by automatic differentiation, SciPy's by differences, which its `nfev` does not count. Errors are relative
to the largest element of the state.
"""

import argparse
import json
import subprocess

import numpy as np

TOLERANCES = [10.0**-k for k in range(3, 12)]
# Of each diffrax solver the evaluations of a step. Of implicit ones it tells none.
_STAGES = {"Tsit5": 6, "Dopri8": 13}


def kepler(xp, y):
    cube = (y[0] ** 2 + y[1] ** 2) ** 1.5
    return xp.stack([y[2], y[3], -y[0] / cube, -y[1] / cube])


def oregonator(xp, y):
    a, b, c = y[0], y[1], y[2]
    return xp.stack([77.27 * (b + a * (1 - 8.375e-6 * a - b)), (c - (1 + a) * b) / 77.27, 0.161 * (a - c)])


# The field, the start, the end, and the solvers: ours, SciPy's, diffrax's.
PROBLEMS = {
    "not stiff: Kepler, eccentricity 0.6": (
        kepler, [0.4, 0.0, 0.0, 2.0], 20.0, ["bosh3", "tsit5", "dopri8", "vern7", "vern9"], ["RK45", "DOP853"], ["Tsit5", "Dopri8"],
    ),
    "stiff: Oregonator": (
        oregonator, [1.0, 2.0, 3.0], 360.0,
        ["rosenbrock23", "rodas5p", "kvaerno3", "kvaerno5", "radau", "bdf", "auto"], ["Radau", "BDF"], [],
    ),
}  # fmt: skip
PENDULUM = ["semi_implicit_euler", "leapfrog", "yoshida4", "rk4", "implicit_midpoint"]
# The role of the color, and the marker, of methods in a figure. Methods of other packages look like ours that are most like them.
LOOKS = {
    "bosh3": ("third", "v"), "tsit5": ("ode", "o"), "dopri8": ("other", "s"), "vern7": ("failure", "^"), "vern9": ("ink", "D"),
    "rosenbrock23": ("third", "v"), "rodas5p": ("ode", "o"), "kvaerno3": ("other", "<"), "kvaerno5": ("other", ">"),
    "radau": ("failure", "s"), "bdf": ("third", "^"), "auto": ("ink", "D"),
    "semi_implicit_euler": ("third", "v"), "leapfrog": ("other", "s"), "yoshida4": ("ode", "o"), "rk4": ("failure", "^"),
    "implicit_midpoint": ("ink", "D"),
}  # fmt: skip
ALIKE = {"RK45": "tsit5", "DOP853": "dopri8", "Radau": "radau", "BDF": "bdf", "Tsit5": "tsit5", "Dopri8": "dopri8"}
LINES = {"keras_ode": "-", "SciPy": "--", "diffrax": ":"}


def exact(field, y0, end, method):
    from scipy.integrate import solve_ivp

    return solve_ivp(lambda t, y: field(np, y), (0, end), y0, method, rtol=3e-14, atol=1e-15).y[:, -1]


def ours(field, y0, end, solver, reference):
    import tensorflow as tf

    import keras_ode

    for tolerance in TOLERANCES:
        solution = keras_ode.solve(
            lambda t, y: field(tf, y), tf.constant(y0, tf.float64), [0.0, end], solver=solver, rtol=tolerance, atol=tolerance,
            max_steps=30_000, jit_compile=False, on_failure="nan",
        )  # fmt: skip
        yield int(solution.stats["num_evaluations"]), error(solution.ys[-1].numpy(), reference)


def of_scipy(field, y0, end, method, reference):
    from scipy.integrate import solve_ivp

    for tolerance in TOLERANCES:
        found = solve_ivp(lambda t, y: field(np, y), (0, end), y0, method, rtol=tolerance, atol=tolerance)
        yield found.nfev + found.njev * len(y0), error(found.y[:, -1], reference)


def of_diffrax():
    """Run by an interpreter that has diffrax: the evaluations and the ends."""
    import diffrax
    import jax

    jax.config.update("jax_enable_x64", True)
    lines = {}
    for name, (field, y0, end, _, _, solvers) in PROBLEMS.items():
        for solver in solvers:
            for tolerance in TOLERANCES:
                solution = diffrax.diffeqsolve(
                    diffrax.ODETerm(lambda t, y, args, field=field: field(jax.numpy, y)),
                    getattr(diffrax, solver)(),
                    0.0,
                    end,
                    None,
                    jax.numpy.array(y0),
                    stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
                    max_steps=10**6,
                )
                line = lines.setdefault(f"{name}|{solver}", [])
                line.append((int(solution.stats["num_steps"]) * _STAGES[solver], np.asarray(solution.ys[-1]).tolist()))
    return lines


def error(y, reference):
    return float(np.max(np.abs(y - reference)) / np.max(np.abs(reference)))


def pendulum(solver):
    """The largest error of the energy over a hundred periods of small steps, against evaluations of a period."""
    import tensorflow as tf

    import keras_ode

    for steps in (16, 32, 64, 128, 256):
        size = 2 * np.pi / steps
        solution = keras_ode.solve(
            lambda t, y: (y[1], -tf.sin(y[0])), (tf.constant(1.0, tf.float64), tf.constant(0.0, tf.float64)),
            np.arange(0, 100 * steps + 1, 4) * size, solver=solver, step_size=size, max_steps=200 * steps, jit_compile=False,
            adjoint="checkpointed",
        )  # fmt: skip
        angle, speed = (leaf.numpy() for leaf in solution.ys)
        energy = speed**2 / 2 - np.cos(angle)
        yield int(solution.stats["num_evaluations"]) / 100, float(np.max(np.abs(energy - energy[0])))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="docs/images/work_precision.png")
    parser.add_argument("--no-diffrax", action="store_true")
    parser.add_argument("--diffrax", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.diffrax:
        print(json.dumps(of_diffrax()))
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from keras_ode.plotting import STYLE

    theirs = {}
    if not options.no_diffrax:
        from benchmarks.peers import environments

        command = [environments.python("diffrax"), "-m", "benchmarks.work_precision", "--diffrax"]
        theirs = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    plt.style.use(STYLE)
    figure, axes = plt.subplots(3, 1, figsize=(9, 15))
    for axis, (name, (field, y0, end, mine, scipys, diffraxs)) in zip(axes, PROBLEMS.items(), strict=False):
        reference = exact(field, y0, end, "DOP853" if "not" in name else "Radau")
        for solver in mine:
            draw(axis, "keras_ode", solver, list(ours(field, y0, end, solver, reference)))
        for method in scipys:
            draw(axis, "SciPy", method, list(of_scipy(field, y0, end, method, reference)))
        for method in diffraxs if theirs else ():
            line = [(count, error(np.array(y), reference)) for count, y in theirs[f"{name}|{method}"]]
            draw(axis, "diffrax", method, line)
        axis.set(title=name, xlabel="evaluations of the dynamics", ylabel="relative error at the end")
    for solver in PENDULUM:
        draw(axes[2], "keras_ode", solver, list(pendulum(solver)))
    axes[2].set(
        title="Hamiltonian: pendulum, 100 periods, constant steps", xlabel="evaluations in 2 pi units of time",
        ylabel="largest error of the energy",
    )  # fmt: skip
    for axis in axes:
        axis.set(xscale="log", yscale="log")
        axis.grid(alpha=0.3)
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(options.output)
    print(f"saved {options.output}")


def draw(axis, package, method, line):
    """Prints a line and draws it. Markers of other packages are hollow, since a method may be in several packages."""
    from keras_ode.plotting import COLORS

    name = method if package == "keras_ode" else f"{package} {method}"
    print(name, " ".join(f"{count:.0f}:{err:.1e}" for count, err in line), flush=True)
    line = [(count, err) for count, err in line if np.isfinite(err) and err > 0]
    role, marker = LOOKS[ALIKE.get(method, method)]
    look = {"color": COLORS[role], "ls": LINES[package], "marker": marker, "ms": 7, "lw": 1.5}
    axis.plot(*zip(*line, strict=True), **look, mfc=None if package == "keras_ode" else "white", label=name)


if __name__ == "__main__":
    main()
