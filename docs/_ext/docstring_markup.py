"""Docstrings are plain text with `code`: characters that would be reStructuredText markup are escaped."""

import re
from typing import Any

from sphinx.application import Sphinx

CODE = re.compile(r"(``.+?``|`[^`]+`|^ *>>> .*?(?:\n\s*\n|\Z))", re.DOTALL | re.MULTILINE)
MARKUP = re.compile(r"[*|]|(?<=\w)_(?!\w)")


def escape(text: str) -> str:
    """The text with `*`, `|` and trailing `_` escaped outside of code and examples."""
    parts = CODE.split(text)
    parts[::2] = [MARKUP.sub(r"\\\g<0>", part) for part in parts[::2]]
    return "".join(parts)


def on_docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Escapes a docstring before napoleon reads it."""
    lines[:] = escape("\n".join(lines)).split("\n")


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("autodoc-process-docstring", on_docstring, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
