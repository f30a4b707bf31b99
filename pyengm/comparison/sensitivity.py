"""Accuracy and overfitting against an option, for entries that differ in nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pyengm.comparison.curves import line_style
from pyengm.comparison.entries import Entry
from pyengm.comparison.measures import Measure, Value, value_of
from pyengm.comparison.options import (
    describe_options,
    differing_options,
    numeric_values,
    pixel_scale,
)
from pyengm.comparison.overfitting import EntryOverfitting

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOG_RATIO = 10  # between the largest and the smallest value of an option, from which on the axis is logarithmic


@dataclass(frozen=True)
class SensitivityLine:
    """Results of V entries that differ in one option alone.

    Attributes:
        option: The option.
        of: The values of the other options by which the lines differ; empty for the only line.
        what: What the values are, with the unit.
        values: (V,) values of the option, ascending; radii and step sizes in pixel units.
        mean: (V,) means over the seeds.
        spread: (V,) sample standard deviations over the seeds; nan for one seed.
        seeds: (V,) numbers of seeds.
    """

    option: str
    of: str
    what: str
    values: np.ndarray
    mean: np.ndarray
    spread: np.ndarray
    seeds: np.ndarray


def sensitivity_lines(
    entries: Sequence[Entry],
    measured: Mapping[str, Mapping[Measure, Value]],
    overfitting: Mapping[str, EntryOverfitting],
) -> list[SensitivityLine]:
    """Finds the options against which entries make a line: those that differ while all others are the same.

    Args:
        entries: The entries.
        measured: Their results by name, see `measures_of`.
        overfitting: Their overfitting by name.
    """
    selected = all(entry.is_selected for entry in entries)
    lines = []
    for option in differing_options([entry.options for entry in entries]):
        groups = _groups(option, entries)
        others = describe_options([{**group[0].options, option: None} for group in groups])
        for group, of in zip(groups, others, strict=True):
            results = {entry.name: measured[entry.name] for entry in group}
            for what, values in _results(results, overfitting, "best" if selected else "last").items():
                lines.append(_line(option, of, what, group, values))
    return lines


def _groups(option: str, entries: Sequence[Entry]) -> list[list[Entry]]:
    """The entries that agree in all options but this one, which are numbers, by its value."""
    groups: dict[Any, list[Entry]] = {}
    for entry in entries:
        rest = tuple((name, value) for name, value in sorted(entry.options.items()) if name != option)
        groups.setdefault(rest, []).append(entry)
    good = [group for group in groups.values() if numeric_values(option, [entry.options for entry in group])]
    good = [group for group in good if len({entry.options[option] for entry in group}) == len(group)]
    return [sorted(group, key=lambda entry: entry.options[option]) for group in good]


def _results(
    measured: Mapping[str, Mapping[Measure, Value]], overfitting: Mapping[str, EntryOverfitting], model: str
) -> dict[str, list[Value]]:
    """The accuracies and distances that all entries have, and their overfitting, by what they are."""
    found = {}
    shared = [one for one in next(iter(measured.values())) if all(one in values for values in measured.values())]
    titles = [one.title for one in shared if one.model == model]
    for one in (one for one in shared if one.model == model):
        threat = f" ({one.threat})" if titles.count(one.title) > 1 else ""
        unit = "distance (pixel units)" if one.is_distance else "accuracy (%)"
        found[f"{one.title}{threat} {unit}, {model} weights"] = [values[one] for values in measured.values()]
    if all(name in overfitting for name in measured):
        found["robust overfitting (%)"] = [value_of(overfitting[name].relative.tolist()) for name in measured]
    return found


def _line(option: str, of: str, what: str, group: Sequence[Entry], values: Sequence[Value]) -> SensitivityLine:
    return SensitivityLine(
        option=option,
        of=of,
        what=what,
        values=np.array([entry.options[option] for entry in group], float),
        mean=np.array([value.mean for value in values]),
        spread=np.array([np.nan if value.spread is None else value.spread for value in values]),
        seeds=np.array([value.seeds for value in values]),
    )


def plot_sensitivity(lines: Sequence[SensitivityLine], labels: Sequence[str], ax: "Axes") -> "Axes":
    """Draws lines of one option and one quantity, with one standard deviation over the seeds.

    Args:
        lines: The lines.
        labels: What lines of the option are `of`, in all panels: a label has the same colour in each.
        ax: The axes.
    """
    every = np.unique(np.concatenate([line.values for line in lines]))
    finite = every[np.isfinite(every)]
    scale = pixel_scale(lines[0].option, finite.tolist())
    is_log = finite.min() > 0 and finite.max() / finite.min() >= LOG_RATIO
    for line in lines:
        spread = None if np.isnan(line.spread).all() else np.nan_to_num(line.spread)
        style = line_style(labels.index(line.of))
        at = scale * _drawn(line.values, finite, is_log)
        ax.errorbar(at, line.mean, spread, marker="o", capsize=3, label=line.of or None, **style)
    if is_log:
        ax.set_xscale("log")
    if len(every) <= 8 or len(finite) < len(every):
        _ticks(ax, scale * _drawn(every, finite, is_log), scale * every)
    ax.set(xlabel=lines[0].option.rpartition(".")[2] + (" (1/255)" if scale == 255 else ""), ylabel=lines[0].what)
    ax.grid(alpha=0.3)
    if len(labels) > 1:
        ax.legend(fontsize="small")
    return ax


def _drawn(values: np.ndarray, finite: np.ndarray, is_log: bool) -> np.ndarray:
    """Where values are drawn: infinity, such as no clipping, one step to the right of the largest finite value."""
    gaps = max(len(finite) - 1, 1)
    smallest, largest = finite[0], finite[-1]
    if is_log:
        beyond = largest * (largest / smallest) ** (1 / gaps)
    else:
        beyond = largest + ((largest - smallest) / gaps or abs(largest) or 1.0)
    return np.where(np.isposinf(values), beyond, values)


def _ticks(ax: "Axes", at: np.ndarray, values: np.ndarray) -> None:
    ax.set_xticks(at, [f"{value:g}" for value in values])
    ax.set_xticks([], minor=True)
