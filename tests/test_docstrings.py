"""The examples in docstrings run and give what they say."""

import doctest
import importlib
import pathlib
import pkgutil

import keras
import matplotlib
import numpy as np
import pytest
import tensorflow as tf

import keras_ode
import keras_ode.probability
from tests.seeds import seed

matplotlib.use("Agg")
MODULES = [m.name for m in pkgutil.walk_packages(keras_ode.__path__, "keras_ode.")]
HAVE_EXAMPLES = [
    name for name in MODULES if ">>>" in pathlib.Path(importlib.util.find_spec(name).origin).read_text(encoding="utf-8")
]


@pytest.mark.slow
@pytest.mark.parametrize("name", HAVE_EXAMPLES)
def test_examples_of_the_module_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"keras": keras, "keras_ode": keras_ode, "np": np, "tf": tf}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    said = []
    for test in doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name), globs=dict(names)):
        seed(0)
        runner.run(test, out=said.append)
    assert runner.tries > 0
    assert runner.failures == 0, "".join(said)
