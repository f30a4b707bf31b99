"""The norms that optimisers use: from one backward pass where that is exact, else by one pass per example."""

from collections.abc import Iterable

from torch import Tensor

from pyengm.errors import ConfigError
from pyengm.pergrad.graph import UnservedError
from pyengm.pergrad.oracle import exact_norms
from pyengm.pergrad.walk import walk_norms

NORMS = ("auto", "exact")


def per_example_grad_norms(losses: Tensor, params: Iterable[Tensor], norms: str = "auto") -> Tensor:
    """||dL_i / dparams|| for per-example losses L (n,), over all params jointly; (n,) in float32 or better.

    norms: "auto" takes all norms from one backward pass where examples do not couple and every use of a parameter has
    a rule (linear layers, convolutions, group, layer and, in eval mode, batch norm), and "exact" otherwise; "exact"
    runs one backward pass per example. Both give exact norms. The graph is kept, .grad is not touched.
    Raises ConfigError for another value of norms, and what `exact_norms` raises.
    Source: Dabouei et al. 2022, Eq. 5.
    """
    if norms not in NORMS:
        raise ConfigError(f"norms is {norms!r}; known: {', '.join(NORMS)}")
    params = list(params)
    if norms == "auto":
        try:
            return walk_norms(losses, params)
        except UnservedError:
            pass
    return exact_norms(losses, params)
