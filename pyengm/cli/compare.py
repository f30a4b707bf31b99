"""`pyengm compare`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pyengm.cli.comparison_files import check_same, describe_comparison, save_comparison
from pyengm.comparison import as_markdown, as_rich, compare
from pyengm.training.option_types import Choice, OptionGroup
from pyengm.utils import terminal
from pyengm.utils.terminal import log


@dataclass(frozen=True)
class CompareConfig(OptionGroup):
    """Compare runs that are complete: curves with bands over the seeds, robust overfitting, results against an option
    that alone differs, and a table of accuracies, overfitting and time, on the terminal and as Markdown, LaTeX and
    CSV."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Run folders, or folders of several seeds. Runs that differ only in their seed are one entry, with mean and
    standard deviation; NAME=RUN,RUN gives an entry a name. The options that differ between entries are columns of the
    table."""
    x: Annotated[str, Choice(("epoch", "time"))] = "epoch"
    """Axis of the curves: epochs, or the time of training without evaluations."""
    out: Path = Path("comparison")
    """Folder for the files. A comparison of other runs that is there is not overwritten."""


def compare_command(options: CompareConfig) -> int:
    """Compares the runs, writes the files and prints the table; returns 0."""
    comparison = compare(options.runs)
    check_same(options.out, describe_comparison(comparison, options.x))
    figures = save_comparison(options.out, comparison, options.x)
    log(as_rich(comparison.table) if terminal.console.is_terminal else as_markdown(comparison.table), always=True)
    for note in comparison.notes():
        log(note)
    log(f"{options.out / 'table'}.md, .tex, .csv, .json; {', '.join(figures)}: .svg, .png, .npz, .json")
    return 0
