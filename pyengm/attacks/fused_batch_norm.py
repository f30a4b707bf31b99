"""Batch norm in evaluation mode as what it is, a scale and a shift per channel."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@contextmanager
def affine_batch_norm(model: nn.Module) -> Iterator[None]:
    """Meanwhile the model's batch norms, in evaluation mode with frozen weights, run as one product and sum.

    The numbers are the same. torch's own backward pass on a CPU sums over all images for gradients of the scale and
    the shift that an attack never asks for, a fifth of its time in a small ResNet. Elsewhere nothing changes: on other
    devices, in compiled models, and where a module's forward is not torch's own.
    """
    replaced = []
    try:
        for module in [] if _compiled(model) else model.modules():
            if type(module) in KINDS and "forward" not in vars(module) and _runs_on_cpu(module):
                replaced.append(module)
                module.forward = _Affine(module)
        yield
    finally:
        for module in replaced:
            del module.forward


class _Affine:
    """The forward of a batch norm as it is now."""

    def __init__(self, norm: nn.Module):
        scale = torch.rsqrt(norm.running_var + norm.eps)
        if norm.weight is not None:
            scale = scale * norm.weight
        shift = -norm.running_mean * scale
        if norm.bias is not None:
            shift = shift + norm.bias
        self.norm, self.scale, self.shift = norm, scale.detach(), shift.detach()

    def __call__(self, x: Tensor) -> Tensor:
        if x.dtype != self.scale.dtype or x.dim() < 2 or self.norm.training:  # autocast; a layer that was set back
            return type(self.norm).forward(self.norm, x)
        shape = (-1,) + (1,) * (x.dim() - 2)
        return torch.addcmul(self.shift.view(shape), x, self.scale.view(shape))


def _runs_on_cpu(norm: nn.Module) -> bool:
    return norm.running_mean is not None and norm.running_mean.device.type == "cpu"


def _compiled(model: nn.Module) -> bool:
    return any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )
