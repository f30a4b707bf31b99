"""Backward passes over a graph that hand the output gradients of chosen nodes to a visitor."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.utils import checkpoint

from pyengm.pergrad.autograd_graph import Graph, Node
from pyengm.pergrad.batch_norm.frozen import FrozenNorm

GraphExecGroup = getattr(checkpoint, "GraphExecGroup", contextlib.nullcontext)  # torch before 2.10 has none
DDP_SINK = "_DDPSinkBackward"
SINK_FLAG = "_static_graph_delay_allreduce_enqueued"

Visit = Callable[[int, tuple[Tensor | None, ...]], None]  # of a node and the gradients of its outputs


def visit_gradients(
    graph: Graph,
    losses: Tensor,
    weights: Tensor | None,
    indices: Iterable[int],
    visit: Visit,
    *,
    frozen: Iterable[FrozenNorm] = (),
    inputs: Tensor | None = None,
    also: Iterable[tuple[int, int]] = (),
    retain_graph: bool = True,
    roots: tuple[list[GradientEdge], list[Tensor]] | None = None,
) -> Tensor | None:
    """One backward pass of sum_i weights_i L_i that computes no weight gradient.

    visit(index, grads) is called once with the gradients of the outputs of each of the indices, unless all are
    undefined, which stands for zero. inputs: a tensor of the graph; its gradient is returned. also: indices and outputs
    whose gradients are computed too, because a visitor calls backward functions, which leave out what the pass does not
    need. The nodes in frozen pass on the input gradients that they compute themselves. roots: nodes at which the pass
    begins in place of the losses, and the gradients of their outputs.
    """
    indices = list(indices)
    group = GraphExecGroup()  # one for the pass: checkpointed parts are recomputed once for all hooks
    edges = {index: _outputs(graph.nodes[index]) for index in indices}
    wanted = [] if inputs is None else [_edge_of(graph, inputs)]
    running = graph.above([*indices, *(k for k, _ in also), *(graph.nodes.index(edge.node) for edge in wanted)])
    interior = [index for index in indices if index in running]
    frontier = [index for index in indices if index not in running]

    def quietly(index: int, grads: tuple[Tensor | None, ...]) -> None:
        first = next((g for g in grads if g is not None), None)
        if first is not None:
            with full_precision(first.device), _entered(group):
                visit(index, grads)

    hooks = [  # a prehook, so that a gradient is freed as soon as the pass is through
        graph.nodes[index].register_prehook(lambda grads, index=index: quietly(index, tuple(grads)))
        for index in interior
    ]
    hooks += [
        graph.nodes[node.index].register_hook(lambda into, out, node=node: _frozen_gradients(node, into, out, group))
        for node in frozen
        if node.index in running
    ]
    targets = [edge for index in frontier for edge in edges[index]]
    targets += [GradientEdge(graph.nodes[index], output) for index, output in also]
    targets += wanted
    heads, given = (losses, weights) if roots is None else roots
    try:
        with disable_ddp_sink(graph.nodes):
            options = {"retain_graph": retain_graph, "allow_unused": True}
            grads = torch.autograd.grad(heads, targets, given, **options) if targets else []
    finally:
        for hook in hooks:
            hook.remove()
    left = iter(grads)
    for index in frontier:
        quietly(index, tuple(next(left) for _ in edges[index]))
    return grads[-1] if wanted else None


def _frozen_gradients(node: FrozenNorm, into: tuple, out: tuple, group: Any) -> tuple | None:
    """What a batch norm passes on with its statistics held constant."""
    if out[0] is None or into[0] is None:
        return None
    with full_precision(out[0].device), _entered(group):
        g = node.input_gradient(out[0], into[0])  # which nobody else has seen yet
    return (g.to(into[0].dtype), *into[1:])


def _edge_of(graph: Graph, inputs: Tensor) -> GradientEdge:
    edge = torch.autograd.graph.get_gradient_edge(inputs)
    if edge.node not in graph.nodes:
        raise ValueError("the losses do not depend on inputs; was the attack's output detached after requires_grad_?")
    return edge


def _outputs(node: Node) -> list[GradientEdge]:
    return [GradientEdge(node, k) for k in range(len(node._input_metadata))]


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Own sums and products build no graph and keep their precision, whatever modes the caller is in."""
    if torch.is_grad_enabled() or torch.is_autocast_enabled(device.type):
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    else:  # as within most passes; entering the modes takes longer than many a visit
        yield


def recomputed_once() -> AbstractContextManager:
    """Reads of saved tensors within it recompute a checkpointed part, and leave it to be recomputed again."""
    return _entered(GraphExecGroup())


def _entered(group):
    """The group, unless the pass runs inside one of the caller's."""
    current = getattr(torch._C, "_get_graph_exec_group", lambda: group)()
    return group if current is None else contextlib.nullcontext()


@contextlib.contextmanager
def disable_ddp_sink(nodes: Iterable[Node]) -> Iterator[None]:
    """Lets passes through DistributedDataParallel's sinks without starting its reduction.

    Under static_graph a sink starts the all-reduce at the first pass that it sees, which must be the one that fills
    .grad.
    """
    models = [node.ddp_weakref() for node in nodes if node.name() == DDP_SINK]
    models = [model for model in models if not getattr(model, SINK_FLAG, True)]
    try:
        for model in models:
            setattr(model, SINK_FLAG, True)
        yield
    finally:
        for model in models:
            setattr(model, SINK_FLAG, False)
