"""`pyengm report`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pyengm.report import write_report
from pyengm.training.option_types import Count, OptionGroup, Unset
from pyengm.utils.terminal import log


@dataclass(frozen=True)
class ReportConfig(OptionGroup):
    """Write one HTML file about runs, side by side: accuracies, curves, images under attack, confusions, trust."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, whose best weights are attacked for images and confusions; folders of several seeds; results.json;
    or JSON of pyengm evaluate --out."""
    out: Path = Path("report.html")
    """HTML file, which must not exist yet. It needs no network, and names no folder, user or host."""
    images: Count = 500
    """Number of test images of each run that PGD-20 attacks, spread evenly over the test set."""
    data_dir: Annotated[Path | None, Unset("that of the training")] = None
    """Folder in which data sets and decoded images are kept."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ... (auto: cuda if available)."""
    trust_config: bool = False
    """Run functions that a run names as its model or its data (MODULE:FUNCTION). Read them before."""


def report_command(options: ReportConfig) -> int:
    """Writes the report and says where it is; returns 0."""
    path = write_report(
        options.runs,
        options.out,
        images=options.images,
        device=options.device,
        data_dir=options.data_dir,
        trust_config=options.trust_config,
        on_run=log,
    )
    log(f"report: {path}")
    return 0
