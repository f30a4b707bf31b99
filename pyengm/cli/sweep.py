"""`pyengm sweep`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pyengm.cli.comparison_files import save_comparison
from pyengm.cli.parser import HELP, flags_in, parse
from pyengm.cli.sweep_analyses import analyze_part
from pyengm.cli.train import parse_base
from pyengm.comparison import as_markdown, as_rich, compare
from pyengm.errors import ConfigError, PyengmError, UsageError
from pyengm.reproduce import SCALES
from pyengm.reproduce.paper_sweeps import list_sweeps, load_sweep
from pyengm.reproduce.sweep_plan import plan_sweep
from pyengm.reproduce.sweep_runs import train_plan
from pyengm.sweep import Sweep, grid_points, parse_grid
from pyengm.training.option_types import Choice, Count, OptionGroup, Unset
from pyengm.utils import terminal
from pyengm.utils.device import pick_device
from pyengm.utils.distributed import on_rank0
from pyengm.utils.terminal import log

PROG = "pyengm sweep"
OF_THE_SWEEP = ("seed", "seeds", "out", "resume", "dry_run", "nproc")  # no options of its runs


@dataclass(frozen=True)
class SweepConfig(OptionGroup):
    """Train a grid of options times seeds, and compare the runs: pyengm sweep --out DIR --grid optimizer=msgd,engm
    alpha=1,5 --seeds 0 1 2 -- --data cifar10. The options after -- are those of pyengm train, for all runs. The same
    command resumes a sweep that was interrupted. A run that fails leaves the others as they are. Without a grid and a
    recipe, list the recipes."""

    grid: Annotated[tuple[str, ...], Unset("one point")] = ()
    """Options of pyengm train with their values, such as optimizer=msgd,engm alpha=1,5 or method_options=beta=3,beta=6.
    Where an option has no effect, such as alpha under msgd, it is left out."""
    recipe: Annotated[str | None, Unset("none")] = None
    """In place of a grid, the grids of a paper's figure, such as engm-fig5."""
    scale: Annotated[str, Choice(SCALES)] = "smoke"
    """Of a recipe. smoke: the embedded digits, a minute for each run on a CPU; short: 10,000 training images and fewer
    epochs; full: as the paper."""
    parts: Annotated[tuple[str, ...], Unset("all")] = ()
    """Parts of a recipe, such as alpha."""
    seeds: tuple[int, ...] = (0,)
    """Seeds, with a run of every point for each."""
    x: Annotated[str, Choice(("epoch", "time"))] = "epoch"
    """Axis of the curves of the comparison."""
    nproc: Annotated[Count | None, Unset("one")] = None
    """Number of processes to start on this machine, which share the work of every run."""
    out: Annotated[Path | None, Unset("runs/sweep/RECIPE-SCALE of a recipe; a grid needs it")] = None
    """Folder of the sweep: the runs in POINT/seed-SEED, a row for each of them in runs.csv, and their comparison."""


def parse_sweep(args: Sequence[str]) -> tuple[SweepConfig, list[str]]:
    """Parses the options of a sweep, and returns them with the words of its runs, which follow "--".

    Raises:
        UsageError, ConfigError: As `parse`.
        SystemExit: With status 0 after the help.
    """
    own, words = _split(list(args))
    options = parse(SweepConfig, PROG, _joined(own))
    given = flags_in(words) & set(OF_THE_SWEEP)
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(given))
        raise UsageError(f"{names} after -- would be of a single run; give --seeds, --out and --nproc before --")
    return options, words


def sweep_command(options: SweepConfig, words: Sequence[str]) -> int:
    """Trains what is missing, and compares the runs, or lists the recipes; 1 where a run failed, else 0."""
    if options.recipe is None and not options.grid and options.out is None:
        list_sweeps()
        return 0
    base, keep = parse_base(words)
    pick_device(base.machine.device)  # fail now, and not once for every run
    if options.recipe is not None:
        return _finish(_run_recipe(options, {name: base.get(name) for name in keep if name in base.options}))
    if options.out is None:
        raise ConfigError("out is None; expected the folder of the sweep: give --out")
    if options.parts:
        raise ConfigError("parts has no effect: it is for --recipe; leave it out")
    grid = parse_grid(options.grid)
    sweep = Sweep(grid_points(base, grid, keep), options.seeds, options.out, {"grid": grid})
    on_rank0(sweep.claim)
    sweep.run()
    on_rank0(lambda: compare_sweep(sweep, list(sweep.points), sweep.out / "comparison", options.x, {}))
    return _finish(sweep)


def _run_recipe(options: SweepConfig, overrides: Mapping[str, Any]) -> Sweep:
    if options.grid:
        raise ConfigError("grid has no effect beside recipe: leave one of them out")
    recipe = load_sweep(options.recipe or "")
    out = options.out or Path("runs/sweep") / f"{recipe.name}-{options.scale}"
    parts = recipe.pick(options.parts)
    plan = plan_sweep(parts, options.scale, out, overrides)
    about = {"recipe": recipe.name, "scale": options.scale, "parts": [part.name for part in parts]}
    sweep = Sweep(plan.points, options.seeds, out, about)
    on_rank0(sweep.claim)
    log(f"{recipe.title} ({recipe.source}), scale {options.scale}")
    if len(options.seeds) < len(recipe.seeds):
        log(f"the paper has {len(recipe.seeds)} runs of each: --seeds {' '.join(map(str, recipe.seeds))}")
    train_plan(sweep, plan)
    for part in parts:
        log(f"{part.figure}. The paper: {part.shows}")
        about = {"source": recipe.source, "figure": part.figure, "paper": part.shows, "notes": list(recipe.notes)}
        about["differences"] = plan.differences
        if not any(map(sweep.complete_folders, plan.parts[part.name])):
            log("no run of this part is complete")
            continue
        folder = out / "comparison" / part.name
        on_rank0(partial(compare_sweep, sweep, plan.parts[part.name], folder, options.x, about))
        if part.analysis is not None:
            on_rank0(partial(analyze_part, part.analysis, sweep, plan.parts[part.name], folder))
    for line in [*(f"note: {note}" for note in recipe.notes), *(f"not as in the paper: {d}" for d in plan.differences)]:
        log(line)
    return sweep


def compare_sweep(sweep: Sweep, points: Sequence[str], folder: Path, x: str, about: Mapping[str, Any]) -> None:
    """Compares the complete runs of points, prints the table and writes the files.

    Args:
        sweep: The sweep.
        points: The points.
        folder: For the files.
        x: Of the curves, "epoch" or "time".
        about: What else the description of the files holds.

    Raises:
        PyengmError: No run is complete.
    """
    runs = [folder for name in points for folder in sweep.complete_folders(name)]
    if not runs:
        raise PyengmError("every run failed: " + "; ".join(f"{name}: {why}" for name, why in sweep.failed.items()))
    comparison = compare(runs)
    failed = {name: why for name, why in sweep.failed.items() if name.rpartition(", seed ")[0] in points}
    save_comparison(folder, comparison, x, {"sweep": sweep.about, "failed": failed, **about})
    log(as_rich(comparison.table) if terminal.console.is_terminal else as_markdown(comparison.table), always=True)
    for note in comparison.notes():
        log(note)
    log(f"comparison: {folder}")


def _finish(sweep: Sweep) -> int:
    for name, why in sweep.failed.items():
        log(f"FAILED: {name}: {why}", always=True)
    log(f"a row for each run: {sweep.out / 'runs.csv'}")
    return 1 if sweep.failed else 0


def _split(args: list[str]) -> tuple[list[str], list[str]]:
    """The words of the sweep, and those after "--"."""
    if "--" not in args:
        return args, []
    place = args.index("--")
    return args[:place], args[place + 1 :]


def _joined(args: Sequence[str]) -> list[str]:
    """The words with the values of several --grid after the first."""
    grid: list[str] = []
    rest: list[str] = []
    target = rest
    for word in args:
        if word == "--grid" or word.startswith("--grid="):
            target = grid
            grid += [word.partition("=")[2]] if "=" in word else []
        else:
            target = rest if word.startswith("--") or word in HELP else target
            target.append(word)
    return [*rest, *(["--grid", *grid] if grid else [])]
