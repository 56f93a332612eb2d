"""Makes a page of each script in `examples/`, so that the pages can link to the code: `[source](../examples/digits.py)`."""

import pathlib
import re

from mkdocs.structure.files import File, InclusionLevel


def on_files(files, config):
    for script in sorted((pathlib.Path(config.config_file_path).parent / "examples").glob("*.py")):
        code = script.read_text(encoding="utf-8")
        page = File.generated(
            config,
            f"examples/{script.stem}.md",
            content=f"# {script.name}\n\n[All examples](../examples.md)\n\n```python\n{code}```\n",
            inclusion=InclusionLevel.NOT_IN_NAV,
        )
        files.append(page)
    return files


def on_page_markdown(markdown, **_):
    return re.sub(r"\]\(\.\./examples/(\w+)\.py\)", r"](examples/\1.md)", markdown)
