"""Per-example gradient norms: exact, or fitted where batch statistics make the examples depend on each other."""

from typing import Any

import torch
from torch import Tensor

from pyengm.errors import ConfigError
from pyengm.pergrad.batch_norm import regression
from pyengm.pergrad.batch_norm.lowrank import add_statistics
from pyengm.pergrad.batch_norm.projection import Bases
from pyengm.pergrad.batch_norm.regression import Fit, FitExamples
from pyengm.pergrad.engine import PerExampleBackward, Sketches, prepare
from pyengm.pergrad.exact import exact_gradients, exact_norms, gradient_squares
from pyengm.pergrad.fsdp import gathered
from pyengm.pergrad.hooks import full_precision
from pyengm.pergrad.validation import Params, check_losses, named_params
from pyengm.utils.distributed import all_reduce_sum_many, is_initialized

NORMS = ("auto", "exact", "corrected", "lowrank")
DEFAULT = "corrected"  # under batch norm in training mode: what measured best for its cost
DRIFT = 0.025  # mean error of the norms at which a fit may be too old
WORSE = 1.5  # times the error at a shorter interval at which it is
FIRST_STEPS = 3  # of the search for the directions of layers' inputs
RUNNING = 0.25  # weight of the last fit in the running error
STATE = ("refit_interval", "steps_since_fit", "fit_error", "running_error")


class NormEstimator:
    """A way to get per-example gradient norms, with what it has learned about the model.

    Under batch norm in training mode "corrected" and "lowrank" are fitted to exact gradients of some examples of a
    batch. The next fit comes sooner or later as the last one has aged worse or better. A fit is regularised toward the
    last one, and it is not taken where fits to half of its examples are worse on the other half than the last one is.

    Args:
        norms: See `per_example_grad_norms`.
        max_refit_interval: Calls from one fit to the next, at most.
        examples: Examples of a batch that a fit takes, one backward pass each.
        shared: Where torch.distributed runs, a fit is one over all processes, which must call equally often.

    Attributes:
        mode: The value of norms.
        refit_interval: Calls from the last fit to the next.
        steps_since_fit: Calls since the last one.
        fit_error: The mean |estimate / exact - 1| of norms that the last fit found in the one before it, None at first.
        running_error: The running mean of fit_error over the last fits.
        fit_errors: (m,) the errors of the examples that the last call of `norms` fitted on, estimated by the fit
            before; None where it fitted none, or the first.

    Raises:
        ConfigError: An unknown kind of norms, or a number below 1.
    """

    def __init__(self, norms: str = "auto", *, max_refit_interval: int = 100, examples: int = 8, shared: bool = True):
        if norms not in NORMS:
            raise ConfigError(f"norms is {norms!r}; known: {', '.join(NORMS)}")
        if max_refit_interval < 1 or examples < 1:
            raise ConfigError(
                f"expected max_refit_interval and examples of 1 or more, got {max_refit_interval}, {examples}"
            )
        self.mode, self.max_refit_interval, self.examples, self.shared = norms, max_refit_interval, examples, shared
        self.forget()

    def forget(self) -> None:
        """Drops what was learned."""
        self.refit_interval, self.steps_since_fit = 1, 0
        self.fit_error: float | None = None
        self.running_error: float | None = None
        self.fit_errors: Tensor | None = None
        self._leaves: list[tuple[int, ...]] | None = None  # the groups of parameters that the fit belongs to
        self._bases = Bases()
        self._fit: Fit | None = None
        self._errors_after: dict[int, float] = {}  # running means of fit_error by the interval before the fit
        self._gaps: bool | None = None  # whether groups had no gradient in any fit; None: not looked at yet

    @property
    def due(self) -> bool:
        """Whether the next call fits anew."""
        return self._fit is None or self.steps_since_fit >= self.refit_interval

    def prepare(self, losses: Tensor, params: Params) -> PerExampleBackward | None:
        """What the norms need, None where they take one backward pass per example."""
        plain = self.mode == "exact" or losses.numel() == 1 or losses.grad_fn is None
        return None if plain else prepare(losses, params)

    def norms(self, losses: Tensor, params: list[Tensor], found: PerExampleBackward | None) -> Tensor:
        """(n,) norms in float32 or better; found: what `prepare` returned."""
        dtype = torch.promote_types(losses.dtype, torch.float32)
        self.fit_errors = None
        if found is None:
            return exact_norms(losses, params)
        if not found.frozen:
            return found.squares()[0].sum(0).sqrt().to(dtype)
        return self._estimated(found).clamp(min=0).sqrt().to(dtype)

    def _estimated(self, found: PerExampleBackward) -> Tensor:
        leaves = [group.leaves for group in found.usage.groups]
        if leaves != self._leaves:
            self.forget()
            self._leaves = leaves
        due, bases = self.due, self._bases
        if due:
            bases = self._refined(found)
        squares, sketches = self._sketched(found, bases)
        if not due and self._has_new(squares):
            due = True
        if due and not self._take_fit(self._examples(found, squares, sketches), bases):
            squares, sketches = self._sketched(found, self._bases)
        self.steps_since_fit += 1
        with full_precision(squares.device):
            if self._fit is None:
                return regression.corrected({}, squares, sketches.layers).sum(0)
            return self._fit.squares(squares, sketches.layers)

    def _sketched(self, found: PerExampleBackward, bases: Bases) -> tuple[Tensor, Sketches]:
        sketches = Sketches(bases, features={} if self.mode == "lowrank" else None)
        squares, _ = found.squares(sketches=sketches)
        if self.mode == "lowrank":
            add_statistics(found, sketches)
        return squares, sketches

    def _refined(self, found: PerExampleBackward) -> Bases:
        """The directions of the layers' inputs, a step nearer to those of this batch."""
        bases = self._bases
        for _ in range(1 if bases else FIRST_STEPS):
            bases = found.refine(bases)
            if self._among_others():
                shared = all_reduce_sum_many([bases[row] for row in sorted(bases)])
                bases = Bases(zip(sorted(bases), shared, strict=True))
            bases = bases.orthonormal()
        return bases

    def _has_new(self, squares: Tensor) -> bool:
        """Whether parameters that lay behind a zero have gradients now; not asked where processes must decide alike."""
        if self._fit is None or self._among_others():
            return False
        unseen = self._fit.moments[1] == 0
        if self._gaps is None:  # seldom, as looking keeps the host waiting
            self._gaps = bool(unseen.any())
        return self._gaps and bool((unseen & (squares.sum(1) > 0)).any())

    def _among_others(self) -> bool:
        return self.shared and is_initialized()

    def _examples(self, found: PerExampleBackward, squares: Tensor, sketches: Sketches) -> FitExamples:
        """Exact gradients of some examples, with their estimates."""
        chosen = _spread(squares.sum(0), self.examples)
        groups = found.usage.groups
        layers = {row: layer.of(chosen) for row, layer in sketches.layers.items()}
        leaves = [(row, found.params[k]) for row, group in enumerate(groups) for k in group.leaves]
        edges = [found.edge(groups[row].weights[0]) for row in layers]
        exact = torch.zeros(len(groups), len(chosen), dtype=torch.float64, device=squares.device)
        along: dict[int, list[Tensor]] = {row: [] for row in layers}
        for index, grads in exact_gradients(found.losses, [*(p for _, p in leaves), *edges], chosen):
            for (row, _), grad in zip(leaves, grads, strict=False):
                if grad is not None:
                    exact[row, index] += gradient_squares(grad).to(exact)
            for (row, layer), grad in zip(layers.items(), grads[len(leaves) :], strict=True):
                along[row].append(torch.zeros_like(layer.own[index]) if grad is None else layer.along(grad))
        return FitExamples(exact, squares[:, chosen], layers, {row: torch.cat(parts) for row, parts in along.items()})

    def _take_fit(self, examples: FitExamples, bases: Bases) -> bool:
        """Whether gradients were finite: else the norms show it, and the next batch is fitted."""
        last = None if self._fit is None else self._fit.rotated(self._bases, bases)
        finite = torch.stack([examples.exact.isfinite().all(), examples.squares.isfinite().all()]).all()
        (bad,) = self._reduce([1 - finite.double()])
        if bad > 0:
            return False
        with full_precision(examples.exact.device):
            self._choose(examples, last, bases)
        self.steps_since_fit, self._gaps = 0, None
        return True

    def _choose(self, examples: FitExamples, last: Fit | None, bases: Bases) -> None:
        if last is None:
            self._fit, self._bases = regression.fit(examples, None, 0.0, self._reduce), bases
            return
        before = regression.norm_errors(last, examples)
        fresh = regression.held_out_errors(examples, last, regression.KEEP, self._reduce)
        sums = [before.sum(), fresh.sum(), fresh.new_tensor(len(fresh))]
        old, new, count = torch.stack(self._reduce(sums)).tolist()
        error = old / max(count, 1)
        self.fit_errors, self.fit_error = before, error
        self.running_error = _running(self.running_error, error)
        self._set_interval(error)
        taken = last if new > old else regression.fit(examples, last, regression.KEEP, self._reduce)
        self._fit, self._bases = taken, bases

    def _set_interval(self, error: float) -> None:
        """Doubles the interval, or halves it where fits age within it: shorter ones found smaller errors."""
        interval, errors = self.refit_interval, self._errors_after
        shorter = [errors[k] for k in sorted(errors) if k < interval][-1:]
        aged = error > DRIFT and any(error > WORSE * before for before in shorter)
        errors[interval] = _running(errors.get(interval), error)
        self.refit_interval = max(1, interval // 2) if aged else min(2 * interval, self.max_refit_interval)

    def _reduce(self, sums: list[Tensor]) -> list[Tensor]:
        return all_reduce_sum_many(sums) if self._among_others() else sums

    def state_dict(self) -> dict[str, Any]:
        fit = None if self._fit is None else {name: _named(value) for name, value in vars(self._fit).items()}
        learned = {"bases": _named(self._bases), "fit": fit, "errors": _named(self._errors_after)}
        return {name: getattr(self, name) for name in STATE} | {"leaves": self._leaves} | learned

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in STATE:
            setattr(self, name, state[name])
        self._leaves, self._bases = state["leaves"], Bases(_numbered(state["bases"]))
        self._errors_after = _numbered(state["errors"])
        fit = state["fit"]
        self._fit = None if fit is None else Fit(**{name: _numbered(value) for name, value in fit.items()})
        self._gaps = None


def _named(values: Any) -> Any:
    """The dictionary with names in place of numbers, which a state in JSON does not keep; other values as they are."""
    return {str(key): value for key, value in values.items()} if isinstance(values, dict) else values


def _numbered(values: Any) -> Any:
    return {int(key): value for key, value in values.items()} if isinstance(values, dict) else values


def _running(mean: float | None, value: float) -> float:
    return value if mean is None else mean + RUNNING * (value - mean)


def _spread(norms: Tensor, m: int) -> list[int]:
    """Up to m examples, the middles of m equal parts from the smallest norm to the largest."""
    n = len(norms)
    m = min(m, n)
    indices = ((torch.arange(m) + 0.5) * n / m).long()
    return norms.argsort().cpu()[indices].tolist()


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
            what they change is predicted along a few directions of each layer's input, fitted to exact gradients of
            eight examples ("corrected"): the median error measured 1 to 3 % on ResNets, and an adversarial step with
            PGD-10 takes 1.1 to 1.2 times as long as with momentum SGD. "lowrank" takes a further backward pass, which
            carries the statistics' derivatives down (0.7 to 2 %), and "exact" one for every example.

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
