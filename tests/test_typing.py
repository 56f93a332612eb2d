"""The types of the public names: mypy checks the programs of users against them."""

import enum
import functools
import inspect
import pathlib
import re
import subprocess
import sys

import pytest

import keras_ode

ROOT = pathlib.Path(keras_ode.__file__).parents[1]
PROGRAM = ROOT / "tests" / "typed_program.py"


def public(module, prefix="keras_ode"):
    """The public functions and classes of the package, by name."""
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.ismodule(value):
            yield from public(value, f"{prefix}.{name}")
        elif inspect.isfunction(value) or inspect.isclass(value) and not issubclass(value, enum.Enum):
            yield f"{prefix}.{name}", value


FOUND = dict(public(keras_ode))


@pytest.mark.parametrize("name", FOUND)
def test_every_argument_and_result_that_is_public_has_a_type(name):
    found = FOUND[name]
    # Of a class that inherits both, some Python releases show the signature of `__init__`, others that of Keras' `__new__`.
    has_init = inspect.isclass(found) and found.__init__ is not object.__init__
    signature = inspect.signature(functools.partial(found.__init__, None) if has_init else found)
    assert [p.name for p in signature.parameters.values() if p.annotation is p.empty] == []
    assert inspect.isclass(FOUND[name]) or signature.return_annotation is not signature.empty


@pytest.mark.slow
def test_mypy_accepts_what_is_right_and_reports_what_is_wrong(tmp_path):
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports", "silent", "--cache-dir", str(tmp_path), str(PROGRAM)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    reported = {(int(n), code) for n, code in re.findall(r"typed_program\.py:(\d+): error: .*\[([a-z-]+)\]$", result.stdout, re.M)}
    lines = enumerate(PROGRAM.read_text().splitlines(), 1)
    expected = {(n, code) for n, line in lines for code in re.findall(r"# error: ([a-z-]+)$", line)}
    assert len(expected) > 20
    assert reported == expected, result.stdout + result.stderr
