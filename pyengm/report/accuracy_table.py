"""The table of accuracies, with the runs and their models side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

from pyengm.report.results import Measured, Results
from pyengm.report.source import Source

UNBROKEN = "\u00a0=\u00a0"  # an equals sign at which no line breaks


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
        heading: What was evaluated; empty for the final evaluations.
        groups: The groups of columns: the name of a run, and its models.
        rows: The attack, the threat model, and a cell for each model, None where the attack did not run.
        notes: What else the results say, a line for each group.
    """

    heading: str
    groups: list[tuple[str, tuple[str, ...]]]
    rows: list[tuple[str, str, list[Cell | None]]]
    notes: list[str]


def accuracy_tables(sources: Sequence[Source]) -> list[AccuracyTable]:
    """The table of the final evaluations of all runs, then one for each further evaluation.

    Accuracies under attacks that ran with several radii are left to the curves.
    """
    tables = [_table("", [(source.label, source.results) for source in sources])]
    for source in sources:
        tables += [
            _table(f"Evaluation {number} of {source.label}", [(f"{source.label} {number}", results)])
            for number, results in (source.further or {}).items()
        ]
    return tables


def _table(heading: str, evaluated: Sequence[tuple[str, Results]]) -> AccuracyTable:
    columns = [(results, model) for _, results in evaluated for model in results.models]
    rows: dict[tuple[str, str], list[Cell | None]] = {}
    for number, (results, model) in enumerate(columns):
        on_curves = [one for points in results.curves(model).values() for one in points]
        for one in results.measured(model):
            if one not in on_curves:
                name = one.key.title, one.key.threat_text().replace(" = ", UNBROKEN)
                rows.setdefault(name, [None] * len(columns))[number] = _cell(one)
    return AccuracyTable(
        heading,
        [(label, results.models) for label, results in evaluated],
        [(*names, cells) for names, cells in rows.items()],
        [_note(label if len(evaluated) > 1 else "", results) for label, results in evaluated],
    )


def _cell(one: Measured) -> Cell:
    if one.interval is None:
        return Cell(f"{one.value:.4f}" if one.key.is_distance else f"{one.value:.4g}")
    low, high = one.interval
    return Cell(f"{100 * one.value:.2f}", f"{100 * low:.1f} to {100 * high:.1f}", one.images)


def _note(label: str, results: Results) -> str:
    name = f"{label}: " if label else ""
    note = f"{name}{results.all_images} test images, AutoAttack on {results.few_images} of them."
    lost = results.content.get("robust_overfitting")
    if isinstance(lost, (int, float)):
        note += f" Robust overfitting: the last weights have lost {lost:.1f} % of the best PGD-20 accuracy."
    return note
