"""Images in a layout that the steps of attacks take: contiguous, or channels_last."""

import torch
from torch import Tensor


def dense(x: Tensor) -> Tensor:
    """x itself if it is in such a layout, else a contiguous copy."""
    return x if x.is_contiguous() or _is_channels_last(x) else x.contiguous()


def empty_dense(x: Tensor) -> Tensor:
    """Memory for images like x, channels_last where x is and contiguous elsewhere."""
    last = _is_channels_last(x) and not x.is_contiguous()
    return torch.empty_like(x, memory_format=torch.channels_last if last else torch.contiguous_format)


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
