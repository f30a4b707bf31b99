"""Backward passes over a graph that hand the output gradients of chosen nodes to a visitor."""

import contextlib
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.utils import checkpoint

from pyengm.pergrad.frozen import FrozenNorm
from pyengm.pergrad.graph import Graph, Node

GraphExecGroup = getattr(checkpoint, "GraphExecGroup", contextlib.nullcontext)  # torch before 2.10 has none
DDP_SINK = "_DDPSinkBackward"
SINK_FLAG = "_static_graph_delay_allreduce_enqueued"

Visit = Callable[[int, Tensor], None]


def visit_gradients(  # noqa: C901  the issue of the engine rewrites it
    graph: Graph,
    losses: Tensor,
    weights: Tensor,
    places: Iterable[int],
    visit: Visit,
    *,
    frozen: Iterable[FrozenNorm] = (),
    inputs: Tensor | None = None,
    also: Iterable[tuple[int, int]] = (),
    retain_graph: bool = True,
) -> Tensor | None:
    """One backward pass of sum_i weights_i L_i that computes no weight gradient.

    visit(place, g) is called once with the output gradient g of each of the places, unless g is undefined (zero).
    inputs: a tensor of the graph; its gradient is returned. also: places and outputs whose gradients are computed too,
    because a visitor calls backward functions, which leave out what the pass does not need. The nodes in frozen pass
    on the input gradients that they compute themselves.
    """
    places = list(places)
    group = GraphExecGroup()  # one for the pass: checkpointed parts are recomputed once for all hooks
    edges = {place: _outputs(graph.nodes[place]) for place in places}
    if inputs is not None:
        wanted = torch.autograd.graph.get_gradient_edge(inputs)
        own = graph.nodes.index(wanted.node) if wanted.node in graph.nodes else None
        if own is None:
            raise ValueError(
                "the losses do not depend on inputs; was the attack's output detached after requires_grad_?"
            )
    running = graph.above([*places, *(place for place, _ in also), *([own] if inputs is not None else [])])
    interior = [place for place in places if place in running]
    frontier = [place for place in places if place not in running]

    def quietly(place: int, g: Tensor | None) -> None:
        if g is not None:
            with arithmetic(g.device), _entered(group):
                visit(place, g)

    def freeze(node: FrozenNorm, into: tuple, out: tuple) -> tuple | None:
        if out[0] is None or into[0] is None:
            return None
        with arithmetic(out[0].device), _entered(group):
            g = node.input_gradient(out[0])
        return (g.to(into[0].dtype), *into[1:])

    hooks = []
    try:
        for place in interior:  # a prehook, so that its gradient is freed as soon as the pass is through
            hooks.append(graph.nodes[place].register_prehook(lambda grads, place=place: quietly(place, _first(grads))))
        for node in frozen:
            if node.place in running:
                hook = graph.nodes[node.place].register_hook(lambda into, out, node=node: freeze(node, into, out))
                hooks.append(hook)
        targets = [edge for place in frontier for edge in edges[place]]
        targets += [GradientEdge(graph.nodes[place], output) for place, output in also]
        targets += [wanted] if inputs is not None else []
        options = {"retain_graph": retain_graph, "allow_unused": True}
        with idle_sinks(graph.nodes):
            grads = torch.autograd.grad(losses, targets, weights, **options) if targets else []
    finally:
        for hook in hooks:
            hook.remove()
    left = iter(grads)
    for place in frontier:
        quietly(place, _first([next(left) for _ in edges[place]]))
    return grads[-1] if inputs is not None else None


def _outputs(node: Node) -> list[GradientEdge]:
    return [GradientEdge(node, k) for k in range(len(node._input_metadata))]


def _first(grads: Iterable[Tensor | None]) -> Tensor | None:
    """Of nodes that are asked about only splits have several outputs with gradients, which share their fate."""
    return next((g for g in grads if g is not None), None)


@contextlib.contextmanager
def arithmetic(device: torch.device) -> Iterator[None]:
    """Own sums and products build no graph and keep their precision, whatever modes the caller is in."""
    if torch.is_grad_enabled() or torch.is_autocast_enabled(device.type):
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    else:  # as within most passes; entering the modes takes longer than many a visit
        yield


def _entered(group):
    """The group, unless the pass runs inside one of the caller's."""
    current = getattr(torch._C, "_get_graph_exec_group", lambda: group)()
    return group if current is None else contextlib.nullcontext()


@contextlib.contextmanager
def idle_sinks(nodes: Iterable[Node]) -> Iterator[None]:
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
