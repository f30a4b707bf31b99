"""Memory formats that the steps of attacks support: contiguous and channels_last."""

import torch
from torch import Tensor


def dense(x: Tensor) -> Tensor:
    """Returns x itself if it is contiguous or channels_last, otherwise a contiguous copy."""
    return x if x.is_contiguous() or _is_channels_last(x) else x.contiguous()


def empty_dense(x: Tensor) -> Tensor:
    """Returns uninitialised memory like x (n, ...), channels_last where x is and contiguous otherwise."""
    last = _is_channels_last(x) and not x.is_contiguous()
    return torch.empty_like(x, memory_format=torch.channels_last if last else torch.contiguous_format)


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
