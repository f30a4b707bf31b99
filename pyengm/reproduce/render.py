"""A report on the terminal and as Markdown."""

from typing import Any

from rich import box
from rich.table import Table

from pyengm.reproduce.report import Collapse


def as_table(report: dict[str, Any]) -> Table:
    """Returns the report as a table for the terminal: in each cell our figure, the paper's and the difference."""
    table = Table(box=box.ROUNDED, show_lines=True)
    table.add_column("")
    for column in report["columns"]:
        table.add_column(column, justify="right")
    for row in report["rows"]:
        table.add_row(row["name"], *("\n".join(cell(row, column)) for column in report["columns"]))
    return table


def as_markdown(report: dict[str, Any]) -> str:
    """Returns the report with its remarks as Markdown."""
    lines = [f"# {heading(report)}", "", "Ours, the paper's in brackets, and the difference.", ""]
    lines += [_line(["", *report["columns"]]), _line(["---", *("---:" for _ in report["columns"])])]
    for row in report["rows"]:
        lines.append(_line([row["name"], *("<br>".join(cell(row, column)) for column in report["columns"])]))
    return "\n".join([*lines, "", *(f"- {remark}" for remark in remarks(report))]) + "\n"


def heading(report: dict[str, Any]) -> str:
    """Returns the title of the report, with the source of the table and the scale."""
    return f"{report['title']} ({report['source']}), scale {report['scale']}"


def cell(row: dict[str, Any], column: str) -> list[str]:
    """Returns the lines of a cell: our figure, the paper's in brackets, and the difference, where they exist."""
    lines = []
    if column in row["ours"]:
        lines.append(_figure(row["ours"][column]))
    elif row["trained"] and column in row["paper"]:
        lines.append("-")
    if column in row["paper"]:
        lines.append(f"({_figure(row['paper'][column])})")
    if column in row["difference"]:
        lines.append(f"{row['difference'][column]:+.2f}")
    return lines


def remarks(report: dict[str, Any]) -> list[str]:
    """Returns the remarks on the figures: seeds, orders of the rows, differences from the paper, notes, failed runs."""
    trained = [row for row in report["rows"] if row["trained"]]
    seeds = sorted({seed for row in trained for seed in row["seeds"]})
    lines = [
        f"seeds: {', '.join(map(str, seeds)) or 'none'}"
        + (", mean ± sample standard deviation" if len(seeds) > 1 else "")
    ]
    if quoted := [row["name"] for row in report["rows"] if not row["trained"]]:
        lines.append(f"the paper's figures alone: {', '.join(quoted)}")
    for order in report["orders"]:
        lines.append(
            f"order by {order['column']}, highest first: paper {_ranked(order['paper'])}; "
            f"ours {_ranked(order['ours'])}; "
            f"{order['pairs_in_the_same_order']} of {order['pairs']} pairs in the same order"
        )
    for name, seeds in report["collapsed"].items():
        cases = "; ".join(f"seed {seed}, {_falls(falls)}" for seed, falls in seeds.items())
        lines.append(f"catastrophic overfitting, by the accuracy under PGD on training images: {name}: {cases}")
    for name, differences in report["differences"].items():
        lines.append(f"not as in the paper, {name}: {'; '.join(differences)}")
    lines += [f"no figure of ours for {column}: {why}" for column, why in report["missing"].items()]
    lines += [f"note: {note}" for note in report["notes"]]
    return lines + [f"FAILED: {name}: {why}" for name, why in report["failed"].items()]


def _figure(figure: dict[str, Any]) -> str:
    return f"{figure['value']:.2f}" + ("" if figure["spread"] is None else f" ± {figure['spread']:.2f}")


def _falls(falls: list[Collapse]) -> str:
    epochs = (f"{100 * fall['before']:.1f} to {100 * fall['after']:.1f} % in epoch {fall['epoch']}" for fall in falls)
    return f"{', '.join(epochs)}, {100 * falls[-1]['last']:.1f} % at the end"


def _ranked(ranks: list[list[str]]) -> str:
    return " > ".join(" = ".join(equal) for equal in ranks)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
