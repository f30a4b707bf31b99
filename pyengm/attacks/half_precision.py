"""Models in 16 bits, for attacks that compute their gradients by themselves."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyengm.attacks.input_grad import HALF_SCALE
from pyengm.attacks.logits import CheckedModel


def in_float32(net: CheckedModel) -> Callable[[Tensor], Tensor]:
    """A model whose 16-bit logits become float32, and whose float16 gradients are scaled up within it.

    The gradient of the images is that of the model, as for `input_grad`: it is scaled up before it enters the model, so
    that float16 does not lose it, and down after it. Logits of other types are unchanged.
    """

    def forward(x: Tensor) -> Tensor:
        if net.input_dtype != torch.float16:
            logits = net(x)
            return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        return _ScaledGrad.apply(net(_ScaledGrad.apply(x, 1 / HALF_SCALE)).float(), HALF_SCALE)

    return forward


class _ScaledGrad(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return t.view_as(t)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None
