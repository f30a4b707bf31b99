"""What a reader must know to read a comparison: in what else than their options the entries differ."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pyengm.comparison.entries import ComparedRun, Entry
from pyengm.comparison.provenance import code_of_run


def remarks_on(entries: Sequence[Entry]) -> list[str]:
    """Returns a sentence for each thing that the figures do not show and that decides how to read them.

    Args:
        entries: The entries.
    """
    several = any(len(entry.runs) > 1 for entry in entries)
    lines = ["values are mean ± sample standard deviation over the seeds"] if several else []
    return [
        *lines,
        *_selection(entries),
        *_attacks_in_training(entries),
        *_radii(entries),
        *_ends(entries),
        *_times(entries),
        *_code(entries),
    ]


def _selection(entries: Sequence[Entry]) -> list[str]:
    """How the best weights were selected, where that is not the same."""
    by_images: dict[str, list[str]] = {}
    for entry in entries:
        by_images.setdefault(entry.config.evaluation.select_on, []).append(entry.name)
    lines = []
    if without := by_images.pop("none", []):
        names = "all entries" if len(without) == len(entries) else _quoted(without)
        lines.append(f"no held-out images, so no best weights, overfitting and held-out curves: {names}")
    if len(by_images) > 1:
        words = "; ".join(f"{images}: {_quoted(names)}" for images, names in by_images.items())
        lines.append(f"best weights and held-out accuracies are of different images: {words}")
    return lines


def _attacks_in_training(entries: Sequence[Entry]) -> list[str]:
    attacks = sorted({entry.config.evaluation.train_attack or "pgd5" for entry in entries})
    if len(attacks) < 2:
        return []
    return [f"no curves of the accuracy on training images, as their attacks differ: {', '.join(attacks)}"]


def _radii(entries: Sequence[Entry]) -> list[str]:
    threats = {(entry.config.attack.threat, entry.config.attack.eps) for entry in entries}
    return ["each entry is attacked under its own radius, in training and in tests"] if len(threats) > 1 else []


def _ends(entries: Sequence[Entry]) -> list[str]:
    """Runs of an entry that stopped at different epochs."""
    lines = []
    for entry in entries:
        ends = [max((row["epoch"] + 1 for row in run.source.metrics), default=0) for run in entry.runs]
        if 0 in ends:
            lines.append(f"{entry.name!r} has no curves: a run of it has no metrics.jsonl")
        elif len(set(ends)) > 1:
            words = ", ".join(map(str, ends))
            lines.append(f"the runs of {entry.name!r} ended after {words} epochs; its curves end with the first")
    return lines


def _times(entries: Sequence[Entry]) -> list[str]:
    def machine(run: ComparedRun) -> Any:
        found = (run.source.environment or {}).get("machine") or {}
        return ", ".join(sorted(set(found.get("gpus") or ()))) or found.get("cpu") or "an unknown machine"

    return _different("the times are of different machines", machine, entries)


def _code(entries: Sequence[Entry]) -> list[str]:
    return _different("the runs are of different commits or versions", code_of_run, entries)


def _different(what: str, of: Callable[[ComparedRun], str], entries: Sequence[Entry]) -> list[str]:
    found: dict[str, dict[str, None]] = {}
    for entry in entries:
        for run in entry.runs:
            found.setdefault(of(run), {})[entry.name] = None
    if len(found) < 2:
        return []
    words = "; ".join(f"{value}: {_quoted(names)}" for value, names in found.items())
    return [f"{what}: {words}"]


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
