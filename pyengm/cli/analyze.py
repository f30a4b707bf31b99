"""`pyengm analyze`."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from pyengm import __version__
from pyengm.analysis import Parts, SavedParts
from pyengm.attacks import ThreatModel
from pyengm.cli.analyses import ANALYSES, ANALYSES_ALONE, AnalyzedModel, Found, Subject
from pyengm.cli.analysis_attacks import parse_attack
from pyengm.cli.analysis_files import save_analysis
from pyengm.data import ImageDataset, load
from pyengm.errors import ConfigError, Interrupted
from pyengm.evaluation.hashes import hash_of_images
from pyengm.evaluation.model_sources import CheckpointSource
from pyengm.evaluation.one_threat import evenly_spread
from pyengm.models import read_info
from pyengm.training import RunFolder, TrainConfig
from pyengm.training.builders import read_indices
from pyengm.training.environment import describe
from pyengm.training.option_types import Choice, Count, OptionGroup, Unset
from pyengm.utils import terminal
from pyengm.utils.device import pick_device
from pyengm.utils.did_you_mean import did_you_mean
from pyengm.utils.distributed import rank
from pyengm.utils.import_object import check_trusted, is_object_spec
from pyengm.utils.terminal import is_quiet, log


@dataclass(frozen=True)
class AnalyzeConfig(OptionGroup):
    """Make figures of the papers for runs and checkpoints of your own. Each analysis writes its arrays (NAME.npz), its
    scalars and how it was made (NAME.json), and its figure (NAME.svg and NAME.png). The same command resumes one that
    was interrupted."""

    words: tyro.conf.Positional[tuple[str, ...]]
    """Run folders or checkpoints of pyengm (.safetensors), and names of analyses: gradient_statistics,
    norm_correlation, weight_errors, fosc_trajectory, fosc_bins, fosc_distribution, cross_robustness, accuracy_curve,
    input_plane, weight_plane, instances, loss_gap, smoothness, toy_surface, hessian_top. Without a name,
    gradient_statistics. toy_surface needs no run."""
    checkpoint: str = "best"
    """Weights of a run folder: best, last, epoch-N of its snapshots, or all snapshots, for analyses along a run."""
    split: Annotated[str, Choice(("train", "test"))] = "test"
    """Split of the images."""
    examples: Annotated[Count | None, Unset("all")] = 1000
    """Number of images, spread evenly over the split."""
    indices: Annotated[Path | None, Unset("all")] = None
    """Take the examples from these images of the split only: a .npy file or a text file of integers, counted from 0."""
    attack: str = "pgd"
    """none, fgsm or pgd, with options: pgd:eps=8/255,step_size=2/255,steps=10,loss=ce. Norm and radius are those of the
    training unless they are given."""
    bn: Annotated[str, Choice(("eval", "train"))] = "eval"
    """Batch norm with its running statistics, or with those of the batch, which leaves the running ones unchanged."""
    batch_size: Count = 128
    """Largest size of a batch."""
    seed: int = 0
    """Seed of random starts and directions."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ... (auto: cuda if available)."""
    data_dir: Annotated[Path | None, Unset("that of the training")] = None
    """Folder in which data sets are kept."""
    out: Annotated[Path | None, Unset("RUN/analysis")] = None
    """Folder for the files. What is there of other options is not overwritten."""
    trust_config: bool = False
    """Run functions that a run folder or a checkpoint names as its model or its data (MODULE:FUNCTION). Read them
    before."""


def analyze_command(options: AnalyzeConfig) -> int:
    """Runs the analyses that are not there yet, and prints the files; returns 0."""
    targets, names = _sort_words(options.words)
    if targets:
        subject = _subject(options, targets)
        out = options.out or (targets[0] if targets[0].is_dir() else targets[0].parent) / "analysis"
        description = _describe(options, subject)
        computations = {name: partial(ANALYSES[name], subject) for name in names}
    else:
        out, description = options.out or Path("analysis"), {"configuration": {"version": __version__}}
        computations = {name: ANALYSES_ALONE[name] for name in names}
    pending = [name for name in names if not is_there(out, name, description)]
    for name in names:
        if name not in pending:
            log(f"{out / name}.json is there already, made with the same options")
    for name in pending:
        run_analysis(name, computations[name], out, description)
        log(f"{name}: {out / name}.npz, .json, .svg, .png")
    return 0


def run_analysis(name: str, compute: Callable[[Parts], Found], out: Path, description: dict[str, Any]) -> None:
    """Computes an analysis and writes its files; the same call resumes it.

    Args:
        name: Of the files.
        compute: The analysis.
        out: The folder of the files.
        description: All that its arrays depend on, for NAME.json.

    Raises:
        Interrupted: After Ctrl-C.
    """
    parts_folder = out / ".parts" / f"{name}-{_digest(name, description)}"
    try:
        with _bar(name) as on_part:
            found = compute(SavedParts(parts_folder, on_part))
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; the same command resumes {name}") from None
    save_analysis(out, name, found, {"analysis": name, **description, "environment": describe()})
    shutil.rmtree(parts_folder, ignore_errors=True)
    if (out / ".parts").is_dir() and not any((out / ".parts").iterdir()):
        (out / ".parts").rmdir()


@contextmanager
def _bar(name: str) -> Iterator[Any]:
    """A bar over the parts of a stage, of which an analysis may have several."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed} of {task.total}"))
    disabled = rank() != 0 or is_quiet()
    with Progress(*columns, TimeElapsedColumn(), console=terminal.console, transient=True, disable=disabled) as bars:
        task = bars.add_task(name, total=1)

        def on_part(stage: int, done: int, total: int) -> None:
            bars.update(task, description=f"{name}, stage {stage + 1}", completed=done, total=total)

        yield on_part


def _sort_words(words: tuple[str, ...]) -> tuple[list[Path], list[str]]:
    """The targets, and the names of analyses. Raises ConfigError for a word that is neither."""
    targets, names = [], []
    for word in words:
        if word in ANALYSES:
            names.append(word)
        elif Path(word).exists():
            targets.append(Path(word))
        else:
            known = did_you_mean(word, ANALYSES)
            raise ConfigError(f"{word!r} is no run folder, checkpoint or analysis{known}; known: {', '.join(ANALYSES)}")
    if not targets and not (names and all(name in ANALYSES_ALONE for name in names)):
        raise ConfigError("expected a run folder or a checkpoint: pyengm analyze RUN NAME")
    return targets, list(dict.fromkeys(names)) or ["gradient_statistics"]


def _subject(options: AnalyzeConfig, targets: list[Path]) -> Subject:
    names = _names(targets)
    models = tuple(model for target in targets for model in _models(target, names[target], options))
    infos = [read_info(model.source.path) for model in models]
    if len({(info.data, info.classes) for info in infos}) > 1:
        raise ConfigError(
            f"the models were trained on {', '.join(sorted({info.data for info in infos}))}: give one data set"
        )
    if is_object_spec(infos[0].data):
        check_trusted({"data": infos[0].data}, targets[0], options.trust_config)
    data = _load(options, targets[0], infos[0].data, options.split, options.indices)
    return Subject(
        models=models,
        runs=tuple(target for target in targets if target.is_dir()),
        data=data.subset(evenly_spread(len(data), options.examples)),
        labels=lambda: _load(options, targets[0], infos[0].data, "train").labels,
        attack=parse_attack(options.attack, ThreatModel(infos[0].norm, infos[0].eps)),
        bn=options.bn,
        batch_size=options.batch_size,
        seed=options.seed,
        device=pick_device(options.device),
    )


def _names(targets: list[Path]) -> dict[Path, str]:
    """Names of the targets by the ends of their paths, as long as needed. Raises ConfigError for equal targets."""
    if len({target.resolve() for target in targets}) < len(targets):
        raise ConfigError(f"expected different targets, got {', '.join(map(str, targets))}")
    paths = {target: target.resolve() for target in targets}
    parts = {target: (path if path.is_dir() else path.with_suffix("")).parts for target, path in paths.items()}
    for length in range(1, max(map(len, parts.values())) + 1):
        names = {target: "/".join(own[-length:]) for target, own in parts.items()}
        if len(set(names.values())) == len(targets):
            return names
    return {target: str(path) for target, path in paths.items()}  # a folder and a file that differ in the suffix alone


def _models(target: Path, name: str, options: AnalyzeConfig) -> list[AnalyzedModel]:
    """The checkpoints of a target that the options name, by epoch."""
    snapshots = RunFolder(target).snapshots
    if not target.is_dir():
        paths = [target]
    elif options.checkpoint in ("best", "last"):
        run = RunFolder.open(target)
        paths = [run.best if options.checkpoint == "best" else run.last]
    elif options.checkpoint == "all":
        paths = sorted(snapshots.glob("epoch-*.safetensors"))
    else:
        number = options.checkpoint.removeprefix("epoch-")
        if number == options.checkpoint or not (number.isascii() and number.isdigit()):
            raise ConfigError(f"checkpoint is {options.checkpoint!r}; expected best, last, epoch-N or all")
        paths = [snapshots / f"epoch-{int(number):04}.safetensors"]
    if not paths or not paths[0].is_file():
        there = ", ".join(path.stem for path in sorted(snapshots.glob("epoch-*.safetensors"))) or "none"
        raise ConfigError(
            f"{target} has no such weights ({options.checkpoint}); its snapshots: {there} (pyengm train --snapshots)"
        )
    # Checkpoints have the number of the last epoch, from 0.
    return [AnalyzedModel(name, read_info(p).epoch + 1, CheckpointSource(p, options.trust_config)) for p in paths]


def _load(options: AnalyzeConfig, target: Path, name: str, split: str, indices: Path | None = None) -> ImageDataset:
    config = (target if target.is_dir() else target.parent) / "config.yaml"
    trained = TrainConfig.load(config).data if config.is_file() else None
    root = options.data_dir or (trained.data_dir if trained else None)
    return load(
        name,
        split,
        root=root,
        image_size=trained.image_size if trained else None,
        indices=None if indices is None else read_indices(indices),
    )


def _describe(options: AnalyzeConfig, subject: Subject) -> dict[str, Any]:
    """All that the arrays depend on, for NAME.json."""
    return {
        "configuration": {
            "checkpoint": options.checkpoint,
            "attack": options.attack,
            "threat": {"norm": subject.attack.threat.norm, "eps": subject.attack.threat.eps},
            "bn": options.bn,
            "batch_size": options.batch_size,
            "seed": options.seed,
            "device": subject.device.type,
            "version": __version__,
        },
        "models": [
            {"name": model.name, "epoch": model.epoch, "sha256": model.source.identity()} for model in subject.models
        ],
        "data": {
            "name": subject.data.name,
            "split": options.split,
            "examples": len(subject.data),
            "sha256": hash_of_images(subject.data),
        },
    }


def _digest(name: str, description: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps([name, description], sort_keys=True).encode()).hexdigest()[:16]


def is_there(out: Path, name: str, description: dict[str, Any]) -> bool:
    """Returns whether the analysis was made with the same options. Raises ConfigError where it was made with others."""
    path = out / f"{name}.json"
    if not path.exists():
        return False
    try:
        before = json.loads(path.read_text())
        same = all(before.get(key) == value for key, value in description.items())
    except (OSError, ValueError, AttributeError):
        same = False
    if not same:
        raise ConfigError(
            f"{path} was made with other options, models or data and is not overwritten: choose another --out"
        )
    return True
