"""Per-example gradient norms: exact, or calibrated where batch statistics make the examples depend on each other."""

from typing import Any

import torch
from torch import Tensor

from pyengm.errors import ConfigError
from pyengm.pergrad.batch_norm.lowrank import lowrank_squares
from pyengm.pergrad.engine import PerExampleBackward, prepare
from pyengm.pergrad.exact import exact_norms, exact_squares
from pyengm.pergrad.fsdp import gathered
from pyengm.pergrad.validation import Params, check_losses, named_params
from pyengm.utils.distributed import all_reduce_sum, is_initialized

NORMS = ("auto", "exact", "frozen", "corrected", "lowrank")
DEFAULT = "frozen"  # under batch norm in training mode: what measured best for its cost
RANK = 16
DRIFT = 0.05  # relative error of the norms at which a fit is too old
STATE = ("gap", "age", "drift", "_leaves", "_exact", "_estimated")


class NormEstimator:
    """A way to get per-example gradient norms, with what it has learned about the model.

    norms: see `per_example_grad_norms`. Under batch norm in training mode "frozen" and "corrected" put a factor on
    the squared norms of each parameter, fitted on exact derivatives of `examples` examples of a batch. The next fit
    comes sooner or later as the last one has aged worse or better, at the latest after `interval` calls. gap: calls
    from one fit to the next; age: calls since the last one; drift: the mean relative error that it found in the one
    before. fit_errors: (m,) |estimate / exact - 1| of the norms of the examples that the last call of `norms` fitted
    factors on, estimated by the factors before; None where it fitted none, or the first. shared: where
    torch.distributed runs, a fit is one over all processes, which must call equally often.
    Raises ConfigError for an unknown kind of norms and numbers below 1.
    """

    def __init__(self, norms: str = "auto", *, interval: int = 100, examples: int = 8, shared: bool = True):
        if norms not in NORMS:
            raise ConfigError(f"norms is {norms!r}; known: {', '.join(NORMS)}")
        if interval < 1 or examples < 1:
            raise ConfigError(f"expected an interval and a number of examples of 1 or more, got {interval}, {examples}")
        self.kind, self.interval, self.examples, self.shared = norms, interval, examples, shared
        self.forget()

    def forget(self) -> None:
        """Drops what was learned."""
        self.gap, self.age = 1, 0
        self._leaves: list[tuple[int, ...]] | None = None  # the groups of parameters that the sums belong to
        self._exact = self._estimated = None  # (groups,) sums of squared norms over examples
        self._gaps: bool | None = None  # whether some of these are 0; None: not looked at yet
        self.drift = 0.0
        self.fit_errors: Tensor | None = None

    @property
    def due(self) -> bool:
        """Whether the next call fits anew."""
        return self._exact is None or self.age >= self.gap

    def prepare(self, losses: Tensor, params: Params) -> PerExampleBackward | None:
        """What the norms need, None where they take one backward pass per example."""
        plain = self.kind == "exact" or losses.numel() == 1 or losses.grad_fn is None
        return None if plain else prepare(losses, params)

    def norms(self, losses: Tensor, params: list[Tensor], found: PerExampleBackward | None) -> Tensor:
        """(n,) norms in float32 or better; found: what `prepare` returned."""
        dtype = torch.promote_types(losses.dtype, torch.float32)
        self.fit_errors = None
        if found is None:
            return exact_norms(losses, params)
        if not found.frozen:
            return found.squares()[0].sum(0).sqrt().to(dtype)
        if self.kind == "lowrank":
            return lowrank_squares(found, RANK).sum(0).sqrt().to(dtype)
        total, _ = found.squares(corrected=(DEFAULT if self.kind == "auto" else self.kind) == "corrected")
        return (total * self._factors(found, total)[:, None]).sum(0).sqrt().to(dtype)

    def _factors(self, found: PerExampleBackward, total: Tensor) -> Tensor:
        leaves = [group.leaves for group in found.usage.groups]
        if leaves != self._leaves:
            self.forget()
            self._leaves = leaves
        if self.due or self._has_new(total):
            self._fit(found, total)
        self.age += 1
        return self._fitted() if self._exact is not None else torch.ones_like(total[:, 0])

    def _has_new(self, total: Tensor) -> bool:
        """Whether parameters that lay behind a zero have gradients now; not asked where processes must decide alike."""
        if self._among_others():
            return False
        if self._gaps is None:  # seldom, as looking keeps the host waiting
            self._gaps = bool((self._estimated == 0).any())
        return self._gaps and bool(((self._estimated == 0) & (total.sum(1) > 0)).any())

    def _among_others(self) -> bool:
        return self.shared and is_initialized()

    def _fit(self, found: PerExampleBackward, total: Tensor) -> None:
        chosen = _spread(total.sum(0), self.examples)
        groups = [[found.params[k] for k in group.leaves] for group in found.usage.groups]
        exact, estimated = exact_squares(found.losses, groups, chosen), total[:, chosen]
        relative = exact.sum(0).reciprocal().nan_to_num(posinf=0)  # so that every example counts the same
        both = torch.stack([exact @ relative, estimated @ relative])
        if self._among_others():  # one fit for the examples of all processes
            both = all_reduce_sum(both)
        if not both.isfinite().all():
            return  # the norms show it; the next batch is fitted
        if self._exact is not None:
            self.fit_errors = _errors(self._fitted() @ estimated, exact.sum(0))
        exact, estimated = both
        if self._exact is not None and self._estimated is not None:
            self.drift = ((self._fitted() @ estimated) / exact.sum()).sqrt().item() - 1
            aged = abs(self.drift) > DRIFT
            self.gap = max(1, self.gap // 2) if aged else min(2 * self.gap, self.interval)
            if not aged:  # what was learned before still holds
                exact, estimated = exact + self._exact / 2, estimated + self._estimated / 2
        self._exact, self._estimated, self.age, self._gaps = exact, estimated, 0, None

    def _fitted(self) -> Tensor:
        exact, estimated = self._exact, self._estimated
        assert exact is not None  # there was a fit
        assert estimated is not None
        whole = exact.sum() / estimated.sum().clamp(min=torch.finfo(torch.float64).tiny)
        return torch.where(estimated > 0, exact / estimated, whole)

    def state_dict(self) -> dict[str, Any]:
        return {name.lstrip("_"): getattr(self, name) for name in STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in STATE:
            setattr(self, name, state[name.lstrip("_")])
        self._gaps = None


def _errors(estimated: Tensor, exact: Tensor) -> Tensor:
    """|estimate / exact - 1| of norms whose squares these are, (m,), without examples that have no gradient."""
    return ((estimated / exact)[exact > 0].sqrt() - 1).abs()


def _spread(norms: Tensor, m: int) -> list[int]:
    """Up to m examples, the middles of m equal parts from the smallest norm to the largest."""
    n = len(norms)
    m = min(m, n)
    places = ((torch.arange(m) + 0.5) * n / m).long()
    return norms.argsort().cpu()[places].tolist()


def per_example_grad_norms(losses: Tensor, params: Params, norms: str = "auto") -> Tensor:
    """Norms ||dL_i / dparams|| of the gradients of per-example losses L, over all parameters jointly.

    The graph is kept and .grad is not touched. The first call for a structure of graph derives whose each gradient is
    and compares two norms with exact derivatives.

    Args:
        losses: (n,), one per example, with their graph.
        params: a module, named parameters, or an iterable of leaf tensors. Those that the losses do not depend on count
            as 0.
        norms: "auto" takes all norms, exactly, from one backward pass where the examples are independent. Where batch
            norm in training mode makes them depend on each other, its statistics are held constant in that pass, and
            the squared norms of each parameter are scaled to fit exact derivatives of eight examples ("frozen").
            "corrected" also counts the statistics right behind each layer, "lowrank" takes 16 further backward passes,
            and "exact" one for every example.

    Returns:
        (n,) norms in float32 or better.

    Raises:
        ConfigError: for another value of norms.
        UnsupportedOperationError: for examples that are not independent and graphs that hide layers; it names the node,
            the parameter, and a way out.
        ValueError: for losses of another shape or without a graph, and for parameters that are no leaves, of which none
            requires grad, or on none of which the losses depend.
        NonFiniteError: for losses that are not finite.

    References:
        Dabouei et al. 2022, Eq. 5.
    """
    estimator = NormEstimator(norms, shared=False)
    check_losses(losses)
    tensors, names = named_params(params)
    with gathered(losses):
        return estimator.norms(losses, tensors, estimator.prepare(losses, list(zip(names, tensors, strict=True))))
