"""What is solved: NumPy arrays, and fields written once over the few operations that every framework has.

A field is `field(ops, t, y, *weights)`, where `ops` has `dense(y, weight, bias)`, `conv(y, kernel, bias)`, `tanh`,
`square`, `concatenate`, `ones_like` and `mean`. `t` is a scalar, or broadcasts against the rows where each row has its own.
"""

from typing import Any, NamedTuple

import numpy as np


class Workload(NamedTuple):
    """A problem, and how accurately to solve it.

    Attributes:
        title: For the table.
        field: `field(ops, t, y, *weights)`.
        y0: The state at `times[0]`, rows first; images are `[B, height, width, channels]`.
        times: The start, and the times at which the loss reads the state.
        weights: What is trained, beside the gradient for `y0`.
        loss: `loss(ops, ys)` of the states after the start, `[T, B, ...]`.
        tolerance: Relative and absolute.
        per_sample: Whether each row has its own step size where a package can.
        weights_of_rows: Whether each row has its own weights, too.
        stiff: Whether it takes an implicit method.
    """

    title: str
    field: Any
    y0: np.ndarray
    times: np.ndarray
    weights: tuple
    loss: Any
    tolerance: float = 1e-5
    per_sample: bool = False
    weights_of_rows: bool = False
    stiff: bool = False


def mlp(ops, t, y, *weights):
    """Dense layers with tanh between."""
    *hidden, last = zip(weights[::2], weights[1::2], strict=True)
    for weight, bias in hidden:
        y = ops.tanh(ops.dense(y, weight, bias))
    return ops.dense(y, *last)


def conv(ops, t, y, kernel1, bias1, kernel2, bias2):
    """Two convolutions."""
    return ops.conv(ops.tanh(ops.conv(y, kernel1, bias1)), kernel2, bias2)


def flow(ops, t, y, weight1, bias1, weight2, bias2, weight3, bias3):
    """A continuous flow of points `z`, and the change of their log-density: minus the exact trace of the Jacobian."""
    points = y[..., :2]
    time = ops.ones_like(y[..., :1]) * t
    first = ops.tanh(ops.dense(ops.concatenate([time, points], -1), weight1, bias1))
    second = ops.tanh(ops.dense(first, weight2, bias2))
    trace = 0.0
    for i in range(2):
        tangent = ((1 - ops.square(first)) * weight1[1 + i]) @ weight2
        trace = trace + ((1 - ops.square(second)) * tangent) @ weight3[:, i : i + 1]
    return ops.concatenate([ops.dense(second, weight3, bias3), -trace], -1)


def van_der_pol(ops, t, y, mu):
    x, v = y[..., :1], y[..., 1:]
    return ops.concatenate([v, mu * (1 - ops.square(x)) * v - x], -1)


def relaxation(ops, t, y, rates, *weights):
    """A network, and a linear part that brings each component to rest at a rate of its own."""
    return mlp(ops, t, y, *weights) - rates * y


def rotation(ops, t, y, turn, *weights):
    """A network that disturbs a rotation: as many steps as turns, at any time."""
    return y @ turn + 0.1 * mlp(ops, t, y, *weights)


def mean_square(ops, ys):
    return ops.mean(ops.square(ys))


def negative_log_likelihood(ops, ys):
    """Of points whose image is standard normal, up to a constant."""
    return ops.mean(ops.square(ys[..., :1]) + ops.square(ys[..., 1:2])) / 2 - ops.mean(ys[..., 2:])


def _normal(seed, *shape, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype("float32")


def _layers(*shapes, gain=1.0, seed=0):
    """Weights and biases of dense layers or convolutions, scaled by the number of inputs."""
    weights = []
    for i, shape in enumerate(shapes, seed):
        weights += [_normal(i, *shape, scale=gain / np.sqrt(np.prod(shape[:-1]))), _normal(100 + i, shape[-1], scale=0.1)]
    return tuple(weights)


def _dense(*widths, **options):
    return _layers(*zip(widths[:-1], widths[1:], strict=True), **options)


def _times(end, saved=1):
    return np.linspace(0, end, saved + 1).astype("float32")


def workloads():
    """All, by name."""
    rows, image = 256, (32, 7, 7, 32)
    points = np.concatenate([_normal(5, 512, 2), np.zeros((512, 1), "float32")], -1)
    # All over the limit cycles: rows are fast at different times, so that shared steps are nearly always small.
    starts = np.stack([np.linspace(1.2, 2, rows) * np.where(np.arange(rows) % 2, 1, -1), np.zeros(rows)], -1).astype("float32")
    stiffness = np.random.default_rng(0).permutation(np.linspace(0.5, 25, rows, dtype="float32"))[:, None]
    rates = np.logspace(0, 5, 8, dtype="float32")
    small = Workload("small MLP", mlp, _normal(1, 128, 2), _times(1), _dense(2, 64, 64, 2), mean_square)
    # With a larger gain, states could not be integrated backward so far, as some peers do.
    long = Workload("long", mlp, _normal(4, 64, 4), _times(60), _dense(4, 32, 32, 4, gain=0.7, seed=10), mean_square, 1e-6)
    return {
        "small": small,
        "wide": Workload("wide", mlp, _normal(2, 512, 64), _times(1), _dense(64, 256, 256, 64), mean_square),
        "million": Workload("million parameters", mlp, _normal(3, 16, 8), _times(1), _dense(8, 1024, 1024, 8), mean_square),
        "long": long,
        "saved": small._replace(title="100 saved times", times=_times(1, 100)),
        "conv": Workload("convolutions", conv, _normal(7, *image), _times(1), _layers((3, 3, 32, 32), (3, 3, 32, 32)), mean_square),
        "flow": Workload("continuous flow", flow, points, _times(1), _dense(3, 64, 64, 2), negative_log_likelihood),
        "van_der_pol": Workload(
            "van der Pol, per sample", van_der_pol, starts, _times(10), (stiffness,), mean_square, per_sample=True,
            weights_of_rows=True,
        ),
        "stiff": Workload(
            "stiff network", relaxation, _normal(8, 64, 8), _times(2), (rates, *_dense(8, 32, 8, seed=20)), mean_square,
            per_sample=True, stiff=True,
        ),
    }  # fmt: skip


# What grows in the curves of growth, and its values.
GROWTH = {
    "time units": (1, 10, 100, 1000),
    "saved times": (1, 10, 100, 1000),
    "rows": (32, 256, 2048, 16384),
    "parameters": (1_000, 10_000, 100_000, 1_000_000),
}


def grown(quantity, value):
    """The workload of a curve of growth: a disturbed rotation, or the network "small"."""
    if quantity == "time units":
        turn = np.array([[0, 2], [-2, 0]], "float32")
        return Workload(quantity, rotation, _normal(1, 32, 2), _times(value), (turn, *_dense(2, 32, 2)), mean_square)
    saved, rows = (value if quantity == name else default for name, default in (("saved times", 1), ("rows", 128)))
    width = round((value + 16) ** 0.5 - 4) if quantity == "parameters" else 64  # 2-w-w-2 has w^2 + 6 w + 2 weights
    return Workload(quantity, mlp, _normal(1, rows, 2), _times(1, saved), _dense(2, width, width, 2), mean_square)
