"""Options and environments of the runs side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyengm.report.source import Source
from pyengm.utils.pixels import format_pixels

UNKNOWN = "not recorded"
IN_PIXELS = ("eps", "step_size")  # options in pixel units


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Args:
        name: What it is.
        values: The value of each run, as text.
    """

    name: str
    values: list[str]

    @property
    def differs(self) -> bool:
        """Whether the runs differ."""
        return len(set(self.values)) > 1


@dataclass(frozen=True)
class Group:
    """Rows of one kind."""

    name: str
    rows: list[Row]


def options_of_runs(sources: Sequence[Source]) -> list[Group]:
    """The options of the runs, by group; those that are None in all of them are left out."""
    return _groups([source.options for source in sources])


def environments_of_runs(sources: Sequence[Source]) -> list[Group]:
    """Versions, machine, command line and state of the code at the last start of each run."""
    flat = [None if source.environment is None else _by_group(source.environment) for source in sources]
    return _groups(flat)


def descriptions(sources: Sequence[Source]) -> list[Group]:
    """The descriptions that `pyengm evaluate` adds to its results."""
    found = {
        f"{source.label} {number}".strip(): results.content["evaluation"]
        for source in sources
        for number, results in source.evaluations().items()
        if isinstance(results.content.get("evaluation"), dict)
    }
    return [Group(name, [Row(key, [_text(value)]) for key, value in values.items()]) for name, values in found.items()]


def _by_group(environment: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The environment as groups of plain values."""
    git = environment.get("git") or {}
    states = {name: _git_text(state) for name, state in git.items() if state}
    words = environment.get("command") or []
    start = {"command": " ".join(map(str, words)), "processes": environment.get("processes")}
    return {
        "versions": environment.get("versions") or {},
        "machine": environment.get("machine") or {},
        "start": start,
        "git": states,
    }


def _git_text(state: Any) -> str:
    if not isinstance(state, dict):
        return _text(state)
    dirty = ", with changes" if state.get("dirty") else ""
    return f"{(state.get('commit') or 'no commit')[:12]}{dirty}"


def _groups(runs: Sequence[Mapping[str, Mapping[str, Any]] | None]) -> list[Group]:
    names: dict[str, dict[str, None]] = {}
    for run in runs:
        for group, values in (run or {}).items():
            names.setdefault(group, {}).update(dict.fromkeys(values))
    groups = []
    for group, keys in names.items():
        rows = [Row(key, [_value(run, group, key) for run in runs]) for key in keys]
        rows = [row for row in rows if set(row.values) - {"none", UNKNOWN}]
        if rows:
            groups.append(Group(group, rows))
    return groups


def _value(run: Mapping[str, Mapping[str, Any]] | None, group: str, key: str) -> str:
    if run is None or key not in run.get(group, {}):
        return UNKNOWN
    value = run[group][key]
    return format_pixels(value) if key in IN_PIXELS and isinstance(value, float) else _text(value)


def _text(value: Any) -> str:
    if value is None or value == []:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return " ".join(map(_text, value))
    return str(value)
