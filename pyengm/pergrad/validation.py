"""What the engine takes: losses, parameters, and a graph that it can see."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyengm.errors import NonFiniteError, UnsupportedOperationError
from pyengm.pergrad.autograd_graph import LEAF, NESTED, Graph
from pyengm.pergrad.fsdp import refuse_flat, whole_params
from pyengm.utils.checks import require

HIDDEN = {  # nodes whose layers no pass with `inputs=` reaches: torch refuses it, or leaves their parameters out
    "CheckpointFunctionBackward": "pass use_reentrant=False to torch.utils.checkpoint",
}
OPAQUE = {  # nodes that hide a model's own graph, though its gradients are right
    "CompiledFunctionBackward": "run the model itself in the outer step and compile only the attack",
}

SHARED_STATISTICS = "SyncBatchNormBackward"


def check_losses(losses: Tensor) -> None:
    """Raises ValueError unless losses are (n,) with a graph, NonFiniteError unless all are finite."""
    if losses.dim() != 1:
        raise ValueError(
            f"expected per-example losses of shape (n,), got {tuple(losses.shape)}; "
            'compute the loss with reduction="none", one value per example'
        )
    if losses.numel() == 0:
        raise ValueError("expected at least one per-example loss, got none")
    if not losses.requires_grad:
        raise ValueError("the losses do not depend on anything that requires grad; was the forward pass under no_grad?")
    finite = torch.isfinite(losses.detach())
    require(finite.all(), _not_finite, finite)


def _not_finite(finite: Tensor) -> NonFiniteError:
    bad = (~finite).nonzero().flatten().tolist()
    return NonFiniteError(
        f"{len(bad)} of {len(finite)} losses are nan or infinite (first at position {bad[0]} of the batch); "
        "lower the learning rate or look at the images and labels at these positions"
    )


Params = nn.Module | Mapping[str, Tensor] | Iterable[Tensor] | Iterable[tuple[str, Tensor]]


def named_params(params: Params) -> tuple[list[Tensor], list[str]]:
    """The parameters that require grad, each once and whole as in the graph, and what messages call them.

    Args:
        params: a module, named parameters (pairs or a mapping), or an iterable of leaf tensors.

    Raises:
        ValueError: for a single tensor, tensors that are no leaves of the graph, and where none requires grad.
        UnsupportedOperationError: for parameters that FSDP1 has flattened, and for DTensors that are not fully_shard's.
    """
    if isinstance(params, Tensor):
        raise ValueError(
            f"expected the parameters of a model, got one tensor of shape {tuple(params.shape)}; give a list: [tensor]"
        )
    if isinstance(params, nn.Module):
        given: list[Any] = list(params.named_parameters())
    else:
        given = list(params.items() if isinstance(params, Mapping) else params)
    tensors, names = [], []
    for k, one in enumerate(given):
        name, p = one if isinstance(one, tuple) else (None, one)
        if not isinstance(p, Tensor):
            raise ValueError(f"expected tensors as parameters, got {type(p).__name__} at position {k}")
        tensors.append(p)
        names.append(name or f"{k} of shape {tuple(p.shape)}")
    named: dict[Tensor, str] = {}
    for k, (p, name) in enumerate(zip(whole_params(tensors, names), names, strict=True)):
        if not p.requires_grad:
            continue
        if not p.is_leaf:
            raise ValueError(
                f"the parameter at position {k}, of shape {tuple(p.shape)}, is computed from others; give the leaves, "
                "such as model.parameters() (a parametrised layer computes its weight from them)"
            )
        named.setdefault(p, name)
    if not named:
        raise ValueError("none of the parameters requires grad")
    return list(named), list(named.values())


def check_visible(graph: Graph, hiding: Mapping[str, str] = HIDDEN) -> None:
    """Raises UnsupportedOperationError for graphs that hide layers of the model behind one of these nodes."""
    for node in graph.nodes:
        if (way := hiding.get(node.name())) is not None:
            raise UnsupportedOperationError(f"{node.name()} hides the graph of the model: {way}")


def check_own_statistics(graph: Graph) -> None:
    """Raises UnsupportedOperationError where statistics are those of all processes.

    A loss then depends on the images of all of them, a backward pass of one process sums over the losses of all, and
    what passes through the images of others is added to their gradients.
    """
    if any(node.name() == SHARED_STATISTICS for node in graph.nodes):
        raise UnsupportedOperationError(
            "SyncBatchNorm makes the examples of all processes depend on each other, and no process has the gradient "
            "of one of them; leave its conversion out, so that each process has its own statistics, or use group norm"
        )


def check_plain(graph: Graph, params: Iterable[Tensor], names: Iterable[str]) -> None:
    """Raises UnsupportedOperationError where only whole backward passes give per-example gradients."""
    check_visible(graph, OPAQUE)
    nested = next((k for k, shapes in enumerate(graph.shapes) if NESTED in shapes), None)
    if nested is not None:
        raise UnsupportedOperationError(f"{graph.nodes[nested].name()} has nested tensors; use padded ones and a mask")
    for p, name in zip(params, names, strict=True):
        if p.is_complex():
            raise UnsupportedOperationError(f"parameter {name} is complex")


def check_reached(graph: Graph, params: Iterable[Tensor]) -> None:
    """Raises ValueError where none of the parameters is a leaf of the graph, UnsupportedOperationError for FSDP1's."""
    leaves = [node.variable for node in graph.nodes if node.name() == LEAF]
    for leaf in leaves:
        refuse_flat(leaf)
    if set(map(id, leaves)).isdisjoint(map(id, params)):
        raise ValueError("the losses depend on none of the parameters; are they those of another model?")
