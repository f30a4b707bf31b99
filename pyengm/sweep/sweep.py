"""The runs of a sweep in one folder, from which the same sweep resumes."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from pyengm.errors import ConfigError
from pyengm.sweep.runs_table import write_runs_table
from pyengm.training import RunFolder, TrainConfig
from pyengm.training.config import MAY_CHANGE
from pyengm.training.multi_run import complete_all
from pyengm.training.multi_seed import seed_folder
from pyengm.utils.distributed import on_rank0
from pyengm.utils.io import atomic_write, make_dirs

OWN_FILE = "sweep.yaml"  # what the sweep is
LONGEST = 80  # characters of the name of a folder


class Sweep:
    """Runs for each point and seed, in OUT/POINT/seed-SEED, with a table of them in OUT/runs.csv.

    Args:
        points: The runs by name, resolved.
        seeds: The seeds of each.
        out: The folder of the sweep.
        about: What the points were made of, in plain values: the grid, or the recipe and its scale.

    Attributes:
        failed: The errors of runs that failed, by point and seed.
    """

    def __init__(self, points: Mapping[str, TrainConfig], seeds: Sequence[int], out: Path, about: Mapping[str, Any]):
        if not points:
            raise ConfigError("a sweep needs at least one run")
        if not seeds or len(set(seeds)) < len(seeds):
            raise ConfigError(f"seeds are {tuple(seeds)}; expected at least one, each of them once")
        names = sorted({config.data.name for config in points.values()})
        if len(names) > 1:
            raise ConfigError(f"a sweep compares its runs on one data set, and these have {', '.join(names)}")
        self.points, self.seeds, self.out = dict(points), tuple(seeds), Path(out)
        self.about = {**about, "seeds": list(seeds)}
        self.failed: dict[str, str] = {}
        self._folders = dict(zip(points, _folder_names(list(points)), strict=True))

    def folders(self, point: str) -> list[Path]:
        """Returns the run folders of a point, by seed."""
        return [seed_folder(self.out / self._folders[point], seed) for seed in self.seeds]

    def complete_folders(self, point: str) -> list[Path]:
        """Returns the folders of the runs of a point that are complete."""
        return [folder for folder in self.folders(point) if RunFolder(folder).results.is_file()]

    def claim(self) -> None:
        """Makes `out` the folder of this sweep, and writes the table of its runs.

        Raises:
            ConfigError: The folder holds something else, or a sweep that differs.
            StorageError: The folder cannot be written to.
        """
        own = self.out / OWN_FILE
        if own.is_file():
            self._check(own)
        elif self.out.exists() and (not self.out.is_dir() or any(map(_is_foreign, self.out.iterdir()))):
            raise ConfigError(f"{self.out} exists, holds no sweep, and is not written into: choose another --out")
        make_dirs(self.out)
        points = {name: config.plain() for name, config in self.points.items()}
        text = yaml.safe_dump({"about": dict(self.about), "points": points}, sort_keys=False)
        atomic_write(own, lambda path: path.write_text(text, encoding="utf-8"))
        self._write_table({})

    def run(self, points: Sequence[str] | None = None) -> None:
        """Starts or resumes the runs of points that are not complete; one that fails leaves the others as they are.

        Args:
            points: The points, None for all.

        Raises:
            Interrupted: After Ctrl-C or SIGTERM.
        """
        configs = {
            f"{name}, seed {seed}": self.points[name].override(seed=seed, out=folder)
            for name in (self.points if points is None else points)
            for seed, folder in zip(self.seeds, self.folders(name), strict=True)
        }
        before = dict(self.failed)

        def after_run(failed: Mapping[str, str]) -> None:
            self.failed = {**before, **failed}
            on_rank0(partial(self._write_table, self.failed))

        complete_all(configs, "the same command resumes where it stopped", after_run=after_run)

    def fail(self, point: str, reason: str) -> None:
        """Records that the runs of a point cannot be started."""
        self.failed |= {f"{point}, seed {seed}": reason for seed in self.seeds}
        on_rank0(partial(self._write_table, self.failed))

    def _write_table(self, failed: Mapping[str, str]) -> None:
        folders = {name: dict(zip(self.seeds, self.folders(name), strict=True)) for name in self.points}
        write_runs_table(self.out / "runs.csv", self.points, folders, failed)

    def _check(self, own: Path) -> None:
        """Refuses a folder of another sweep, with what differs."""
        try:
            found = yaml.safe_load(own.read_text(encoding="utf-8"))
            about, points = dict(found["about"]), dict(found["points"])
        except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
            raise ConfigError(f"{own} is damaged ({error}): choose another --out") from error
        changes = [
            f"{name} was {_words(about.get(name))} and is {_words(self.about.get(name))}"
            for name in dict.fromkeys([*about, *self.about])
            if about.get(name) != self.about.get(name)
        ]
        if not changes:
            changes = self._changed_points(points)
        if changes:
            raise ConfigError(
                f"{self.out} holds another sweep: {'; '.join(changes)}. Give the same command, or choose another --out"
            )

    def _changed_points(self, points: Mapping[str, Any]) -> list[str]:
        changes = [f"the run {name!r} is new" for name in self.points if name not in points]
        changes += [f"the run {name!r} is missing" for name in points if name not in self.points]
        options = [(name, one) for name, one in TrainConfig.options.items() if name not in MAY_CHANGE]
        for point, config in self.points.items():
            now, before = config.plain(), points.get(point, config.plain())
            for name, option in options:
                old, new = (plain.get(option.group, {}).get(option.field) for plain in (before, now))
                if old != new:
                    changes.append(f"{name} of {point!r} was {_words(old)} and is {_words(new)}")
        return changes


def _is_foreign(path: Path) -> bool:
    """Whether a file is none that a start that was killed has left."""
    return not (path.name.startswith(f".{OWN_FILE}.") and path.suffix == ".tmp")


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name}={','.join(map(_words, values))}" for name, values in value.items()) or "none"
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _folder_names(names: Sequence[str]) -> list[str]:
    """Names of folders, each once, without characters that shells or file systems read."""
    found: list[str] = []
    for name in names:
        stem = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "run"
        if len(stem) > LONGEST:
            stem = f"{stem[:LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        found.append(
            next(one for one in (stem, *(f"{stem}-{i}" for i in range(2, len(names) + 2))) if one not in found)
        )
    return found
