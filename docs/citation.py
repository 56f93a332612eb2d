"""Shows CITATION.cff as BibTeX where a page asks for it, so that no page holds a copy."""

import pathlib

import yaml

_PLACE = "{{ citation as BibTeX }}"


def on_page_markdown(markdown, config, **_):
    if _PLACE not in markdown:
        return markdown
    source = pathlib.Path(config.config_file_path).parent / "CITATION.cff"
    return markdown.replace(_PLACE, _bibtex(yaml.safe_load(source.read_text(encoding="utf-8"))))


def _bibtex(citation):
    authors = " and ".join(f"{{{a['name']}}}" for a in citation["authors"])
    fields = {"title": citation["title"], "author": authors, "version": citation["version"]}
    return "@software{keras_ode,\n" + "".join(f"  {name} = {{{value}}},\n" for name, value in fields.items()) + "}"
