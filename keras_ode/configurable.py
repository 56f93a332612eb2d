"""Small values with a name and a configuration: solvers, controllers, adjoints."""

import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

_T = TypeVar("_T")


class Configurable:
    """An object that its constructor's arguments describe. Each is kept in the attribute of its name."""

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        if type(self).__init__ is object.__init__:
            return {}
        return {name: plain(getattr(self, name)) for name in inspect.signature(type(self)).parameters}

    @classmethod
    def from_config(cls, config):
        """The object that `get_config` described."""
        return cls(**config)

    def __eq__(self, other):
        return type(self) is type(other) and self.get_config() == other.get_config()

    def __hash__(self):
        return hash((type(self), repr(sorted(self.get_config().items()))))

    def __repr__(self):
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.get_config().items())
        return f"{type(self).__name__}({arguments})"


def get(identifier: Any, kind: str, base: type[_T], known: Mapping[str, Any]) -> _T:
    """The object that a name, a configuration or the object itself stands for.

    Args:
        identifier: A name in `known`, an instance or a subclass of `base`, or what `describe` returned.
        kind: What to call it in messages, such as `"solver"`.
        base: The class of the object.
        known: A dict from names to classes.
    """
    if isinstance(identifier, base):
        return identifier
    if inspect.isclass(identifier) and issubclass(identifier, base):
        return _default(identifier, kind, identifier)
    if isinstance(identifier, dict) and identifier.get("name") in known:
        return known[identifier["name"]].from_config(identifier["config"])
    if isinstance(identifier, str) and identifier.lower() in known:
        return _default(known[identifier.lower()], kind, identifier)
    raise ValueError(
        f"{kind} must be one of {', '.join(map(repr, known))}, or a {base.__module__.split('.')[0]} {base.__name__} "
        f"object. Received: {kind}={identifier!r}"
    )


def _default(cls, kind, identifier):
    if _has_defaults(cls):
        return cls()
    arguments = [p.replace(annotation=p.empty) for p in inspect.signature(cls).parameters.values()]
    raise ValueError(
        f"A {cls.__name__} needs arguments: pass an object, {cls.__name__}{inspect.Signature(arguments)}. "
        f"Received: {kind}={identifier!r}"
    )


def _has_defaults(cls):
    """Whether its constructor needs no arguments."""
    return all(parameter.default is not parameter.empty for parameter in inspect.signature(cls).parameters.values())


def plain(value):
    """A NumPy number as one of Python, which JSON knows; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def describe(value, known):
    """A name, or a dict of name and configuration, that `get` turns back into `value`; `value` itself if unknown."""
    for name, cls in known.items():
        if type(value) is cls:
            return name if _has_defaults(cls) and value == cls() else {"name": name, "config": value.get_config()}
    return value
