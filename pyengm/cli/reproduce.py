"""`pyengm reproduce`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyengm.cli.analyze import AnalyzeConfig, analyze_command
from pyengm.cli.sweep import SweepConfig, sweep_command
from pyengm.errors import ConfigError
from pyengm.reproduce import (
    ReproduceConfig,
    figure_names,
    is_figure,
    list_figures,
    list_tables,
    reproduce,
    reproduce_figure,
)
from pyengm.reproduce.paper_sweeps import load_sweep, sweep_names
from pyengm.utils.terminal import log


def reproduce_command(options: ReproduceConfig) -> int:
    """The list of tables and figures, or the runs of one; 1 where a run failed."""
    if options.table is None:
        list_tables()
        list_figures()
        for name in swept_figures():
            log(f"{name:24s} {load_sweep(name).title}; a sweep")
        return 0
    name = options.table.lower().replace("_", "-")
    if name in swept_figures():
        return sweep_figure(name, options)
    if is_figure(name):
        return 1 if reproduce_figure(options, analyze)["failed"] else 0
    return 1 if reproduce(options)["failed"] else 0


def swept_figures() -> list[str]:
    """The figures that are sweeps, and nothing beside them."""
    return [name for name in sweep_names() if name not in figure_names()]


def sweep_figure(name: str, options: ReproduceConfig) -> int:
    """Makes a figure that is a sweep, as `pyengm sweep --recipe` does.

    Args:
        name: The name of the recipe.
        options: The scale, and what belongs to this call.

    Returns:
        1 where a run failed, else 0.
    """
    for option in ("rows", "data"):
        if getattr(options, option):
            raise ConfigError(f"{option} has no effect: {name} is a sweep; leave --{option} out")
    words = ["--device", options.device, *(["--download"] if options.download else [])]
    words += [] if options.data_dir is None else ["--data-dir", str(options.data_dir)]
    return sweep_command(SweepConfig(recipe=name, scale=options.scale, seeds=options.seeds, out=options.out), words)


def analyze(targets: Sequence[Path], name: str, out: Path, options: Mapping[str, Any]) -> None:
    """Makes an analysis as `pyengm analyze` does, unless it is there already.

    Args:
        targets: Run folders; none for an analysis of no model.
        name: The name of the analysis.
        out: The folder for its files.
        options: Further options of the command, by the names of the fields of `AnalyzeConfig`.
    """
    analyze_command(AnalyzeConfig((*map(str, targets), name), out=out, **options))
