"""The table of a comparison on the terminal, and as Markdown, LaTeX and CSV."""

import csv
import io
import re
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from pyengm.comparison.measures import Value
from pyengm.comparison.options import is_number, value_text
from pyengm.comparison.table import Column, ComparisonTable

NONE = "-"
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def as_rich(table: ComparisonTable) -> Table:
    """Returns the table for the terminal."""
    shown = Table(box=box.ROUNDED)
    heads = _heads(table)
    for number, head in enumerate(heads):
        shown.add_column(head, justify="right" if number >= len(heads) - 1 - len(table.columns) else "left")
    for cells in _cells(table):
        shown.add_row(*cells)
    return shown


def as_markdown(table: ComparisonTable) -> str:
    """Returns the table as Markdown."""
    heads, numbers = _heads(table), 1 + len(table.columns)
    rules = ["---"] * (len(heads) - numbers) + ["---:"] * numbers
    return "\n".join(_markdown_line(cells) for cells in (heads, rules, *_cells(table))) + "\n"


def as_latex(table: ComparisonTable) -> str:
    """Returns the table as a tabular of LaTeX, with the rules of the package booktabs."""
    heads, numbers = _heads(table), 1 + len(table.columns)
    columns = "l" * (len(heads) - numbers) + "r" * numbers
    lines = ["% needs \\usepackage{booktabs}", f"\\begin{{tabular}}{{{columns}}}", "\\toprule"]
    lines += [_latex_line(heads), "\\midrule"]
    lines += [_latex_line(cells) for cells in _cells(table)]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def as_csv(table: ComparisonTable) -> str:
    """Returns the table as CSV: for each result a column with its mean and one with its standard deviation, in full."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    heads = [f"{column.title} ({column.unit}) {kind}" for column in _distinct(table) for kind in ("mean", "std")]
    writer.writerow(["name", *table.options, "seeds", *heads])
    for row in table.rows:
        options = map(_csv_value, table.options, row.options)
        numbers = [number for value in row.values for number in _numbers(value)]
        writer.writerow([row.name, *options, " ".join(map(str, row.seeds)), *numbers])
    return text.getvalue()


def details_of(table: ComparisonTable) -> list[str]:
    """Returns a line for each column that says more than its title: the threat model and the number of images."""
    by_details: dict[str, list[str]] = {}
    for column in table.columns:
        if column.details:
            by_details.setdefault(column.details, []).append(column.title)
    return [f"{', '.join(titles)}: {details}" for details, titles in by_details.items()]


def escape_latex(text: str) -> str:
    """Returns a text whose characters stand for themselves in LaTeX."""
    return re.sub("|".join(map(re.escape, _LATEX)), lambda found: _LATEX[found[0]], text)


def _distinct(table: ComparisonTable) -> list[Column]:
    """The columns; where two have the same title, that has the details too."""
    titles = [column.title for column in table.columns]
    return [
        Column(f"{column.title} ({column.details})", column.unit) if titles.count(column.title) > 1 else column
        for column in table.columns
    ]


def _heads(table: ComparisonTable) -> list[str]:
    titles = [f"{column.title} ({column.unit})" for column in _distinct(table)]
    return [*([""] if table.has_names else []), *table.options, "seeds", *titles]


def _cells(table: ComparisonTable) -> list[list[str]]:
    return [
        [
            *([row.name] if table.has_names else []),
            *map(value_text, table.options, row.options),
            str(len(row.seeds)),
            *map(_text, row.values, table.columns),
        ]
        for row in table.rows
    ]


def _text(value: Value | None, column: Column) -> str:
    if value is None:
        return NONE
    spread = "" if value.spread is None else f" ± {value.spread:.{column.decimals}f}"
    return f"{value.mean:.{column.decimals}f}{spread}"


def _numbers(value: Value | None) -> tuple[float | str, float | str]:
    if value is None:
        return "", ""
    return value.mean, "" if value.spread is None else value.spread


def _csv_value(name: str, value: Any) -> Any:
    return value if is_number(value) else value_text(name, value)


def _markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(re.sub(r"^-(?=\d)", "$-$", escape_latex(cell)) for cell in cells) + r" \\"
