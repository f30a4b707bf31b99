"""The autograd graph below per-example losses, traced from the losses: nothing is attached to the model."""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyengm.pergrad.layout import Shape
from pyengm.pergrad.rules import LAYOUT_FIELDS
from pyengm.pergrad.rules.registry import plain

Node = Any  # torch makes its node types at run time, and they share no public base with these attributes

LEAF = "torch::autograd::AccumulateGrad"

NESTED: Shape = (-1,)
INT = {int}

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


# FSDP2 puts these around the inputs and outputs of modules, to learn when their backward passes begin and end.
PASSED = {"RegisterPostBackwardFunctionBackward", "RegisterPreBackwardFunctionBackward"}

# The fields of layout rules that are no lengths along an axis.
AXES = {
    "axis",
    "dim",
    "dim0",
    "dim1",
    "dim2",
    "dimension",
    "dims",
    "group",
    "groups",
    "train",
    "training",
    "transposed",
}


@dataclass(frozen=True)
class Graph:
    """Nodes in an order in which each comes before all that it sends gradients to; the losses' own node is the first.

    children[k]: for each input slot of node k the place of the node that made the input and the number of its output,
    or None where no gradient flows. shapes[k], dtypes[k]: of the outputs of node k. fields[k]: the saved fields that
    the layout rule of node k reads. root: the number of the output of node 0 that the losses are.
    """

    nodes: list[Node]
    children: list[tuple[tuple[int, int] | None, ...]]
    shapes: list[tuple[Shape, ...]]
    dtypes: list[tuple[torch.dtype, ...]]
    fields: list[Mapping[str, Any]]
    root: int

    def key(self, leaves: Iterable[Tensor]) -> Hashable:
        """All that proofs depend on, apart from the contents of indices; it tells these leaves from each other."""
        number = {id(leaf): k for k, leaf in enumerate(leaves)}
        rows = []
        parts = zip(self.nodes, self.children, self.shapes, self.dtypes, self.fields, strict=True)
        for node, children, shapes, dtypes, fields in parts:
            name = node.name()
            if name == LEAF:
                rows.append((number.get(id(node.variable)), shapes))
            else:
                rows.append((name, children, shapes, dtypes, tuple((f, _hashable(v)) for f, v in fields.items())))
        return tuple(rows), self.root

    def structure(self, leaves: Iterable[Tensor]) -> Hashable:
        """The nodes, edges and axes, with these leaves told from each other: the same for all lengths of texts."""
        number = {id(leaf): k for k, leaf in enumerate(leaves)}
        names = tuple(number.get(id(n.variable)) if n.name() == LEAF else n.name() for n in self.nodes)
        axes = tuple(tuple((f, v) for f, v in fields.items() if f in AXES) for fields in self.fields)
        return names, tuple(self.children), axes, self.root

    def leaf(self, index: int) -> Tensor | None:
        """The leaf tensor of a node that only collects a leaf's gradient."""
        node = self.nodes[index]
        return node.variable if node.name() == LEAF else None

    def leaf_below(self, index: int) -> tuple[Tensor | None, tuple]:
        """The leaf that only transparent nodes separate from here, if there is one, and a description of them."""
        chain = []
        while self.nodes[index].name() in TRANSPARENT and (child := self.children[index][0]) is not None:
            chain.append(_transparent(self.nodes[index]))
            index = child[0]
        return self.leaf(index), tuple(chain)

    def shape(self, index: int, output: int = 0) -> torch.Size:
        """Shape of a node's output (of the tensor that the forward pass made there)."""
        return torch.Size(self.shapes[index][output])

    def input_shapes(self, index: int) -> tuple[Shape | None, ...]:
        """Shapes of a node's inputs, None for constants."""
        return tuple(None if child is None else self.shapes[child[0]][child[1]] for child in self.children[index])

    def above(self, indices: Iterable[int]) -> set[int]:
        """All nodes from which one of these is reached, themselves excluded; backward passes to them run just those."""
        parents: list[list[int]] = [[] for _ in self.nodes]
        for parent, slots in enumerate(self.children):
            for slot in slots:
                if slot is not None:
                    parents[slot[0]].append(parent)
        return _reached(indices, parents)

    def below(self, indices: Iterable[int]) -> set[int]:
        """All nodes that one of these sends gradients to, themselves excluded."""
        return _reached(indices, [[slot[0] for slot in slots if slot is not None] for slots in self.children])


def _reached(indices: Iterable[int], edges: list[list[int]]) -> set[int]:
    found: set[int] = set()
    stack = list(indices)
    while stack:
        for index in edges[stack.pop()]:
            if index not in found:
                found.add(index)
                stack.append(index)
    return found


def trace(losses: Tensor) -> Graph:
    """The graph of the losses."""
    slots: dict[Node, tuple] = {}
    stack: list[Node] = [losses.grad_fn]
    while stack:
        node = stack.pop()
        if node not in slots:
            slots[node] = node.next_functions
            stack.extend(child for child, _ in slots[node] if child is not None and child not in slots)
    if any(node.name() in PASSED for node in slots):
        slots = {
            node: tuple(_past_hooks(*edge) for edge in of_node)
            for node, of_node in slots.items()
            if node.name() not in PASSED
        }
    order = _topological(losses.grad_fn, slots)
    index = {node: k for k, node in enumerate(order)}
    children = [
        tuple(None if child is None else (index[child], output) for child, output in slots[node]) for node in order
    ]
    outputs = [getattr(node, "_input_metadata", ()) for node in order]
    shapes = [tuple(_shape(output) for output in of_node) for of_node in outputs]
    dtypes = [tuple(output.dtype for output in of_node) for of_node in outputs]
    return Graph(order, children, shapes, dtypes, [_fields(node) for node in order], losses.output_nr)


def _past_hooks(node: Node | None, output: int) -> tuple[Node | None, int]:
    while node is not None and node.name() in PASSED:
        node, output = node.next_functions[output]
    return node, output


def _shape(output: Any) -> Shape:
    """The shape of a node's output; that of a nested tensor has no numbers."""
    shape = tuple(output.shape)
    return shape if INT.issuperset(map(type, shape)) else NESTED


def _topological(top: Node, slots: Mapping[Node, tuple]) -> list[Node]:
    waiting = dict.fromkeys(slots, 0)
    for of_node in slots.values():
        for child, _ in of_node:
            if child is not None:
                waiting[child] += 1
    ready, order = [top], []
    while ready:
        node = ready.pop()
        order.append(node)
        for child, _ in slots[node]:
            if child is not None:
                waiting[child] -= 1
                if not waiting[child]:
                    ready.append(child)
    return order


def _fields(node: Node) -> dict[str, Any]:
    return {name: plain(getattr(node, f"_saved_{name}", None)) for name in LAYOUT_FIELDS.get(node.name(), ())}


def _hashable(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    return tuple(map(_hashable, value)) if isinstance(value, tuple) else value


def _transparent(node: Node) -> tuple:
    fields = ("_saved_dims", "_saved_dim", "_saved_dim0", "_saved_dim1")
    shapes = tuple(tuple(output.shape) for output in node._input_metadata)
    name = node.name()
    if name == "ToCopyBackward0":  # a cast, which two passes of a model may have made each for itself
        return name, shapes
    return name, shapes, *(str(getattr(node, field, None)) for field in fields)
