"""Names, objects and configurations stand for each other."""

import pytest

from keras_ode import adjoints, configurable, controllers, solvers

KINDS = {
    "solver": (solvers.get, solvers.SOLVERS),
    "adjoint": (adjoints.get, adjoints.ADJOINTS),
    "controller": (controllers.get, controllers.CONTROLLERS),
}
NAMES = [(kind, name) for kind, (_, known) in KINDS.items() for name in known if name != "step_to"]  # which has no default


class Animal(configurable.Configurable):
    pass


class Dog(Animal):
    def __init__(self, legs=4, name="Rex"):
        self.legs, self.name = legs, name


class Cat(Animal):
    pass


KNOWN = {"dog": Dog, "cat": Cat}


def get(identifier):
    return configurable.get(identifier, "pet", Animal, KNOWN)


@pytest.mark.parametrize("kind, name", NAMES)
def test_every_name_gives_an_object_of_its_class(kind, name):
    get, known = KINDS[kind]
    assert type(get(name)) is known[name]


@pytest.mark.parametrize("kind, name", NAMES)
def test_every_default_object_is_described_by_its_name(kind, name):
    get, known = KINDS[kind]
    assert configurable.describe(get(name), known) == name


@pytest.mark.parametrize("kind, name", NAMES)
def test_every_object_is_its_own_configuration(kind, name):
    get, known = KINDS[kind]
    value = get(name)
    assert known[name].from_config(value.get_config()) == value


def test_all_promised_solvers_have_a_name():
    promised = "euler midpoint heun ralston rk4 bosh3 dopri5 tsit5 dopri8"
    assert set(promised.split()) <= set(solvers.SOLVERS)


def test_names_ignore_case():
    assert get("DOG") == Dog()


def test_object_stands_for_itself():
    dog = Dog(3)
    assert get(dog) is dog


def test_class_stands_for_its_default():
    assert get(Dog) == Dog()


@pytest.mark.parametrize("value", [Dog(), Dog(3), Dog(name="Bello"), Cat()])
def test_description_gives_the_object_back(value):
    assert get(configurable.describe(value, KNOWN)) == value


def test_object_of_an_unknown_class_describes_itself():
    class Bird(Animal):
        pass

    bird = Bird()
    assert configurable.describe(bird, KNOWN) is bird


@pytest.mark.parametrize("identifier", ["bird", 3, None, {"name": "bird", "config": {}}, {}, int])
def test_unknown_identifier_is_refused_with_the_known_names(identifier):
    with pytest.raises(ValueError) as raised:
        get(identifier)
    assert "pet must be one of 'dog', 'cat'" in str(raised.value)
    assert f"pet={identifier!r}" in str(raised.value)


def test_equal_arguments_make_equal_objects_with_equal_hashes():
    assert Dog(3) == Dog(3)
    assert hash(Dog(3)) == hash(Dog(3))


@pytest.mark.parametrize("other", [Dog(3), Dog(name="Bello"), Cat(), "dog", None])
def test_other_arguments_or_classes_make_unequal_objects(other):
    assert Dog() != other


def test_repr_is_the_call_that_makes_the_object():
    assert repr(Dog(3)) == "Dog(legs=3, name='Rex')"
    assert repr(Cat()) == "Cat()"


def test_missing_attribute_of_an_argument_is_an_error_not_a_silent_gap():
    class Forgetful(Animal):
        def __init__(self, legs=4):
            pass

    with pytest.raises(AttributeError):
        Forgetful().get_config()
