"""The tables of an evaluation: accuracies, and whether they can be trusted."""

from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from pyengm.attacks import ThreatModel
from pyengm.evaluation.attack_spec import parse_spec
from pyengm.evaluation.table import results_table


def evaluation_tables(results: dict[str, Any], title: str) -> Group:
    """The table of accuracies, the warnings of AutoAttack, and the table of the checks.

    Args:
        results: results of `evaluate_checkpoints`.
        title: title of the first table.

    Returns:
        Something that rich prints.
    """
    return Group(results_table(results, title), *map(_warning, results["warnings"]), trust_table(results))


def _warning(warning: dict[str, Any]) -> Text:
    attack = f"{parse_spec(warning['attack']).title()} ({ThreatModel(**warning['threat'])})"
    return Text(f"warning: {warning['model']}, {attack}: {warning['text']}")


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
