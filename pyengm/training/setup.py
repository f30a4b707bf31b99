"""From options to the parts of a run."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pyengm.data import Batches, ImageData, load, split_validation
from pyengm.errors import ConfigError
from pyengm.methods import METHODS, Examples, Method
from pyengm.models import build, in_fast_layout, layout_of
from pyengm.optim import CLOSURE_OPTIMIZERS, ExampleSGD, knobs_of
from pyengm.training.config import ALL_OPTIMIZERS, TrainConfig
from pyengm.training.options import parse_options, takes
from pyengm.training.schedule import build_schedule


@dataclass
class Parts:
    """What the loop works with. held_out: pictures that choose the best checkpoint, or None."""

    device: torch.device
    batches: Batches
    held_out: ImageData | None
    test: ImageData
    model: nn.Module
    model_options: dict[str, Any]
    method: Method
    optimizer: ExampleSGD
    schedule: torch.optim.lr_scheduler.LambdaLR


def set_up(config: TrainConfig) -> Parts:
    """Builds every part of a resolved configuration. Raises ConfigError or DataError before anything is written."""
    device = pick_device(config.device)
    train, test = load_split(config, "train"), load_split(config, "test")
    held_out = {"val": None, "none": None, "test": test}[config.select]
    if config.select == "val":
        train, held_out = split_validation(train)
    height, width = train.shape[1:]
    if height != width:
        raise ConfigError(f"the models take square pictures, {train.name} has {height}x{width}; give --image-size")
    model_options = {
        "name": config.model,
        "num_classes": train.num_classes,
        "in_channels": train.channels,
        "image_size": height,
        "norm": config.norm_layer,
        "width": config.width,
    }
    torch.manual_seed(config.seed)
    model = in_fast_layout(build(**model_options).to(device), device)
    method = build_method(config)
    optimizer = build_optimizer(config, model, method)
    batches = Batches(
        train,
        config.batch_size,
        device=device,
        seed=config.seed,
        augment=config.augment,
        shuffle=True,
        memory_format=layout_of(model),
    )
    schedule = build_schedule(
        optimizer,
        config.schedule,
        milestones=config.milestones,
        peak=config.peak,
        epochs=config.epochs,
        steps_per_epoch=len(batches),
    )
    method.input_gradients |= optimizer.needs_inputs
    method.prepare(
        Examples(
            train.index,
            train.shape,
            padding=batches.padding,
            batches=len(batches),
            seed=config.seed,
            device=device,
        )
    )
    return Parts(device, batches, held_out, test, model, model_options, method, optimizer, schedule)


def load_split(config: TrainConfig, split: str) -> ImageData:
    """The training or test split that the options name."""
    indices = read_positions(config) if split == "train" and config.indices else None
    return load(
        config.data, split, root=config.root, download=config.download, image_size=config.image_size, indices=indices
    )


def read_positions(config: TrainConfig) -> np.ndarray:
    """The positions in config.indices. Raises ConfigError for a file that holds no whole numbers."""
    path = config.indices
    try:
        return np.load(path) if path.suffix == ".npy" else np.loadtxt(path, dtype=np.int64, ndmin=1)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read whole numbers from {path}: {error}") from error


def pick_device(name: str) -> torch.device:
    """The device of that name. Raises ConfigError where this machine has none such."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def build_method(config: TrainConfig) -> Method:
    """The method with its options. Raises ConfigError for a pair of method and optimiser that cannot work."""
    kind = METHODS[config.method]
    given = {"eps": config.eps, "norm": config.norm, "epochs": config.epochs}
    given |= {"step": config.step, "steps": config.steps, "bn": config.attack_bn}
    options = {name: value for name, value in given.items() if value is not None and takes(kind, name)}
    method = kind(**options, **parse_options(config.method_options or (), kind, "method_options"))
    if config.optimizer in CLOSURE_OPTIMIZERS and (not method.one_pass or method.changes_gradients):
        raise ConfigError(
            f"method {config.method} has its own way of updating the weights, and optimizer {config.optimizer} takes "
            "several batches per update: choose another of the two"
        )
    return method


def build_optimizer(config: TrainConfig, model: nn.Module, method: Method) -> ExampleSGD:
    """The optimiser with its options."""
    kind = ALL_OPTIMIZERS[config.optimizer]
    options = {name: getattr(config, name) for name in knobs_of(kind) if getattr(config, name, None) is not None}
    if "norms" in kind.kept:
        options["norms"] = grad_norms(config, model, method)
    if config.optimizer in CLOSURE_OPTIMIZERS:
        options |= {"buffers": model.buffers(), "seed": config.seed}
    options |= parse_options(config.optimizer_options or (), kind, "optimizer_options")
    return kind(model.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay, **options)


def grad_norms(config: TrainConfig, model: nn.Module, method: Method) -> str:
    """How gradient norms are found. Losses that hold a gradient leave one way under batch norm: a pass per example.

    Warns where "auto" becomes "exact" for that reason, and raises ConfigError for estimates that cannot be right.
    """
    if not method.double_backward or not any(isinstance(module, _BatchNorm) for module in model.modules()):
        return config.grad_norms
    reason = (
        f"the losses of {config.method} hold a gradient, and under batch norm {config.optimizer} then takes one "
        "backward pass per example (--norm-layer gn, or --optimizer msgd, mgnc or sngm, are fast)"
    )
    if config.grad_norms not in ("auto", "exact"):
        raise ConfigError(f"grad_norms is {config.grad_norms!r}; {reason}: use exact or auto")
    warnings.warn(reason, stacklevel=2)
    return "exact"
