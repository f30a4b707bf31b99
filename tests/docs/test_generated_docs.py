"""What the documentation takes from the code: every registered name is there, and every mark of a page is known."""

import importlib.util
import re
import sys
import tomllib
from pathlib import Path

import pytest

from pyengm.cli.analyses import ANALYSES
from pyengm.cli.completion import option_classes
from pyengm.cli.parser import flag_of
from pyengm.evaluation import ATTACKS
from pyengm.methods import METHODS
from pyengm.optim import CLOSURE_OPTIMIZERS, OPTIMIZERS
from pyengm.training import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
PAGES = [path for path in sorted(ROOT.glob("docs/**/*.md")) if "_build" not in path.parts]


@pytest.fixture(scope="module", autouse=True)
def extensions():
    """The local extensions of Sphinx can be imported, those that need Sphinx aside."""
    folder = str(ROOT / "docs" / "_ext")
    sys.path.insert(0, folder)
    yield
    sys.path.remove(folder)
    for name in ("tables", "command_line", "drawings", "generated", "api_pages", "docstring_markup"):
        sys.modules.pop(name, None)


def names(text: str) -> set[str]:
    """What the first column of a table has."""
    return set(re.findall(r"^\| `(\w+)`", text, re.MULTILINE))


def test_tables_have_every_registered_name():
    import tables

    assert names(tables.methods()) == set(METHODS)
    assert names(tables.optimizers()) == set(OPTIMIZERS | CLOSURE_OPTIMIZERS)
    assert names(tables.attacks()) == set(ATTACKS)
    assert set(re.findall(r"pyengm\.analysis\.(\w+)>", tables.analyses())) == set(ANALYSES)


def test_methods_have_their_records():
    import tables

    for line in tables.methods().splitlines()[2:]:
        name, _, text, passes, steps, _ = (cell.strip() for cell in line.strip("|").split("|"))
        info = METHODS[name.strip("`")].info
        assert (text, passes) == (info.description, str(info.passes))
        assert float(steps) == pytest.approx(sum(info.passes.of()) / 3, abs=0.005)


def test_measured_steps_are_those_of_the_file():
    import tables

    lines = (tables.RESULTS / "methods_cpu_intel_xeon.txt").read_text().splitlines()
    line = next(line for line in lines if line.startswith("test_step[pgd_at,"))
    measured = tables.measured_steps()
    assert f" {measured['pgd_at']} (" in line
    assert measured.keys() <= METHODS.keys()
    assert len(measured) == sum(line.startswith("test_step[") for line in lines)


def test_the_reference_has_every_option():
    import command_line

    text = command_line.reference()
    assert all(f"## pyengm {name}\n" in text for name in option_classes())
    assert all(f"`{flag_of(name)}" in text for name in TrainConfig.options)


def test_options_of_methods():
    import command_line

    assert "`beta=FLOAT` (default: `6`)" in command_line.argument_options()


def test_keys_of_metrics():
    import tables

    keys = set(re.findall(r"`(\w+)`(?=[,:])", tables.metrics()))
    assert {"epoch", "loss", "natural", "robust", "natural_ece", "robust_ece", "images_per_second"} <= keys


def test_drawings_follow_the_imports():
    import drawings

    graph = drawings.imports()
    assert {"pergrad", "data", "attacks"} <= graph["methods"]
    reduced = drawings.reduced({"a": {"b", "c"}, "b": {"c"}, "c": set()})
    assert reduced == {"a": {"b"}, "b": {"c"}, "c": set()}
    for drawing in (drawings.architecture(), drawings.batch()):
        assert drawing.count("<rect") == drawing.count("</text>") or "data/loader.py" in drawing


@pytest.mark.skipif(importlib.util.find_spec("sphinx") is None, reason="needs Sphinx")
def test_every_mark_is_known():
    import generated

    marks = {mark for page in PAGES for mark in generated.MARK.findall(page.read_text())}
    assert marks == set(generated.CONTENTS)


@pytest.mark.skipif(importlib.util.find_spec("sphinx") is None, reason="needs Sphinx")
def test_docstrings_are_escaped_outside_of_code():
    from docstring_markup import escape

    assert escape("|g| and `a*b`, x_ * y\n>>> 2 * 3\n6") == r"\|g\| and `a*b`, x\_ \* y" + "\n>>> 2 * 3\n6"


def test_the_pages_are_in_a_tree():
    index = (ROOT / "docs" / "index.md").read_text()
    for page in PAGES:
        name = page.relative_to(ROOT / "docs").with_suffix("").as_posix()
        assert name == "index" or re.search(rf"^{name}$", index, re.MULTILINE), f"{name} is not in index.md"


def test_links_of_the_readme_lead_to_files():
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", text)
    assert len(links) > 10
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_the_version_is_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert re.search(rf"^version: {re.escape(project['version'])}$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
