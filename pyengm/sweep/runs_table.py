"""The table of the runs of a sweep, one a row, as CSV."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyengm.comparison.options import differing_options, is_number, training_options, value_text
from pyengm.comparison.times import times_of
from pyengm.errors import CheckpointError
from pyengm.evaluation.one_threat import AFTER
from pyengm.training import RunFolder, TrainConfig
from pyengm.utils.io import atomic_write

HEADS = ("run", "seed", "state", "error")


def write_runs_table(
    path: Path,
    points: Mapping[str, TrainConfig],
    folders: Mapping[str, Mapping[int, Path]],
    failed: Mapping[str, str],
) -> None:
    """Writes a row for each run: its options that differ, its state, and its results where it is complete.

    Args:
        path: The file.
        points: The options of the runs by point.
        folders: The run folders by point and seed.
        failed: The errors of runs that failed, by "POINT, seed SEED".

    Raises:
        StorageError: The file cannot be written.
    """
    options = {name: training_options(config) for name, config in points.items()}
    differing = differing_options(list(options.values()))
    rows = []
    for name, of_point in folders.items():
        for seed, folder in of_point.items():
            own = {key: _plain(key, options[name].get(key)) for key in differing}
            error = failed.get(f"{name}, seed {seed}", "")
            row, results = {"run": name, "seed": seed}, _results(folder)
            state = "complete" if results else "failed" if error else "begun" if _is_begun(folder) else "to do"
            rows.append({**row, "state": state, "error": "" if results else error, **own, **results})
    heads = dict.fromkeys([*HEADS, *differing, *(key for row in rows for key in row)])
    text = io.StringIO()
    writer = csv.DictWriter(text, list(heads), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write(path, lambda new: new.write_text(text.getvalue(), encoding="utf-8"))


def _is_begun(folder: Path) -> bool:
    return RunFolder(folder).config.is_file()


def _plain(name: str, value: Any) -> Any:
    return value if is_number(value) else value_text(name, value)


def _results(folder: Path) -> dict[str, Any]:
    """The results of a complete run by column, accuracies in [0, 1]; {} for a run that is not complete."""
    run = RunFolder(folder)
    if not run.results.is_file():
        return {}
    try:
        results = run.read_results()
    except CheckpointError:  # whoever reads the run itself gets the error
        return {}
    found = {
        f"{model} {key}": value
        for model in ("best", "last")
        for key, value in results[model].items()
        if not key.startswith(AFTER)
    }
    if "robust_overfitting" in results:
        found["robust overfitting (%)"] = results["robust_overfitting"]
    return {**found, **{name: value for name, value in times_of(folder, 1).items() if name == "hours"}}
