"""Trust but verify: norms of a new structure of graph against exact derivatives."""

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class ExactNorms:
    """Gradient norms of a few examples by group of parameters, (groups, m); the last group is of absent parameters."""

    examples: list[int]
    groups: list[Sequence[int]]
    norms: Tensor

    @staticmethod
    def of(losses: Tensor, params: Sequence[Tensor], usage: WeightUsage) -> "ExactNorms":
        """Those of the example with the largest loss and of that with the median one; the graph is kept."""
        examples = losses.detach().argsort(descending=True)[[0, len(losses) // 2]].tolist()
        absent = [k for k in range(len(params)) if not any(k in group.leaves for group in usage.groups)]
        groups: list[Sequence[int]] = [*(group.leaves for group in usage.groups), absent]
        return ExactNorms(
            examples, groups, exact_squares(losses, [[params[k] for k in g] for g in groups], examples).sqrt()
        )


def verify(
    exact: ExactNorms,
    params: Sequence[Tensor],
    names: Sequence[str],
    graph: Graph,
    usage: WeightUsage,
    squares: Tensor,
) -> bool:
    """Compares squared norms (groups, n) with exact ones, and returns whether these are finite and not all zero.

    Raises UnsupportedOperationError that names the parameters whose norms differ and the nodes that use them.
    """
    length = exact.norms.norm(dim=0)
    if not squares.isfinite().all() or not length.any():
        return False
    ours = torch.cat([squares, torch.zeros_like(squares[:1])])[:, exact.examples].sqrt()
    half = any(dtype in (torch.float16, torch.bfloat16) for dtypes in graph.dtypes for dtype in dtypes)
    allowed = (HALF_TOLERANCE if half else TOLERANCE) * (exact.norms + length / 10)  # rounding shows in small groups
    wrong = ((ours - exact.norms).abs() > allowed + 1e-9).any(1)
    if wrong.any():
        where = [
            f"parameters {', '.join(names[k] for k in group)} by {', '.join(_users(graph, usage, group))}"
            for group, bad in zip(exact.groups, wrong, strict=True)
            if bad
        ]
        raise UnsupportedOperationError(
            f"the gradient norms {ours.norm(dim=0).tolist()} of examples {exact.examples} should be "
            f"{length.tolist()}. Wrong: {'; '.join(where)}"
        )
    _verified[graph.structure(params)] = None
    while len(_verified) > MAX_REMEMBERED:
        _verified.popitem(last=False)
    return True


def _users(graph: Graph, usage: WeightUsage, leaves: Iterable[int]) -> list[str]:
    weights = {k for k, weight in enumerate(usage.weights) if set(weight.leaves) & set(leaves)}
    names = {graph.nodes[use.index].name() for use in usage.uses if set(use.slots.values()) & weights}
    return sorted(names) or ["nodes that were not found"]
