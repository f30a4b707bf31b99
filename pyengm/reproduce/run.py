"""`pyengm reproduce`: the runs of a table, a folder per row and seed, and the report on them."""

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
from pyengm.reproduce.presets import SCALES, differences, full, short, short_positions, smoke
from pyengm.reproduce.render import as_markdown, as_table, heading, remarks
from pyengm.reproduce.report import make_report
from pyengm.reproduce.tables import PAPER_TABLES, PaperTable, load_table, table_names
from pyengm.reproduce.timing import times_of
from pyengm.training import RunFolder, TrainConfig, load_split, pick_device
from pyengm.training.multi_run import complete_all
from pyengm.training.multi_seed import seed_folder
from pyengm.training.option_types import Choice, Count, OptionGroup
from pyengm.utils.distributed import on_rank0
from pyengm.utils.io import atomic_write
from pyengm.utils.terminal import log

OWN_FILE = "reproduce.yaml"  # in the folder of a table, of which table and scale its runs are


@dataclass(frozen=True)
class ReproduceConfig(OptionGroup):
    """Train the rows of a table of the papers and print our figures beside the printed ones. The same command goes on
    with what was interrupted. Without a table: the list of them."""

    table: tyro.conf.Positional[str | None] = None
    """Such as engm-2, the second table of the ENGM paper."""
    scale: Annotated[str, Choice(SCALES)] = "smoke"
    """smoke: the embedded digits, minutes on a CPU; short: 10,000 training images and fewer epochs, minutes per row
    on a GPU; full: as the paper."""
    rows: tuple[str, ...] = ()
    """Train these rows only."""
    seeds: tuple[int, ...] = (0,)
    """A run of every row for each of these seeds; the table then shows mean and spread."""
    data: Path | None = None
    """Folder of the images of a table on ImageNet or Tiny-ImageNet, which pyengm cannot fetch."""
    data_dir: Path | None = None
    """Where data sets and decoded folders are kept (else $PYENGM_DATA, else ~/.cache/pyengm)."""
    download: bool = False
    """Fetch a data set that is missing."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ... (auto: cuda where there is one)."""
    nproc: Count | None = None
    """Start this many processes on this machine, which share the work of every run."""
    out: Path | None = None
    """Folder of the runs and of the table, as results.json and table.md (else runs/reproduce/TABLE-SCALE)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds are {self.seeds}; expected at least one, each of them once")


def list_tables(folder: Path = PAPER_TABLES) -> None:
    """The tables that there are, a line each. Raises ConfigError where there is none."""
    names = table_names(folder)
    if not names:
        raise ConfigError(f"there are no tables in {folder}: install pyengm anew")
    for name in names:
        table = load_table(name, folder)
        trained = sum(row.options is not None for row in table.rows)
        log(f"{name:24s} {table.title}; rows to train: {trained}")


def reproduce(options: ReproduceConfig, folder: Path = PAPER_TABLES) -> dict[str, Any]:
    """Trains what is not complete yet, prints the report and writes it; returns what results.json holds.

    folder: of the table files. A run that fails leaves the others as they are, and its reason stands in "failed".
    Raises ConfigError for an unknown table or row, data that are not given, and an `out` of something else, DataError
    for data that are not there, all before anything is written, and Interrupted after Ctrl-C.
    """
    table = load_table(options.table, folder).pick(options.rows)
    out = options.out or Path("runs/reproduce") / f"{table.name}-{options.scale}"
    rows, changes = plan(table, options, out)
    runs = {
        (row.name, seed): rows[row.name].override(
            seed=seed, device=options.device, out=seed_folder(out / row.folder, seed)
        )
        for row in table.rows
        if row.name in rows
        for seed in options.seeds
    }
    results, failed = complete_all(
        {f"{name}, seed {seed}": config for (name, seed), config in runs.items()},
        "the same command goes on where it stopped",
    )
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for (name, seed), config in runs.items():
        if result := results.get(f"{name}, seed {seed}"):
            found.setdefault(name, {})[seed] = {**result, **times_of(config.run.out, config.schedule.batch_size)}
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
    """On what the runs of a row, in `folder`, were made, and what several processes change."""
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
    """The run of every row that has options, at the scale asked for, and how it differs from the paper's; by row.

    Makes `out`, and the file of training positions that short runs need, once nothing is missing.
    """
    pick_device(options.device)  # an error comes now, and not once for every row
    papers = paper_runs(table, options)
    data = {} if options.scale == "smoke" else load_data(papers)
    rows, changes = {}, {}
    for row in table.rows:
        if row.name in papers:
            paper = papers[row.name]
            rows[row.name], changes[row.name] = scaled(
                row.options, paper, options.scale, data.get(paper.data.name), out
            )
    on_rank0(lambda: claim(out, table.name, options.scale))
    if options.scale == "short":
        for name, config in rows.items():
            on_rank0(partial(write_positions, config.data.train_indices, len(data[papers[name].data.name])))
    return rows, changes


def paper_runs(table: PaperTable, options: ReproduceConfig) -> dict[str, TrainConfig]:
    """The paper's own run of every row that has options. Raises ConfigError for data that only a folder can give."""
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
    """The training splits that the rows need, by `data`: what is missing, tests too, is missed before the first run."""
    found = {}
    for config in {paper.data.name: paper for paper in papers.values()}.values():
        whole = config.override(train_indices=None)
        found[config.data.name], _ = (load_split(whole, split) for split in ("train", "test"))
    return found


def scaled(
    options: Mapping[str, Any], paper: TrainConfig, scale: str, train: ImageDataset | None, out: Path
) -> tuple[TrainConfig, list[str]]:
    """The run of a row at that scale, and how it differs from the paper's. train: the training split, if needed."""
    if scale == "full":
        return paper, []
    if scale == "smoke":
        config = smoke(options, paper)
        return config, differences(paper, config)
    config = short(paper, train, positions_file(out, paper.data.name))
    return config, differences(paper, config, (len(short_positions(len(train))), len(train)))


def positions_file(out: Path, data: str) -> Path:
    return (out / f"positions-{Path(data).name}.txt").resolve()


def write_positions(file: Path, length: int) -> None:
    """The positions of a short run in a training split of that length. Raises ConfigError for a file of others."""
    text = "".join(f"{position}\n" for position in short_positions(length))
    if not file.exists():
        atomic_write(file, lambda path: path.write_text(text))
    elif file.read_text() != text:
        raise ConfigError(f"{file} holds other positions than a short run of today: choose another --out")


def claim(out: Path, table: str, scale: str) -> None:
    """Makes `out` the folder of that table and scale. Raises ConfigError for a folder of something else."""
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
    """results.json and table.md, in place of those of an earlier call."""
    texts = {"results.json": json.dumps(report, indent=2) + "\n", "table.md": as_markdown(report)}
    for name, text in texts.items():
        atomic_write(out / name, lambda path, text=text: path.write_text(text))
