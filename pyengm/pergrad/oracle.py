"""Per-example gradient norms by definition: one backward pass per example through one graph.

Exact for every model, batch norm in training mode included; the cost grows with the batch.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from pyengm.pergrad.check import check_losses

CHUNK = 16  # more examples per pass gain no speed and take memory for every activation
CHUNK_BYTES = 2**28  # of gradients held at a time


def exact_norms(losses: Tensor, params: Iterable[Tensor], chunk: int | None = None) -> Tensor:
    """||dL_i / dparams|| for each of the losses L (n,), over all params jointly; (n,) in float32 or better.

    Parameters that do not require grad, or that the losses do not depend on, count as 0. chunk: examples per batched
    backward pass; None takes 16, or as many as keep their gradients below 256 MiB. The graph is kept.
    Raises ValueError for losses of another shape or without a graph, or when no parameter requires grad,
    NonFiniteError for losses that are not finite. Source: Dabouei et al. 2022, Eq. 5.
    """
    check_losses(losses)
    trainable = [p for p in dict.fromkeys(params) if p.requires_grad]  # each once
    if not trainable:
        raise ValueError("none of the parameters requires grad")
    n = losses.numel()
    chunk = chunk or max(1, min(CHUNK, CHUNK_BYTES // sum(p.nbytes for p in trainable)))
    squares = torch.zeros(n, dtype=torch.float64, device=losses.device)
    for start in range(0, n, chunk):
        size = min(chunk, n - start)
        rows = torch.zeros(size, n, dtype=losses.dtype, device=losses.device)
        rows[torch.arange(size), torch.arange(start, start + size)] = 1
        grads = torch.autograd.grad(
            losses, trainable, rows, is_grads_batched=True, retain_graph=True, allow_unused=True
        )
        for grad in grads:
            if grad is not None:
                norms = torch.linalg.vector_norm(grad.flatten(1), dim=1, dtype=torch.float64)
                squares[start : start + size] += norms.square().to(losses.device)
    return squares.sqrt().to(torch.promote_types(losses.dtype, torch.float32))
