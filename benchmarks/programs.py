"""The compiled program of a solve inside JAX's runtime, beside diffrax on the same work: also on a GPU without TensorFlow.

    python -m benchmarks.programs write FOLDER        with keras_ode: writes the XLA programs and their inputs
    python benchmarks/programs.py race FOLDER         with JAX and diffrax: prints a Markdown table

So what a program costs is seen apart from TensorFlow's calls, and on any device that JAX has. Both take the same weights, fields,
Dormand and Prince's 5(4) pair and tolerances, and run in turn. A training step is forward, loss, and the gradients of all
weights.
"""

import argparse
import pathlib
import statistics
import time

import numpy as np

ADJOINTS = ("interpolating", "checkpointed")
ROUNDS = 40


def weights(seed, *widths, gain=1.0):
    random = np.random.default_rng(seed)
    pairs = [
        (random.standard_normal((a, b)) / np.sqrt(a), 0.1 * random.standard_normal(b))
        for a, b in zip(widths[:-1], widths[1:], strict=True)
    ]
    pairs[-1] = [gain * x for x in pairs[-1]]
    return [x.astype("float32") for pair in pairs for x in pair]


def work():
    """Rows, widths of the network, times, tolerance, and the gain of the last layer, by name."""
    return {
        "small": (128, (2, 64, 64, 2), np.linspace(0, 1, 2), 1e-5, 1.0),
        "wide": (512, (64, 256, 256, 64), np.linspace(0, 1, 2), 1e-5, 1.0),
        "million": (16, (8, 1024, 1024, 8), np.linspace(0, 1, 2), 1e-5, 1.0),
        "long": (64, (4, 32, 32, 4), np.linspace(0, 60, 2), 1e-6, 2.0),
        "saved": (64, (2, 50, 2), np.linspace(0, 5, 100), 1e-5, 1.0),
    }


def network(matmul, tanh, y, weights):
    *hidden, last = zip(weights[::2], weights[1::2], strict=True)
    for weight, bias in hidden:
        y = tanh(matmul(y, weight) + bias)
    return matmul(y, last[0]) + last[1]


def inputs(name):
    rows, widths, *_, gain = work()[name]
    return [np.random.default_rng(0).standard_normal((rows, widths[0])).astype("float32"), *weights(1, *widths, gain=gain)]


def functions(name, adjoint):
    """The loss of a workload, and its training step, as functions of the state and the weights."""
    import tensorflow as tf

    import keras_ode

    _, _, times, tolerance, _ = work()[name]
    times = times.astype("float32")

    def loss(y0, *weights):
        ys = keras_ode.odeint(
            lambda t, y, *w: network(tf.matmul, tf.tanh, y, w), y0, times, args=weights,
            solver="dopri5", rtol=tolerance, atol=tolerance, adjoint=adjoint,
        )  # fmt: skip
        return tf.reduce_mean(ys[1:] ** 2)

    def training(y0, *weights):
        with tf.GradientTape() as tape:
            tape.watch(weights)
            value = loss(y0, *weights)
        return value, *tape.gradient(value, weights)

    return {"inference": loss, "training": training}


def write(folder, names):
    import tensorflow as tf

    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        tensors = [tf.constant(x) for x in inputs(name)]
        for adjoint in ADJOINTS:
            for kind, function in functions(name, adjoint).items():
                ir = tf.function(function, jit_compile=True, autograph=False).experimental_get_compiler_ir(*tensors)
                (folder / f"{name}_{adjoint}_{kind}.hlo").write_bytes(ir(stage="hlo_serialized"))
            print(f"wrote {name}, {adjoint}", flush=True)


def loaded(path, arrays):
    """A function that runs a program on the device, and returns its results."""
    import jax
    from jax._src.lib import xla_client

    client = jax.devices()[0].client
    computation = xla_client.XlaComputation(path.read_bytes())
    module = xla_client._xla.mlir.xla_computation_to_mlir_module(computation)
    devices = xla_client.DeviceList(tuple(client.devices()[:1]))
    program = client.compile_and_load(module, devices, xla_client.CompileOptions())

    def run():
        results = program.execute_sharded(arrays).disassemble_into_single_device_arrays()
        return [shards[0].block_until_ready() for shards in results]

    return run


def of_diffrax(name):
    """Inference and training step of diffrax, compiled."""
    import diffrax
    import jax
    import jax.numpy as jnp

    _, _, times, tolerance, _ = work()[name]
    field = diffrax.ODETerm(lambda t, y, w: network(jnp.matmul, jnp.tanh, y, w))

    def loss(w, y0):
        solution = diffrax.diffeqsolve(
            field, diffrax.Dopri5(), float(times[0]), float(times[-1]), None, y0, args=w,
            saveat=diffrax.SaveAt(ts=jnp.asarray(times[1:], "float32")),
            stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
        )  # fmt: skip
        return jnp.mean(solution.ys**2)

    y0, *w = map(jnp.asarray, inputs(name))
    infer, train = jax.jit(loss), jax.jit(jax.value_and_grad(loss))
    return lambda: jax.block_until_ready(infer(w, y0)), lambda: jax.block_until_ready(train(w, y0))


def in_turns(runs):
    """The median milliseconds of each, run in turn."""
    seconds = {key: [] for key in runs}
    for run in runs.values():
        run()
    for _ in range(ROUNDS):
        for key, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[key].append(time.perf_counter() - start)
    return {key: 1e3 * statistics.median(times) for key, times in seconds.items()}


def race(folder, names):
    import jax

    print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}\n")
    print("| workload | adjoint | inference, ms | diffrax | ratio | training step, ms | diffrax | ratio | losses differ by |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in names:
        arrays = [jax.device_put(x) for x in inputs(name)]
        infer, train = of_diffrax(name)
        expected = float(infer())
        for adjoint in ADJOINTS:
            ours = [loaded(folder / f"{name}_{adjoint}_{kind}.hlo", arrays) for kind in ("inference", "training")]
            gap = abs(float(ours[0]()[0]) - expected) / abs(expected)
            ms = in_turns({"infer": ours[0], "their infer": infer, "train": ours[1], "their train": train})
            cells = [ms["infer"], ms["their infer"], ms["infer"] / ms["their infer"]]
            cells += [ms["train"], ms["their train"], ms["train"] / ms["their train"]]
            print(f"| {name} | `{adjoint}` | {' | '.join(f'{x:.2f}' for x in cells)} | {gap:.0e} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["write", "race"])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--work", nargs="+", choices=list(work()), default=list(work()), help="only these")
    options = parser.parse_args()
    {"write": write, "race": race}[options.command](options.folder, options.work)


if __name__ == "__main__":
    main()
