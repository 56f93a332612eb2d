"""The programs of other packages on the page "Coming from another package" run, and print what ours print."""

import pathlib
import re

import numpy as np
import pytest

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "coming_from.md"
# The packages that a program imports, and how far its numbers may be from ours: a few times the tolerance of the solves.
PEERS = {"torchdiffeq": (("torch", "torchdiffeq"), 3e-3), "diffrax": (("jax", "diffrax"), 5e-5), "SciPy": (("scipy",), 5e-7)}


def programs():
    """Returns for each title of a peer's block its code, and the code of the block of ours after it."""
    pattern = r'^```python title="(\w+)"\n(.*?)^```.*?^```python\n(.*?)^```'
    return {title: (theirs, ours) for title, theirs, ours in re.findall(pattern, PAGE.read_text(), re.DOTALL | re.MULTILINE)}


def printed(code, capsys):
    """Returns the numbers that a program prints."""
    capsys.readouterr()
    exec(compile(code, PAGE, "exec"), {"__name__": "page"})
    return np.array(re.findall(r"-?\d+\.\d*(?:e-?\d+)?", capsys.readouterr().out), float)


def test_the_page_has_a_program_for_each_peer_that_runs_in_python():
    assert set(programs()) == set(PEERS)


@pytest.mark.slow
@pytest.mark.parametrize("peer", PEERS)
def test_both_programs_print_the_same_numbers(peer, capsys):
    packages, tolerance = PEERS[peer]
    for package in packages:
        pytest.importorskip(package)
    theirs, ours = (printed(code, capsys) for code in programs()[peer])
    assert len(theirs)
    np.testing.assert_allclose(theirs, ours, rtol=tolerance, atol=tolerance)
