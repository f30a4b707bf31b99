"""What a report is about: run folders, and files of results."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyengm.errors import CheckpointError, ConfigError
from pyengm.report.results import Results, read_results
from pyengm.report.scrub import scrub
from pyengm.training import RunFolder, TrainConfig


@dataclass(frozen=True)
class Source:
    """A run or a file of results.

    Args:
        label: Its name in the report.
        results: The final evaluation of a run, or the content of a file.
        run: The run folder; None for a file.
        config: The options of a run, as they are, for the attacks of a report.
        options: The options of a run by group, as texts without folders.
        metrics: A row for each epoch, see `pyengm.training.Logger`.
        environment: That of the last start of a run; None where it is unknown.
        further: The results of `pyengm evaluate RUN`, by number.
    """

    label: str
    results: Results
    run: RunFolder | None = None
    config: TrainConfig | None = None
    options: Mapping[str, Mapping[str, Any]] | None = None
    metrics: Sequence[Mapping[str, Any]] = ()
    environment: Mapping[str, Any] | None = None
    further: Mapping[str, Results] | None = None

    def evaluations(self) -> dict[str, Results]:
        """All evaluations by their names, "" for the one of `results`."""
        return {"": self.results, **(self.further or {})}


def find_sources(paths: Sequence[Path]) -> list[Source]:
    """Reads runs and files of results.

    Args:
        paths: Folders of `pyengm train`, whose runs are those of its seeds where there are several; a results.json; or
            files of `pyengm evaluate --out`.

    Returns:
        One for each run and file, with different labels.

    Raises:
        ConfigError: A path is none of these, a run has no results yet, or there is no path.
        CheckpointError: A file of a run is damaged.
        DataError: A file holds no results.
    """
    if not paths:
        raise ConfigError("there is nothing to report; give run folders, or JSON of pyengm evaluate --out")
    found = [source for path in paths for source in _sources_of(Path(path).expanduser())]
    counts: Counter[str] = Counter()
    labelled = []
    for source in found:
        counts[source.label] += 1
        number = counts[source.label]
        labelled.append(replace(source, label=f"{source.label} ({number})") if number > 1 else source)
    return labelled


def _sources_of(path: Path) -> list[Source]:
    if path.is_file():
        return [Source(_label_of_file(path), read_results(path))]
    if not path.is_dir():
        raise ConfigError(f"there is no run folder and no file {path}")
    seeds = sorted(folder for folder in path.glob("seed-*") if RunFolder(folder).config.is_file())
    if seeds and not RunFolder(path).config.is_file():
        return [_read_run(folder, f"{path.resolve().name} {folder.name}") for folder in seeds]
    return [_read_run(path, path.resolve().name)]


def _label_of_file(path: Path) -> str:
    """The name of the file; for files of a run folder that of the folder too."""
    folder = path.resolve().parent
    if path.name == "results.json" and RunFolder(folder).config.is_file():
        return f"{folder.name} results"
    if folder.name == "evaluations" and RunFolder(folder.parent).config.is_file():
        return f"{folder.parent.name} {path.stem}"
    return path.stem


def _read_run(path: Path, label: str) -> Source:
    run = RunFolder.open(path)
    if not run.results.is_file():
        raise ConfigError(
            f"the run {path} is not finished: it has no {run.results.name}; pyengm train --out {path} --resume "
            "completes it"
        )
    run.read_results()  # its error names the command that makes a damaged file again
    config = TrainConfig.load(run.config)
    return Source(
        label=label,
        results=read_results(run.results),
        run=run,
        config=config,
        options=scrub(config.plain()),
        metrics=_read_metrics(run),
        environment=_read_environment(run),
        further=_read_further(run),
    )


def _read_metrics(run: RunFolder) -> list[dict[str, Any]]:
    try:
        rows = run.read_metrics()
        if not all(isinstance(row, dict) and isinstance(row.get("epoch"), int) for row in rows):
            raise ValueError("a line without an epoch")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{run.metrics} is damaged ({error}); repair or delete it, and the report has no curves"
        ) from error
    return rows


def _read_environment(run: RunFolder) -> Mapping[str, Any] | None:
    """The environment of the last start; None where its file is missing or damaged, as nothing depends on it."""
    try:
        starts = json.loads(run.environment.read_text())
        last = scrub(starts[-1])
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return last if isinstance(last, dict) else None


def _read_further(run: RunFolder) -> dict[str, Results]:
    """The further evaluations, without those that are running or were killed, whose files are empty."""
    files = sorted((run.path / "evaluations").glob("*.json"))
    return {path.stem: read_results(path) for path in files if path.stat().st_size}
