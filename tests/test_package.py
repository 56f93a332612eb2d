"""The package as a whole: what importing it does, and what its code never does."""

import ast
import inspect
import pathlib
import re
import subprocess
import sys

import keras
import pytest
import tensorflow as tf

import keras_ode

ROOT = pathlib.Path(keras_ode.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent)


@pytest.mark.slow
def test_import_pulls_in_neither_matplotlib_nor_tensorflow_probability():
    code = (
        "import sys, keras\n"
        "before = set(sys.modules)\n"
        "import keras_ode\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new & {'matplotlib', 'tensorflow_probability', 'tf_keras', 'scipy', 'pandas'}))\n"
        "print('tensorflow_probability' in sys.modules)"
    )
    result = python(code)
    assert result.stdout.split("\n")[:2] == ["[]", "False"], result.stderr


@pytest.mark.slow
def test_import_on_another_backend_says_so_in_a_sentence():
    # JAX need not be installed: Keras is told that it runs on it.
    result = python("import keras\nkeras.backend.backend = lambda: 'jax'\nimport keras_ode")
    assert result.returncode != 0
    assert "keras_ode runs on TensorFlow, but Keras runs on 'jax'" in result.stderr
    assert "KERAS_BACKEND=tensorflow" in result.stderr


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_source_has_no_assert_statement(path):
    """Asserts vanish under `python -O`, and tell the user nothing."""
    found = [node.lineno for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Assert)]
    assert found == []


PROMISED = ["ODELayer", "SolveError", "Solution", "Status", "adjoints", "controllers", "layers", "odeint", "solve", "solvers"]


@pytest.mark.parametrize("name", PROMISED)
def test_promised_name_is_public(name):
    assert hasattr(keras_ode, name)


@pytest.mark.parametrize("name", [name for name in PROMISED if not inspect.ismodule(getattr(keras_ode, name, None))])
def test_public_name_has_a_docstring(name):
    assert len(inspect.getdoc(getattr(keras_ode, name))) > 40


MODULES = ["adjoints", "callbacks", "controllers", "datasets", "layers", "models", "paths", "plotting", "regularizers", "solvers"]


@pytest.mark.parametrize("module", [keras_ode, *(getattr(keras_ode, name) for name in MODULES)], ids=lambda m: m.__name__)
def test_public_names_exist_and_are_explained(module):
    for name in module.__all__:
        found = getattr(module, name)
        assert not callable(found) or len(inspect.getdoc(found)) > 40, name


@pytest.mark.slow
def test_probability_is_found_when_it_is_asked_for():
    assert python("import keras_ode\nprint(keras_ode.probability.__all__)").stdout == "['Flow']\n"


def test_only_public_names_are_listed():
    assert {"solve", "ODELayer", "probability"} <= set(dir(keras_ode))
    assert "tree" not in dir(keras_ode)
    with pytest.raises(AttributeError, match="no attribute 'solv'. Public names: .*solve"):
        keras_ode.solv  # noqa: B018


def test_names_in_the_documentation_are_public():
    """Those written in full, `keras_ode.layers.ODELayer`, in the documentation for users."""
    others = "design.md", "reference.md"  # for contributors, and made from the places where things are defined
    pages = [ROOT.parent / "README.md", *(p for p in (ROOT.parent / "docs").glob("*.md") if p.name not in others)]
    names = {name for page in pages for name in re.findall(r"keras_ode(?:\.[A-Za-z_]\w*)+", page.read_text())}
    assert len(names) > 20
    settings = {"keras_ode.programs.STEPS_BEFORE_COMPILING"}
    missing = [name for name in sorted(names - settings) if not is_public(name)]
    assert missing == []


def is_public(name):
    module, *rest = name.split(".")
    found = keras_ode
    for part in rest:
        listed = getattr(found, "__all__", None)
        if listed is not None and part not in (*listed, "__version__", "probability"):
            return False
        found = getattr(found, part, None)
        if found is None:
            return False
        if not inspect.ismodule(found):
            return True
    return True


def test_versions_of_what_matters_are_printed(capsys, monkeypatch):
    monkeypatch.setenv("TF_XLA_FLAGS", "--tf_xla_auto_jit=0")
    keras_ode.show_versions()
    printed = capsys.readouterr().out
    assert f"tensorflow: {tf.__version__}\n" in printed
    assert f"keras: {keras.__version__}\n" in printed
    assert "Keras backend: tensorflow\n" in printed and "devices: CPU" in printed and "TF_XLA_FLAGS: --tf_xla_auto_jit=0" in printed


@pytest.mark.parametrize("function", [keras_ode.solve, keras_ode.ODELayer], ids=["solve", "ODELayer"])
def test_every_argument_is_documented(function):
    names = [name for name in inspect.signature(function).parameters if name != "kwargs"]
    text = inspect.getdoc(function)
    arguments = text[text.index("Args:") : text.index("Call arguments:" if "Call arguments:" in text else "Returns:")]
    missing = [name for name in names if f"{name}:" not in arguments and f"{name}," not in arguments]
    assert missing == []


def test_version_is_a_number():
    assert all(part.isdigit() for part in keras_ode.__version__.split("."))


def public_objects(module, prefix="keras_ode"):
    """The classes and functions that a module declares, and those of the modules that it declares, by name."""
    found = {}
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.ismodule(value):
            found |= public_objects(value, f"{prefix}.{name}")
        elif inspect.isclass(value) or inspect.isfunction(value):
            found[f"{prefix}.{name}"] = value
    return found


def test_every_public_class_and_function_has_an_example():
    without = [name for name, value in public_objects(keras_ode).items() if ">>> " not in (value.__doc__ or "")]
    assert not without, f"No example in the docstrings of {without}"
