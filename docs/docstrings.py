"""Shows the sessions (`>>> ...`) in docstrings as code on the reference pages."""

import re

import griffe


class SessionsAsCode(griffe.Extension):
    def on_object(self, *, obj, **_):
        if obj.docstring:
            text = re.sub(r"^Example:$", "**Example**", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r"^>>> .*(?:\n.+)*", r"```pycon\n\g<0>\n```", text, flags=re.MULTILINE)
