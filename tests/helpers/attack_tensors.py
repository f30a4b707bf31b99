"""Inputs of an attack's step."""

import torch
from torch import Tensor


def attack_tensors(shape, dtype=torch.float32, device="cpu", seed=0) -> tuple[Tensor, Tensor, Tensor]:
    """x_adv that leaves ball and range here and there, a gradient with zeros, and x in [0, 1]."""
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=g, dtype=dtype)
    x_adv = x + 0.3 * torch.randn(shape, generator=g, dtype=dtype)
    grad = torch.randn(shape, generator=g, dtype=dtype)
    grad[torch.rand(shape, generator=g) < 0.1] = 0.0
    return x_adv.to(device), grad.to(device), x.to(device)
