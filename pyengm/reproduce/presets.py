"""The run of a row of a table at each scale, and its differences from the paper's in words."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyengm.data import ImageDataset
from pyengm.methods import METHODS
from pyengm.reproduce.flops import epoch_flops
from pyengm.training import TrainConfig
from pyengm.training.config import PER_CALL
from pyengm.training.config_groups import ALL_OPTIMIZERS
from pyengm.training.option_parsing import own_arguments, parse_options
from pyengm.training.recipes import recipe_for
from pyengm.training.schedule import scale_milestones
from pyengm.training.snapshots import scale_snapshots
from pyengm.utils.pixels import format_pixels, parse_number

# full: the row as it is. short: 10,000 training images, fewer epochs and AutoAttack on 1,000 images, some minutes on a
# GPU. smoke: the embedded digits and their recipe with the row's method and optimiser, seconds to minutes on a CPU.
SCALES = ("smoke", "short", "full")
SHORT_IMAGES = 10_000
SHORT_AUTOATTACK = 1_000
SHORT_FLOPS = 1.5e16  # of the training of a row: 150 seconds at 100 teraflops
SMOKE_DATA = "digits"

# Options that a smoke run takes from the recipe of the digits, with those options of the method that the recipe sets,
# KEPT_OPTIONS apart. eps, step_size and the method's other options in pixel units keep their size in units of the usual
# radius. Every other option of a row stays.
OF_THE_RECIPE = (
    *("data", "data_dir", "download", "image_size", "train_indices", "augment", "resolutions", "cutout", "cutmix"),
    *("model", "width", "norm_layer"),
    *("mean", "std"),
    *("lr", "weight_decay", "batch_size", "epochs", "schedule", "milestones", "pct_start", "autoattack_examples"),
    *("precision", "cuda_graphs", "compile", "cpu_threads", "method_options"),
)
KEPT_OPTIONS = ("weight",)
SMOKE_BATCHES, PAPER_BATCHES = 60, 391  # of an epoch on the digits, and on 50,000 images, 128 at a time
SMOKE_PROBE = 128
IN_EPOCHS = {"warmup_epochs": 1, "swa_start": 0, "patience": 1}  # options that count epochs, with their least values


def full(options: Mapping[str, Any], where: str) -> TrainConfig:
    """Returns the row's own run. where: the row, for messages."""
    return TrainConfig.from_plain(options, where).drop_idle(keep=()).resolve()


def short(paper: TrainConfig, train: ImageDataset, indices: Path) -> TrainConfig:
    """Returns the run of a row on fewer images, for so many epochs that all rows take about the same time.

    Args:
        paper: The run as `full` returns it.
        train: Its training split.
        indices: The file of `short_indices(len(train))`.
    """
    images = min(SHORT_IMAGES, len(train))
    by_selection = {"val": images // 10, "none": 0, "test": images}  # test sets have about as many images
    held_out = by_selection[paper.evaluation.select_on]
    affordable = SHORT_FLOPS / epoch_flops(paper, train, images, held_out)
    epochs = min(paper.schedule.epochs, max(2, int(affordable)))
    return paper.override(
        train_indices=indices,
        epochs=epochs,
        autoattack_examples=min(SHORT_AUTOATTACK, paper.evaluation.autoattack_examples or SHORT_AUTOATTACK),
        precision="bf16" if paper.machine.precision == "float32" else paper.machine.precision,
        **shorter(paper, epochs, images / len(train)),
    ).resolve()


def short_indices(length: int) -> list[int]:
    """Returns the indices of the training images of a short run, spread evenly over `length` images."""
    count = min(SHORT_IMAGES, length)
    return [i * length // count for i in range(count)]


def smoke(options: Mapping[str, Any], paper: TrainConfig) -> TrainConfig:
    """Returns a run of the row's method and optimiser on the digits.

    Args:
        options: The options of the row.
        paper: The run as `full` returns it.
    """
    recipe = recipe_for(SMOKE_DATA, paper.method.name, paper.attack.threat)
    epochs = min(recipe["epochs"], paper.schedule.epochs)
    larger = recipe["radii"][paper.attack.threat] / recipe_for(paper.data.name)["radii"][paper.attack.threat]
    kept = {name: paper.get(name) for name in options if name not in OF_THE_RECIPE}
    kept |= {name: larger * kept[name] for name in ("eps", "step_size") if kept.get(name) is not None}
    changes = shorter(paper, epochs, SMOKE_BATCHES / PAPER_BATCHES)
    changes.pop("milestones")  # the digits' schedule has none
    set_by_recipe = [word.partition("=")[0] for word in recipe["method_options"]]
    words = []
    for name, equals, value in (word.partition("=") for word in changes.pop("method_options")):
        if name in METHODS[paper.method.name].info.pixel_options:
            words.append(f"{name}={larger * parse_number(value):g}")
        elif name != "resolution" and (name in KEPT_OPTIONS or name not in set_by_recipe):
            words.append(name + equals + value)
    kept |= changes | {"method_options": tuple(words)}
    if paper.record.probe is not None:
        kept["probe"] = min(SMOKE_PROBE, paper.record.probe)
    return TrainConfig.from_flat(data=SMOKE_DATA, epochs=epochs, **kept).drop_idle(keep=()).resolve()


def shorter(paper: TrainConfig, epochs: int, batches: float = 1.0) -> dict[str, Any]:
    """Returns the options that count epochs or batches, scaled to a shorter run.

    Args:
        paper: The run as `full` returns it.
        epochs: The number of epochs of the shorter run.
        batches: The number of its batches in an epoch, as a share of the paper's.
    """
    share = epochs / paper.schedule.epochs
    milestones = paper.schedule.milestones  # None without a piecewise schedule
    changes: dict[str, Any] = {
        "milestones": None if milestones is None else scale_milestones(milestones, share),
        "method_options": _shorter_method(paper, share, epochs),
        "optimizer_options": _shorter_optimizer(paper, share, epochs, batches),
        "snapshots": scale_snapshots(paper.record.snapshots, share),
    }
    for name, least in IN_EPOCHS.items():
        if paper.get(name):
            changes[name] = _shorter(paper.get(name), share, least)
    return changes


def _shorter_method(paper: TrainConfig, share: float, epochs: int) -> tuple[str, ...]:
    """The method's options, where those that are counted in epochs are given even if the row leaves the default."""
    words = {word.partition("=")[0]: word for word in paper.method.options}
    options = method_options(paper)
    for name, least in METHODS[paper.method.name].info.epoch_options.items():
        value = options[name]
        if value is not None and share != 1:
            value = _shorter(int(value) if value == int(value) else value, share, least)  # whole epochs stay whole
            words[name] = f"{name}={min(value, epochs - 1) if name == 'sampling_epochs' else value:g}"
    return tuple(words.values())


def _shorter_optimizer(paper: TrainConfig, share: float, epochs: int, batches: float) -> tuple[str, ...]:
    """The optimiser's options; the span of epochs that they name keeps at least one.

    An epoch keeps its number of outer steps: with the paper's 20 batches to each, one of 60 batches would have three.
    """
    known = own_arguments(ALL_OPTIMIZERS[paper.optimizer.name])
    options: dict[str, str] = dict(
        word.split("=", 1) for word in paper.optimizer.options if word.lower() != "until_epoch=none"
    )
    for name, least in ALL_OPTIMIZERS[paper.optimizer.name].info.epoch_options.items():
        if name in options:
            options[name] = str(_shorter(int(options[name]), share, least))
    if "inner_steps" in known and batches < 1:
        inner = int(options.get("inner_steps", known["inner_steps"].default or 1))
        options["inner_steps"] = str(max(min(inner, 2), round(batches * inner)))
    first = min(int(options.get("from_epoch", 0)), epochs - 1)
    if "from_epoch" in options:
        options["from_epoch"] = str(first)
    if "until_epoch" in options:
        options["until_epoch"] = str(max(int(options["until_epoch"]), first + 1))
    return tuple(f"{name}={value}" for name, value in options.items())


def _shorter(value: float, share: float, least: int) -> float:
    return share * value if isinstance(value, float) else max(least, round(share * value))


def method_options(config: TrainConfig) -> dict[str, Any]:
    """Returns the options of the run's method that are not options of TrainConfig, defaults included."""
    kind = METHODS[config.method.name]
    given = parse_options(config.method.options, kind, "method_options")
    return {name: argument.default for name, argument in own_arguments(kind).items()} | given


def differences(paper: TrainConfig, ours: TrainConfig, images: tuple[int, int] | None = None) -> list[str]:
    """Returns a line for every option that is not the paper's.

    Args:
        paper: The paper's run.
        ours: Our run.
        images: The number of training images, and that of the whole training split.
    """
    apart = (*PER_CALL, "seed", "data_dir", "download", "device", "cpu_threads", "train_indices")
    apart += ("method_options", "eval_both_threats")
    in_pixels = ("eps", "step_size", *METHODS[paper.method.name].info.pixel_options)
    lines = []
    if images is not None and images[0] < images[1]:
        lines.append(f"{images[0]:,} of {images[1]:,} training images")
    for name in (name for name in paper.options if name not in apart):
        old, new = paper.get(name), ours.get(name)
        if old != new and not (name == "milestones" and ours.schedule.name != "piecewise"):
            lines.append(f"{name} {_words(name, new, in_pixels)} in place of {_words(name, old, in_pixels)}")
    old_options, new_options = method_options(paper), method_options(ours)
    for name, new in new_options.items():
        if old_options[name] != new:
            old = _words(name, old_options[name], in_pixels)
            lines.append(f"{paper.method.name}'s {name} {_words(name, new, in_pixels)} in place of {old}")
    return lines


def _words(name: str, value: Any, in_pixels: Sequence[str]) -> str:
    if value is None:
        return {"autoattack_examples": "all", "mean": "none", "std": "none"}.get(name, "the default")
    if isinstance(value, tuple):
        return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in value) or "none"
    if isinstance(value, float):
        return format_pixels(value) if name in in_pixels else f"{value:g}"
    return str(value)
