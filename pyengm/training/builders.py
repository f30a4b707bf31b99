"""From options to the parts of a run."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pyengm.data import DATASETS, ImageDataset, Loader, load, margin_for, split_validation
from pyengm.errors import ConfigError
from pyengm.methods import METHODS, DatasetSpec, Method
from pyengm.models import build, memory_format_of, to_fast_memory_format
from pyengm.optim import CLOSURE_OPTIMIZERS, PerExampleSGD, hyperparameters_of
from pyengm.training.averaging import Averaging, build_averaging
from pyengm.training.config import PGD_METHODS, TrainConfig
from pyengm.training.config_groups import ALL_OPTIMIZERS
from pyengm.training.launcher import local_device
from pyengm.training.loggers import logger_factory
from pyengm.training.option_parsing import parse_options, takes
from pyengm.training.precision import in_precision, scaler_for
from pyengm.training.recipes import LARGE, LARGE_RECIPES
from pyengm.training.schedule import build_schedule
from pyengm.training.steps import Step, build_runner, build_step
from pyengm.utils.distributed import rank, world_size


@dataclass
class TrainComponents:
    """What the loop works with.

    held_out: images that choose the best checkpoint, or None. network: the model as training steps run it, in mixed
    precision say; its parameters are the model's. scaler: of the losses in fp16, else None. step: updates the
    weights. averaging: holds the model that is evaluated and saved.
    """

    device: torch.device
    batches: Loader
    held_out: ImageDataset | None
    test: ImageDataset
    model: nn.Module
    model_options: dict[str, Any]
    network: nn.Module
    method: Method
    optimizer: PerExampleSGD
    schedule: torch.optim.lr_scheduler.LambdaLR
    scaler: torch.amp.GradScaler | None
    step: Step
    averaging: Averaging


def build_components(config: TrainConfig) -> TrainComponents:
    """Builds every part of a resolved configuration. Raises ConfigError or DataError before anything is written."""
    device = local_device(pick_device(config.machine.device))
    for name in config.run.loggers:
        logger_factory(name)
    train, test = load_split(config, "train"), load_split(config, "test")
    held_out = {"val": None, "none": None, "test": test}[config.evaluation.select_on]
    if config.evaluation.select_on == "val":
        train, held_out = split_validation(train)
    check_recipe(config, train)
    height, width = train.shape[1:]
    if height != width:
        raise ConfigError(f"the models take square images, {train.name} has {height}x{width}; give --image-size")
    side = config.data.image_size or height  # training images are larger than that where crops are cut from them
    if config.evaluation.select_on == "val":
        held_out = held_out.center_crop(side)
    model_options = {
        "name": config.model.name,
        "num_classes": train.num_classes,
        "in_channels": train.channels,
        "image_size": side,
        "norm_layer": config.model.norm_layer,
        "width": config.model.width,
        "mean": config.model.mean,
        "std": config.model.std,
    }
    torch.manual_seed(config.run.seed)
    half = config.machine.precision != "float32"
    model = to_fast_memory_format(with_shared_statistics(config, build(**model_options).to(device)), device, half=half)
    torch.manual_seed(config.run.seed + rank())  # dropout, say, is to differ between processes
    network = in_precision(model, config.machine.precision)
    method = build_method(config)
    speed_up(config, method, network, device)
    optimizer = build_optimizer(config, model, method)
    batches = Loader(
        train,
        config.schedule.batch_size,
        device=device,
        seed=config.run.seed,
        augment=config.data.augment,
        crop=(side, side) if config.data.augment == "resized" else None,
        shuffle=True,
        memory_format=memory_format_of(model),
        rank=rank(),
        world_size=world_size(),
    )
    schedule = build_schedule(
        optimizer,
        config.schedule.name,
        milestones=config.schedule.milestones,
        pct_start=config.schedule.pct_start,
        epochs=config.schedule.epochs,
        steps_per_epoch=len(batches),
        decay=config.schedule.lr_decay,
        warmup_epochs=config.schedule.warmup_epochs,
    )
    method.needs_input_grad |= optimizer.needs_inputs
    method.prepare(
        DatasetSpec(
            batches.local_index(0),
            batches.shape,
            padding=batches.padding,
            batches=len(batches),
            seed=config.run.seed,
            device=device,
        )
    )
    scaler = scaler_for(config.machine.precision, device)
    capture_size = part_size(config) if config.machine.cuda_graphs else None
    step = build_step(method, model, optimizer, network=network, scaler=scaler, capture_size=capture_size)
    for name in ("warmup", "fgsm_epochs"):
        if getattr(method, name, 0) >= config.schedule.epochs:
            warnings.warn(
                f"{name} is {getattr(method, name)} of {config.schedule.epochs} epochs: {config.method.name} will not "
                f"get beyond it; give --method-options {name}=...",
                stacklevel=2,
            )
    return TrainComponents(
        device,
        batches,
        held_out,
        test,
        model,
        model_options,
        network,
        method,
        optimizer,
        schedule,
        scaler,
        step,
        build_averaging(config.weights.average, model, decay=config.weights.ema_decay, start=config.weights.swa_start),
    )


def with_shared_statistics(config: TrainConfig, model: nn.Module) -> nn.Module:
    """The model with batch norm over all processes, where the options ask for it.

    Raises ConfigError on a CPU, and for optimisers whose per-example norms would miss the examples of other processes.
    """
    if not config.machine.sync_bn or world_size() == 1:
        return model
    if next(model.parameters()).device.type != "cuda":
        raise ConfigError("sync_bn needs GPUs: torch has batch norm over several processes on these alone")
    if "norms" in ALL_OPTIMIZERS[config.optimizer.name].stateful_attributes:
        raise ConfigError(
            f"sync_bn couples the examples of all processes, and the gradient norms of {config.optimizer.name} reach "
            "only those of one: leave it out, use --norm-layer gn, or another optimizer (msgd, mgnc, sngm, nengm)"
        )
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def part_size(config: TrainConfig) -> int:
    """Images of a batch that this process has."""
    least, more = divmod(config.schedule.batch_size, world_size())
    return least + (rank() < more)


def speed_up(config: TrainConfig, method: Method, network: nn.Module, device: torch.device) -> None:
    """Compiles the network for the method's attack, and has the attack captured in a CUDA graph, as the options say.

    Raises ConfigError for options that would change nothing.
    """
    served = config.method.name in PGD_METHODS and not getattr(method, "adaptive", False)
    for name in ("compile", "cuda_graphs"):
        if getattr(config.machine, name) and not served:
            raise ConfigError(
                f"{name} is for attacks that are PGD alone, as of {', '.join(PGD_METHODS)}; "
                f"{config.method.name} has none"
            )
    if config.machine.cuda_graphs and device.type != "cuda":
        raise ConfigError(f"cuda_graphs needs a CUDA device; the training is to run on {device}")
    if config.machine.compile or config.machine.cuda_graphs:
        capture_size = part_size(config) if config.machine.cuda_graphs else None
        attack = getattr(method, "base", method).attack
        attack.runner = build_runner(network, compile_model=config.machine.compile, capture_size=capture_size)


def check_recipe(config: TrainConfig, data: ImageDataset) -> None:
    """Raises ConfigError for large images whose size no option tells, where a method has a recipe for them."""
    if config.method.name in LARGE_RECIPES and config.data.image_size is None and data.image_size >= LARGE:
        raise ConfigError(
            f"the images of {data.name} have {data.image_size} pixels, and {config.method.name} has a recipe for large "
            f"ones: give --image-size {data.image_size}, from which it is known"
        )


def load_split(config: TrainConfig, split: str) -> ImageDataset:
    """The training or test split that the options name. Training images for resized crops are larger than these."""
    options = {"root": config.data.data_dir, "download": config.data.download, "image_size": config.data.image_size}
    if split == "train":
        options["indices"] = read_positions(config) if config.data.train_indices else None
        if config.data.augment == "resized" and config.data.image_size is not None and config.data.name not in DATASETS:
            options["margin"] = margin_for(config.data.image_size)
    return load(config.data.name, split, **options)


def read_positions(config: TrainConfig) -> np.ndarray:
    """The positions in config.indices. Raises ConfigError for a file that holds no whole numbers."""
    path = config.data.train_indices
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
    kind = METHODS[config.method.name]
    given = {"eps": config.attack.eps, "norm": config.attack.threat, "epochs": config.schedule.epochs}
    given |= {"step_size": config.attack.step_size, "steps": config.attack.steps, "bn": config.attack.bn}
    options = {name: value for name, value in given.items() if value is not None and takes(kind, name)}
    method = kind(**options, **parse_options(config.method.options, kind, "method_options"))
    method.label_smoothing = config.method.label_smoothing
    if config.evaluation.patience is not None and method.restart_epoch is not None:
        raise ConfigError(
            f"patience counts epochs that are no better than the best, and {config.method.name} begins anew at epoch "
            f"{method.restart_epoch}: leave patience out"
        )
    if config.optimizer.name in CLOSURE_OPTIMIZERS and (not method.single_pass or method.modifies_grads):
        raise ConfigError(
            f"method {config.method.name} has its own way of updating the weights, and optimizer "
            f"{config.optimizer.name} takes several batches per update: choose another of the two"
        )
    return method


def build_optimizer(config: TrainConfig, model: nn.Module, method: Method) -> PerExampleSGD:
    """The optimiser with its options."""
    kind = ALL_OPTIMIZERS[config.optimizer.name]
    given = {name: getattr(config.optimizer, name, None) for name in hyperparameters_of(kind)}
    options = {name: value for name, value in given.items() if value is not None}
    if "norms" in kind.stateful_attributes:
        options["norms"] = grad_norms(config, model, method)
    if config.optimizer.name in CLOSURE_OPTIMIZERS:
        options |= {"buffers": model.buffers(), "seed": config.run.seed}
    options |= parse_options(config.optimizer.options, kind, "optimizer_options")
    if options.get("from_epoch", 0) >= config.schedule.epochs:
        raise ConfigError(
            f"from_epoch is {options['from_epoch']} of {config.schedule.epochs} epochs, counted from 0, so "
            f"{config.optimizer.name} would never begin: give it a smaller one, or more epochs"
        )
    return kind(
        model.parameters(),
        config.optimizer.lr,
        config.optimizer.momentum,
        weight_decay=config.optimizer.weight_decay,
        **options,
    )


def grad_norms(config: TrainConfig, model: nn.Module, method: Method) -> str:
    """How gradient norms are found. Losses that hold a gradient leave one way under batch norm: a pass per example.

    Warns where "auto" becomes "exact" for that reason, and raises ConfigError for estimates that cannot be right.
    """
    if not method.double_backward or not any(isinstance(module, _BatchNorm) for module in model.modules()):
        return config.optimizer.norms
    reason = (
        f"the losses of {config.method.name} hold a gradient, and under batch norm {config.optimizer.name} then takes "
        "one backward pass per example (--norm-layer gn, or --optimizer msgd, mgnc or sngm, are fast)"
    )
    if config.optimizer.norms not in ("auto", "exact"):
        raise ConfigError(f"norms is {config.optimizer.norms!r}; {reason}: use exact or auto")
    warnings.warn(reason, stacklevel=2)
    return "exact"
