"""The state a model is in while it is attacked: parameters frozen, batch norm in an explicit mode."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from pyengm.attacks.fused_batch_norm import affine_batch_norm
from pyengm.errors import ConfigError

BN_MODES = ("eval", "train", "batch_stats")


@contextmanager
def attack_mode(model: nn.Module, bn: str) -> Iterator[None]:
    """Freezes the parameters, so that no weight gradient is computed, and sets the mode of all modules.

    Linear layers then keep no input for one either; torch's convolutions keep theirs all the same.
    bn: "eval" (running statistics), "train" (batch statistics, running ones are updated by each forward pass) or
    "batch_stats" (batch statistics, running ones stay as they are). Everything is put back on leaving, by an error too.
    The mode is that of all modules, of norm layers that were in evaluation mode by themselves too.
    Raises ConfigError for an unknown mode.
    """
    if bn not in BN_MODES:
        raise ConfigError(f"batch-norm mode is {bn!r}; known modes: {', '.join(BN_MODES)}")
    trainable = [p for p in model.parameters() if p.requires_grad]
    flags = [(module, module.training) for module in model.modules()]
    try:
        for p in trainable:
            p.requires_grad_(False)
        model.train(bn != "eval")
        with {"eval": affine_batch_norm, "train": nullcontext, "batch_stats": running_statistics_kept}[bn](model):
            yield
    finally:
        for module, training in flags:
            module.training = training
        for p in trainable:
            p.requires_grad_(True)


@contextmanager
def running_statistics_kept(model: nn.Module) -> Iterator[None]:
    """Norm layers in training mode use the statistics of the batch, as ever, and leave their running ones as they are.

    Everything is put back on leaving, by an error too.
    """
    layers = [module for module in model.modules() if isinstance(module, _NormBase) and module.training]
    kept = [(module, module.track_running_stats, module.running_mean, module.running_var) for module in layers]
    try:
        # A norm layer without running statistics uses those of the batch and has nothing to update.
        for module in layers:
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
        yield
    finally:
        for module, *statistics in kept:
            module.track_running_stats, module.running_mean, module.running_var = statistics
