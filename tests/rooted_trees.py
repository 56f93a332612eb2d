"""Rooted trees, and the order conditions of Runge-Kutta methods, which are one a tree.

A tree is the sorted tuple of the trees that hang from its root. Weights `b` over stages with rows `a` are those of a
method of order p if for every tree of up to p nodes

    sum_i b[i] phi_i(tree) = 1 / gamma(tree).

Reference:
    Butcher (1963), J. Austral. Math. Soc. 3(2), 185-201.
"""

from functools import cache
from math import prod

LEAF = ()


@cache
def trees(nodes):
    """All rooted trees of so many nodes."""
    if nodes == 1:
        return (LEAF,)
    return tuple(sorted({larger for tree in trees(nodes - 1) for larger in _grow(tree)}))


def trees_up_to(order):
    return [tree for nodes in range(1, order + 1) for tree in trees(nodes)]


def size(tree):
    return 1 + sum(map(size, tree))


def gamma(tree):
    """The density of a tree: the product of the sizes of all its subtrees."""
    return size(tree) * prod(map(gamma, tree))


def elementary_weights(a):
    """Returns the function `phi`, which gives a tree's elementary weight at every stage."""

    @cache
    def phi(tree):
        branches = [[dot(row, phi(branch)) for row in a] for branch in tree]
        return tuple(prod(at_stage) for at_stage in zip([1] * len(a), *branches, strict=True))

    return phi


def dot(weights, values):
    """The weighted sum over the stages that `weights` covers: a row of `a` covers the stages before its own."""
    return sum(weight * value for weight, value in zip(weights, values, strict=False))


def _grow(tree):
    """All trees with one leaf more."""
    yield tuple(sorted((*tree, LEAF)))
    for i, branch in enumerate(tree):
        for larger in _grow(branch):
            yield tuple(sorted((*tree[:i], larger, *tree[i + 1 :])))
