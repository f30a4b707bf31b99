"""The figures of the papers as files, each with its runs, its analyses, and what to look for in them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from pyengm.errors import ConfigError
from pyengm.reproduce.checks import NEEDED
from pyengm.reproduce.paper_files import check_distinct, check_keys, names_in, read_file
from pyengm.reproduce.readings import Reading, check_reading
from pyengm.reproduce.tables import PAPER_TABLES, PaperTable, Row, load_table, row_of
from pyengm.utils.did_you_mean import did_you_mean

# A figure file has these keys.
# title, source   one line each; the source names the paper, the figure and the section
# common          options that all runs share, by flat names
# runs            name; row, a TABLE/ROW of the paper's tables whose options the run has; and options, which override
#                 those of the row and the common ones
# parts           name, analysis (a name of `pyengm analyze`), runs (of this figure), and options of that command;
#                 `indices` is a file in the folder of the figure, which an earlier part has written
# look_for        paper, what the paper says of the figure; rule, a key of `checks.RULES`; of, its readings; its options
# notes           what differs from the paper, and what it leaves open
PAPER_FIGURES = Path(__file__).resolve().parents[1] / "paper_figures"


@dataclass(frozen=True)
class Part:
    """An analysis of some of the runs of a figure.

    Args:
        name: Of its folder.
        analysis: A name of `pyengm analyze`.
        runs: Names of the runs that it is of.
        options: Further options of that command.
    """

    name: str
    analysis: str
    runs: tuple[str, ...]
    options: Mapping[str, Any]


@dataclass(frozen=True)
class LookFor:
    """Something that the paper says of its figure.

    Args:
        paper: What it says, in our words.
        rule: A key of `checks.RULES`.
        of: Readings, see `readings.read_value`.
        options: Further options of the rule.
    """

    paper: str
    rule: str
    of: tuple[Reading, ...]
    options: Mapping[str, Any]


@dataclass(frozen=True)
class PaperFigure:
    """A figure of a paper.

    Args:
        name: The name of its file, such as "engm-fig2".
        title: What it is about.
        source: The paper, the figure and the section.
        runs: The runs that it needs, as rows without printed figures.
        parts: Its analyses.
        look_for: What the paper says of it.
        notes: What differs from the paper, and what it leaves open.
    """

    name: str
    title: str
    source: str
    runs: tuple[Row, ...]
    parts: tuple[Part, ...]
    look_for: tuple[LookFor, ...]
    notes: tuple[str, ...]


def figure_names(folder: Path = PAPER_FIGURES) -> list[str]:
    """Returns the names of the figures in a folder of figure files."""
    return names_in(folder)


def is_figure(name: str) -> bool:
    """Whether a name is meant as that of a figure: those of tables have a number after the paper's name."""
    return name.lower().replace("_", "-").partition("-")[2].startswith("fig")


def load_figure(name: str, folder: Path = PAPER_FIGURES, tables: Path = PAPER_TABLES) -> PaperFigure:
    """Reads a figure.

    Args:
        name: The name of the figure, such as "engm-fig2".
        folder: The folder of the figure files.
        tables: The folder of the table files.

    Raises:
        ConfigError: There is no figure of that name, or its file is malformed.
    """
    return read_file("figure", name, folder, partial(_figure, tables=tables))


def _figure(name: str, content: Any, *, tables: Path) -> PaperFigure:
    check_keys("the figure", content, ("title", "source", "parts", "look_for"), ("runs", "common", "notes"))
    for key in ("runs", "parts", "look_for", "notes"):
        if not isinstance(content.get(key, []), list):
            raise ConfigError(f"{key} is {content[key]!r}; expected a list")
    common = content.get("common", {})
    table_of = cache(partial(load_table, folder=tables))
    runs = tuple(_run(run, common, table_of) for run in content.get("runs", []))
    check_distinct("folders of runs", [run.folder for run in runs])
    parts = tuple(_part(part, [run.name for run in runs]) for part in content["parts"])
    check_distinct("parts", [part.name for part in parts])
    look_for = tuple(
        _look_for(one, [part.name for part in parts], [run.name for run in runs]) for one in content["look_for"]
    )
    return PaperFigure(
        name, content["title"], content["source"], runs, parts, look_for, tuple(content.get("notes", ()))
    )


def _run(content: Any, common: Mapping[str, Any], table_of: Callable[[str], PaperTable]) -> Row:
    check_keys("a run", content, ("name",), ("row", "options"))
    options = dict(common)
    if "row" in content:
        table, _, name = str(content["row"]).partition("/")
        (row,) = table_of(table).pick((name,)).rows
        if row.options is None:
            raise ConfigError(f"run {content['name']!r} is row {content['row']!r}, which is quoted and has no options")
        own = {key: value for key, value in row.options.items() if key not in ("attacks", "eval_both_threats")}
        options = {**own, **common}
    return row_of(str(content["name"]), {**options, "eval_both_threats": False, **content.get("options", {})}, {})


def _part(content: Any, runs: list[str]) -> Part:
    check_keys("a part", content, ("name", "analysis"), ("runs", "options"))
    own = tuple(content.get("runs", ()))
    for run in own:
        if run not in runs:
            raise ConfigError(f"part {content['name']!r} is of the unknown run {run!r}{did_you_mean(run, runs)}")
    return Part(str(content["name"]), str(content["analysis"]), own, content.get("options", {}))


def _look_for(content: Any, parts: list[str], runs: list[str]) -> LookFor:
    check_keys("an entry of look_for", content, ("paper", "rule", "of"), ("bound", "within", "among", "run"))
    rule, of = content["rule"], content["of"]
    if rule not in NEEDED:
        raise ConfigError(f"unknown rule {rule!r}{did_you_mean(rule, NEEDED)}; known: {', '.join(NEEDED)}")
    least, needed = NEEDED[rule]
    options = {name: value for name, value in content.items() if name not in ("paper", "rule", "of")}
    if not isinstance(of, list) or len(of) < least or set(options) != set(needed):
        raise ConfigError(
            f"rule {rule} has of: {of!r} and {', '.join(options) or 'no option'}; expected a list of {least} readings "
            f"or more, and {', '.join(needed) or 'no option'}"
        )
    for reading in of:
        check_reading(reading, parts)
    if "run" in options and options["run"] not in runs:
        raise ConfigError(f"rule {rule} is of the unknown run {options['run']!r}{did_you_mean(options['run'], runs)}")
    return LookFor(content["paper"], rule, tuple(of), options)
