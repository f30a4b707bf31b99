"""The table of an evaluation on the terminal."""

from typing import Any

from rich.table import Table

from pyengm.attacks import ThreatModel
from pyengm.attacks.autoattack import MEMBERS
from pyengm.evaluation.attack_registry import DISTANCES, TITLES
from pyengm.evaluation.evaluate import AFTER, SAME_EXAMPLES


def results_table(results: dict[str, Any], title: str, spread: dict[str, Any] | None = None) -> Table:
    """A row per attack, a column per checkpoint, in per cent; `results` as `evaluate_checkpoints` makes them.

    What each member of AutoAttack has left is not shown. Distances are in pixel units, as in "rho = 0.84".
    spread: in the same shape, where the results are means over several runs; each is shown as in "51.20 ± 0.31".
    """
    spread = spread or {}
    columns = [name for name, value in results.items() if isinstance(value, dict) and "natural" in value]
    table = Table(title=title, title_justify="left", caption=_caption(results, spread), caption_justify="left")
    table.add_column("attack")
    table.add_column("threat model")
    for name in columns:
        table.add_column(f"{name} %", justify="right")
    threats = [ThreatModel(**threat) for threat in results["threats"]]
    for key in results[columns[0]]:
        if not key.startswith(AFTER):
            attack, threat = _parse(key, threats)
            cells = (_cell(key, results[name][key], spread.get(name, {}).get(key)) for name in columns)
            table.add_row(attack, threat, *cells)
    return table


def _parse(key: str, threats: list[ThreatModel]) -> tuple[str, str]:
    if key == "natural":
        return key, ""
    if key in DISTANCES:
        return TITLES[key], "mean distance in L2"
    threat = next((t for t in threats[1:] if key.endswith(f"_{t.norm}")), threats[0])
    name = key.removesuffix(f"_{threat.norm}")
    return ("PGD-20, AutoAttack's images" if name == SAME_EXAMPLES else TITLES[name]), str(threat)


def _cell(key: str, value: float, spread: float | None) -> str:
    if key in DISTANCES:
        return f"rho = {value:.4f}" + ("" if spread is None else f" ± {spread:.4f}")
    return f"{100 * value:.2f}" + ("" if spread is None else f" ± {100 * spread:.2f}")


def _caption(results: dict[str, Any], spread: dict[str, Any]) -> str:
    counts = results["images"]
    lines = [f"{counts['all']} test images, AutoAttack on {counts['autoattack']} of them"]
    lines += _without(results)
    if "robust_overfitting" in results:
        lost, deviation = results["robust_overfitting"], spread.get("robust_overfitting")
        lost = f"{lost:.1f}" + ("" if deviation is None else f" ± {deviation:.1f}")
        lines.append(f"robust overfitting: {lost} % of the best PGD-20 accuracy lost")
    return "\n".join(lines)


def _without(results: dict[str, Any]) -> list[str]:
    """A line for each threat model under which members of AutoAttack could not run."""
    keys = next(value for value in results.values() if isinstance(value, dict) and "natural" in value)
    lines = []
    for i, threat in enumerate(ThreatModel(**threat) for threat in results["threats"]):
        suffix = f"_{threat.norm}" if i else ""
        names = [member.replace("-", "_") for member in MEMBERS]
        ran = [TITLES[name] for name in names if AFTER + name + suffix in keys]
        if ran and len(ran) < len(names):
            lines.append(f"AutoAttack ({threat}) is only {', '.join(ran)} here: the others cannot run on these data")
    return lines
