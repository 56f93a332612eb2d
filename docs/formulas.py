"""Turns formulas between lines of `$$` into MathML when the pages are built, so that a browser needs no script to show them."""

import re

from latex2mathml.converter import convert


def on_page_markdown(markdown, **_):
    return re.sub(r"^\$\$\n(.*?)\n\$\$$", _formula, markdown, flags=re.DOTALL | re.MULTILINE)


def _formula(match):
    return f"<div>{convert(match.group(1), display='block')}</div>"
