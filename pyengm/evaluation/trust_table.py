"""The tables of an evaluation: accuracies, and whether they can be trusted."""

from typing import Any

from rich.console import Group
from rich.table import Table

from pyengm.attacks import ThreatModel
from pyengm.evaluation.table import results_table


def evaluation_tables(results: dict[str, Any], title: str) -> Group:
    """The table of accuracies, and below it that of the checks on them.

    Args:
        results: results of `evaluate_checkpoints`.
        title: title of the first table.

    Returns:
        Something that rich prints.
    """
    return Group(results_table(results, title), trust_table(results))


def trust_table(results: dict[str, Any]) -> Table:
    """A row per check, which passes or warns, with the numbers that decided.

    Args:
        results: results of `evaluate_checkpoints`.
    """
    table = Table(title="Can these accuracies be trusted?", title_justify="left", show_lines=False)
    for column in ("model", "threat model", "check", "", "figures"):
        table.add_column(column, overflow="fold")
    threats = {threat["norm"]: str(ThreatModel(**threat)) for threat in results["threats"]}
    for model, blocks in results["trust"].items():
        for norm, block in blocks.items():
            if not block["checks"]:
                table.add_row(model, threats[norm], "none", "", block["reason"])
            for i, check in enumerate(block["checks"]):
                names = ("", "") if i else (model, f"{threats[norm]}, {block['images']} images")
                table.add_row(*names, check["title"], "passes" if check["passed"] else "WARNS", check["figure"])
            table.add_section()
    return table
