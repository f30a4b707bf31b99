"""Per-example gradient norms by definition: one backward pass per example through one graph.

Exact for every model, batch norm in training mode included; the cost grows with the batch.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from pyengm.pergrad.check import check_losses

CHUNK = 16  # of a batched pass on a GPU: more examples gain no speed and take memory for every activation
CHUNK_BYTES = 2**28  # of gradients held at a time


def exact_norms(losses: Tensor, params: Iterable[Tensor], chunk: int | None = None) -> Tensor:
    """||dL_i / dparams|| for each of the losses L (n,), over all params jointly; (n,) in float32 or better.

    Parameters that do not require grad, or that the losses do not depend on, count as 0. chunk: examples per
    backward pass; None takes 1 on the CPU, elsewhere 16 or as many as keep their gradients below 256 MiB. The graph is
    kept.
    Raises ValueError for losses of another shape or without a graph, or when no parameter requires grad,
    NonFiniteError for losses that are not finite. Source: Dabouei et al. 2022, Eq. 5.
    """
    check_losses(losses)
    trainable = [p for p in dict.fromkeys(params) if p.requires_grad]  # each once
    if not trainable:
        raise ValueError("none of the parameters requires grad")
    n = losses.numel()
    if chunk is None:  # on the CPU a batched pass is no faster than its examples one by one
        fits = CHUNK_BYTES // sum(p.nbytes for p in trainable)
        chunk = max(1, min(CHUNK, fits)) if losses.is_cuda else 1
    squares = torch.zeros(n, dtype=torch.float64, device=losses.device)
    for start in range(0, n, chunk):
        for grad in _gradients(losses, trainable, slice(start, min(start + chunk, n))):
            norms = torch.linalg.vector_norm(grad.flatten(1), dim=1, dtype=torch.float64)
            squares[start : start + chunk] += norms.square().to(losses.device)
    return squares.sqrt().to(torch.promote_types(losses.dtype, torch.float32))


def _gradients(losses: Tensor, params: list[Tensor], examples: slice) -> list[Tensor]:
    """Gradients (m, *param.shape) of m of the losses, of the params that they depend on."""
    options = {"retain_graph": True, "allow_unused": True}
    if examples.stop - examples.start == 1:
        grads = torch.autograd.grad(losses[examples.start], params, **options)
        return [grad[None] for grad in grads if grad is not None]
    rows = torch.eye(losses.numel(), dtype=losses.dtype, device=losses.device)[examples]
    grads = torch.autograd.grad(losses, params, rows, is_grads_batched=True, **options)
    return [grad for grad in grads if grad is not None]
