"""The runs of a table at a scale, in a folder that is its own."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from pyengm.data import DATASETS, ImageDataset
from pyengm.errors import ConfigError
from pyengm.reproduce.config import ReproduceConfig
from pyengm.reproduce.presets import differences, full, short, short_indices, smoke
from pyengm.reproduce.tables import PaperTable
from pyengm.training import TrainConfig, load_split
from pyengm.utils.device import pick_device
from pyengm.utils.distributed import on_rank0
from pyengm.utils.io import atomic_write

OWN_FILE = "reproduce.yaml"  # in the folder of the runs: their table and scale


def plan(table: PaperTable, options: ReproduceConfig, out: Path) -> tuple[dict[str, TrainConfig], dict[str, list[str]]]:
    """Plans the runs of the rows that have options, at the scale of the options.

    Makes `out`, and the files of training indices of short runs, once nothing is missing.

    Args:
        table: The table, with the rows to train.
        options: The scale, and what belongs to this call.
        out: The folder of the runs.

    Returns:
        The run of each row by its name, and the ways in which it differs from the paper's.
    """
    pick_device(options.device)  # fail now, and not once for every row
    papers = paper_runs(table, options)
    data = {} if options.scale == "smoke" else load_data(papers)
    rows, changes = {}, {}
    for row in table.runs:
        assert row.options is not None
        rows[row.name], changes[row.name] = scaled(row.options, papers[row.name], options.scale, data, out)
    on_rank0(lambda: claim(out, table.name, options.scale))
    if options.scale == "short":
        for name in dict.fromkeys(paper.data.name for paper in papers.values()):
            on_rank0(partial(write_indices, indices_file(out, name), len(data[name])))
    return rows, changes


def paper_runs(table: PaperTable, options: ReproduceConfig) -> dict[str, TrainConfig]:
    """Returns the paper's own run of every row that has options, by the name of the row.

    Raises:
        ConfigError: The images are in a folder that is not given, one is given that is not needed, or no row has
            options.
    """
    runs = {}
    given = False
    for row in table.runs:
        assert row.options is not None
        data = row.options.get("data", TrainConfig().data.name)
        if data not in DATASETS and options.scale != "smoke":
            if options.data is None:
                raise ConfigError(
                    f"{table.name} needs the images of {data} in a folder: give --data FOLDER with train/CLASS and "
                    "val/CLASS, or take --scale smoke, which needs none"
                )
            data, given = str(options.data), True
        own = {**row.options, "data": data, "download": options.download}
        if options.data_dir is not None:
            own["data_dir"] = str(options.data_dir)
        runs[row.name] = full(own, f"row {row.name!r}")
    if options.data is not None and not given:
        raise ConfigError(f"--data is for tables whose images only a folder can give; {table.name} needs none")
    if not runs:
        raise ConfigError(f"{table.name}: none of the rows {', '.join(row.name for row in table.rows)} can be trained")
    return runs


def load_data(papers: Mapping[str, TrainConfig]) -> dict[str, ImageDataset]:
    """Returns the training splits of the rows by data set.

    Raises:
        DataError: A training or test split is missing.
    """
    found = {}
    for config in {paper.data.name: paper for paper in papers.values()}.values():
        whole = config.override(train_indices=None)
        found[config.data.name], _ = (load_split(whole, split) for split in ("train", "test"))
    return found


def scaled(
    options: Mapping[str, Any], paper: TrainConfig, scale: str, data: Mapping[str, ImageDataset], out: Path
) -> tuple[TrainConfig, list[str]]:
    """Scales the run of a row.

    Args:
        options: The options of the row.
        paper: The paper's run.
        scale: One of `SCALES`.
        data: The training splits by data set, for short runs.
        out: The folder of the runs.

    Returns:
        The run, and the ways in which it differs from the paper's.
    """
    if scale == "full":
        return paper, []
    if scale == "smoke":
        config = smoke(options, paper)
        return config, differences(paper, config)
    train = data[paper.data.name]
    config = short(paper, train, indices_file(out, paper.data.name))
    return config, differences(paper, config, (len(short_indices(len(train))), len(train)))


def indices_file(out: Path, data: str) -> Path:
    """Returns the file of the training indices of short runs on a data set."""
    return (out / f"indices-{Path(data).name}.txt").resolve()


def write_indices(file: Path, length: int) -> None:
    """Writes the indices of a short run in a training split of that length.

    Raises:
        ConfigError: The file holds other indices.
    """
    text = "".join(f"{index}\n" for index in short_indices(length))
    if not file.exists():
        atomic_write(file, lambda path: path.write_text(text))
    elif file.read_text() != text:
        raise ConfigError(f"{file} holds other indices than short runs have: choose another --out")


def claim(out: Path, table: str, scale: str) -> None:
    """Makes `out` the folder of that table and scale.

    Raises:
        ConfigError: The folder holds something else.
    """
    own = out / OWN_FILE
    wanted = {"table": table, "scale": scale}
    if own.is_file():
        found = yaml.safe_load(own.read_text())
        if found != wanted:
            raise ConfigError(f"{out} holds the runs of {found}, not of {wanted}: choose another --out")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists, holds no runs of a table, and is not written into: choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    atomic_write(own, lambda path: path.write_text(yaml.safe_dump(wanted)))
