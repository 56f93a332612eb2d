"""Butcher tableaux in exact rational arithmetic."""

from dataclasses import dataclass, replace
from fractions import Fraction

# Coefficients published as decimals are rounded, and so are their sums.
ROUNDING = Fraction(1, 10**18)


@dataclass(frozen=True)
class ButcherTableau:
    """The coefficients of an explicit Runge-Kutta method.

    Stage i is `k_i = f(t + c[i] h, y + h sum_j a[i][j] k_j)`, and the step ends
    at `y + h sum_i b[i] k_i`. Coefficients are kept as `Fraction`; write them as
    integers or strings, `"35/384"` or `"0.161"`.

    Args:
        c: Nodes, one for each of the `s` stages.
        a: Strictly lower triangular rows: row i has i entries, and sums to
            `c[i]`.
        b: `s` weights, of sum 1.
        b_error: `b` less the weights of the embedded method, of sum 0. One for
            each stage; a last one more may weigh the end stage (see `closed`).
            `None` for a method that does not estimate its error.
        c_dense: Nodes of further stages, which only dense output needs.
        a_dense: Their rows, each over all stages of the closed tableau and the
            dense stages before its own.

    Raises:
        ValueError: If the lengths do not agree, or a sum is not what it must be.

    Example:

    >>> from keras_ode.solvers.tableau import ButcherTableau
    >>> midpoint = ButcherTableau(c=(0, "1/2"), a=((), ("1/2",)), b=(0, 1))
    >>> midpoint.closed.c
    (Fraction(0, 1), Fraction(1, 2), Fraction(1, 1))

    Reference:
        Butcher (1964), J. Austral. Math. Soc. 4(2), 179-194.
    """

    c: tuple
    a: tuple
    b: tuple
    b_error: tuple | None = None
    c_dense: tuple = ()
    a_dense: tuple = ()

    def __post_init__(self):
        for name in ("c", "b", "b_error", "c_dense"):
            row = getattr(self, name)
            if row is not None:
                object.__setattr__(self, name, tuple(map(Fraction, row)))
        for name in ("a", "a_dense"):
            rows = getattr(self, name)
            rows = tuple(tuple(map(Fraction, row)) for row in rows)
            object.__setattr__(self, name, rows)
        self._check()

    @property
    def first_same_as_last(self):
        """Whether the last stage is already `f(t + h, y_new)`."""
        ends_at_one = self.c[-1] == 1 and self.b[-1] == 0
        return ends_at_one and self.a[-1] == self.b[:-1]

    @property
    def closed(self):
        """The same method with the end stage `f(t + h, y_new)` as its last.

        The end stage is the next step's first, and the end slope of the
        interpolant.
        """
        if self.first_same_as_last:
            return self
        b_error = self.b_error
        if b_error is not None:
            b_error += (0,) * (len(self.c) + 1 - len(b_error))
        return replace(
            self,
            c=(*self.c, 1),
            a=(*self.a, self.b),
            b=(*self.b, 0),
            b_error=b_error,
        )

    def _check(self):
        stages = len(self.c)
        if not stages == len(self.a) == len(self.b) > 0:
            raise ValueError(
                "`c`, `a` and `b` must have one entry for each stage. Received "
                f"{stages} in `c`, {len(self.a)} in `a` and {len(self.b)} in `b`."
            )
        closed_stages = stages + (not self.first_same_as_last)
        _check_rows("a", self.c, self.a, 0)
        _check_sum("`b`", self.b, 1)
        if self.b_error is not None:
            if len(self.b_error) not in (stages, closed_stages):
                raise ValueError(
                    f"`b_error` must weigh the {stages} stages, and may weigh an "
                    "end stage that is not among them. "
                    f"Received {_show(self.b_error)}."
                )
            _check_sum("`b_error`", self.b_error, 0)
        if len(self.c_dense) != len(self.a_dense):
            raise ValueError(
                "`c_dense` and `a_dense` must have one entry for each dense "
                f"stage. Received {len(self.c_dense)} in `c_dense` and "
                f"{len(self.a_dense)} in `a_dense`."
            )
        _check_rows("a_dense", self.c_dense, self.a_dense, closed_stages)


def _check_rows(name, c, a, stages_before):
    for i, (node, row) in enumerate(zip(c, a, strict=True)):
        if len(row) != stages_before + i:
            raise ValueError(
                f"Row {i} of `{name}` must weigh the {stages_before + i} stages "
                f"before its own. Received {_show(row)}."
            )
        _check_sum(f"Row {i} of `{name}`", row, node)


def _check_sum(name, row, expected):
    if abs(sum(row) - expected) > ROUNDING:
        raise ValueError(
            f"{name} must sum to {expected}. "
            f"Received {_show(row)}, whose sum is {sum(row)}."
        )


def _show(row):
    return f"({', '.join(map(str, row))})"
