"""The files of a comparison: figures, and the table as Markdown, LaTeX, CSV and JSON."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pyengm.cli.analyses import Found
from pyengm.cli.analysis_files import save_analysis
from pyengm.comparison import Comparison, as_csv, as_latex, as_markdown, describe_entries, made_by
from pyengm.errors import ConfigError
from pyengm.training.environment import describe
from pyengm.utils.io import atomic_write, make_dirs

FIGURES = ("curves", "overfitting", "sensitivity")


def describe_comparison(comparison: Comparison, x: str) -> dict[str, Any]:
    """Returns all that the files depend on, as plain values for JSON.

    Args:
        comparison: The comparison.
        x: Of the curves, "epoch" or "time".
    """
    return {"configuration": {"x": x}, "entries": describe_entries(comparison.entries)}


def save_comparison(folder: Path, comparison: Comparison, x: str, about: Mapping[str, Any] | None = None) -> list[str]:
    """Writes each figure as NAME.npz, NAME.json, NAME.svg and NAME.png, and table.md, .tex, .csv and .json.

    table.json is written last and says how all was made. Figures of an earlier comparison that this one lacks are
    removed.

    Args:
        folder: For the files.
        comparison: The comparison.
        x: Of the curves, "epoch" or "time".
        about: What else the description of the files holds.

    Returns:
        The names of the figures.

    Raises:
        StorageError: The disk is full or cannot be written to.
    """
    made = {**describe_comparison(comparison, x), **(about or {}), "remarks": list(comparison.remarks)}
    made["environment"] = describe()
    figures = comparison.figures(x)
    make_dirs(folder)
    for name in FIGURES:
        if name not in figures:
            for suffix in ("npz", "json", "svg", "png"):
                (folder / f"{name}.{suffix}").unlink(missing_ok=True)
    for name, figure in figures.items():
        save_analysis(folder, name, Found(figure.results, figure.panels), {"analysis": name, **made})
    for name, text in _texts(comparison, made).items():
        atomic_write(folder / name, lambda path, text=text: path.write_text(text, encoding="utf-8"))
    return list(figures)


def check_same(folder: Path, description: Mapping[str, Any]) -> None:
    """Raises ConfigError where the folder holds a comparison of other runs, or of other results of them."""
    path = folder / "table.json"
    if not path.exists():
        return
    try:
        before = json.loads(path.read_text())
        same = all(before.get(name) == value for name, value in description.items())
    except (OSError, ValueError, AttributeError):
        same = False
    if not same:
        raise ConfigError(
            f"{path} was made of other runs, results or options and is not overwritten: choose another --out"
        )


def _texts(comparison: Comparison, made: Mapping[str, Any]) -> dict[str, str]:
    command = " ".join(map(str, made["environment"]["command"]))
    notes = [*comparison.notes(), *made_by(comparison.entries), f"table made by: {command}"]
    comments = "".join(f"% {line}\n" for line in notes)
    listed = "".join(f"- {line}\n" for line in notes)
    content = {"analysis": "table", **made, "table": _strict(asdict(comparison.table))}
    return {
        "table.md": f"{as_markdown(comparison.table)}\n{listed}",
        "table.tex": comments + as_latex(comparison.table),
        "table.csv": as_csv(comparison.table),
        "table.json": json.dumps(content, indent=2, default=str) + "\n",
    }


def _strict(value: Any) -> Any:
    """The value without numbers that JSON does not have: infinity, the alpha of no clipping, is "inf"."""
    if isinstance(value, dict):
        return {name: _strict(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
