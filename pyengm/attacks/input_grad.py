"""The gradient of the loss in the images, which every attack follows."""

from collections.abc import Callable

import torch
from torch import Tensor

from pyengm.attacks.logits import CheckedModel, Model

HALF_SCALE = 1024.0  # in float16 the backward pass loses gradients below 6e-8


def input_grad(
    model: Model | CheckedModel, x: Tensor, loss: Callable[..., Tensor], *targets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of sum_i loss(model(x), *targets)_i in x.

    It is the sum, not the mean: the gradient of every example keeps its own scale at any batch size. x, which is often
    a buffer of the caller, never needs a gradient itself. Where the logits or the `dtype` of the model are float16,
    the loss is scaled up by HALF_SCALE before the backward pass and the gradient is scaled down after it.

    Args:
        model: classifier of images in [0, 1]; its outputs are checked, see `CheckedModel`.
        x: images (n, ...).
        loss: per-example losses (n,) of the logits (n, k) and the targets.
        *targets: further arguments of the loss.

    Returns:
        The gradient (n, ...), the losses (n,) and the logits (n, k), all detached.
    """
    net = model if isinstance(model, CheckedModel) else CheckedModel(model)
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = net(leaf)
        losses = loss(logits, *targets)
        total = losses.sum()
    if torch.float16 in (logits.dtype, net.dtype):
        (grad,) = torch.autograd.grad(total, leaf, torch.full_like(total, HALF_SCALE))
        grad /= HALF_SCALE
    else:
        (grad,) = torch.autograd.grad(total, leaf)
    return grad, losses.detach(), logits.detach()
