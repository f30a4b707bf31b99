"""Writing the report on runs to a file."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from pyengm.errors import ConfigError
from pyengm.report.attacked import attack_run
from pyengm.report.page import render_page
from pyengm.report.source import find_sources
from pyengm.utils.device import pick_device
from pyengm.utils.io import atomic_write, make_dirs


@torch.inference_mode(False)
def write_report(
    runs: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    images: int = 500,
    device: str = "auto",
    data_dir: str | os.PathLike | None = None,
    trust_config: bool = False,
    on_run: Callable[[str], None] = lambda text: None,
) -> Path:
    """Writes one HTML file about runs, side by side.

    The file holds everything that it shows: it needs no network, and names no folder, user or host. It is the same to
    the byte for the same files on the same machine.

    Args:
        runs: Folders of `pyengm train`, or of several seeds; results.json; or files of `pyengm evaluate --out`. Test
            images of run folders are attacked by PGD-20 for strips of images, confusion matrices and accuracies of
            classes; reports on files have none.
        out: The file, which must not exist.
        images: The largest number of images to attack for each run, spread evenly over the test images.
        device: A name of torch, or "auto" for a GPU if there is one.
        data_dir: The folder of data sets; None for those of the trainings.
        trust_config: Whether functions that a run names as its model or its data may be run.
        on_run: Called with a line before the images of a run are attacked.

    Returns:
        The file.

    Raises:
        ConfigError: A path is no run, a run is not finished, it names code that is not trusted, or the file exists.
        CheckpointError, DataError: Files are damaged, or the test images are not here.
        StorageError: The file cannot be written.
    """
    out = Path(out)
    if out.exists():
        raise ConfigError(f"{out} exists and is not overwritten; choose another --out")
    if images < 1:
        raise ConfigError(f"images is {images}; expected at least 1")
    sources = find_sources([Path(path) for path in runs])
    make_dirs(out.parent)  # an error comes now, not after the attacks
    options = {"device": pick_device(device), "trust_config": trust_config}
    options |= {"data_dir": None if data_dir is None else Path(data_dir)}
    attacked = {}
    for source in sources:
        if source.run is not None:
            on_run(f"{source.label}: attacking up to {images} test images")
            attacked[source.label] = attack_run(source, images, **options)
    page = render_page(sources, attacked)
    atomic_write(out, lambda path: path.write_text(page, encoding="utf-8"))
    return out
