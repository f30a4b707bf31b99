"""Convolutions and batch norms with cheap second derivatives, for losses that contain a gradient."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# torch computes the second derivative of batch norm in some forty passes over memory, and that of a convolution's
# weights as a convolution with a kernel of the image's size. Both are short in the operators of first derivatives.
conv_backward = torch.ops.aten.convolution_backward
norm_backward = torch.ops.aten.native_batch_norm_backward


@contextmanager
def fast_double_backward(model: nn.Module) -> Iterator[None]:
    """Within the context torch's own 2-D convolutions and, in training mode, batch norms have the derivatives below.

    The values are the same, up to rounding. A backward pass that keeps its graph gives gradients in images alone, none
    in weights: these come from the backward pass after it. Nothing changes under autocast, where a forward is not
    torch's own, and in models without batch norm in training mode, whose per-example norms need torch's own nodes.

    Args:
        model: The model whose passes within the context are affected.
    """
    replaced: list[nn.Module] = []
    try:
        if any(type(module) is nn.BatchNorm2d and module.training for module in model.modules()):
            for module in model.modules():
                if type(module) in FORWARDS and "forward" not in vars(module):
                    replaced.append(module)
                    module.forward = partial(FORWARDS[type(module)], module)
        yield
    finally:
        for module in replaced:
            del module.forward


def _conv_forward(conv: nn.Conv2d, x: Tensor) -> Tensor:
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str) or not _plain(conv.weight, x):
        return nn.Conv2d.forward(conv, x)
    window = conv.stride, conv.padding, conv.dilation, False, (0, 0), conv.groups
    return _Conv.apply(x, conv.weight, conv.bias, window)


def _norm_forward(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    if not norm.training or norm.weight is None or norm.momentum is None or not _plain(norm.weight, x):
        return nn.BatchNorm2d.forward(norm, x)
    if norm.running_mean is not None and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    return _Norm.apply(x, norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.momentum, norm.eps)


FORWARDS: dict[type, Callable[..., Tensor]] = {nn.Conv2d: _conv_forward, nn.BatchNorm2d: _norm_forward}


def _plain(weight: Tensor, x: Tensor) -> bool:
    return x.dim() == 4 and x.dtype == weight.dtype and not torch.is_autocast_enabled(x.device.type)


class _Conv(torch.autograd.Function):
    """y = W * x + b."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, window: tuple) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.window, ctx.sizes = window, None if bias is None else list(bias.shape)
        return torch.ops.aten.convolution(x, weight, bias, *window)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _ConvInput.apply(dy, x.detach(), weight, ctx.window), None, None, None
        return *conv_backward(dy, x, weight, ctx.sizes, *ctx.window, list(ctx.needs_input_grad[:3])), None


class _ConvInput(torch.autograd.Function):
    """dx of a convolution, which is linear in dy and in W; of x only the size matters."""

    @staticmethod
    def forward(ctx: Any, dy: Tensor, x: Tensor, weight: Tensor, window: tuple) -> Tensor:
        ctx.save_for_backward(dy, weight)
        ctx.window = window
        return conv_backward(dy, x, weight, None, *window, [True, False, False])[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        dy, weight = ctx.saved_tensors  # <g, dx> = <W * g, dy>
        ddy = torch.ops.aten.convolution(g, weight, None, *ctx.window)
        _, dw, _ = conv_backward(dy, g, weight, None, *ctx.window, [False, True, False])
        return ddy, None, dw, None


class _Norm(torch.autograd.Function):
    """Batch norm with the statistics of the batch, which it adds to the running ones where there are such."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        y, mean, deviation = torch.native_batch_norm(x, weight, bias, running_mean, running_var, True, momentum, eps)
        ctx.save_for_backward(x, weight, mean, deviation)  # deviation: 1 / sqrt(var + eps)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, deviation = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _NormInput.apply(dy, *ctx.saved_tensors), *(None,) * 6
        masks = True, 0.0, [True, True, True]
        return *norm_backward(dy, x, weight, None, None, mean, deviation, *masks), *(None,) * 4


class _NormInput(torch.autograd.Function):
    """dx = w s (dy - mean(dy) - xh mean(dy xh)) with xh = (x - mean) s; means over images and positions."""

    @staticmethod
    def forward(ctx: Any, dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, s: Tensor) -> Tensor:
        dx, dw, db = norm_backward(dy, x, weight, None, None, mean, s, True, 0.0, [True, True, True])
        ctx.save_for_backward(dy, x, weight, mean, s, dw, db)
        return dx

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        dy, x, w, mean, s, dw, db = ctx.saved_tensors
        n = x.numel() // x.shape[1]
        # dx is symmetric in dy, so its own backward pass gives d<g, dx>/d dy, and the sums of g and g xh on the way.
        ddy, g_xh, g_sum = norm_backward(g, x, w, None, None, mean, s, True, 0.0, [True, True, True])
        zeros, ones = torch.zeros_like(mean), torch.ones_like(mean)
        _, g_dy, _ = norm_backward(g, dy, w, None, None, zeros, ones, True, 0.0, [False, True, False])
        p, q, g_mean, dy_mean = g_xh / n, dw / n, g_sum / n, db / n
        rest = g_dy - n * (g_mean * dy_mean + p * q)  # <g, dx> = w s rest
        # With h = -w s (q g + p dy) = d<g, dx>/d xh: s (h - mean(h) - xh mean(h xh)), and s's own part, along xh.
        along = w * s**2 * (2 * p * q - rest / n)
        constant = w * s**2 * (q * g_mean + p * dy_mean) - along * s * mean
        x_grad = torch.addcmul(_rows(constant), x, _rows(along * s))
        x_grad.addcmul_(g, _rows(-w * s**2 * q)).addcmul_(dy, _rows(-w * s**2 * p))
        return ddy, x_grad, s * rest, None, None


def _rows(v: Tensor) -> Tensor:
    return v.view(1, -1, 1, 1)
