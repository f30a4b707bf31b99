"""The table of accuracies, with the runs and their models side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

from pyengm.report.results import Measured, Results
from pyengm.report.source import Source

NARROW = "\u00a0=\u00a0"  # an equals sign at which no line breaks


@dataclass(frozen=True)
class Cell:
    """A value of the table.

    Args:
        value: As text.
        interval: Its 95 % interval as text; empty where it has none.
        images: On how many images it was measured; None where that does not matter.
    """

    value: str
    interval: str = ""
    images: int | None = None


@dataclass(frozen=True)
class AccuracyTable:
    """A table with a row for each attack and threat model.

    Args:
        caption: What was evaluated.
        groups: The groups of columns: the name of a run, and its models.
        rows: The attack, the threat model, and a cell for each model, None where the attack did not run.
        notes: What else the results say.
    """

    caption: str
    groups: list[tuple[str, tuple[str, ...]]]
    rows: list[tuple[str, str, list[Cell | None]]]
    notes: list[str]


def accuracy_tables(sources: Sequence[Source]) -> list[AccuracyTable]:
    """The table of the final evaluations of all runs, then one for each further evaluation."""
    caption = "Accuracy and its 95 % interval, in per cent"
    tables = [_table(caption, [(source.label, source.results) for source in sources])]
    for source in sources:
        tables += [
            _table(f"Evaluation {number} of {source.label}", [(f"{source.label} {number}", results)])
            for number, results in (source.further or {}).items()
        ]
    return tables


def _table(caption: str, evaluated: Sequence[tuple[str, Results]]) -> AccuracyTable:
    columns = [(results, model) for _, results in evaluated for model in results.models]
    rows: dict[tuple[str, str], list[Cell | None]] = {}
    for number, (results, model) in enumerate(columns):
        for one in results.measured(model):
            row = rows.setdefault((one.key.title, one.key.threat_text().replace(" = ", NARROW)), [None] * len(columns))
            row[number] = _cell(one)
    return AccuracyTable(
        caption,
        [(label, results.models) for label, results in evaluated],
        [(*names, cells) for names, cells in rows.items()],
        [note for label, results in evaluated for note in _notes(label if len(evaluated) > 1 else "", results)],
    )


def _cell(one: Measured) -> Cell:
    if one.interval is None:
        return Cell(f"{one.value:.4f}" if one.key.is_distance else f"{one.value:.4g}")
    low, high = one.interval
    return Cell(f"{100 * one.value:.2f}", f"{100 * low:.1f} to {100 * high:.1f}", one.images)


def _notes(label: str, results: Results) -> list[str]:
    name = f"{label}: " if label else ""
    notes = [f"{name}{results.all_images} test images, AutoAttack on {results.few_images} of them."]
    lost = results.content.get("robust_overfitting")
    if isinstance(lost, (int, float)):
        notes.append(f"{name}robust overfitting: the last weights have lost {lost:.1f} % of the best PGD-20 accuracy.")
    return [note[0].upper() + note[1:] if not label else note for note in notes]
