"""The tables of the papers as files, each with the options and the published figures of its rows."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyengm.attacks import THREAT_NORMS
from pyengm.errors import ConfigError
from pyengm.reproduce.further import OF_A_RUN, OF_TWO_RUNS
from pyengm.reproduce.paper_files import check_distinct, check_keys, names_in, read_file
from pyengm.training import TrainConfig
from pyengm.utils.did_you_mean import match_name

# A table file has these keys.
# title, source   one line each
# columns         name, and ours: the dotted path of our figure in results.json or in `further_values`, or one of
#                 `TIMES`; a column without `ours` has the paper's figures only
# attacks         further attacks that the columns need
# common          options that all rows share, by flat names
# rows            name, options (which override the common ones; a row without options is quoted from elsewhere and not
#                 trained), beside (the name of one of the others), and paper: the published figures by column, each a
#                 number or {value, spread}
# others          further runs, to which rows are compared: name, options, and apart: true for a seed that no row has
# notes           misprints, and what the paper leaves open
PAPER_TABLES = Path(__file__).resolve().parents[1] / "paper_tables"
TIMES = ("seconds_per_step", "seconds", "hours")


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        name: Its heading.
        ours: The path of our figure in results.json; None where no run yields it.
    """

    name: str
    ours: str | None


@dataclass(frozen=True)
class Figure:
    """A figure of a table, most often in per cent.

    Args:
        value: The figure.
        spread: The number after its plus-minus sign.
    """

    value: float
    spread: float | None = None


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Args:
        name: Its heading.
        options: All options of its run as plain values, by flat names; None for a row that is not trained.
        paper: The published figures by column.
        beside: The name of the run that it is compared to, one of the table's others.
        apart: Whether its runs have seeds that no row has, for copies of a row that are trained separately.
    """

    name: str
    options: Mapping[str, Any] | None
    paper: Mapping[str, Figure]
    beside: str | None = None
    apart: bool = False

    @property
    def folder(self) -> str:
        """The name of the folder of its runs."""
        return re.sub(r"[^a-z0-9.]+", "-", self.name.lower()).strip("-.")


@dataclass(frozen=True)
class PaperTable:
    """A table of a paper.

    Args:
        name: The name of its file, such as "engm-2".
        title: What it is about.
        source: The paper and the number of the table.
        columns: Its columns.
        rows: Its rows.
        notes: Misprints, and what the paper leaves open.
        others: Further runs, which rows are compared to.
    """

    name: str
    title: str
    source: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    others: tuple[Row, ...] = ()

    @property
    def runs(self) -> tuple[Row, ...]:
        """The rows that are trained, and the other runs that they are compared to."""
        own = tuple(row for row in self.rows if row.options is not None)
        return (*own, *(other for other in self.others if any(row.beside == other.name for row in own)))

    def pick(self, names: Sequence[str]) -> "PaperTable":
        """Returns the table with the rows of these names only, or with all rows where no name is given.

        Raises:
            ConfigError: A row is unknown.
        """
        known = [row.name for row in self.rows]
        picked = [match_name(name, known, "row") for name in names] or known
        rows = tuple(row for row in self.rows if row.name in picked)
        return replace(self, rows=rows)


def table_names(folder: Path = PAPER_TABLES) -> list[str]:
    """Returns the names of the tables in a folder of table files."""
    return names_in(folder)


def load_table(name: str, folder: Path = PAPER_TABLES) -> PaperTable:
    """Reads a table.

    Args:
        name: The name of the table, such as "engm-2".
        folder: The folder of the table files.

    Raises:
        ConfigError: There is no table of that name, or its file is malformed.
    """
    return read_file("table", name, folder, _table)


def _table(name: str, content: Any) -> PaperTable:
    check_keys("the table", content, ("title", "source", "columns", "rows"), ("attacks", "common", "notes", "others"))
    lists = ("columns", "rows", "attacks", "notes", "others")
    for key, kind in (*((key, list) for key in lists), ("common", dict)):
        if not isinstance(content.get(key, kind()), kind):
            raise ConfigError(f"{key} is {content[key]!r}; expected {'names and values' if kind is dict else 'a list'}")
    columns = tuple(_column(column) for column in content["columns"])
    check_distinct("columns", [column.name for column in columns])
    both_threats = any(str(column.ours).endswith(tuple(f"_{norm}" for norm in THREAT_NORMS)) for column in columns)
    shared = {**content.get("common", {}), "attacks": content.get("attacks", []), "eval_both_threats": both_threats}
    others = tuple(_other(other, shared) for other in content.get("others", []))
    rows = tuple(_row(row, shared, [column.name for column in columns]) for row in content["rows"])
    check_distinct("rows", [row.name for row in (*rows, *others)])
    check_distinct("folders of rows", [row.folder for row in (*rows, *others)])
    for row in rows:
        if row.beside is not None and row.beside not in [other.name for other in others]:
            raise ConfigError(f"row {row.name!r} is beside {row.beside!r}, which is none of the others")
    notes = tuple(content.get("notes", ()))
    return PaperTable(name, content["title"], content["source"], columns, rows, notes, others)


def _column(content: Any) -> Column:
    check_keys("a column", content, ("name",), ("ours",))
    column = Column(str(content["name"]), content.get("ours"))
    parts = str(column.ours).split(".")
    good = column.ours in (None, "robust_overfitting", *TIMES) or (len(parts) == 2 and parts[0] in ("best", "last"))
    further = {f"{group}.{key}" for group, keys in (OF_A_RUN | OF_TWO_RUNS).items() for key in keys}
    if not good and column.ours not in further:
        raise ConfigError(
            f"column {column.name!r} has ours: {column.ours!r}; expected a path such as best.pgd20, "
            f"robust_overfitting, {', '.join((*TIMES, *sorted(further)))}"
        )
    return column


def _other(content: Any, shared: Mapping[str, Any]) -> Row:
    check_keys("another run", content, ("name", "options"), ("apart",))
    other = row_of(str(content["name"]), {**shared, **content["options"]}, {})
    return replace(other, apart=bool(content.get("apart", False)))


def _row(content: Any, shared: Mapping[str, Any], columns: list[str]) -> Row:
    check_keys("a row", content, ("name", "paper"), ("options", "beside"))
    name = str(content["name"])
    if not re.search("[a-z0-9]", name.lower()):
        raise ConfigError(f"row {name!r} has no letter or digit to name its folder")
    if not isinstance(content["paper"], dict):
        raise ConfigError(f"row {name!r} has the figures {content['paper']!r}; expected figures by column")
    for column in content["paper"]:
        if column not in columns:
            raise ConfigError(f"row {name!r} has a figure for {column!r}; the columns: {', '.join(columns)}")
    paper = {column: _figure(f"row {name!r}, {column}", cell) for column, cell in content["paper"].items()}
    if "options" not in content:
        return Row(name, None, paper)
    return replace(row_of(name, {**shared, **(content["options"] or {})}, paper), beside=content.get("beside"))


def row_of(name: str, options: Mapping[str, Any], paper: Mapping[str, Figure]) -> Row:
    """Makes a row that can be trained.

    Raises:
        ConfigError: An option is unknown, or none of a table's.
    """
    for option in ("seed", "data_dir", "download", "device"):
        if option in options:
            raise ConfigError(f"row {name!r} has a {option}, which is not the table's but that of a call")
    TrainConfig.from_plain(options, f"row {name!r}").drop_idle(keep=()).resolve()
    return Row(name, options, paper)


def _figure(where: str, cell: Any) -> Figure:
    if isinstance(cell, dict):
        check_keys(where, cell, ("value",), ("spread",))
        cell = (cell["value"], cell.get("spread"))
    value, spread = cell if isinstance(cell, tuple) else (cell, None)
    for number in (value, 0 if spread is None else spread):
        if not isinstance(number, (int, float)) or isinstance(number, bool):
            raise ConfigError(f"{where} is {cell!r}; expected a number, or value and spread")
    return Figure(float(value), None if spread is None else float(spread))
