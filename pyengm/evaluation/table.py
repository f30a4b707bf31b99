"""The table of an evaluation on the terminal."""

from typing import Any

from rich.table import Table

from pyengm.attacks import Threat
from pyengm.evaluation.evaluate import SAME_PICTURES
from pyengm.evaluation.suite import TITLES


def results_table(results: dict[str, Any], title: str) -> Table:
    """A row per attack, a column per checkpoint, in per cent; `results` as `evaluate_checkpoints` makes them."""
    columns = [name for name, value in results.items() if isinstance(value, dict) and "natural" in value]
    table = Table(title=title, title_justify="left", caption=_caption(results), caption_justify="left")
    table.add_column("attack")
    table.add_column("threat model")
    for name in columns:
        table.add_column(f"{name} %", justify="right")
    threats = [Threat(**threat) for threat in results["threats"]]
    for key in results[columns[0]]:
        attack, threat = _parse(key, threats)
        table.add_row(attack, threat, *(f"{100 * results[name][key]:.2f}" for name in columns))
    return table


def _parse(key: str, threats: list[Threat]) -> tuple[str, str]:
    if key == "natural":
        return key, ""
    threat = next((t for t in threats[1:] if key.endswith(f"_{t.norm}")), threats[0])
    name = key.removesuffix(f"_{threat.norm}")
    return ("PGD-20, AutoAttack's pictures" if name == SAME_PICTURES else TITLES[name]), str(threat)


def _caption(results: dict[str, Any]) -> str:
    counts = results["pictures"]
    lines = [f"{counts['all']} test pictures, AutoAttack on {counts['autoattack']} of them"]
    if "robust_overfitting" in results:
        lines.append(f"robust overfitting: {results['robust_overfitting']:.1f} % of the best PGD-20 accuracy lost")
    return "\n".join(lines)
