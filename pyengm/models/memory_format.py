"""The memory format in which a device runs convolutions fastest, and the one that a model has."""

import torch
from torch import nn


def to_fast_memory_format(model: nn.Module, device: torch.device, *, half: bool = False) -> nn.Module:
    """Moves the weights of a model to channels_last where that is faster.

    On a CPU a training step gains up to 20 %. On a GPU it is faster in 16 bits, as tensor cores take images with the
    channels last.

    Args:
        model: changed in place.
        device: where the model will compute.
        half: whether it will compute in 16 bits.

    Returns:
        The model.
    """
    channels_last = device.type == "cpu" or (half and device.type == "cuda")
    if channels_last:
        model.to(memory_format=torch.channels_last)
    return model


def memory_format_of(model: nn.Module) -> torch.memory_format:
    """The memory format, contiguous or channels_last, for images that suits the weights of a model."""
    weights = [p for p in model.parameters() if p.dim() == 4 and p.shape[1] > 1]
    last = any(not p.is_contiguous() and p.is_contiguous(memory_format=torch.channels_last) for p in weights)
    return torch.channels_last if last else torch.contiguous_format
