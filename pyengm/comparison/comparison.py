"""The comparison of runs: their table and their figures."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from pyengm.comparison.curves import PANELS, EntryCurves, entry_curves, plot_curves, plot_legend
from pyengm.comparison.entries import Entry, Runs, find_entries
from pyengm.comparison.formats import details_of
from pyengm.comparison.measures import measures_of
from pyengm.comparison.overfitting import EntryOverfitting, entry_overfitting, plot_overfitting
from pyengm.comparison.remarks import remarks_on
from pyengm.comparison.sensitivity import SensitivityLine, plot_sensitivity, sensitivity_lines
from pyengm.comparison.table import ComparisonTable, comparison_table

Panel = Callable[[Any], Any]
"""Draws on the axes that it is given."""


@dataclass(frozen=True)
class ComparisonFigure:
    """A figure.

    Attributes:
        results: Dataclasses of arrays by name, which the figure shows.
        panels: Functions that draw on axes, by title.
    """

    results: Mapping[str, Any]
    panels: Mapping[str, Panel]


@dataclass(frozen=True)
class Comparison:
    """What `compare` returns.

    Attributes:
        entries: The entries, each of runs that differ only in their seed.
        table: Accuracies, overfitting and time of all entries.
        curves: Metrics along the training, by the names of the entries.
        overfitting: Best and last accuracy, by the names of the entries whose best weights were selected.
        sensitivity: Results against an option that alone differs.
        remarks: What a reader must know to read the figures, a sentence each.
    """

    entries: tuple[Entry, ...]
    table: ComparisonTable
    curves: Mapping[str, EntryCurves]
    overfitting: Mapping[str, EntryOverfitting]
    sensitivity: tuple[SensitivityLine, ...]
    remarks: tuple[str, ...]

    def figures(self, x: str = "epoch") -> dict[str, ComparisonFigure]:
        """Returns the figures by name: curves, overfitting and sensitivity, as far as the runs have what they show.

        Args:
            x: Of the curves, "epoch" or "time".
        """
        found = {"curves": self._curves(x), "overfitting": self._overfitting(), "sensitivity": self._sensitivity()}
        return {name: figure for name, figure in found.items() if figure.panels}

    def _curves(self, x: str) -> ComparisonFigure:
        panels: dict[str, Panel] = {}
        for key, title in PANELS.items():
            attacks = {entry.config.evaluation.train_attack or "pgd5" for entry in self.entries}
            comparable = key != "train_pgd" or len(attacks) == 1
            if comparable and any(np.isfinite(one.band(key)[0]).any() for one in self.curves.values()):
                title = title.format(attack=next(iter(attacks)).upper().replace("PGD", "PGD-"))
                panels[key] = partial(plot_curves, self.curves, key, x, title=title)
        if panels:
            panels[""] = partial(plot_legend, list(self.curves))
        return ComparisonFigure(self.curves, panels)

    def _overfitting(self) -> ComparisonFigure:
        panels = {"": partial(plot_overfitting, self.overfitting)} if self.overfitting else {}
        return ComparisonFigure(self.overfitting, panels)

    def _sensitivity(self) -> ComparisonFigure:
        grouped: dict[str, list[SensitivityLine]] = {}
        for line in self.sensitivity:
            grouped.setdefault(f"{line.option}, {line.what}", []).append(line)
        results = {f"{name}/{line.of}".rstrip("/"): line for name, lines in grouped.items() for line in lines}
        labels: dict[str, dict[str, None]] = {}
        for line in self.sensitivity:
            labels.setdefault(line.option, {})[line.of] = None
        panels = {
            name: partial(_untitled, partial(plot_sensitivity, lines, list(labels[lines[0].option])))
            for name, lines in grouped.items()
        }
        return ComparisonFigure(results, panels)

    def notes(self) -> list[str]:
        """Returns what belongs below the table: what its columns are, and the remarks, a line each."""
        return [*details_of(self.table), *self.remarks]


def _untitled(draw: Panel, ax: Any) -> Any:
    """The panel, whose axes say all that a title would."""
    ax.set_title(" ")
    return draw(ax)


def compare(runs: Runs) -> Comparison:
    """Compares complete runs.

    Args:
        runs: Run folders, folders of several seeds, or "NAME=FOLDER,FOLDER", an entry with that name; or the folders of
            each entry by its name. Runs without a name that differ only in their seed are one entry, which the options
            that differ between the entries name.

    Returns:
        Their table, curves, overfitting and sensitivity to options.

    Raises:
        ConfigError: A folder is no complete run, a run or a seed comes twice, the runs of an entry differ in more than
            their seed or were evaluated in different ways, or the runs have different data.
        CheckpointError, DataError: A file of a run is damaged.
    """
    entries = find_entries(runs)
    measured, left_out = measures_of(entries)
    curves = {entry.name: entry_curves(entry) for entry in entries}
    overfitting = {entry.name: one for entry in entries if (one := entry_overfitting(entry)) is not None}
    return Comparison(
        entries=tuple(entries),
        table=comparison_table(entries, measured, overfitting),
        curves=curves,
        overfitting=overfitting,
        sensitivity=tuple(sensitivity_lines(entries, measured, overfitting)),
        remarks=(*left_out, *remarks_on(entries)),
    )
