"""Where an autograd graph uses parameters: found by walking it, nothing is attached to the model."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

Node = Any  # torch's node types are made at run time and share no public base with these attributes

# Between a parameter and its consumer these move or cast elements, which leaves the norm of a gradient as it is.
TRANSPARENT = {
    "AliasBackward0",
    "PermuteBackward0",
    "ReshapeAliasBackward0",
    "TBackward0",
    "ToCopyBackward0",
    "TransposeBackward0",
    "UnsafeViewBackward0",
    "UnsqueezeBackward0",
    "ViewBackward0",
}


class UnservedError(Exception):
    """What the walk cannot serve exactly; the message says what and why."""


class UndecidedError(UnservedError):
    """What these gradients, unlike others of the same graph, do not decide."""


@dataclass(frozen=True)
class Consumer:
    """A node that takes parameters. slots: input position -> parameter. interior: a consumer lies further down."""

    node: Node
    slots: dict[int, Tensor]
    interior: bool

    @property
    def name(self) -> str:
        return self.node.name()


def find_consumers(losses: Tensor, params: Iterable[Tensor]) -> tuple[list[Consumer], tuple]:
    """The consumers of the parameters in the graph of the losses, and a description of every node in it.

    Raises UnservedError for a parameter that is used more than once: the norm of the sum has cross terms.
    """
    wanted = {id(p) for p in params}
    slots: dict[Node, dict[int, Tensor]] = {}
    order: list[Node] = []
    seen = {losses.grad_fn}
    stack = [losses.grad_fn]
    while stack:
        node = stack.pop()
        order.append(node)
        for slot, (child, _) in enumerate(node.next_functions):
            if child is None:
                continue
            leaf = _leaf(child)
            if leaf is not None:
                if id(leaf) in wanted:
                    slots.setdefault(node, {})[slot] = leaf
            elif child not in seen:
                seen.add(child)
                stack.append(child)
    used = [id(p) for by_slot in slots.values() for p in by_slot.values()]
    if len(used) > len(set(used)):
        raise UnservedError("a parameter is used more than once")
    below = _above_a_consumer(order, slots)
    consumers = [Consumer(node, slots[node], node in below) for node in order if node in slots]
    return consumers, tuple(map(_describe, order))


def _describe(node: Node) -> tuple:
    """Name, shapes and types of a node's outputs, and whether it is a batch norm that couples the examples."""
    outputs = tuple((tuple(output.shape), output.dtype) for output in getattr(node, "_input_metadata", ()))
    return node.name(), outputs, getattr(node, "_saved_training", False)


def _leaf(node: Node) -> Tensor | None:
    """The leaf tensor that only transparent nodes separate from here, if there is one."""
    while node is not None and node.name() in TRANSPARENT and len(node.next_functions) == 1:
        node = node.next_functions[0][0]
    return node.variable if node is not None and node.name() == "torch::autograd::AccumulateGrad" else None


def _above_a_consumer(order: list[Node], slots: dict[Node, Any]) -> set[Node]:
    """The nodes from which another consumer is reached; backward passes run them, and no other ones."""
    parents: dict[Node, list[Node]] = {}
    for node in order:
        for child, _ in node.next_functions:
            if child is not None:
                parents.setdefault(child, []).append(node)
    above: set[Node] = set()
    stack = list(slots)
    while stack:
        for parent in parents.get(stack.pop(), []):
            if parent not in above:
                above.add(parent)
                stack.append(parent)
    return above


def visit_gradients(
    losses: Tensor, weights: Tensor, consumers: list[Consumer], visit: Callable[[int, Tensor], None]
) -> None:
    """One backward pass of sum_i weights_i L_i that computes no weight gradient and keeps the graph.

    visit(k, g) is called once with the output gradient g of consumer k, unless g is undefined (zero).
    """

    def quietly(k: int, g: Tensor | None) -> None:
        if g is not None:
            with torch.no_grad(), torch.autocast(g.device.type, enabled=False):
                visit(k, g)

    hooks = []
    try:
        for k, consumer in enumerate(consumers):
            if consumer.interior:  # a prehook, so that its gradient is freed as soon as the pass is through
                hooks.append(consumer.node.register_prehook(lambda grads, k=k: quietly(k, grads[0])))
        frontier = [k for k, consumer in enumerate(consumers) if not consumer.interior]
        edges = [GradientEdge(consumers[k].node, 0) for k in frontier]
        grads = torch.autograd.grad(losses, edges, weights, retain_graph=True, allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
    for k, g in zip(frontier, grads, strict=True):
        quietly(k, g)
