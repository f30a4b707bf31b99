"""Memory layout: which one a device runs convolutions in fastest, and which one a model has."""

import torch
from torch import nn


def in_fast_layout(model: nn.Module, device: torch.device, *, half: bool = False) -> nn.Module:
    """The model with its weights channels_last where that is faster, elsewhere as it is.

    On a CPU a training step gains up to 20 %; on a GPU half says that the model will compute in 16 bits, for which
    tensor cores take images with the channels last.
    """
    last = device.type == "cpu" or (half and device.type == "cuda")
    return model.to(memory_format=torch.channels_last) if last else model


def layout_of(model: nn.Module) -> torch.memory_format:
    """The memory format for images that suits the model's weights."""
    weights = [p for p in model.parameters() if p.dim() == 4 and p.shape[1] > 1]
    last = any(not p.is_contiguous() and p.is_contiguous(memory_format=torch.channels_last) for p in weights)
    return torch.channels_last if last else torch.contiguous_format
