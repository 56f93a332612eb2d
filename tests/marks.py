"""Which cases of a test are left to `python -m pytest -m slow`: those that repeat what its quick cases claim."""

import pytest


def slow(*values, id=None):
    """A case that repeats what others of its test claim, or takes a path that another quick test takes."""
    return pytest.param(*values, marks=pytest.mark.slow, id=id)


def slow_except(quick, among):
    """All of `among`, of which only those in `quick` are tested where there is little time."""
    return [value if value in quick else slow(value) for value in among]
