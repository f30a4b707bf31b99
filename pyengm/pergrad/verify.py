"""Trust but verify: norms of a new structure of graph against exact derivatives."""

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence

import torch
from torch import Tensor

from pyengm.errors import UnsupportedOperationError
from pyengm.pergrad.autograd_graph import Graph
from pyengm.pergrad.exact import exact_squares
from pyengm.pergrad.weight_usage import MAX_REMEMBERED, WeightUsage

TOLERANCE = 1e-3  # relative, in float32 and float64
HALF_TOLERANCE = 3e-2  # 16-bit passes round to 8 bits

_verified: OrderedDict[Hashable, None] = OrderedDict()  # structures of graphs


def is_verified(graph: Graph, params: Iterable[Tensor]) -> bool:
    """Whether `verify` has compared a graph of this structure, in any shapes: padded texts have many lengths."""
    return graph.structure(params) in _verified


def verify(
    losses: Tensor,
    params: Sequence[Tensor],
    names: Sequence[str],
    graph: Graph,
    usage: WeightUsage,
    squares: Tensor,
) -> None:
    """Compares the squared norms (groups, n) of two examples, that of the largest and that of the median norm.

    Raises UnsupportedOperationError that names the parameters whose norms differ and the nodes that use them.
    """
    norms = squares.sum(0).sqrt()
    if not norms.isfinite().all():
        return
    chosen = norms.argsort(descending=True)[[0, len(norms) // 2]]
    absent = [k for k in range(len(params)) if not any(k in group.leaves for group in usage.groups)]
    leaves: list[Sequence[int]] = [*(group.leaves for group in usage.groups), absent]
    exact = exact_squares(losses, [[params[k] for k in group] for group in leaves], chosen.tolist()).sqrt()
    ours = torch.cat([squares, torch.zeros_like(norms)[None]])[:, chosen].sqrt()
    outputs = (output for node in graph.nodes for output in getattr(node, "_input_metadata", ()))
    half = any(output.dtype in (torch.float16, torch.bfloat16) for output in outputs)
    length = exact.norm(dim=0)
    allowed = (HALF_TOLERANCE if half else TOLERANCE) * (exact + length / 10)  # rounding shows in small groups
    wrong = ((ours - exact).abs() > allowed + 1e-9).any(1)
    if wrong.any():
        where = [
            f"parameters {', '.join(names[k] for k in group)} by {', '.join(_users(graph, usage, group))}"
            for group, bad in zip(leaves, wrong, strict=True)
            if bad
        ]
        raise UnsupportedOperationError(
            f"the gradient norms {ours.norm(dim=0).tolist()} of examples {chosen.tolist()} should be "
            f"{length.tolist()}. Wrong: {'; '.join(where)}"
        )

    _verified[graph.structure(params)] = None
    while len(_verified) > MAX_REMEMBERED:
        _verified.popitem(last=False)


def _users(graph: Graph, usage: WeightUsage, leaves: Iterable[int]) -> list[str]:
    weights = {k for k, weight in enumerate(usage.weights) if set(weight.leaves) & set(leaves)}
    names = {graph.nodes[use.place].name() for use in usage.uses if set(use.slots.values()) & weights}
    return sorted(names) or ["nodes that were not found"]
