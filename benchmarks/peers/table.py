"""The results as Markdown."""

import math
from typing import NamedTuple

COLUMNS = (
    "workload", "contestant", "training step, ms", "over best peer", "over floor",
    "inference, ms", "over best peer", "over floor", "first step, s", "memory, MB",
)  # fmt: skip
DEFAULT = "keras_ode, as it is by default"
ANY = "keras_ode, the best of all"
COMPARISONS = (
    ("training", "best peer", "train", None),
    ("inference", "best peer", "infer", None),
    ("first step", "diffrax", "first", ("diffrax",)),
    ("training", "floor", "train", ("floor",)),
)


class Row(NamedTuple):
    """What was found of a contestant: seconds and MB, or why there is nothing to tell."""

    name: str
    package: str
    train: float = math.nan
    infer: float = math.nan
    first: float = math.nan
    megabytes: float = math.nan
    remark: str = ""


def best(rows, column):
    """The least of a column, or NaN."""
    return min((getattr(row, column) for row in rows if not row.remark), default=math.nan)


def of(rows, *packages):
    return [row for row in rows if row.package in packages]


def fastest_of_each_name(rows):
    """One row of each name: the one that trains fastest, with the least time of inference."""
    found = {}
    for row in sorted(rows, key=lambda row: (bool(row.remark), row.train)):
        kept = found.setdefault(row.name, row)
        found[row.name] = kept._replace(infer=min(kept.infer, row.infer)) if not row.remark else kept
    return [found[name] for name in dict.fromkeys(row.name for row in rows)]


def line(cells):
    return f"| {' | '.join(cells)} |"


def head(columns):
    return [line(columns), line(["---"] * len(columns))]


def lines(title, rows, peers):
    """The lines of one workload."""
    for row in rows:
        if row.remark:
            yield line([title, row.name, row.remark, *[""] * (len(COLUMNS) - 3)])
            continue
        cells = [title, row.name]
        for column in ("train", "infer"):
            value = getattr(row, column)
            ratios = (value / best(of(rows, *peers), column), value / best(of(rows, "floor"), column))
            cells += [f"{1e3 * value:.2f}", *("" if math.isnan(ratio) else f"{ratio:.2f}" for ratio in ratios)]
        yield line([*cells, f"{row.first:.2f}", f"{row.megabytes:.0f}"])


def overview(results, peers):
    """One line for each workload: keras_ode as it is by default, with the best choice of adjoint and mode, and the best peer."""
    columns = [f"{what}, {whose}" for what in ("training", "inference") for whose in ("default", "best choice", "best peer, ms")]
    yield from head(["workload", *columns])
    for title, rows in results.items():
        cells = []
        for column in ("train", "infer"):
            rival = best(of(rows, *peers), column)
            (default,) = (row for row in rows if row.name == DEFAULT)
            ours = [math.nan if default.remark else getattr(default, column), best(of(rows, "keras_ode"), column)]
            names = [row.package for row in of(rows, *peers) if getattr(row, column) == rival]
            cells += [*(f"{1e3 * x:.2f} ({x / rival:.2f})" for x in ours), f"{1e3 * rival:.2f} ({names[0]})" if names else "none"]
        yield line([title, *cells])


def summary(results, peers):
    """keras_ode over its peers, geometric means over the workloads in which it and any of them agree with the reference."""
    yield from head(["contestant", "workloads", *(f"{what} over {whom}" for what, whom, _, _ in COMPARISONS)])
    ours = [row for rows in results.values() for row in of(rows, "keras_ode")]
    for name in dict.fromkeys((DEFAULT, ANY, *(row.name for row in ours))):
        cells = []
        for _, _, column, rivals in COMPARISONS:
            ratios = []
            for rows in results.values():
                chosen = [row for row in of(rows, "keras_ode") if name in (row.name, ANY)]
                ratios.append(best(chosen, column) / best(of(rows, *(rivals or peers)), column))
            cells.append(_mean_and_worst([ratio for ratio in ratios if not math.isnan(ratio)]))
        solved = [title for title, rows in results.items() if any(name in (row.name, ANY) and not row.remark for row in rows)]
        yield line([name, str(len(solved)), *cells])


def _mean_and_worst(ratios):
    if not ratios:
        return ""
    return f"{math.exp(sum(map(math.log, ratios)) / len(ratios)):.2f}, at worst {max(ratios):.2f}"
