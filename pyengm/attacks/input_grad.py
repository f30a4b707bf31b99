"""The gradient in the images that every attack follows."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

HALF_SCALE = 1024.0  # float16 loses gradients below 6e-8 on their way through the model


def input_grad(
    model: nn.Module, x: Tensor, loss: Callable[..., Tensor], *targets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of sum_i loss(model(x), *targets)_i in x (n, ...), the losses (n,) and the logits (n, k), all detached.

    The sum, not the mean: every example's gradient keeps its own scale whatever the batch size. x itself, often a
    caller's buffer, never needs a gradient. Where the logits are float16, or the `dtype` of the model is, gradients are
    scaled up on the way back and down at the end.
    """
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(leaf)
        losses = loss(logits, *targets)
        total = losses.sum()
    if torch.float16 in (logits.dtype, getattr(model, "dtype", None)):
        (grad,) = torch.autograd.grad(total, leaf, torch.full_like(total, HALF_SCALE))
        grad /= HALF_SCALE
    else:
        (grad,) = torch.autograd.grad(total, leaf)
    return grad, losses.detach(), logits.detach()
