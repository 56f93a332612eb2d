"""The Python code of the documentation runs as it stands, page by page from top to bottom."""

import pathlib
import re

import matplotlib
import pytest

matplotlib.use("Agg")
PAGES = sorted(pathlib.Path(__file__).parents[1].joinpath("docs").glob("*.md"))
# Those that train or compile, for five seconds to a minute.
LONG = {
    "batches", "callbacks", "coming_from", "compiling", "distributed", "estimation", "events", "failures", "faq", "first", "flows",
    "gradients", "inputs", "latent", "layers", "models", "plotting", "precision", "regularization", "reproducibility", "serving",
    "solvers", "state", "steps", "stiff", "systems", "what",
}  # fmt: skip


# What a page needs besides the package.
NEEDS = {"serving": ("tf2onnx", "onnxruntime", "ai_edge_litert")}


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] * (page.stem in LONG), id=page.stem) for page in PAGES]
)
def test_code_of_the_page_runs(page, tmp_path, monkeypatch):
    for package in NEEDS.get(page.stem, ()):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "docs"}
    for block in re.finditer(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        line = page.read_text()[: block.start()].count("\n") + 1
        exec(compile("\n" * line + block.group(1), page, "exec"), names)
