"""Making a figure: training of the runs that are missing, the analyses, and what they show of the paper's words."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pyengm.errors import ConfigError, Interrupted, PyengmError
from pyengm.reproduce.checks import apply_rule
from pyengm.reproduce.config import ReproduceConfig
from pyengm.reproduce.paper_figures import PAPER_FIGURES, LookFor, PaperFigure, Part, figure_names, load_figure
from pyengm.reproduce.plan import claim, plan
from pyengm.reproduce.readings import Arrays, read_value
from pyengm.reproduce.run import made_by
from pyengm.reproduce.tables import PAPER_TABLES, PaperTable
from pyengm.training import TrainConfig
from pyengm.training.multi_run import complete_all
from pyengm.training.multi_seed import seed_folder
from pyengm.utils.distributed import on_rank0
from pyengm.utils.io import atomic_write, make_dirs
from pyengm.utils.terminal import log

Analyze = Callable[[Sequence[Path], str, Path, Mapping[str, Any]], None]
"""Called with run folders, the name of an analysis, the folder for its files, and options of `pyengm analyze`."""
OWNER = "figures"  # of the folder that all figures of a scale share, so that they share their runs
EXAMPLES: Mapping[str, int | None] = {"smoke": 128, "short": 1000, "full": None}  # images of an analysis, at most
FEWER = {"weight_plane": 8}  # analyses that attack each image hundreds of times, and by what they have fewer images
VERDICTS = {True: "shown", False: "NOT shown", None: "cannot tell"}


def list_figures(folder: Path = PAPER_FIGURES) -> None:
    """Prints a line for each figure."""
    for name in figure_names(folder):
        figure = load_figure(name, folder)
        log(f"{name:24s} {figure.title}; runs to train: {len(figure.runs)}")


def reproduce_figure(
    options: ReproduceConfig, analyze: Analyze, folder: Path = PAPER_FIGURES, tables: Path = PAPER_TABLES
) -> dict[str, Any]:
    """Trains the missing runs of a figure, makes the figure, and prints what the paper says of it and what it shows.

    Args:
        options: The figure, as `table`, the scale, and what belongs to this call.
        analyze: Makes the files of an analysis that are not there yet.
        folder: The folder of the figure files.
        tables: The folder of the table files.

    Returns:
        The content of results.json.

    Raises:
        ConfigError: There is no such figure, an option is for tables alone, or `out` holds something else.
        DataError: A data set is missing. Nothing is written then.
        Interrupted: After Ctrl-C or SIGTERM.
    """
    figure = load_figure(str(options.table), folder, tables)
    if options.rows:
        raise ConfigError(f"{figure.name} is a figure, which needs all of its runs: leave --rows out")
    out = options.out or Path("runs/reproduce") / f"{OWNER}-{options.scale}"
    runs, changes, failed = _train(figure, options, out)
    findings, parts = [], {}
    for seed in options.seeds:
        place = seed_folder(out / figure.name, seed)
        arrays = _analyze_parts(figure, options, out, seed, analyze, failed)
        parts[seed] = {
            part.name: str((place / part.name).relative_to(out)) for part in figure.parts if part.name in arrays
        }
        findings += [finding_of(one, arrays, runs, seed) for one in figure.look_for]
    report = {
        "figure": figure.name,
        "title": figure.title,
        "source": figure.source,
        "scale": options.scale,
        "findings": findings,
        "parts": {part.name: part.analysis for part in figure.parts},
        "folders": parts,
        "differences": changes,
        "notes": list(figure.notes),
        "failed": failed,
    }
    on_rank0(lambda: _write(report, out / figure.name))
    for line in lines_of(report):
        log(line)
    log(f"the same is in {out / figure.name / 'figure.md'} and results.json, and the figures are in the folders beside")
    return report


def lines_of(report: Mapping[str, Any]) -> list[str]:
    """The report in lines: what the paper says, whether this run shows it, and what differs from the paper."""
    lines = [f"{report['title']} ({report['source']}), scale {report['scale']}"]
    several = len({one["seed"] for one in report["findings"]}) > 1
    for one in report["findings"]:
        of = f", seed {one['seed']}" if several else ""
        lines.append(f"{VERDICTS[one['shown']]}{of}: {one['paper']} Here: {one['words']}.")
    lines += [f"not as in the paper, {name}: {'; '.join(changed)}" for name, changed in report["differences"].items()]
    lines += [f"note: {note}" for note in report["notes"]]
    return lines + [f"FAILED: {name}: {why}" for name, why in report["failed"].items()]


def as_markdown(report: Mapping[str, Any]) -> str:
    """The report with its figures as Markdown."""
    title, *lines = lines_of(report)
    text = [f"# {title}", "", *(f"- {line}" for line in lines), ""]
    for seed, folders in report["folders"].items():
        for part, folder in folders.items():
            inside = Path(folder).relative_to(report["figure"]).as_posix()
            text.append(f"![{part}, seed {seed}]({inside}/{report['parts'][part]}.png)")
    return "\n".join(text) + "\n"


def _train(
    figure: PaperFigure, options: ReproduceConfig, out: Path
) -> tuple[dict[str, TrainConfig], dict[str, list[str]], dict[str, str]]:
    """The runs, trained; how they differ from the paper's; and the errors of those that failed, by run and seed."""
    if not figure.runs:
        if options.data is not None:
            raise ConfigError(f"--data is for runs; {figure.name} needs none")
        on_rank0(lambda: claim(out, OWNER, options.scale))
        return {}, {}, {}
    runs, changes = plan(PaperTable(OWNER, figure.title, figure.source, (), figure.runs, ()), options, out)
    configs = {
        f"{run.name}, seed {seed}": runs[run.name].override(
            seed=seed, device=options.device, out=seed_folder(out / "runs" / run.folder, seed)
        )
        for run in figure.runs
        for seed in options.seeds
    }
    _, failed = complete_all(configs, "the same command resumes where it stopped")
    for run in figure.runs:
        changes[run.name] += made_by(runs[run.name], out / "runs" / run.folder)
    shared = [line for line in next(iter(changes.values())) if all(line in own for own in changes.values())]
    own = {name: [line for line in lines if line not in shared] for name, lines in changes.items()}
    return runs, {name: lines for name, lines in {"all runs": shared, **own}.items() if lines}, failed


def _analyze_parts(
    figure: PaperFigure, options: ReproduceConfig, out: Path, seed: int, analyze: Analyze, failed: dict[str, str]
) -> dict[str, Arrays]:
    """The arrays of each part; a part that fails, or whose run did, is missing, with its reason in `failed`."""
    found: dict[str, Arrays] = {}
    folders = {run.name: seed_folder(out / "runs" / run.folder, seed) for run in figure.runs}
    for part in figure.parts:
        place = seed_folder(out / figure.name, seed)
        if any(f"{run}, seed {seed}" in failed for run in part.runs):
            continue
        log(f"part {part.name}, seed {seed}: {part.analysis}")
        settings = part_options(part, options.scale, place)
        settings |= {"device": options.device, "data_dir": options.data_dir} if part.runs else {}
        targets = [folders[run] for run in part.runs]
        try:
            on_rank0(partial(analyze, targets, part.analysis, place / part.name, settings))
        except Interrupted:
            raise
        except PyengmError as error:
            failed[f"part {part.name}, seed {seed}"] = str(error)
            continue
        with np.load(place / part.name / f"{part.analysis}.npz", allow_pickle=False) as file:
            found[part.name] = {key: file[key] for key in file.files}
    return found


def part_options(part: Part, scale: str, place: Path) -> dict[str, Any]:
    """The options of `pyengm analyze` for a part.

    Args:
        part: The part.
        scale: One of `SCALES`, which bounds the number of images.
        place: The folder of the figure's parts, in which files of indices are.
    """
    settings = dict(part.options)
    if part.runs:
        most = EXAMPLES[scale]
        most = most and most // FEWER.get(part.analysis, 1)
        counts = [count for count in (settings.get("examples", 1000), most) if count is not None]
        settings["examples"] = min(counts, default=None)
    if "indices" in settings:
        settings["indices"] = place / settings["indices"]
    return settings


def finding_of(one: LookFor, parts: Mapping[str, Arrays], runs: Mapping[str, TrainConfig], seed: int) -> dict[str, Any]:
    """What a figure shows of the paper's words, as plain values.

    Args:
        one: What the paper says.
        parts: The arrays of the parts that there are, by name.
        runs: The runs, by name, whose schedules some rules need.
        seed: Of the runs.
    """
    named = [part for reading in one.of for part in _parts_of(reading)]
    if missing := [part for part in named if part not in parts]:
        return {"seed": seed, "paper": one.paper, "shown": None, "words": f"part {missing[0]} is missing"}
    settings = dict(one.options)
    if "run" in settings:
        schedule = runs[settings.pop("run")].schedule
        steps = (schedule.milestones or ()) if schedule.name == "piecewise" else ()
        settings["decay"] = float(min(steps)) if steps else None
    found = apply_rule(one.rule, [read_value(reading, parts) for reading in one.of], **settings)
    return {"seed": seed, "paper": one.paper, **vars(found)}


def _parts_of(reading: str | list[str]) -> list[str]:
    return [one.partition(":")[0] for one in (reading if isinstance(reading, list) else [reading])]


def _write(report: dict[str, Any], folder: Path) -> None:
    make_dirs(folder)
    texts = {"results.json": json.dumps(report, indent=2) + "\n", "figure.md": as_markdown(report)}
    for name, text in texts.items():
        atomic_write(folder / name, lambda path, text=text: path.write_text(text))
