"""The table of an evaluation on the terminal."""

from typing import Any

from rich.table import Table

from pyengm.attacks import ThreatModel
from pyengm.attacks.autoattack import MEMBERS
from pyengm.evaluation.attack_registry import NATURAL, TITLES, member_key
from pyengm.evaluation.one_threat import AFTER
from pyengm.evaluation.result_key import read_key
from pyengm.evaluation.standard_errors import standard_errors


def results_table(results: dict[str, Any], title: str, spread: dict[str, Any] | None = None) -> Table:
    """Table with a row per attack and a column per checkpoint, in per cent.

    Accuracies after single members of AutoAttack are left out. Distances are in pixel units, as in "rho = 0.84".

    Args:
        results: results of `evaluate_checkpoints`, or means of them over runs.
        title: title of the table.
        spread: standard deviations of means over runs, in the same shape; each is shown after its mean, as in
            "51.20 ± 0.31". By default standard errors over the images.

    Returns:
        A table of rich's.
    """
    over_images = spread is None
    spread = standard_errors(results) if spread is None else spread
    columns = _checkpoints(results)
    caption = _caption(results, spread, over_images)
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    table.add_column("attack")
    table.add_column("threat model")
    for name in columns:
        table.add_column(f"{name} %", justify="right")
    threats = [ThreatModel(**threat) for threat in results["threats"]]
    for key in results[columns[0]]:
        if not key.startswith(AFTER):
            read = read_key(key, threats)
            cells = (_cell(read.is_distance, results[name][key], spread.get(name, {}).get(key)) for name in columns)
            table.add_row(read.title, "" if key == NATURAL else read.threat_text(), *cells)
    return table


def _checkpoints(results: dict[str, Any]) -> list[str]:
    return [name for name, value in results.items() if isinstance(value, dict) and NATURAL in value]


def _cell(is_distance: bool, value: float, spread: float | None) -> str:
    if is_distance:
        return f"rho = {value:.4f}" + ("" if spread is None else f" ± {spread:.4f}")
    return f"{100 * value:.2f}" + ("" if spread is None else f" ± {100 * spread:.2f}")


def _caption(results: dict[str, Any], spread: dict[str, Any], over_images: bool) -> str:
    counts = results["images"]
    lines = [f"{counts['all']} test images, AutoAttack on {counts['autoattack']} of them"]
    if over_images:
        lines.append("± standard error over the images")
    lines += _inapplicable_members(results)
    if "robust_overfitting" in results:
        lost, deviation = results["robust_overfitting"], spread.get("robust_overfitting")
        lost = f"{lost:.1f}" + ("" if deviation is None else f" ± {deviation:.1f}")
        lines.append(f"robust overfitting: {lost} % of the best PGD-20 accuracy lost")
    return "\n".join(lines)


def _inapplicable_members(results: dict[str, Any]) -> list[str]:
    """A line for each threat model under which members of AutoAttack did not apply."""
    values = results[_checkpoints(results)[0]]
    lines = []
    for i, threat in enumerate(ThreatModel(**threat) for threat in results["threats"]):
        suffix = f"_{threat.norm}" if i else ""
        names = [member_key(member) for member in MEMBERS]
        ran = [TITLES[name] for name in names if AFTER + name + suffix in values]
        if ran and len(ran) < len(names):
            lines.append(f"AutoAttack ({threat}) is only {', '.join(ran)} here: the others cannot run on these data")
    return lines
