"""Which cases of a test run when: the quick ones always, the slow ones in `.ci/run` too, and the nightly ones before a release."""

import pytest


def slow(*values, id=None):
    """A case that repeats what others of its test claim, or takes a path that another quick test takes."""
    return pytest.param(*values, marks=pytest.mark.slow, id=id)


def nightly(*values, id=None):
    """A slow case that takes the same paths as another slow one, with other coefficients, or pairs options that others try."""
    return pytest.param(*values, marks=[pytest.mark.slow, pytest.mark.nightly], id=id)


def graded(among, quick, slow_ones=None):
    """All of `among`: those in `quick` as they are, those in `slow_ones` (default: all others) as slow, and the rest as nightly."""
    return [v if v in quick else slow(v) if slow_ones is None or v in slow_ones else nightly(v) for v in among]
