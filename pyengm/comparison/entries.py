"""The entries of a comparison: runs that differ only in their seed are one."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from pyengm.comparison.options import Options, describe_options, training_options
from pyengm.errors import ConfigError
from pyengm.report.source import Source, find_sources
from pyengm.training import RunFolder, TrainConfig

Runs = Sequence[str | Path] | Mapping[str, Sequence[str | Path]]
LONGEST_NAME = 60  # characters of a name that lists options


@dataclass(frozen=True)
class ComparedRun:
    """A complete run.

    Attributes:
        folder: Its files.
        config: Its options.
        source: Its results and metrics.
    """

    folder: RunFolder
    config: TrainConfig
    source: Source

    @property
    def seed(self) -> int:
        """Its seed."""
        return self.config.run.seed

    def images(self, use: str) -> Mapping[str, Any] | None:
        """Which images it had for a use, such as "test"; None where that is not recorded."""
        return ((self.source.environment or {}).get("data") or {}).get(use)


@dataclass(frozen=True)
class Entry:
    """Runs that differ only in their seed.

    Attributes:
        name: Its name.
        runs: Its runs by seed, the lowest first.
        options: The options that decide their training, see `training_options`.
    """

    name: str
    runs: tuple[ComparedRun, ...]
    options: Options

    @property
    def seeds(self) -> list[int]:
        """The seeds of the runs."""
        return [run.seed for run in self.runs]

    @property
    def config(self) -> TrainConfig:
        """The options of the first run."""
        return self.runs[0].config

    @property
    def is_selected(self) -> bool:
        """Whether the best weights were selected on images, so that they may differ from the last."""
        return self.config.evaluation.select_on != "none"


def find_entries(runs: Runs) -> list[Entry]:
    """Reads runs and groups them.

    Args:
        runs: See `pyengm.comparison.compare`.

    Returns:
        The entries in the order of their first runs.

    Raises:
        ConfigError: A folder is no complete run, a run comes twice, a seed comes twice in an entry, the runs of a named
            entry differ in more than their seed, or the runs were tested on different images.
        CheckpointError, DataError: A file of a run is damaged.
    """
    named = list(runs.items()) if isinstance(runs, Mapping) else [_split_word(word) for word in runs]
    if not named:
        raise ConfigError("there is nothing to compare: give run folders")
    groups: list[tuple[str | None, list[ComparedRun]]] = []
    for name, paths in named:
        found = [run for path in paths for run in _read_runs(Path(path).expanduser())]
        if name is None:
            for run in found:
                _add_unnamed(run, groups)
        elif any(name == other for other, _ in groups):
            raise ConfigError(f"the name {name!r} comes twice: give the runs of an entry together, NAME=RUN,RUN")
        else:
            groups.append((name, found))
    every = [run for _, group in groups for run in group]
    _check_distinct(every)
    _check_images(every)
    return _name([_entry(name, group) for name, group in groups])


def _add_unnamed(run: ComparedRun, groups: list[tuple[str | None, list[ComparedRun]]]) -> None:
    """Adds a run to the group of its options."""
    options = training_options(run.config)
    for name, group in groups:
        if name is None and training_options(group[0].config) == options:
            group.append(run)
            return
    groups.append((None, [run]))


def _split_word(word: str | Path) -> tuple[str | None, list[Path]]:
    """The name of an entry, if one is given, and its folders."""
    name, equals, paths = str(word).partition("=")
    if Path(word).expanduser().exists() or not equals:
        return None, [Path(word)]
    if not name or not all(paths.split(",")):
        raise ConfigError(f"{str(word)!r} is no run folder; expected a folder, or NAME=FOLDER,FOLDER")
    return name, [Path(path) for path in paths.split(",")]


def _read_runs(path: Path) -> Iterator[ComparedRun]:
    if path.is_file():
        raise ConfigError(f"{path} is a file; expected a run folder, whose metrics and options are compared")
    for source in find_sources([path]):
        assert source.run is not None
        assert source.config is not None
        yield ComparedRun(source.run, source.config, source)


def _entry(name: str | None, runs: Sequence[ComparedRun]) -> Entry:
    options = [training_options(run.config) for run in runs]
    names = list(dict.fromkeys(key for one in options for key in one))
    differing = [key for key in names if len({one.get(key) for one in options}) > 1]
    if differing:
        raise ConfigError(f"the runs of {name!r} differ in {', '.join(differing)}: give each of them its own name")
    ordered = tuple(sorted(runs, key=lambda run: run.seed))
    for first, second in pairwise(ordered):
        if first.seed == second.seed:
            raise ConfigError(
                f"{first.folder.path} and {second.folder.path} have the same options and the seed {first.seed}: leave "
                "one out, or name both, NAME=FOLDER"
            )
        if (first.images("train") or {}).get("labels") != (second.images("train") or {}).get("labels"):
            raise ConfigError(
                f"{first.folder.path} and {second.folder.path} have the same options and other training images: name "
                "both, NAME=FOLDER"
            )
    return Entry(name or "", ordered, options[0])


def _check_distinct(runs: Sequence[ComparedRun]) -> None:
    seen: set[Path] = set()
    for run in runs:
        if (path := run.folder.path.resolve()) in seen:
            raise ConfigError(f"the run {run.folder.path} comes twice: give each run once")
        seen.add(path)


def _check_images(runs: Sequence[ComparedRun]) -> None:
    """Refuses runs whose accuracies were measured on different images."""
    names = {run.config.data.name for run in runs}
    if len(names) > 1:
        raise ConfigError(f"the runs have different data, {', '.join(sorted(names))}: compare runs on one data set")
    known = [(run, images) for run in runs if (images := run.images("test")) is not None]
    for run, images in known:
        first, expected = known[0]
        if images != expected:
            raise ConfigError(
                f"{first.folder.path} and {run.folder.path} were tested on different images of {run.config.data.name} "
                f"({expected['images']} and {images['images']}): compare runs on the same images"
            )


def _name(entries: Sequence[Entry]) -> list[Entry]:
    """The entries with names: those given, the options that differ, or the folders."""
    found: list[Entry] = []
    used = {entry.name for entry in entries if entry.name}
    by_options = describe_options([entry.options for entry in entries])
    good = len(set(by_options)) == len(entries) and all(0 < len(text) <= LONGEST_NAME for text in by_options)
    for entry, text in zip(entries, by_options, strict=True):
        if entry.name:
            found.append(entry)
            continue
        stem = text if good else _folder_name(entry)
        name = next(one for one in (stem, *(f"{stem} ({i})" for i in range(2, len(entries) + 2))) if one not in used)
        used.add(name)
        found.append(Entry(name, entry.runs, entry.options))
    return found


def _folder_name(entry: Entry) -> str:
    path = entry.runs[0].folder.path.resolve()
    return path.parent.name if path.name == f"seed-{entry.runs[0].seed}" else path.name
