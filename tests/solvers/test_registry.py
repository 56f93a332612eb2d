"""The names of solvers: every method of the package has one, so that the tests which go through all names see it."""

import pathlib

import keras_ode
from keras_ode import solvers
from keras_ode.solvers import SOLVERS
from tests.references import LIKE_OTHERS

PAGE = pathlib.Path(keras_ode.__file__).parents[1] / "docs" / "solvers.md"


def test_every_method_has_a_name():
    public = {x for x in vars(solvers).values() if isinstance(x, type) and issubclass(x, solvers.Solver) and x is not solvers.Solver}
    assert public == set(SOLVERS.values())


def test_solvers_that_quick_tests_leave_to_others_are_registered():
    assert set(LIKE_OTHERS) <= set(SOLVERS)


def test_page_of_solvers_has_every_name():
    text = PAGE.read_text()
    assert [name for name in SOLVERS if f'"{name}"' not in text] == []
