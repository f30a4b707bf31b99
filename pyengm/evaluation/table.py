"""The table of an evaluation on the terminal."""

from typing import Any

from rich.table import Table

from pyengm.attacks import ThreatModel
from pyengm.attacks.autoattack import MEMBERS
from pyengm.evaluation.attack_registry import DISTANCES, NATURAL, TITLES, member_key
from pyengm.evaluation.attack_spec import AttackSpec, parse_spec
from pyengm.evaluation.one_threat import AFTER
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
            attack, threat = _parse(key, threats)
            cells = (_cell(key, results[name][key], spread.get(name, {}).get(key)) for name in columns)
            table.add_row(attack, threat, *cells)
    return table


def _checkpoints(results: dict[str, Any]) -> list[str]:
    return [name for name, value in results.items() if isinstance(value, dict) and NATURAL in value]


def _parse(key: str, threats: list[ThreatModel]) -> tuple[str, str]:
    """Titles of the attack and the threat model of a result."""
    if key == NATURAL:
        return TITLES[key], ""
    if ":" in key:
        return _parse_spec(parse_spec(key), threats)
    if key in DISTANCES:
        return TITLES[key], "mean distance in L2"
    threat = next((t for t in threats[1:] if key.endswith(f"_{t.norm}")), threats[0])
    return TITLES[key if key in TITLES else key.removesuffix(f"_{threat.norm}")], str(threat)


def _parse_spec(spec: AttackSpec, threats: list[ThreatModel]) -> tuple[str, str]:
    if spec.info.is_distance:
        return spec.title(), "mean distance in L2"
    threat = next((t for t in threats if t.norm == spec.norm), None) or next(t for t in threats if spec.applies_to(t))
    return spec.title(), str(ThreatModel(threat.norm, spec.eps[0]) if spec.eps else threat)


def _is_distance(key: str) -> bool:
    return key.partition(":")[0] in DISTANCES


def _cell(key: str, value: float, spread: float | None) -> str:
    if _is_distance(key):
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
