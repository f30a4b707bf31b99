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
    """A row per threat model and models with the same outcome: how many checks pass, and each one that warns.

    Args:
        results: results of `evaluate_checkpoints`, whose "trust" has the figures of the checks that pass, too.
    """
    table = Table(title="Can these accuracies be trusted?", title_justify="left", show_lines=False)
    for column in ("model", "threat model", "checks"):
        table.add_column(column, overflow="fold")
    threats = {threat["norm"]: str(ThreatModel(**threat)) for threat in results["threats"]}
    for norm, threat in threats.items():
        outcomes: dict[str, list[str]] = {}
        for model, blocks in results["trust"].items():
            outcomes.setdefault(_outcome(blocks[norm]), []).append(model)
        for outcome, models in outcomes.items():
            table.add_row(", ".join(models), threat, outcome)
    return table


def _outcome(block: dict[str, Any]) -> str:
    checks = block["checks"]
    if not checks:
        return f"none: {block['reason']}"
    warned = [check for check in checks if not check["passed"]]
    lines = [f"{len(checks) - len(warned)} of {len(checks)} pass, on {block['images']} images"]
    return "\n".join(lines + [f"fails: {check['title']} ({check['figure']})" for check in warned])
