"""Training the runs of a table, in a folder for each row and seed, and the report on them."""

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from pyengm.comparison.times import times_of
from pyengm.errors import ConfigError
from pyengm.reproduce.config import ReproduceConfig
from pyengm.reproduce.further import OF_A_RUN, OF_TWO_RUNS, further_values
from pyengm.reproduce.plan import plan
from pyengm.reproduce.render import as_markdown, as_table, heading, remarks
from pyengm.reproduce.report import Collapse, make_report
from pyengm.reproduce.tables import PAPER_TABLES, PaperTable, Row, load_table, table_names
from pyengm.training import RunFolder, TrainConfig
from pyengm.training.multi_run import complete_all
from pyengm.training.multi_seed import seed_folder
from pyengm.utils.distributed import on_rank0
from pyengm.utils.io import atomic_write
from pyengm.utils.terminal import log

APART = 1000  # from the seeds of rows to those of copies that are trained separately


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
        (row.name, seed): seed_folder(out / row.folder, APART * row.apart + seed)
        for row in table.runs
        for seed in options.seeds
    }
    apart = {row.name: APART * row.apart for row in table.runs}
    runs = {
        f"{name}, seed {seed}": rows[name].override(seed=apart[name] + seed, device=options.device, out=path)
        for (name, seed), path in folders.items()
    }
    results, failed = complete_all(runs, "the same command resumes where it stopped")
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for row in table.rows:
        for seed in options.seeds if row.name in rows else ():
            if result := results.get(f"{row.name}, seed {seed}"):
                times = times_of(folders[row.name, seed], rows[row.name].schedule.batch_size)
                further = _further(table, row, seed, folders, out, options.device, results)
                found.setdefault(row.name, {})[seed] = {**result, **times, **further}
    for row in table.runs:
        changes[row.name] += made_by(rows[row.name], out / row.folder)
    collapsed = {
        name: epochs
        for name in rows
        if (epochs := {seed: at for seed in options.seeds if (at := collapses(RunFolder(folders[name, seed])))})
    }
    report = make_report(table, options.scale, found, failed, changes, collapsed)
    on_rank0(lambda: write_report(report, out))
    log(heading(report))
    log(as_table(report))
    for remark in remarks(report):
        log(remark)
    log(f"the same is in {out / 'table.md'} and {out / 'results.json'}")
    return report


def _further(
    table: PaperTable,
    row: Row,
    seed: int,
    folders: Mapping[tuple[str, int], Path],
    out: Path,
    device: str,
    results: Mapping[str, Any],
) -> dict[str, dict[str, float]]:
    """The values of a row that the results of its run do not have; those of two runs only where both are complete."""
    groups = {str(column.ours).partition(".")[0] for column in table.columns} & {*OF_A_RUN, *OF_TWO_RUNS}
    if not groups:
        return {}
    other = folders[row.beside, seed] if row.beside is not None and f"{row.beside}, seed {seed}" in results else None
    cache = out / "beside" / f"{row.folder}-seed-{seed}.json"
    log(f"{row.name}, seed {seed}: {', '.join(sorted(groups))}")
    return on_rank0(lambda: further_values(sorted(groups), folders[row.name, seed], other, cache, device))


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


def collapses(run: RunFolder) -> list[Collapse]:
    """Returns the falls of a run's accuracy under attack on training images that the detector found."""
    rows = [row for row in run.read_metrics() if row.get("train_pgd") is not None]
    return [
        {
            "epoch": row["epoch"] + 1,
            "before": before["train_pgd"],
            "after": row["train_pgd"],
            "last": rows[-1]["train_pgd"],
        }
        for before, row in pairwise(rows)
        if row["catastrophic_overfitting"]
    ]


def write_report(report: dict[str, Any], out: Path) -> None:
    """Writes results.json and table.md, in place of those of an earlier call."""
    texts = {"results.json": json.dumps(report, indent=2) + "\n", "table.md": as_markdown(report)}
    for name, text in texts.items():
        atomic_write(out / name, lambda path, text=text: path.write_text(text))
