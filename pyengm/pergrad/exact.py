"""Per-example gradient norms by definition: one backward pass per example through one graph.

Exact for every model, batch norm in training mode included; the cost grows with the batch.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from pyengm.pergrad.autograd_graph import trace
from pyengm.pergrad.fsdp import gathered
from pyengm.pergrad.hooks import disable_ddp_sink
from pyengm.pergrad.validation import (
    Params,
    check_losses,
    check_own_statistics,
    check_reached,
    check_visible,
    named_params,
)

CHUNK = 16  # of a batched pass on a GPU: more examples gain no speed and take memory for every activation
CHUNK_BYTES = 2**28  # of gradients held at a time


def exact_norms(losses: Tensor, params: Params, chunk: int | None = None) -> Tensor:
    """||dL_i / dparams|| for each of the losses L (n,), over all params jointly; (n,) in float32 or better.

    Parameters that do not require grad, or that the losses do not depend on, count as 0. chunk: examples per
    backward pass; None takes 1 on the CPU, elsewhere 16 or as many as keep their gradients below 256 MiB. The graph is
    kept.
    Raises ValueError for losses of another shape or without a graph, or when no parameter requires grad,
    NonFiniteError for losses that are not finite. Source: Dabouei et al. 2022, Eq. 5.
    """
    check_losses(losses)
    tensors, _ = named_params(params)
    with gathered(losses):
        if losses.grad_fn is not None:
            check_reached(trace(losses), tensors)
        squares = exact_squares(losses, [tensors], range(losses.numel()), chunk)[0]
    return squares.sqrt().to(torch.promote_types(losses.dtype, torch.float32))


def exact_squares(
    losses: Tensor, groups: Sequence[Sequence[Tensor]], examples: Sequence[int], chunk: int | None = None
) -> Tensor:
    """||dL_i / d group||^2 for some of the examples and every group of parameters, (groups, m) float64."""
    params = [p for group in groups for p in group]
    row = [k for k, group in enumerate(groups) for _ in group]
    squares = torch.zeros(len(groups), len(examples), dtype=torch.float64, device=losses.device)
    for index, grads in exact_gradients(losses, params, examples, chunk):
        for k, grad in zip(row, grads, strict=True):
            if grad is not None:
                squares[k, index] += gradient_squares(grad).to(losses.device)
    return squares


def gradient_squares(grad: Tensor) -> Tensor:
    """||g_i||^2 in float64 for gradients (m, *param.shape), sparse and complex ones too."""
    grad = grad.to_dense() if grad.is_sparse else grad
    grad = (torch.view_as_real(grad) if grad.is_complex() else grad).reshape(len(grad), -1)
    return torch.linalg.vector_norm(grad, dim=1, dtype=torch.float64).square()


def exact_gradients(
    losses: Tensor, targets: Sequence[Tensor | GradientEdge], examples: Sequence[int], chunk: int | None = None
) -> Iterator[tuple[slice, list[Tensor | None]]]:
    """Gradients (m, *shape) of some of the losses, m at a time with their index among the examples; the graph is kept.

    None stands for targets that the losses do not depend on.
    """
    if chunk is None:  # on the CPU a batched pass is no faster than its examples one by one
        fits = CHUNK_BYTES // max(1, sum(t.nbytes for t in targets if isinstance(t, Tensor)))
        chunk = max(1, min(CHUNK, fits)) if losses.is_cuda else 1
    nodes = []
    if losses.grad_fn is not None:
        graph = trace(losses)
        check_visible(graph)
        check_own_statistics(graph)
        nodes = graph.nodes
    for start in range(0, len(examples) if targets else 0, chunk):
        some = list(examples[start : start + chunk])
        with disable_ddp_sink(nodes):
            grads = _gradients(losses, targets, some)
        yield slice(start, start + len(some)), grads


def _gradients(losses: Tensor, params: Sequence[Tensor | GradientEdge], examples: list[int]) -> list[Tensor | None]:
    """Gradients (m, *param.shape) of m of the losses; None for params that they do not depend on."""
    targets: Any = list(params)  # torch declares tensors or edges, and takes both at once
    options = {"retain_graph": True, "allow_unused": True}
    if len(examples) == 1:
        seed = torch.zeros_like(losses)
        seed[examples[0]] = 1
        grads = torch.autograd.grad(losses, targets, seed, **options)
        return [None if grad is None else grad[None] for grad in grads]
    rows = torch.eye(losses.numel(), dtype=losses.dtype, device=losses.device)[examples]
    return list(torch.autograd.grad(losses, targets, rows, is_grads_batched=True, **options))
