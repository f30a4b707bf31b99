"""The options of `pyengm reproduce`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pyengm.errors import ConfigError
from pyengm.reproduce.presets import SCALES
from pyengm.training.option_types import Choice, Count, OptionGroup, Unset


@dataclass(frozen=True)
class ReproduceConfig(OptionGroup):
    """Train the rows of a table of the papers and print our values beside the published ones, or make a figure of the
    papers and print whether it shows what they say of it. The same command resumes what was interrupted. Without a
    name, list the tables and figures."""

    table: Annotated[tyro.conf.Positional[str | None], Unset("a list of all")] = None
    """Table or figure, such as engm-2, the second table of the ENGM paper, or engm-fig2, its second figure."""
    scale: Annotated[str, Choice(SCALES)] = "smoke"
    """smoke: the embedded digits, minutes on a CPU; short: 10,000 training images and fewer epochs, minutes per row
    on a GPU; full: as the paper."""
    rows: Annotated[tuple[str, ...], Unset("all")] = ()
    """Train these rows of a table only."""
    seeds: tuple[int, ...] = (0,)
    """Seeds, with a run of every row for each; a table shows their mean and standard deviation, a figure each."""
    data: Annotated[Path | None, Unset("none")] = None
    """Folder of the images of a table on ImageNet or Tiny-ImageNet, which pyengm cannot download."""
    data_dir: Annotated[Path | None, Unset("$PYENGM_DATA, else ~/.cache/pyengm")] = None
    """Folder in which data sets and decoded images are kept."""
    download: bool = False
    """Download a data set that is missing."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ... (auto: cuda if available)."""
    nproc: Annotated[Count | None, Unset("one")] = None
    """Number of processes to start on this machine, which share the work of every run."""
    out: Annotated[Path | None, Unset("runs/reproduce/TABLE-SCALE or figures-SCALE")] = None
    """Folder of the runs and of the table, as results.json and table.md. Figures of one scale share it and its runs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds are {self.seeds}; expected at least one, each of them once")
