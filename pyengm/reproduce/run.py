"""Training the runs of a table, in a folder for each row and seed, and the report on them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
import yaml

from pyengm.data import DATASETS, ImageDataset
from pyengm.errors import ConfigError
from pyengm.reproduce.presets import SCALES, differences, full, short, short_indices, smoke
from pyengm.reproduce.render import as_markdown, as_table, heading, remarks
from pyengm.reproduce.report import make_report
from pyengm.reproduce.tables import PAPER_TABLES, PaperTable, load_table, table_names
from pyengm.reproduce.timing import times_of
from pyengm.training import RunFolder, TrainConfig, load_split
from pyengm.training.multi_run import complete_all
from pyengm.training.multi_seed import seed_folder
from pyengm.training.option_types import Choice, Count, OptionGroup, Unset
from pyengm.utils.device import pick_device
from pyengm.utils.distributed import on_rank0
from pyengm.utils.io import atomic_write
from pyengm.utils.terminal import log

OWN_FILE = "reproduce.yaml"  # in the folder of the runs: their table and scale


@dataclass(frozen=True)
class ReproduceConfig(OptionGroup):
    """Train the rows of a table of the papers and print our figures beside the published ones. The same command resumes
    interrupted runs. Without a table, list the tables."""

    table: Annotated[tyro.conf.Positional[str | None], Unset("a list of the tables")] = None
    """Table, such as engm-2, the second table of the ENGM paper."""
    scale: Annotated[str, Choice(SCALES)] = "smoke"
    """smoke: the embedded digits, minutes on a CPU; short: 10,000 training images and fewer epochs, minutes per row
    on a GPU; full: as the paper."""
    rows: Annotated[tuple[str, ...], Unset("all")] = ()
    """Train these rows only."""
    seeds: tuple[int, ...] = (0,)
    """Seeds, with a run of every row for each; the table shows their mean and standard deviation."""
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
    out: Annotated[Path | None, Unset("runs/reproduce/TABLE-SCALE")] = None
    """Folder of the runs and of the table, as results.json and table.md."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds are {self.seeds}; expected at least one, each of them once")


def list_tables(folder: Path = PAPER_TABLES) -> None:
    """Prints a line for each table.

    Args:
        folder: The folder of the table files.

    Raises:
        ConfigError: There is no table.
    """
    names = table_names(folder)
    if not names:
        raise ConfigError(f"there are no tables in {folder}: reinstall pyengm")
    for name in names:
        table = load_table(name, folder)
        trained = sum(row.options is not None for row in table.rows)
        log(f"{name:24s} {table.title}; rows to train: {trained}")


def reproduce(options: ReproduceConfig, folder: Path = PAPER_TABLES) -> dict[str, Any]:
    """Trains the runs of a table that are not complete, prints the report and writes it to results.json and table.md.

    A run that fails does not end the others; the report has its reason in "failed".

    Args:
        options: The table, the scale, and what belongs to this call.
        folder: The folder of the table files.

    Returns:
        The content of results.json.

    Raises:
        ConfigError: There is no table of that name, no such row, no folder of images that is needed, or `out` holds
            something else. Nothing is written then.
        DataError: A data set is missing. Nothing is written then.
        Interrupted: After Ctrl-C or SIGTERM.
    """
    if options.table is None:
        raise ConfigError(f"reproduce needs a table; known: {', '.join(table_names(folder))}")
    table = load_table(options.table, folder).pick(options.rows)
    out = options.out or Path("runs/reproduce") / f"{table.name}-{options.scale}"
    rows, changes = plan(table, options, out)
    folders = {
        (row.name, seed): seed_folder(out / row.folder, seed)
        for row in table.rows
        if row.name in rows
        for seed in options.seeds
    }
    runs = {
        f"{name}, seed {seed}": rows[name].override(seed=seed, device=options.device, out=path)
        for (name, seed), path in folders.items()
    }
    results, failed = complete_all(runs, "the same command resumes where it stopped")
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for (name, seed), path in folders.items():
        if result := results.get(f"{name}, seed {seed}"):
            found.setdefault(name, {})[seed] = {**result, **times_of(path, rows[name].schedule.batch_size)}
    for row in table.rows:
        if row.name in rows:
            changes[row.name] += made_by(rows[row.name], out / row.folder)
    report = make_report(table, options.scale, found, failed, changes)
    on_rank0(lambda: write_report(report, out))
    log(heading(report))
    log(as_table(report))
    for remark in remarks(report):
        log(remark)
    log(f"the same is in {out / 'table.md'} and {out / 'results.json'}")
    return report


def made_by(config: TrainConfig, folder: Path) -> list[str]:
    """Lists the machines of the runs of a row, and what several processes change.

    Args:
        config: The run of the row.
        folder: The folder of its seeds.
    """
    lines = set()
    for path in folder.glob(f"seed-*/{RunFolder(folder).environment.name}"):
        last = json.loads(path.read_text())[-1]
        processes, machine = last["processes"], last["machine"]
        lines.add(f"made on {', '.join(sorted(set(machine['gpus']))) or machine['cpu']}, {processes} process(es)")
        if processes > 1 and config.model.norm_layer == "bn" and not config.machine.sync_bn:
            whole = config.schedule.batch_size
            lines.add(f"batch norm over {whole // processes} images in place of {whole}")
    return sorted(lines, reverse=True)


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
    for row in table.rows:
        if row.options is not None:
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
    for row in table.rows:
        if row.options is None:
            continue
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


def write_report(report: dict[str, Any], out: Path) -> None:
    """Writes results.json and table.md, in place of those of an earlier call."""
    texts = {"results.json": json.dumps(report, indent=2) + "\n", "table.md": as_markdown(report)}
    for name, text in texts.items():
        atomic_write(out / name, lambda path, text=text: path.write_text(text))
