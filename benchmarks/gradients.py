"""The adjoints beside each other: gradient error, backward evaluations, time and memory, as one Markdown table.

    python -m benchmarks.gradients

Every cell is measured in a process of its own. Errors are relative to complex steps through SciPy's DOP853 at 1e-13, or
to a closed form. Times are those of a whole gradient (forward and backward) in a `tf.function`, in the form that
`jit_compile="auto"` comes to after 10,000 steps, after the first call: the median over a second, and over at least five.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import time
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

import keras_ode
from keras_ode import programs
from tests.gradients import ADJOINTS
from tests.references import Counting, gradients_by_complex_step, relative_error


class Case(NamedTuple):
    """Gradients of `loss(ys)` by `y0` and by the parameters of `field(xp, t, y, *parameters)`, of NumPy or TensorFlow."""

    title: str
    field: Any
    y0: np.ndarray
    times: np.ndarray
    parameters: tuple
    loss: Any
    options: dict
    expected: Any = gradients_by_complex_step


def spiral(xp, t, y, matrix):
    return xp.matmul((y**3)[..., None, :], matrix)[..., 0, :]


def equilibrium(xp, t, y, a):
    u, v = y[..., :1], y[..., 1:]
    a = a[..., None]
    return xp.concatenate([a * u - u * v, -a * v + u * v], -1)


def relaxation(xp, t, y, k):
    return -k[..., None] * (y - np.cos(t) if xp is np else y - tf.cos(t))


def van_der_pol(xp, t, y, mu):
    x, v = y[..., :1], y[..., 1:]
    return xp.concatenate([v, mu[..., None] * (1 - x**2) * v - x], -1)


def decay(xp, t, y):
    return -(y**3)


def network(xp, t, y, *weights):
    for i, weight in enumerate(weights):
        y = y @ weight
        y = y if i == len(weights) - 1 else tf.tanh(y)
    return y


def fast(xp, t, y, p):
    sin = np.sin if xp is np else tf.sin
    return p[..., None] * sin(20 * t) ** 2 + 0 * y


def signal(xp, t, y, values):
    """A tabulated signal of 41 values on [0, 10], linear between them."""
    maximum = np.maximum if xp is np else tf.maximum
    hats = maximum(0 * KNOTS, 1 - abs(t - KNOTS) * 4)
    return -y + xp.sum(hats * values)


KNOTS = np.linspace(0, 10, 41)


def of_fast(f, y0, times, parameters, loss):
    """Closed form: the integral of sin(20 t)^2 over [0, 10]."""
    return [np.ones(1), None, np.array(5 - np.sin(400) / 80)]


def of_signal(f, y0, times, parameters, loss):
    """Closed form: the integral of exp(t - 10) times each hat, by Gauss' rule between knots."""
    nodes, weights = np.polynomial.legendre.leggauss(12)
    by_value = np.zeros(41)
    for k in range(40):
        part = (1 + nodes) / 2
        response = np.exp(KNOTS[k] + part / 4 - 10) * weights / 8
        by_value[k : k + 2] += np.sum(response * (1 - part)), np.sum(response * part)
    return [np.exp(-10) * np.ones(1), None, by_value]


def relaxation_by_rate(f, y0, times, parameters, loss):
    """Closed form: the derivative of `y(2)` by the rate. That by the start is nothing, exp(-2 k)."""
    k = parameters[0] + 1e-30j
    forced = k / (1 + k * k)
    by_k = (forced * (k * np.cos(2) + np.sin(2)) - forced * k * np.exp(-2 * k)).imag / 1e-30
    return [None, None, np.array(by_k)]


def turned(f, y0, times, parameters, loss):
    """Closed form: a small change turns about the constant solution; complex steps would trust the steps as well."""
    c, s = np.cos(times), np.sin(times)
    return [np.array([np.sum(c + s), np.sum(c - s)]), None, np.sum(2 - 2 * c)]


def unknown(*_):
    return None


def million():
    random = np.random.default_rng(0)
    shapes = (8, 1024), (1024, 1024), (1024, 8)
    return tuple((random.normal(size=s) / np.sqrt(s[0])).astype("float32") for s in shapes)


def cases():
    tight = {"rtol": 1e-9, "atol": 1e-9}
    weights = np.random.default_rng(0).normal(size=(10, 2))
    many = np.ones(2**15, "float32")
    steps = {"solver": "rk4", "step_size": 1e-3, "max_steps": 2048}
    rough = {"rtol": 1e-4, "atol": 1e-6, "max_steps": 128}
    return {
        "spiral": Case(
            "cubic spiral, 10 times, 1e-9", spiral, np.array([2.0, 0.0]), np.linspace(0, 25, 10),
            (np.array([[-0.1, 2.0], [-2.0, -0.1]]),), lambda xp, ys: xp.sum(ys * weights), tight,
        ),
        "constant": Case(
            "constant solution, 101 times, 1e-6", equilibrium, np.ones(2), np.linspace(0, 10, 101),
            (np.array(1.0),), lambda xp, ys: xp.sum(ys), {"rtol": 1e-6, "atol": 1e-6}, turned,
        ),
        "relaxation": Case(
            "relaxation, k = 30, float32, 1e-4", relaxation, np.zeros(1, "float32"), np.array([0.0, 2.0]),
            (np.array(30.0, "float32"),), lambda xp, ys: xp.sum(ys[-1]), rough, relaxation_by_rate,
        ),
        "oscillator": Case(
            "van der Pol, mu = 5, [0, 20], 1e-9", van_der_pol, np.array([2.0, 0.0]), np.array([0.0, 20.0]),
            (np.array(5.0),), lambda xp, ys: xp.sum(ys[-1]), tight,
        ),
        **{
            f"{name}{tolerance:g}": Case(
                f"{title}, {tolerance:g}", field, np.zeros(1), np.array([0.0, 10.0]), (parameter,),
                lambda xp, ys: xp.sum(ys[-1]),
                {"rtol": tolerance, "atol": 1e-3 * tolerance, "max_steps": 8192 if tolerance < 1e-3 else 256}, expected,
            )
            for name, title, field, parameter, expected in (
                ("fast", "p sin(20 t)^2, p = 4.29", fast, np.array(4.29), of_fast),
                ("zero", "p sin(20 t)^2, p = 0", fast, np.array(0.0), of_fast),
                ("signal", "tabulated signal, 41 values", signal, np.random.default_rng(0).normal(size=41), of_signal),
            )
            for tolerance in (1e-3, 1e-6)
        },
        "steps200": Case(
            "200 steps, 32,768 states", decay, many, np.array([0.0, 0.2]), (),
            lambda xp, ys: xp.sum(ys[-1] ** 2), steps, unknown,
        ),
        "steps2000": Case(
            "2,000 steps, 32,768 states", decay, many, np.array([0.0, 2.0]), (),
            lambda xp, ys: xp.sum(ys[-1] ** 2), steps, unknown,
        ),
        "million": Case(
            "a million parameters, batch 16", network, np.random.default_rng(1).normal(size=(16, 8)).astype("float32"),
            np.array([0.0, 1.0]), million(), lambda xp, ys: xp.sum(ys[-1] ** 2),
            {"solver": "dopri5", "rtol": 1e-5, "atol": 1e-5, "max_steps": 64}, unknown,
        ),
    }  # fmt: skip


class TensorFlow:
    """The few names that fields and losses need, as NumPy has them."""

    matmul, sum, concatenate = tf.matmul, tf.reduce_sum, tf.concat


def gradients(case, adjoint, field, **options):
    """The gradients, and the forward solve's statistics."""
    y0, times = tf.constant(case.y0), tf.constant(case.times, case.y0.dtype)
    parameters = tuple(map(tf.constant, case.parameters))
    options = {**case.options, "adjoint": adjoint, **options}

    @tf.function
    def compute(y0, parameters):
        with tf.GradientTape() as tape:
            tape.watch((y0, parameters))
            solution = keras_ode.solve(lambda t, y: field(t, y, *parameters), y0, times, **options)
            loss = case.loss(TensorFlow, solution.ys)
        return tape.gradient(loss, (y0, *parameters)), solution.stats["num_evaluations"]

    return lambda: compute(y0, parameters)


def measure(name, adjoint):
    """One row of one case, as a dict."""
    case = cases()[name]
    programs.STEPS_BEFORE_COMPILING = 0

    def field(t, y, *parameters):
        return case.field(TensorFlow, t, y, *parameters)

    start = peak()
    compute = gradients(case, adjoint, field)
    found, evaluations = compute()
    memory = peak() - start
    seconds = []
    while len(seconds) < 5 or sum(seconds) < 1:
        begin = time.perf_counter()
        found, evaluations = compute()
        [x.numpy() for x in found]
        seconds.append(time.perf_counter() - begin)
    expected = case.expected(
        lambda t, y, *p: case.field(np, t, y, *p), case.y0, case.times, case.parameters, lambda ys: case.loss(np, ys)
    )
    error = None
    if expected is not None:
        pairs = zip(found, [expected[0], *expected[2:]], strict=True)
        error = float(max(relative_error(a, b) for a, b in pairs if b is not None))
    # Counted in a solve of its own: the counter is no part of what is timed.
    parameters = tuple(map(tf.constant, case.parameters))
    counting = Counting(lambda t, y: field(t, y, *parameters))
    evaluations = int(gradients(case, adjoint, lambda t, y, *_: counting(t, y), jit_compile=False)()[1])
    return {
        "error": error,
        "backward": counting.take() - evaluations,
        "forward": evaluations,
        "milliseconds": 1e3 * float(np.median(seconds)),
        "megabytes": memory,
    }


def peak():
    """The largest memory that this process ever had, in MB. (The resource module would count its parent's too.)"""
    return int(re.search(r"VmHWM:\s*([0-9]+)", pathlib.Path("/proc/self/status").read_text()).group(1)) / 1024


def row(case, adjoint, found):
    error = "" if found["error"] is None else f"{found['error']:.0e}"
    return (
        f"| {case.title} | `{adjoint}` | {error} | {found['forward']} | {found['backward']} "
        f"| {found['milliseconds']:.1f} | {found['megabytes']:.0f} |"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=list(cases()), help="only this one")
    parser.add_argument("--adjoint", choices=ADJOINTS, help="only this one, in this process; prints JSON")
    arguments = parser.parse_args()
    if arguments.adjoint:
        print(json.dumps(measure(arguments.case, arguments.adjoint)))
        return
    wanted = {arguments.case: cases()[arguments.case]} if arguments.case else cases()
    print("| case | adjoint | gradient error | forward evaluations | backward evaluations | time, ms | memory, MB |")
    print("|---|---|---|---|---|---|---|")
    progress = keras.utils.Progbar(len(wanted) * len(ADJOINTS)) if sys.stderr.isatty() else None
    for name, case in wanted.items():
        for adjoint in ADJOINTS:
            command = [sys.executable, "-m", "benchmarks.gradients", "--case", name, "--adjoint", adjoint]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
            print(row(case, adjoint, json.loads(done.stdout.splitlines()[-1])), flush=True)
            if progress:
                progress.add(1)


if __name__ == "__main__":
    main()
