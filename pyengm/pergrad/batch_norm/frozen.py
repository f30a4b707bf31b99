"""Batch norms in training mode with the batch's statistics held constant, so that examples do not couple."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyengm.pergrad.autograd_graph import Graph, Node
from pyengm.pergrad.rules.norm import channel_sums
from pyengm.pergrad.rules.weights import saved, to_float32

NAMES = {"NativeBatchNormBackward0", "CudnnBatchNormBackward0", "MiopenBatchNormBackward0"}
Sums = tuple[Tensor, Tensor]  # S1, S2 of examples, (n, C) each, see `FrozenNorm.sums`
LAYERS = {"AddmmBackward0", "ConvolutionBackward0", "MmBackward0"}


@dataclass(frozen=True)
class FrozenNorm:
    """A batch norm whose statistics are those of the batch; its input is (N, C, *)."""

    index: int
    node: Node

    def saved(self) -> tuple[Tensor, Tensor, Tensor]:
        """The input, and the mean and 1 / sigma of its channels."""
        x, mean, rstd = (to_float32(saved(self.node, name)) for name in ("input", "result1", "result2"))
        return x, mean, rstd

    def scale(self) -> Tensor:
        """gamma / sigma, (C,)."""
        rstd, weight = to_float32(saved(self.node, "result2")), saved(self.node, "weight")
        return rstd if weight is None else rstd * to_float32(weight)

    def deviation(self) -> Tensor:
        """sigma, (C,)."""
        return 1 / to_float32(saved(self.node, "result2"))

    def input_gradient(self, g: Tensor, out: Tensor | None = None) -> Tensor:
        """The gradient of the input under constant statistics; out: a tensor for it, where it fits."""
        scale = along_channels(self.scale(), g)
        fits = out is not None and (out.shape, out.dtype, out.stride()) == (g.shape, g.dtype, g.stride())
        return torch.mul(g, scale, out=out) if fits and scale.dtype == g.dtype else g * scale

    def sums(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """Per image and channel S1 = sum_t g_t and S2 = sum_t g_t xhat_t, g the gradient of the input, from g of the
        output: (N, C) each. What an image adds to the derivatives of the batch's mean and variance."""
        x, mean, rstd = self.saved()
        total, dot = channel_sums(g, x)
        scale = self.scale()
        return total * scale, (dot - total * mean) * (rstd * scale)


def along_channels(t: Tensor, like: Tensor) -> Tensor:
    return t.view(1, -1, *[1] * (like.dim() - 2))


def frozen_norms(graph: Graph) -> list[FrozenNorm]:
    """The batch norms that couple examples; one image of n C channels is an instance norm and couples none."""
    return [
        FrozenNorm(index, node)
        for index, node in enumerate(graph.nodes)
        if node.name() in NAMES and getattr(node, "_saved_training", True) and graph.shape(index)[0] != 1
    ]


def upstream_layers(graph: Graph, frozen: list[FrozenNorm]) -> dict[int, list[FrozenNorm]]:
    """For each layer the batch norms that its output reaches through additions alone, once for every path."""
    found: dict[int, list[FrozenNorm]] = {}
    for norm in frozen:
        shape = graph.shape(norm.index)
        stack = [graph.children[norm.index][0]]
        while stack:
            child = stack.pop()
            if child is None or graph.shape(child[0], child[1]) != shape:
                continue
            node = graph.nodes[child[0]]
            if node.name() in LAYERS and not getattr(node, "_saved_transposed", False):
                found.setdefault(child[0], []).append(norm)
            elif node.name() == "AddBackward0" and saved(node, "alpha") == 1:
                stack += graph.children[child[0]]
    return found
