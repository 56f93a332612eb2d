"""Interpolants: the solution within a step, from the stages of that step.

An interpolant is a matrix of rationals `W`, one row for each stage of the closed
tableau and then for each of its dense stages:

    y(t + theta h) = y + h sum_i k_i sum_j W[i][j - 1] theta^j,    j = 1, 2, ...

It meets `y` at theta = 0, and the end of the step at theta = 1. `order` is that
of its error within the step: O(h^(order + 1)), if the method's own is no larger.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import comb


@dataclass(frozen=True)
class Polynomial:
    """An interpolant given by its coefficients, as integers or strings.

    Args:
        order: Order of the interpolant.
        coefficients: The matrix `W`: in row i those of theta, theta^2, ... that
            weigh stage i.
    """

    order: int
    coefficients: tuple

    def __post_init__(self):
        object.__setattr__(self, "coefficients", _rationals(self.coefficients))

    def weights(self, tableau):
        """Returns the matrix `W`, a tuple of rows of `Fraction`."""
        _check_length("`coefficients`", self.coefficients, tableau)
        return self.coefficients


@dataclass(frozen=True)
class CorrectedHermite:
    """Cubic Hermite interpolation and corrections that raise its order.

    With `d = sum_i b[i] k_i` and the slopes `k_0` and `k_1` at the ends of the
    step, the interpolant is the nested form

        y + h theta (d + (1 - theta) ((k_0 - d) + theta ((2 d - k_0 - k_1) +
            (1 - theta) (C_0 + theta (C_1 + (1 - theta) (C_2 + ...))))))

    so that no correction `C_m = sum_i corrections[m][i] k_i` changes the value or
    the slope at either end.

    Args:
        order: Order of the interpolant.
        corrections: Rows of integers or strings, which weigh all stages.

    Reference:
        Hairer, Norsett, Wanner (1993), Solving Ordinary Differential Equations I,
        section II.6.
    """

    order: int
    corrections: tuple

    def __post_init__(self):
        object.__setattr__(self, "corrections", _rationals(self.corrections))

    def weights(self, tableau):
        """Returns the matrix `W`, a tuple of rows of `Fraction`."""
        for m, row in enumerate(self.corrections):
            _check_length(f"`corrections[{m}]`", row, tableau)
        first, last = 0, len(tableau.closed.c) - 1
        change = tableau.closed.b + (Fraction(0),) * len(tableau.c_dense)
        rows = []
        for i, d in enumerate(change):
            start, end = int(i == first), int(i == last)
            corrections = [row[i] for row in self.corrections]
            rows.append(_expand([d, start - d, 2 * d - start - end, *corrections]))
        return tuple(rows)


@dataclass(frozen=True)
class CubicHermite(CorrectedHermite):
    """The cubic through the states at the ends of the step, with their slopes."""

    order: int = 3
    corrections: tuple = ()


def _expand(nested):
    """The coefficients of theta, theta^2, ... of a nested form.

    Its term m is that entry times theta^p (1 - theta)^q, where p = 1 + m // 2 and
    q = (m + 1) // 2.
    """
    powers = [Fraction(0)] * len(nested)
    for m, coefficient in enumerate(nested):
        q = (m + 1) // 2
        for k in range(q + 1):
            powers[m // 2 + k] += (-1) ** k * comb(q, k) * coefficient
    return tuple(powers)


def _rationals(rows):
    return tuple(tuple(map(Fraction, row)) for row in rows)


def _check_length(name, row, tableau):
    stages = len(tableau.closed.c) + len(tableau.c_dense)
    if len(row) != stages:
        raise ValueError(
            f"{name} must have an entry for each of the {stages} stages, the end "
            f"stage and the dense stages among them. Received {len(row)}."
        )
