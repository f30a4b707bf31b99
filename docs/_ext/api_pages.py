"""Writes a page of the API reference for each part of the package, from the names that the part makes public."""

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from sphinx.application import Sphinx
from sphinx.errors import PycodeError
from sphinx.ext.autodoc.mock import mock
from sphinx.pycode import ModuleAnalyzer

import pyengm

PRIVATE = {"cli", "examples", "kernels", "utils", "integrations", "errors"}  # the last two have pages below
BESIDES = ("errors", "integrations.lightning", "integrations.accelerate", "integrations.transformers")


def parts() -> list[str]:
    """The modules that have a page."""
    packages = [one.name for one in pkgutil.iter_modules(pyengm.__path__) if one.ispkg and one.name not in PRIVATE]
    return ["pyengm", *(f"pyengm.{name}" for name in sorted([*packages, *BESIDES]))]


def public_names(module: ModuleType) -> list[str]:
    """Those of `__all__`; of a module without it, the classes and functions that it defines."""
    if hasattr(module, "__all__"):
        return [name for name in module.__all__ if not inspect.ismodule(getattr(module, name))]
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    return [name for name in own if not name.startswith("_") and callable(getattr(module, name))]


def homes() -> dict[str, str]:
    """The page of every public name, by its dotted name. A name that several parts export is described once."""
    found: dict[str, str] = {}
    seen: dict[int, str] = {}
    for part in [*parts()[1:], "pyengm"]:  # `pyengm` itself re-exports
        module = importlib.import_module(part)
        for name in public_names(module):
            value = getattr(module, name)
            first = seen.setdefault(id(value), f"{part}.{name}")
            if not callable(value):  # constants may be equal by chance
                first = f"{part}.{name}"
            elif getattr(value, "__module__", "").startswith("pyengm.errors"):
                first = f"pyengm.errors.{name}"
            found[f"{part}.{name}"] = first
    return found


def constant_text(part: str, name: str, value: Any) -> str:
    """The string below the definition of a constant, wherever in the part it is defined."""
    for module in sorted(one for one in sys.modules if one == part or one.startswith(f"{part}.")):
        if vars(sys.modules[module]).get(name) is value:
            try:
                docs = ModuleAnalyzer.for_module(module).find_attr_docs()
            except PycodeError:
                continue
            if ("", name) in docs:
                return " ".join(docs["", name]).strip()
    return ""


def entry(part: str, name: str) -> Iterator[str]:
    """The reStructuredText of one name."""
    value = getattr(importlib.import_module(part), name)
    if inspect.isclass(value):
        yield from (f".. autoclass:: {part}.{name}", "   :members:", "   :show-inheritance:", "")
    elif callable(value) and hasattr(value, "__name__"):
        yield from (f".. autofunction:: {part}.{name}", "")
    else:
        yield from (f".. py:data:: {part}.{name}", f"   :type: {type(value).__name__}", "")
        yield from (f"   {constant_text(part, name, value)}", "")


def _from(part: str, name: str) -> str:
    """A dotted name as a table of the part has it: alone where the part holds it."""
    below = name.removeprefix(f"{part}.")
    return f"~{below}" if "." in below else below


def page(part: str, of: dict[str, str]) -> str:
    """A page: what the part is, a table of its names, and the description of each."""
    module = importlib.import_module(part)
    names = public_names(module)
    own = [name for name in names if of[f"{part}.{name}"] == f"{part}.{name}"]
    described = [name for name in names if callable(getattr(module, name))]
    lines = [part, "=" * len(part), "", f".. py:module:: {part}", "", inspect.getdoc(module) or "", ""]
    lines += [".. autosummary::", "", *(f"   {_from(part, of[f'{part}.{name}'])}" for name in described), ""]
    lines += [line for name in own for line in entry(part, name)]
    return "\n".join(lines) + "\n"


def write_pages(app: Sphinx) -> None:
    """Writes the pages that changed, and removes those of parts that are gone."""
    folder = Path(app.srcdir, "reference", "api")
    folder.mkdir(exist_ok=True)
    with mock(app.config.autodoc_mock_imports):
        of = homes()
        texts = {folder / f"{part}.rst": page(part, of) for part in parts()}
    for path in folder.glob("*.rst"):
        if path not in texts:
            path.unlink()
    for path, text in texts.items():
        if not path.is_file() or path.read_text() != text:
            path.write_text(text)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
