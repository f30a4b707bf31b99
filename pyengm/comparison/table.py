"""The table of a comparison: a row for each entry, with the options that differ and the results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyengm.comparison.entries import Entry
from pyengm.comparison.measures import Measure, Value, value_of
from pyengm.comparison.options import describe_options, differing_options
from pyengm.comparison.overfitting import EntryOverfitting
from pyengm.comparison.times import times_of

UNITS = {"hours": 1.0, "minutes": 60.0, "seconds": 3600.0}  # of an hour


@dataclass(frozen=True)
class Column:
    """A column of results.

    Attributes:
        title: What it is.
        unit: The unit of its values.
        details: The threat model and the number of images, for the notes below the table.
        decimals: Of its values.
    """

    title: str
    unit: str
    details: str = ""
    decimals: int = 2


@dataclass(frozen=True)
class Row:
    """An entry.

    Attributes:
        name: Its name.
        seeds: Its seeds.
        options: The values of the options that differ; None where there is none.
        described: The same in one line.
        values: By the columns; None where there is none.
    """

    name: str
    seeds: tuple[int, ...]
    options: tuple[Any, ...]
    described: str
    values: tuple[Value | None, ...]


@dataclass(frozen=True)
class ComparisonTable:
    """The table.

    Attributes:
        options: The names of the options that differ.
        columns: The columns of results.
        rows: The entries.
    """

    options: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    @property
    def has_names(self) -> bool:
        """Whether the names of the entries say more than the options."""
        return any(row.name != row.described for row in self.rows)


def comparison_table(
    entries: Sequence[Entry],
    measured: Mapping[str, Mapping[Measure, Value]],
    overfitting: Mapping[str, EntryOverfitting],
) -> ComparisonTable:
    """Makes the table.

    Args:
        entries: The entries.
        measured: Their results by name, see `measures_of`.
        overfitting: Their overfitting by name.
    """
    options = differing_options([entry.options for entry in entries])
    columns: dict[Column, dict[str, Value]] = {}
    for measure in _ordered(measured):
        column = _column(measure)
        for name, values in measured.items():
            if measure in values:
                columns.setdefault(column, {})[name] = values[measure]
    if overfitting:
        columns[Column("robust overfitting", "%", "(best - last) / best under PGD-20")] = {
            name: value_of(one.relative.tolist()) for name, one in overfitting.items()
        }
    if times := _times(entries):
        columns[times[0]] = times[1]
    rows = [
        Row(
            entry.name,
            tuple(entry.seeds),
            tuple(entry.options.get(name) for name in options),
            described,
            tuple(values.get(entry.name) for values in columns.values()),
        )
        for entry, described in zip(entries, describe_options([entry.options for entry in entries]), strict=True)
    ]
    return ComparisonTable(tuple(options), tuple(columns), tuple(rows))


def _ordered(measured: Mapping[str, Mapping[Measure, Value]]) -> list[Measure]:
    """All measures, attack by attack, of the best weights before the last."""
    every = list(dict.fromkeys(one for values in measured.values() for one in values))
    kinds = list(dict.fromkeys((one.name, one.title, one.threat, one.images) for one in every))
    place = {kind: number for number, kind in enumerate(kinds)}
    return sorted(every, key=lambda one: (place[one.name, one.title, one.threat, one.images], one.model))


def _column(one: Measure) -> Column:
    images = "" if one.images is None else f"{one.images} images"
    details = ", ".join(filter(None, (one.threat, images)))
    if one.is_distance:
        return Column(f"{one.title} {one.model}", "pixel units", "mean distance in L2", decimals=4)
    return Column(f"{one.title} {one.model}", "%", details)


def _times(entries: Sequence[Entry]) -> tuple[Column, dict[str, Value]] | None:
    """The time of training, in the unit of the longest; None where no run was timed."""
    hours = {entry.name: [times_of(run.folder.path, 1).get("hours") for run in entry.runs] for entry in entries}
    known = {name: [one for one in times if one is not None] for name, times in hours.items()}
    known = {name: times for name, times in known.items() if len(times) == len(hours[name])}
    if not known:
        return None
    longest = max(max(times) for times in known.values())
    unit = next((unit for unit, scale in UNITS.items() if longest * scale >= 2), "seconds")
    column = Column("time", unit, "of training, without evaluations")
    return column, {name: value_of([UNITS[unit] * one for one in times]) for name, times in known.items()}
