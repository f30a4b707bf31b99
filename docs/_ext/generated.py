"""Replaces the comment `<!-- generated: NAME -->` of a page by what the code says: tables, references, drawings."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import api_pages
import command_line
import drawings
import tables
from sphinx.application import Sphinx

MARK = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)


def api() -> str:
    """The list of the pages of the API reference."""
    return "\n".join(["```{toctree}", ":maxdepth: 1", "", *(f"api/{part}" for part in api_pages.parts()), "```"])


CONTENTS: Mapping[str, Callable[[], str]] = {
    "api": api,
    "architecture": drawings.architecture,
    "batch": drawings.batch,
    "command_line": command_line.reference,
    "argument_options": command_line.argument_options,
    **tables.TABLES,
}


def expand(text: str) -> str:
    """The text of a page with every mark replaced. Raises KeyError for a mark that nothing generates."""
    return MARK.sub(lambda mark: CONTENTS[mark[1]](), text)


def on_source(app: Sphinx, docname: str, source: list[str]) -> None:
    """Called for every page when it is read."""
    source[0] = expand(source[0])


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", on_source)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
