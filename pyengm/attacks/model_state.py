"""The state of a model during an attack: frozen parameters, and batch norm in an explicit mode."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from pyengm.attacks.fused_batch_norm import affine_batch_norm
from pyengm.attacks.logits import Model
from pyengm.errors import ConfigError, ModelError

BN_MODES = ("eval", "train", "batch_stats")


def check_bn_mode(bn: str) -> None:
    """Checks the name of a batch-norm mode.

    Raises:
        ConfigError: bn is not one of BN_MODES.
    """
    if bn not in BN_MODES:
        raise ConfigError(f"batch-norm mode is {bn!r}; known modes: {', '.join(BN_MODES)}")


@contextmanager
def attack_mode(model: Model, bn: str) -> Iterator[None]:
    """Context in which the parameters of a model are frozen and all of its modules are in one mode.

    No weight gradient is computed within. Linear layers then store no input for one either; torch's convolutions still
    store theirs. The mode applies to all modules, also to norm layers that were in evaluation mode on their own.
    Everything is restored on leaving, after an error too. Within, gradients can be computed also in inference mode.

    Args:
        model: the model under attack. A function that is no method of a module is run as it is: the modules that it
            calls keep the mode that they are in.
        bn: "eval" (running statistics), "train" (statistics of the batch; each forward pass updates the running ones)
            or "batch_stats" (statistics of the batch; the running ones are unchanged).

    Raises:
        ConfigError: the mode is unknown, or is not "eval" for a function.
        ModelError: the model was made in inference mode.
    """
    check_bn_mode(bn)
    module = module_of(model)
    if module is None:
        if bn != "eval":
            raise ConfigError(f"bn={bn!r} is for models that are torch.nn.Module; this one is a {type(model).__name__}")
        with torch.inference_mode(False):
            yield
        return
    first = next(chain(module.parameters(), module.buffers()), None)  # a scan of all takes as long as a small model
    if first is not None and first.is_inference():
        raise ModelError("the model was made in inference mode, where nothing has gradients: make or load it outside")
    with torch.inference_mode(False), _frozen(module, bn):
        yield


def module_of(model: Model) -> nn.Module | None:
    """The module that a model is or is a method of, None for another function."""
    owner = model if isinstance(model, nn.Module) else getattr(model, "__self__", None)
    return owner if isinstance(owner, nn.Module) else None


@contextmanager
def _frozen(model: nn.Module, bn: str) -> Iterator[None]:
    """A context in which the parameters need no gradients and all modules are in the mode; restored afterwards."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    flags = [(module, module.training) for module in model.modules()]
    try:
        for p in trainable.values():
            p.requires_grad_(False)
        model.train(bn != "eval")
        with {"eval": affine_batch_norm, "train": nullcontext, "batch_stats": running_statistics_kept}[bn](model):
            yield
    finally:
        for module, training in flags:
            module.training = training
        shown = dict(model.named_parameters())  # under fully_shard (FSDP2) they may be others by now
        for name, p in trainable.items():
            p.requires_grad_(True)
            shown.get(name, p).requires_grad_(True)


@contextmanager
def running_statistics_kept(model: nn.Module) -> Iterator[None]:
    """Context in which norm layers in training mode use the statistics of the batch and do not update the running ones.

    Everything is restored on leaving, after an error too.
    """
    layers = [module for module in model.modules() if isinstance(module, _NormBase) and module.training]
    saved = [(module, module.track_running_stats, module.running_mean, module.running_var) for module in layers]
    try:
        # A norm layer without running statistics uses those of the batch and has nothing to update.
        for module in layers:
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
        yield
    finally:
        for module, tracked, mean, var in saved:
            module.track_running_stats, module.running_mean, module.running_var = tracked, mean, var
