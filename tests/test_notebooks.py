"""What the notebooks hold: `.ci/run` executes them."""

import json
import pathlib

import pytest

NOTEBOOKS = sorted(pathlib.Path(__file__).parents[1].joinpath("examples", "notebooks").glob("*.ipynb"))
MOST_BYTES = 300_000  # so that a clone of the repository stays small


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == ["first_neural_ode", "flows", "parameter_estimation"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_of_a_notebook_are_small_and_without_errors(path):
    assert path.stat().st_size < MOST_BYTES
    outputs = [output for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] for output in cell.get("outputs", ())]
    assert outputs
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
