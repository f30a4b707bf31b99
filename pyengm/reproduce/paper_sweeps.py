"""The sweeps of the papers' figures as files, each with the grids of options that the figure shows."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pyengm.errors import ConfigError
from pyengm.reproduce.paper_files import check_keys, names_in, read_file
from pyengm.training import TrainConfig
from pyengm.utils.did_you_mean import match_name
from pyengm.utils.terminal import log

# A file of a sweep has these keys.
# title, source   one line each
# seeds           the paper's number of runs, as seeds
# common          options that all runs share, by flat names
# parts           by name: figure (which part of the paper's), shows (what the paper says of it), runs (each: options,
#                 and grid, the values of an option by its flat name), analysis (one of ANALYSES, which the figure needs
#                 after the sweep), ranked_by (the part whose runs rank the training images for the values of `subset`)
# notes           what the paper leaves open
PAPER_SWEEPS = Path(__file__).resolve().parents[1] / "paper_sweeps"
ANALYSES = ("cross_robustness", "loss_gap")
SUBSET = "subset"  # in a grid, i-j: train on D_i^j, the i-th to j-th tenth of the images by gradient norm


@dataclass(frozen=True)
class SweepRun:
    """A point of a grid.

    Attributes:
        options: All options as plain values, by flat names.
        swept: The options of the grid.
        subset: The first and the last tenth of the training images by gradient norm; None for all images.
    """

    options: Mapping[str, Any]
    swept: tuple[str, ...] = ()
    subset: tuple[int, int] | None = None


@dataclass(frozen=True)
class SweepPart:
    """A part of a figure, whose runs are compared with each other.

    Attributes:
        name: Its name.
        figure: Which part of the paper's figure it is.
        shows: What the paper says of it.
        runs: The points of its grids.
        analysis: The analysis that the figure needs after the sweep; None for none.
        ranked_by: The part whose runs rank the training images for subsets.
    """

    name: str
    figure: str
    shows: str
    runs: tuple[SweepRun, ...]
    analysis: str | None = None
    ranked_by: str | None = None


@dataclass(frozen=True)
class PaperSweep:
    """A sweep of a paper's figure.

    Attributes:
        name: The name of its file, such as "engm-fig5".
        title: What it is about.
        source: The paper, the figure and the section.
        seeds: As many as the paper has runs.
        parts: The parts by name.
        notes: What the paper leaves open.
    """

    name: str
    title: str
    source: str
    seeds: tuple[int, ...]
    parts: Mapping[str, SweepPart]
    notes: tuple[str, ...]

    def pick(self, names: tuple[str, ...]) -> list[SweepPart]:
        """Returns the parts of these names, and those that rank images for them before them; all where none is given.

        Raises:
            ConfigError: A part is unknown.
        """
        picked = [match_name(name, self.parts, "part") for name in names] or list(self.parts)
        needed = {self.parts[name].ranked_by for name in picked}
        return [part for name, part in self.parts.items() if name in picked or name in needed]


def sweep_names(folder: Path = PAPER_SWEEPS) -> list[str]:
    """Returns the names of the sweeps in a folder of files."""
    return names_in(folder)


def load_sweep(name: str, folder: Path = PAPER_SWEEPS) -> PaperSweep:
    """Reads a sweep.

    Args:
        name: The name of the sweep, such as "engm-fig5".
        folder: The folder of the files.

    Raises:
        ConfigError: There is no sweep of that name, or its file is malformed.
    """
    return read_file("recipe", name, folder, _sweep)


def list_sweeps(folder: Path = PAPER_SWEEPS) -> None:
    """Prints a line for each sweep, with its parts and the number of its runs.

    Args:
        folder: The folder of the files.
    """
    for name in sweep_names(folder):
        sweep = load_sweep(name, folder)
        parts = ", ".join(f"{part.name} ({len(part.runs)})" for part in sweep.parts.values())
        log(f"{name:15s} {sweep.title}; parts, with their runs for each seed: {parts}")


def _sweep(name: str, content: Any) -> PaperSweep:
    check_keys("the sweep", content, ("title", "source", "seeds", "common", "parts"), ("notes",))
    parts = {part: _part(part, one, content["common"]) for part, one in content["parts"].items()}
    for part in parts.values():
        if part.ranked_by is not None and part.ranked_by not in parts:
            raise ConfigError(f"part {part.name} is ranked by {part.ranked_by!r}; its parts: {', '.join(parts)}")
    return PaperSweep(
        name, content["title"], content["source"], tuple(content["seeds"]), parts, tuple(content.get("notes", ()))
    )


def _part(name: str, content: Any, common: Mapping[str, Any]) -> SweepPart:
    check_keys(f"part {name}", content, ("figure", "shows", "runs"), ("analysis", "ranked_by"))
    analysis = content.get("analysis")
    if analysis not in (None, *ANALYSES):
        raise ConfigError(f"part {name} has the analysis {analysis!r}; known: {', '.join(ANALYSES)}")
    runs = tuple(run for grid in content["runs"] for run in _runs(f"part {name}", grid, common))
    return SweepPart(name, content["figure"], content["shows"], runs, analysis, content.get("ranked_by"))


def _runs(where: str, content: Any, common: Mapping[str, Any]) -> list[SweepRun]:
    """The points of a grid, whose options are checked."""
    check_keys(where, content, ("options",), ("grid",))
    grid: Mapping[str, list[Any]] = content.get("grid", {})
    shared = {"eval_both_threats": False, **common, **content["options"]}
    found = []
    for values in product(*grid.values()):
        options = {**shared, **dict(zip(grid, values, strict=True))}
        subset = options.pop(SUBSET, None)
        TrainConfig.from_plain(options, where).resolve()
        swept = tuple(name for name in grid if name != SUBSET)
        found.append(SweepRun(options, swept, None if subset is None else _tenths(where, subset)))
    return found


def _tenths(where: str, text: Any) -> tuple[int, int]:
    first, _, last = str(text).partition("-")
    if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last) <= 10):
        raise ConfigError(f"{where} has the subset {text!r}; expected tenths such as 1-2")
    return int(first), int(last)
