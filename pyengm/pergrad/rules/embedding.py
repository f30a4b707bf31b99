"""Embeddings: the layout rule, and the gradients of their tables."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pyengm.errors import UnsupportedOperationError
from pyengm.pergrad.layout import Layout, Shape, carry
from pyengm.pergrad.per_example_grad import EmbeddingGrad, PerExampleGrad
from pyengm.pergrad.row_layout import RowLayout
from pyengm.pergrad.rules.registry import Layouts, NodeView, layout_rule
from pyengm.pergrad.rules.weights import Node, RowAxes, Slots, saved, weight_rule


@layout_rule("Embedding")
def embedding_layout(node: NodeView, layouts: Mapping[int, Layout]) -> Layouts:
    """Rows of a table (V, D), looked up by indices that have no slot; an element of the table meets all positions."""
    source, to = node.outputs[0], node.inputs[0]
    found = None if to is None else carry(layouts[0], source, to, {len(source) - 1: 1})
    return [found, *[None] * (len(node.inputs) - 1)]


def _positions(node: Node, slots: Slots, shape: Shape) -> RowAxes:
    return shape, tuple(range(len(shape) - 1))


@weight_rule("Embedding", slots=(0,), fields="indices padding_idx scale_grad_by_freq", rows=_positions)
def embedding(node: Node, slots: Slots, g: Tensor, rows: RowLayout) -> dict[int, PerExampleGrad]:
    """Rows of a table, looked up by index; the row of padding_idx has no gradient."""
    if saved(node, "scale_grad_by_freq"):
        raise UnsupportedOperationError("scale_grad_by_freq divides by counts over the whole batch")
    g = g.reshape(-1, g.shape[-1])
    index = saved(node, "indices").reshape(-1)
    g = torch.where((index == saved(node, "padding_idx"))[:, None], 0, g)
    return {0: EmbeddingGrad(rows.split(index), rows.split(g), slots[0])}
