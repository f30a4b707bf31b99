"""What a row of a table is trained with at each scale, and how that differs from the paper, in words.

full    the row as it is
short   10,000 training images, fewer epochs, AutoAttack on 1,000 images: some minutes on a GPU
smoke   the embedded digits and their recipe with the row's method and optimiser: seconds to minutes on a CPU
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyengm.data import ImageDataset
from pyengm.methods import METHODS
from pyengm.reproduce.flops import epoch_flops
from pyengm.training import TrainConfig
from pyengm.training.config import PER_CALL
from pyengm.training.option_parsing import BY_NAME, defaults_for, parse_options
from pyengm.training.option_types import parse_number
from pyengm.training.recipes import BOUNDS, recipe_for
from pyengm.training.schedule import scale_milestones

SCALES = ("smoke", "short", "full")
SHORT_IMAGES = 10_000
SHORT_AUTOATTACK = 1_000
SHORT_FLOPS = 1.5e16  # of the training of a row: 150 seconds at 100 teraflops
SMOKE_DATA = "digits"
LARGEST_FRACTION = 32  # of 255, in words

# What the recipe of the digits decides in a smoke run; of the options of methods also those that it sets, KNOBS apart.
# eps, step and BOUNDS keep their size in units of the usual radius. Every other option of a row stays.
OF_THE_RECIPE = (
    *("data", "data_dir", "download", "image_size", "train_indices", "augment", "model", "width", "norm_layer"),
    *("mean", "std"),
    *("lr", "weight_decay", "batch_size", "epochs", "schedule", "milestones", "pct_start", "autoattack_examples"),
    *("precision", "cuda_graphs", "compile", "cpu_threads", "method_options"),
)
KNOBS = (*BOUNDS, "weight")
# Counted in epochs: options of runs, milestones apart, those of methods, and of all the ones that may come down to 0.
IN_EPOCHS = ("warmup_epochs", "swa_start", "patience")
METHOD_IN_EPOCHS = ("warmup", "reset", "fgsm_epochs", "decay_epochs", "patience", "sampling_epochs")
MAY_BE_ZERO = ("warmup", "fgsm_epochs", "swa_start", "from_epoch")


def full(options: Mapping[str, Any], where: str) -> TrainConfig:
    """The row's own run."""
    return TrainConfig.from_plain(options, where).resolve()


def short(paper: TrainConfig, train: ImageDataset, indices: Path) -> TrainConfig:
    """The row on fewer images for fewer epochs, so many that a row takes about as long as any other.

    paper: as `full` gives it. train: its training split. indices: the file of `short_positions(len(train))`.
    """
    images = min(SHORT_IMAGES, len(train))
    held_out = {"val": images // 10, "none": 0, "test": images}[
        paper.evaluation.select_on
    ]  # test sets have about as many
    affordable = SHORT_FLOPS / epoch_flops(paper, train, images, held_out)
    epochs = min(paper.schedule.epochs, max(2, int(affordable)))
    return paper.override(
        train_indices=indices,
        epochs=epochs,
        autoattack_examples=min(SHORT_AUTOATTACK, paper.evaluation.autoattack_examples or SHORT_AUTOATTACK),
        precision="bf16" if paper.machine.precision == "float32" else paper.machine.precision,
        **shorter(paper, epochs),
    ).resolve()


def short_positions(length: int) -> list[int]:
    """The positions of the training split that a short run has, evenly spread over it."""
    count = min(SHORT_IMAGES, length)
    return [i * length // count for i in range(count)]


def smoke(options: Mapping[str, Any], paper: TrainConfig) -> TrainConfig:
    """The row's method and optimiser on the digits. options: those of the row; paper: as `full` gives it."""
    recipe = recipe_for(SMOKE_DATA, paper.method.name, paper.attack.threat)
    epochs = min(recipe["epochs"], paper.schedule.epochs)
    larger = recipe["radii"][paper.attack.threat] / recipe_for(paper.data.name)["radii"][paper.attack.threat]
    kept = {name: paper.get(name) for name in options if name not in OF_THE_RECIPE}
    kept |= {name: larger * kept[name] for name in ("eps", "step_size") if kept.get(name) is not None}
    changes = shorter(paper, epochs)
    changes.pop("milestones")  # the digits' schedule has none
    set_by_recipe = [word.partition("=")[0] for word in recipe["method_options"]]
    words = []
    for name, equals, value in (word.partition("=") for word in changes.pop("method_options")):
        if name in BOUNDS:
            words.append(f"{name}={larger * parse_number(value):g}")
        elif name != "resolution" and (name in KNOBS or name not in set_by_recipe):
            words.append(name + equals + value)
    kept |= changes | {"method_options": tuple(words)}
    return TrainConfig.from_flat(data=SMOKE_DATA, epochs=epochs, **kept).resolve()


def shorter(paper: TrainConfig, epochs: int) -> dict[str, Any]:
    """Every option of a run that is counted in epochs, in proportion to their number."""
    share = epochs / paper.schedule.epochs
    changes: dict[str, Any] = {
        "milestones": scale_milestones(paper.schedule.milestones, share),
        "method_options": _shorter_method(paper, share, epochs),
        "optimizer_options": _shorter_optimizer(paper.optimizer.options, share, epochs),
    }
    for name in IN_EPOCHS:
        if paper.get(name):
            changes[name] = _shorter(name, paper.get(name), share)
    return changes


def _shorter_method(paper: TrainConfig, share: float, epochs: int) -> tuple[str, ...]:
    """The method's options, where those that are counted in epochs are given even if the row leaves the default."""
    words = {word.partition("=")[0]: word for word in paper.method.options}
    for name, value in method_options(paper).items():
        if name in METHOD_IN_EPOCHS and value is not None and share != 1:
            value = _shorter(name, value, share)
            words[name] = f"{name}={min(value, epochs - 1) if name == 'sampling' else value:g}"
    return tuple(words.values())


def _shorter_optimizer(words: Sequence[str], share: float, epochs: int) -> tuple[str, ...]:
    """The optimiser's options; the span of epochs that they name keeps at least one."""
    options = dict(word.split("=", 1) for word in words if word.lower() != "until_epoch=none")
    first = min(_shorter("from_epoch", int(options.get("from_epoch", 0)), share), epochs - 1)
    if "from_epoch" in options:
        options["from_epoch"] = str(first)
    if "until_epoch" in options:
        options["until_epoch"] = str(max(_shorter("until_epoch", int(options["until_epoch"]), share), first + 1))
    return tuple(f"{name}={value}" for name, value in options.items())


def _shorter(name: str, value: float, share: float) -> float:
    if isinstance(value, float):
        return share * value
    return max(0 if name in MAY_BE_ZERO else 1, round(share * value))


def method_options(config: TrainConfig) -> dict[str, Any]:
    """The options of the run's method that have none of their own in TrainConfig, with its defaults."""
    kind = METHODS[config.method.name]
    given = parse_options(config.method.options, kind, "method_options")
    return {name: value for name, value in (defaults_for(kind) | given).items() if name not in BY_NAME}


def differences(paper: TrainConfig, ours: TrainConfig, images: tuple[int, int] | None = None) -> list[str]:
    """A line for every option that is not the paper's. images: how many training images, of how many."""
    apart = (*PER_CALL, "seed", "data_dir", "download", "device", "cpu_threads", "train_indices")
    apart += ("method_options", "eval_both_threats")
    lines = []
    if images is not None and images[0] < images[1]:
        lines.append(f"{images[0]:,} of {images[1]:,} training images")
    for name in (name for name in paper.options if name not in apart):
        old, new = paper.get(name), ours.get(name)
        if old != new and not (name == "milestones" and ours.schedule.name != "piecewise"):
            lines.append(f"{name} {_words(name, new)} in place of {_words(name, old)}")
    old_options, new_options = method_options(paper), method_options(ours)
    for name, new in new_options.items():
        if old_options[name] != new:
            lines.append(
                f"{paper.method.name}'s {name} {_words(name, new)} in place of {_words(name, old_options[name])}"
            )
    return lines


def _words(name: str, value: Any) -> str:
    if value is None:
        return {"autoattack_examples": "all", "mean": "none", "std": "none"}.get(name, "the default")
    if isinstance(value, tuple):
        return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in value) or "none"
    steps = 255 * value if isinstance(value, float) and name in ("eps", "step_size", *BOUNDS) else None
    if steps is not None and abs(steps - round(steps)) < 1e-9 and steps <= LARGEST_FRACTION:
        return f"{round(steps)}/255"
    return f"{value:g}" if isinstance(value, float) else str(value)
