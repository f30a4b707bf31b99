"""The autograd graph below per-example losses, found by walking it: nothing is attached to the model."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Node = Any  # torch's node types are made at run time and share no public base with these attributes

LEAF = "torch::autograd::AccumulateGrad"

# Between a parameter and its consumer these move or cast elements, which leaves the norm of a gradient as it is.
TRANSPARENT = {
    "AliasBackward0",
    "PermuteBackward0",
    "ReshapeAliasBackward0",
    "SqueezeBackward0",
    "SqueezeBackward1",
    "TBackward0",
    "ToCopyBackward0",
    "TransposeBackward0",
    "UnsafeViewBackward0",
    "UnsqueezeBackward0",
    "ViewBackward0",
}


# Nodes that move elements by the contents of an index: node name -> the field that holds it.
MOVES = {
    "GatherBackward0": "index",
    "IndexAddBackward0": "index",
    "IndexBackward0": "indices",
    "IndexCopyBackward0": "index",
    "IndexPutBackward0": "indices",
    "IndexSelectBackward0": "index",
    "MaskedScatterBackward0": "mask",
    "MaskedSelectBackward0": "mask",
    "ScatterAddBackward0": "index",
    "ScatterBackward0": "index",
    "ScatterReduceBackward0": "index",
    "SortBackward0": "indices",
    "TakeBackward0": "index",
    "TopkBackward0": "indices",
}


@dataclass(frozen=True)
class Graph:
    """Nodes in an order that is the same for every graph of the same structure; the losses' own node is the first.

    children[k]: for each input slot of node k the place of the node that made the input and the number of its output,
    or None where no gradient flows. signature: equal for graphs of equal structure, shapes, types and leaves.
    """

    nodes: list[Node]
    children: list[tuple[tuple[int, int] | None, ...]]
    signature: tuple

    def leaf(self, place: int) -> Tensor | None:
        """The leaf tensor of a node that only collects a leaf's gradient."""
        node = self.nodes[place]
        return node.variable if node.name() == LEAF else None

    def leaf_below(self, place: int) -> tuple[Tensor | None, tuple]:
        """The leaf that only transparent nodes separate from here, if there is one, and a description of them."""
        chain = []
        while self.nodes[place].name() in TRANSPARENT and (child := self.children[place][0]) is not None:
            chain.append(_transparent(self.nodes[place]))
            place = child[0]
        return self.leaf(place), tuple(chain)

    def shape(self, place: int, output: int = 0) -> torch.Size:
        """Shape of a node's output (of the tensor that the forward pass made there)."""
        return torch.Size(self.nodes[place]._input_metadata[output].shape)

    def above(self, places: Iterable[int]) -> set[int]:
        """All nodes from which one of these is reached, themselves excluded; backward passes to them run just those."""
        parents: list[list[int]] = [[] for _ in self.nodes]
        for parent, slots in enumerate(self.children):
            for slot in slots:
                if slot is not None:
                    parents[slot[0]].append(parent)
        found: set[int] = set()
        stack = list(places)
        while stack:
            for parent in parents[stack.pop()]:
                if parent not in found:
                    found.add(parent)
                    stack.append(parent)
        return found


def walk(losses: Tensor, params: Iterable[Tensor] = ()) -> Graph:
    """The graph of the losses, breadth first; its signature tells these parameters from each other."""
    known = {id(p) for p in params}
    nodes: list[Node] = [losses.grad_fn]
    children, descriptions = [], []
    place = {losses.grad_fn: 0}
    for node in nodes:  # grows while it is read
        slots: list[tuple[int, int] | None] = []
        for child, output in node.next_functions:
            if child is None:
                slots.append(None)
                continue
            k = place.setdefault(child, len(nodes))
            if k == len(nodes):
                nodes.append(child)
            slots.append((k, output))
        children.append(tuple(slots))
        descriptions.append((_describe(node, len(losses), known), children[-1]))
    return Graph(nodes, children, (hash(tuple(descriptions)), len(nodes), losses.shape, losses.dtype))


def _describe(node: Node, n: int, known: set[int]) -> tuple:
    """What tells this node from another; parameters are known by themselves, models of equal nodes differ in them."""
    name = node.name()
    if name == LEAF and id(node.variable) in known:
        return name, id(node.variable)
    outputs = tuple((tuple(output.shape), output.dtype) for output in getattr(node, "_input_metadata", ()))
    moved = _moved(node, n) if name in MOVES else None
    return name, outputs, getattr(node, "_saved_training", False), moved


def _moved(node: Node, n: int) -> tuple | None:
    """The contents of indices that move examples, which decide whose a row is; None for moves within examples."""
    indices = getattr(node, f"_saved_{MOVES[node.name()]}")
    child, output = node.next_functions[0]
    sizes = (node if child is None else child)._input_metadata[0 if child is None else output].shape
    holds = [axis for axis, size in enumerate(sizes) if n > 1 and size % n == 0][:1]  # the examples, as far as one sees
    if isinstance(indices, Tensor):
        dim = getattr(node, "_saved_dim", None)
        dim = dim if dim is None or dim < 2**63 else dim - 2**64  # torch keeps it unsigned
        if dim is not None and holds and dim % len(sizes) not in holds:
            return None
        indices = (indices,)
    elif holds:
        indices = indices[holds[0] : holds[0] + 1]
    return tuple(None if k is None else (tuple(k.shape), hash(k.cpu().numpy().tobytes())) for k in indices)


def _transparent(node: Node) -> tuple:
    fields = ("_saved_dims", "_saved_dim", "_saved_dim0", "_saved_dim1")
    shapes = tuple(tuple(output.shape) for output in node._input_metadata)
    name = node.name()
    if name == "ToCopyBackward0":  # a cast, which two passes of a model may have made each for itself
        return name, shapes
    return name, shapes, *(str(getattr(node, field, None)) for field in fields)
