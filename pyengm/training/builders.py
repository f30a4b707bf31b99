"""Builds the components of a run from its options."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pyengm.data import (
    DATASETS,
    ImageDataset,
    Loader,
    data_root,
    load,
    load_extra,
    load_from_user,
    margin_for,
    split_validation,
    user_data,
)
from pyengm.errors import ConfigError
from pyengm.methods import (
    EXAMPLE_WEIGHTS,
    METHODS,
    SAM,
    AttackMethod,
    DatasetSpec,
    LogsInstances,
    Method,
    MovedWeights,
    Reweighted,
)
from pyengm.methods.awp import pgd_of
from pyengm.models import build, load_weights, memory_format_of, to_fast_memory_format
from pyengm.optim import CLOSURE_OPTIMIZERS, PerExampleSGD, hyperparameters_of
from pyengm.training.averaging import Averaging, build_averaging
from pyengm.training.config import TrainConfig
from pyengm.training.config_groups import ALL_OPTIMIZERS
from pyengm.training.image_checks import check_test_images
from pyengm.training.launcher import local_device
from pyengm.training.loggers import logger_factory
from pyengm.training.option_parsing import parse_options, takes
from pyengm.training.precision import in_precision, scaler_for
from pyengm.training.recipes import LARGE
from pyengm.training.resolutions import check_model, parse_resolutions
from pyengm.training.schedule import build_schedule
from pyengm.training.steps import Step, build_runner, build_step
from pyengm.utils.device import pick_device
from pyengm.utils.distributed import rank, world_size
from pyengm.utils.memory import memory_errors


@dataclass
class TrainComponents:
    """The components of a run, which the training loop works with.

    Attributes:
        device: The device of this process.
        batches: The training images, in batches on the device.
        held_out: The images that select the best checkpoint, None without selection.
        test: The test images.
        model: The model that is trained.
        model_options: The arguments of `pyengm.models.build` that made it.
        network: The model as training steps run it, in mixed precision for instance. It shares the parameters.
        method: Computes the per-example losses of a batch.
        optimizer: Has all parameters of the model.
        schedule: The learning rate, stepped after every batch.
        scaler: Scales the losses in fp16, None in other precisions.
        step: Updates the weights from the batches of one update.
        averaging: Has the model that is evaluated and saved.
        probe: The images whose gradients are measured after each epoch, None where they are not.
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
    probe: ImageDataset | None


def build_components(config: TrainConfig) -> TrainComponents:
    """Builds the components of a run. Nothing is written.

    Args:
        config: Resolved options.

    Raises:
        ConfigError: For options that do not fit together, the data or the machine.
        DataError: For data that cannot be read.
    """
    device = local_device(pick_device(config.machine.device))
    for name in config.run.loggers:
        logger_factory(name)
    train, held_out, test, side = load_images(config)
    options = model_options(config, train, side)
    torch.manual_seed(config.run.seed)
    model = build_model(config, options, device)
    torch.manual_seed(config.run.seed + rank())  # dropout, for instance, differs between processes
    network = in_precision(model, config.machine.precision)
    method = build_method(config)
    set_attack_runner(config, method, network, device)
    optimizer = build_optimizer(config, model, method)
    check_model(model, (train.channels, side, side), config.data.resolutions)
    batches = build_loader(config, train, side, model, device)
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
    prepare_method(config, method, optimizer, batches, train.num_classes)
    scaler = scaler_for(config.machine.precision, device)
    capture_size = local_batch_size(config) if config.machine.cuda_graphs else None
    return TrainComponents(
        device=device,
        batches=batches,
        held_out=held_out,
        test=test,
        model=model,
        model_options=options,
        network=network,
        method=method,
        optimizer=optimizer,
        schedule=schedule,
        scaler=scaler,
        step=build_step(method, model, optimizer, network=network, scaler=scaler, capture_size=capture_size),
        averaging=build_averaging(
            config.weights.average, model, decay=config.weights.ema_decay, start=config.weights.swa_start
        ),
        probe=None if config.record.probe is None else probe_images(train, config.record.probe, side),
    )


def probe_images(train: ImageDataset, images: int, side: int) -> ImageDataset:
    """The images of the probe: spread evenly over the training images, and never augmented.

    Args:
        train: The training images.
        images: The number of images of the probe.
        side: The height and width that the model takes, of which the middle is shown.

    Raises:
        ConfigError: There are fewer training images.
    """
    if images > len(train):
        raise ConfigError(f"probe is {images}; expected at most {len(train)}, the number of training images")
    return train.subset(torch.arange(images) * len(train) // images).center_crop(side)


def load_images(config: TrainConfig) -> tuple[ImageDataset, ImageDataset | None, ImageDataset, int]:
    """Loads the training, held-out and test images, and determines the height and width that the model takes.

    Training images are larger than that where crops are cut from them. Raises ConfigError and DataError.
    """
    train, test = load_splits(config)
    held_out = test if config.evaluation.select_on == "test" else None
    if config.evaluation.select_on == "val":
        train, held_out = split_validation(train)
    check_recipe(config, train)
    height, width = train.shape[1:]
    if height != width:
        raise ConfigError(f"the models take square images, {train.name} has {height}x{width}; give --image-size")
    side = config.data.image_size or height
    check_test_images(config, train, test, side)
    if config.evaluation.select_on == "val" and held_out is not None:
        held_out = held_out.center_crop(side)
    return train, held_out, test, side


def model_options(config: TrainConfig, train: ImageDataset, side: int) -> dict[str, Any]:
    """The arguments of `pyengm.models.build`."""
    return {
        "name": config.model.name,
        "num_classes": train.num_classes,
        "in_channels": train.channels,
        "image_size": side,
        "norm_layer": config.model.norm_layer,
        "width": config.model.width,
        "mean": config.model.mean,
        "std": config.model.std,
    }


def build_model(config: TrainConfig, options: dict[str, Any], device: torch.device) -> nn.Module:
    """The model on the device, in the memory format that is fast there, with the weights of `init`.

    Raises ConfigError, also where the memory is too small, and CheckpointError for weights that do not fit.
    """
    with memory_errors("give a smaller --width or --image-size"):
        model = build(**options).to(device)
    if config.model.init is not None and not config.run.resume:
        load_weights(model, config.model.init)
    model = with_shared_statistics(config, model)
    return to_fast_memory_format(model, device, half=config.machine.precision != "float32")


def build_loader(config: TrainConfig, train: ImageDataset, side: int, model: nn.Module, device: torch.device) -> Loader:
    """The loader of the training images of this process, and of the extra ones.

    Raises ConfigError and DataError, also for extra images that do not fit the others.
    """
    extra = config.data.extra_data
    return Loader(
        train,
        config.schedule.batch_size,
        device=device,
        seed=config.run.seed,
        augment=config.data.augment,
        crop=(side, side) if config.data.augment == "resized" else None,
        shuffle=True,
        memory_format=memory_format_of(model),
        resolutions=parse_resolutions(config.data.resolutions),
        cutout=config.data.cutout,
        cutmix=config.data.cutmix,
        extra=None if extra is None else load_extra(extra, train),
        extra_fraction=config.data.extra_fraction,
        rank=rank(),
        world_size=world_size(),
    )


def prepare_method(
    config: TrainConfig, method: Method, optimizer: PerExampleSGD, batches: Loader, classes: int
) -> None:
    """Gives the method the training images and the needs of the optimiser; warns of phases that fill the run.

    Raises ConfigError where several processes would each have to know what the method keeps for all images.
    """
    method.needs_input_grad |= optimizer.info.needs_inputs
    dataset = DatasetSpec(
        batches.local_index(0),
        batches.shape,
        padding=batches.padding,
        batches=len(batches),
        seed=config.run.seed,
        device=batches.device,
        classes=classes,
    )
    method.prepare(dataset)
    method = plain_method(method)
    check_mixed_labels(config, method)
    if config.data.resolutions and method.buffers():
        raise ConfigError(
            f"resolutions are for methods that keep nothing for each image, and {config.method.name} keeps "
            f"{', '.join(method.buffers())} at the full size: leave resolutions out"
        )
    if config.record.instance_log and isinstance(method, LogsInstances):  # `resolve` refuses it for other methods
        method.log_instances(dataset)
    if batches.mixture is not None and world_size() > 1 and method.buffers():
        raise ConfigError(
            f"extra_data gives a process other images in every epoch, and {', '.join(method.buffers())} of "
            f"{config.method.name} is kept for each image where it was: train in one process, or without extra_data"
        )
    for name in ("warmup", "fgsm_epochs"):
        if getattr(method, name, 0) >= config.schedule.epochs:
            warnings.warn(
                f"{name} is {getattr(method, name)} of {config.schedule.epochs} epochs: {config.method.name} will not "
                f"get beyond it; give --method-options {name}=...",
                stacklevel=3,
            )


def check_mixed_labels(config: TrainConfig, method: Method) -> None:
    """Raises ConfigError for CutMix with methods that need whole images of one class."""
    kept = f"it keeps {', '.join(method.buffers())} for each image" if method.buffers() else ""
    reason = method.info.own_labels or method.info.needs_class or kept
    if config.data.cutmix and reason:
        raise ConfigError(
            f"cutmix is {config.data.cutmix:g}, whose images show two classes, and {config.method.name} cannot take "
            f"them: {reason}; leave cutmix out"
        )


def with_shared_statistics(config: TrainConfig, model: nn.Module) -> nn.Module:
    """The model, with batch norm over all processes if the options enable it.

    Raises ConfigError on a CPU, and for optimisers whose per-example norms would miss the examples of other processes.
    """
    if not config.machine.sync_bn:
        return model
    if next(model.parameters()).device.type != "cuda":
        raise ConfigError("sync_bn needs GPUs: torch supports batch norm over several processes only there")
    if world_size() == 1:  # the statistics of this process are those of all
        return model
    if "norms" in ALL_OPTIMIZERS[config.optimizer.name].stateful_attributes:
        raise ConfigError(
            f"under sync_bn the examples of all processes are not independent, and the gradient norms of "
            f"{config.optimizer.name} cover only those of one process: leave it out, use --norm-layer gn, or another "
            "optimizer (msgd, mgnc, sngm, nengm)"
        )
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def local_batch_size(config: TrainConfig) -> int:
    """The number of images of a full batch that this process has."""
    least, remainder = divmod(config.schedule.batch_size, world_size())
    return least + (rank() < remainder)


def set_attack_runner(config: TrainConfig, method: Method, network: nn.Module, device: torch.device) -> None:
    """Gives the attack of the method the runner that the options name: compiled, or captured in a CUDA graph.

    Raises ConfigError for options that would have no effect.
    """
    attack = pgd_of(plain_method(method))
    for name in ("compile", "cuda_graphs"):
        if getattr(config.machine, name) and attack is None:
            pgd_methods = ", ".join(name for name, kind in METHODS.items() if kind.info.is_pgd)
            raise ConfigError(
                f"{name} is for attacks that are PGD alone, as of {pgd_methods}; {config.method.name} has none"
            )
    if config.machine.cuda_graphs and device.type != "cuda":
        raise ConfigError(f"cuda_graphs needs a CUDA device; the training is to run on {device}")
    if attack is not None and (config.machine.compile or config.machine.cuda_graphs):
        capture_size = local_batch_size(config) if config.machine.cuda_graphs else None
        attack.runner = build_runner(network, compile_model=config.machine.compile, capture_size=capture_size)


def plain_method(method: Method) -> Method:
    """The method without the weights of examples, and without SAM."""
    while isinstance(method, (Reweighted, SAM)):
        method = method.base
    return method


def check_recipe(config: TrainConfig, data: ImageDataset) -> None:
    """Raises ConfigError for large images whose size is not among the options, where a method has a recipe for them."""
    if METHODS[config.method.name].info.large_recipe and config.data.image_size is None and data.image_size >= LARGE:
        raise ConfigError(
            f"the images of {data.name} have {data.image_size} pixels, and {config.method.name} has a recipe for large "
            f"ones: give --image-size {data.image_size}, from which it is known"
        )


def load_splits(config: TrainConfig) -> tuple[ImageDataset, ImageDataset]:
    """Loads the training and test images; a function of the user, which makes both, is called once."""
    data = config.data
    if user_data(data.name) is None:
        return load_split(config, "train"), load_split(config, "test")
    size = data.image_size
    train, test = load_from_user(data.name, data_root(data.data_dir), download=data.download, image_size=size)
    return train if data.train_indices is None else train.subset(read_indices(data.train_indices)), test


def load_split(config: TrainConfig, split: str) -> ImageDataset:
    """Loads the images that the options name.

    Args:
        config: Resolved options.
        split: "train" or "test". Training images for resized crops are larger than test images.

    Raises:
        ConfigError: For an unreadable file of indices.
        DataError: For data that cannot be read.
    """
    data = config.data
    options: dict[str, Any] = {"root": data.data_dir, "download": data.download, "image_size": data.image_size}
    if split == "train":
        options["indices"] = None if data.train_indices is None else read_indices(data.train_indices)
        if data.augment == "resized" and data.image_size is not None and data.name not in DATASETS:
            options["margin"] = margin_for(data.image_size)
    return load(data.name, split, **options)


def read_indices(path: Path) -> np.ndarray:
    """The integers in a .npy file or a text file. Raises ConfigError where the file cannot be read as such."""
    try:
        return np.load(path) if path.suffix == ".npy" else np.loadtxt(path, dtype=np.int64, ndmin=1)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read whole numbers from {path}: {error}") from error


def build_method(config: TrainConfig) -> Method:
    """The method with its options. Raises ConfigError for options, and an optimiser, that do not fit the method."""
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
    if config.optimizer.name in CLOSURE_OPTIMIZERS and (not method.single_pass or method.info.modifies_grads):
        raise ConfigError(
            f"method {config.method.name} has its own way of updating the weights, and optimizer "
            f"{config.optimizer.name} takes several batches per update: choose another of the two"
        )
    return with_example_weights(config, with_sam(config, method))


def with_sam(config: TrainConfig, method: Method) -> Method:
    """The method at the weights that sharpness-aware minimization moves. Raises ConfigError where it has no attack."""
    if config.optimizer.sam_rho is None:
        return method
    if not isinstance(method, AttackMethod) or isinstance(method, MovedWeights):
        able = [name for name, kind in METHODS.items() if issubclass(kind, AttackMethod)]
        able = [name for name in able if not issubclass(METHODS[name], MovedWeights)]
        raise ConfigError(
            f"sam_rho is for methods that are an attack and then losses, and do not move weights themselves: "
            f"{', '.join(able)}; {config.method.name} is none"
        )
    return SAM(method, config.optimizer.sam_rho)


def with_example_weights(config: TrainConfig, method: Method) -> Method:
    """The method with the weights of examples that the options name. Raises ConfigError where they do not fit it."""
    if config.method.example_weights == "none":
        return method
    kind = EXAMPLE_WEIGHTS[config.method.example_weights]
    options = parse_options(config.method.weight_options, kind, "weight_options")
    return Reweighted(method, kind(epochs=config.schedule.epochs, **options))


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
    """How gradient norms are computed. Losses that contain a gradient need a pass per example under batch norm.

    Warns where "auto" becomes "exact" for that reason, and raises ConfigError for estimates, which would be wrong.
    """
    if not method.info.double_backward or not any(isinstance(module, _BatchNorm) for module in model.modules()):
        return config.optimizer.norms
    reason = (
        f"the losses of {config.method.name} contain a gradient, and under batch norm {config.optimizer.name} then "
        "takes one backward pass per example (--norm-layer gn, or --optimizer msgd, mgnc or sngm, are fast)"
    )
    if config.optimizer.norms not in ("auto", "exact"):
        raise ConfigError(f"norms is {config.optimizer.norms!r}; {reason}: use exact or auto")
    warnings.warn(reason, stacklevel=2)
    return "exact"
