"""The runs of a paper's sweep at a scale."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pyengm.data import ImageDataset
from pyengm.errors import ConfigError
from pyengm.reproduce.paper_sweeps import SweepPart, SweepRun
from pyengm.reproduce.plan import indices_file, load_data, scaled, write_indices
from pyengm.reproduce.presets import OF_THE_RECIPE, differences, full, short_indices
from pyengm.sweep.grid import named_points
from pyengm.training import TrainConfig
from pyengm.training.schedule import scale_milestones
from pyengm.utils.distributed import on_rank0

WHERE = ("data_dir", "download")  # options of a call that say where the data are


@dataclass(frozen=True)
class Subset:
    """Training images by rank, which another run decides.

    Attributes:
        ranked_by: The point whose run logs the gradients.
        first: The first tenth, from 1.
        last: The last tenth.
        file: For their positions.
    """

    ranked_by: str
    first: int
    last: int
    file: Path


@dataclass(frozen=True)
class SweepPlan:
    """The runs of a sweep.

    Attributes:
        points: The runs by name, resolved; those of several parts once.
        parts: The names of the runs of each part.
        subsets: The training images of runs on a subset, by the name of the run.
        differences: The ways in which all runs differ from the paper's, then those of single runs, in words.
    """

    points: Mapping[str, TrainConfig]
    parts: Mapping[str, list[str]]
    subsets: Mapping[str, Subset]
    differences: list[str]


def plan_sweep(
    parts: Sequence[SweepPart], scale: str, out: Path, overrides: Mapping[str, Any] | None = None
) -> SweepPlan:
    """Makes the runs of parts of a sweep.

    Args:
        parts: The parts, those that rank images first, see `PaperSweep.pick`.
        scale: One of `SCALES`.
        out: The folder of the sweep.
        overrides: Options that all runs get after they were scaled, by flat name.

    Raises:
        ConfigError: Options do not fit together.
        DataError: A data set is missing, which runs of scale "short" need now.
    """
    overrides = overrides or {}
    runs = [(part, run) for part in parts for run in part.runs]
    place = {name: overrides[name] for name in WHERE if name in overrides}
    papers = [full({**run.options, **place}, f"part {part.name}") for part, run in runs]
    data = load_data({str(i): paper for i, paper in enumerate(papers)}) if scale == "short" else {}
    configs, lines = [], []
    for (_, run), paper in zip(runs, papers, strict=True):
        config = _scaled(run, paper, scale, data, out).override(**overrides).resolve()
        length = len(data[paper.data.name]) if scale == "short" else 0
        lines.append(differences(paper, config, (len(short_indices(length)), length) if length else None))
        if run.subset is not None:
            config = _on_subset(config, run.subset, out / "subsets" / config.method.name)
        configs.append(config)
    return _plan(runs, configs, lines)


def write_indices_of_short_runs(plan: SweepPlan, out: Path) -> None:
    """Writes the training indices that runs of scale "short" name, once `out` is there.

    Args:
        plan: The plan.
        out: The folder of the sweep.
    """
    for config in {config.data.name: config for config in plan.points.values()}.values():
        file = indices_file(out, config.data.name)
        if any(one.data.train_indices == file for one in plan.points.values()):
            length = len(load_data({"": config})[config.data.name])
            on_rank0(partial(write_indices, file, length))


def _scaled(run: SweepRun, paper: TrainConfig, scale: str, data: Mapping[str, ImageDataset], out: Path) -> TrainConfig:
    config, _ = scaled(run.options, paper, scale, data, out)
    if scale != "smoke":
        return config
    # What a sweep varies is not replaced by the recipe of the digits.
    kept = {name: paper.get(name) for name in run.swept if name in OF_THE_RECIPE and name != "method_options"}
    return config.override(**kept)


def _on_subset(config: TrainConfig, subset: tuple[int, int], stem: Path) -> TrainConfig:
    """The run on some tenths of the images, with so many epochs that the number of steps stays."""
    if config.data.train_indices is not None:
        raise ConfigError("subsets by gradient norm are of all training images: take --scale smoke or full")
    first, last = subset
    longer = 10 / (last - first + 1)
    milestones = config.schedule.milestones
    return config.override(
        train_indices=stem.with_name(f"{stem.name}-{first}-{last}.txt").resolve(),
        epochs=round(longer * config.schedule.epochs),
        milestones=None if milestones is None else scale_milestones(milestones, longer),
    ).resolve()


def _plan(
    runs: Sequence[tuple[SweepPart, SweepRun]], configs: Sequence[TrainConfig], lines: Sequence[list[str]]
) -> SweepPlan:
    distinct: list[TrainConfig] = []
    for config in configs:
        if not any(config == other for other in distinct):
            distinct.append(config)
    points = named_points(distinct)
    names = [next(name for name, other in points.items() if other == config) for config in configs]
    parts: dict[str, list[str]] = {}
    for (part, _), name in zip(runs, names, strict=True):
        if name in parts.setdefault(part.name, []):
            raise ConfigError(f"two runs of part {part.name} are the same at this scale: {name}")
        parts[part.name].append(name)
    subsets = {}
    for (part, run), name in zip(runs, names, strict=True):
        if run.subset is not None and (file := points[name].data.train_indices) is not None:
            subsets[name] = Subset(_ranking(part, points[name], parts, points), *run.subset, file)
    return SweepPlan(points, parts, subsets, _words(names, lines))


def _ranking(
    part: SweepPart, config: TrainConfig, parts: Mapping[str, list[str]], points: Mapping[str, TrainConfig]
) -> str:
    """The run of the same method in the part that ranks the images."""
    for name in parts.get(part.ranked_by or "", ()):
        if points[name].method.name == config.method.name and points[name].record.instance_log:
            return name
    raise ConfigError(f"part {part.name} has subsets, and no run of {config.method.name} with a log ranks the images")


def _words(names: Sequence[str], differing: Sequence[list[str]]) -> list[str]:
    shared = [line for line in differing[0] if all(line in lines for lines in differing)]
    own = {name: [line for line in lines if line not in shared] for name, lines in zip(names, differing, strict=True)}
    return [*shared, *(f"{name}: {'; '.join(lines)}" for name, lines in own.items() if lines)]
