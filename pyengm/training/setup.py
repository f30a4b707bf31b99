"""From options to the parts of a run."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from pyengm.data import Batches, ImageData, load, split_validation
from pyengm.errors import ConfigError
from pyengm.methods import METHODS, PGDAT, Method
from pyengm.models import build
from pyengm.optim import OPTIMIZERS, ExampleSGD, knobs_of
from pyengm.training.config import TrainConfig
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
    model = build(**model_options).to(device)
    optimizer = build_optimizer(config, model)
    batches = Batches(train, config.batch_size, device=device, seed=config.seed, augment=config.augment, shuffle=True)
    schedule = build_schedule(optimizer, config.schedule, config.milestones, config.epochs, len(batches))
    method = build_method(config)
    method.input_gradients = optimizer.needs_inputs
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
    method = METHODS[config.method]
    if method is PGDAT:
        return PGDAT(config.eps, config.step, config.steps, norm=config.norm, bn=config.attack_bn)
    return method()


def build_optimizer(config: TrainConfig, model: nn.Module) -> ExampleSGD:
    kind = OPTIMIZERS[config.optimizer]
    options = {name: getattr(config, name) for name in knobs_of(kind) if getattr(config, name, None) is not None}
    if "norms" in kind.kept:
        options["norms"] = config.grad_norms
    return kind(model.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay, **options)
