"""Shows the `Example:` of a docstring as code: the parser of the reference pages knows `Examples:` only."""

import re

import griffe


class ExampleAsCode(griffe.Extension):
    def on_object(self, *, obj, **_):
        if obj.docstring:
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
