"""Per-example gradient norms: exact, or fitted where batch statistics make the examples depend on each other."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from pyengm.errors import ConfigError
from pyengm.pergrad.batch_norm import regression
from pyengm.pergrad.batch_norm.in_place import overwrite
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
UPDATE_INTERVAL = 8  # calls between which a fit takes in one more example, so that it does not age
UPDATE_KEEP = 0.85  # weight of the sums of a fit when it does
UPDATE_RANKS = 0.618  # golden section: successive updates spread over the ranks from the smallest norm to the largest
RUNNING = 0.25  # weight of the last fit in the running error
STATE = ("refit_interval", "steps_since_fit", "fit_error", "running_error")


class NormEstimator:
    """A way to get per-example gradient norms, with what it has learned about the model.

    Under batch norm in training mode "corrected" and "lowrank" are fitted to exact gradients of some examples of a
    batch. The next fit comes sooner or later as the last one has aged worse or better. A fit is regularised toward the
    last one, and it is not taken where fits to half of its examples are worse on the other half than the last one is.
    In every eighth call between two fits, the last one is updated by the exact gradient of one example.

    Fits and updates write into the memory of the last fit where they have its form, so that a CUDA graph of a plain
    call (see `is_plain`), which reads that memory, sees them.

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
        running_error: The running mean of the errors of norms that the last fits and updates found before they changed
            anything, each weighted by its number of examples.
        fit_errors: (m,) the errors of the examples that the last call of `norms` fitted on, or that updated the fit,
            as they were estimated before; None where there were none, or the first fit.
        memory: Stands for the memory that calls read: the same object as long as that stays in place.

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
        self._estimates = False  # whether batch statistics made the examples of the last call depend on each other
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
        self._gaps = False  # whether groups had no gradient in any fit, so that each call looks for one
        self.memory = object()

    @property
    def due(self) -> bool:
        """Whether the next call fits anew."""
        return self._fit is None or self.steps_since_fit >= self.refit_interval

    @property
    def is_plain(self) -> bool:
        """Whether the next call does the same for every batch, and does not make the host wait for a GPU.

        It then neither fits nor updates nor looks for gradients that no fit has seen. So it can be recorded in a CUDA
        graph, and replayed while `memory` stays the same. Its graph is taken to be like that of the last call. With
        "lowrank" the host waits at every call under batch norm, and "exact" has no pass that could be recorded.
        """
        if not self._estimates:
            return self.mode != "exact"
        return self.mode != "lowrank" and not (self.due or self._updates or self._gaps)

    def count_replay(self) -> None:
        """Changes what a plain call changes, for a CUDA graph that was replayed in its place."""
        self.fit_errors = None
        self.steps_since_fit += self._estimates

    @property
    def _updates(self) -> bool:
        return self.steps_since_fit % UPDATE_INTERVAL == 0

    def prepare(self, losses: Tensor, params: Params) -> PerExampleBackward | None:
        """What the norms need, None where they take one backward pass per example."""
        plain = self.mode == "exact" or losses.numel() == 1 or losses.grad_fn is None
        found = None if plain else prepare(losses, params)
        self._estimates = found is not None and bool(found.frozen)
        return found

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
        if due and not self._take_fit(self._examples(found, squares, sketches, self.examples), bases):
            squares, sketches = self._sketched(found, self._bases)
        elif not due and self._updates:
            self._update(found, squares, sketches)
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
        """Whether parameters that lay behind a zero have gradients now."""
        if self._fit is None or not self._gaps:  # looking keeps the host waiting
            return False
        return bool((self._unseen(self._fit) & (squares.sum(1) > 0)).any())

    @staticmethod
    def _unseen(fit: Fit) -> Tensor:
        return fit.moments[1] == 0

    def _among_others(self) -> bool:
        return self.shared and is_initialized()

    def _examples(
        self, found: PerExampleBackward, squares: Tensor, sketches: Sketches, m: int, start: float = 0.5
    ) -> FitExamples:
        """Exact gradients of m examples, with their estimates; see `_spread`."""
        chosen = _spread(squares.sum(0), m, start)
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
        if not self._finite(examples):
            return False
        with full_precision(examples.exact.device):
            self._choose(examples, last, bases)
        self.steps_since_fit = 0
        return True

    def _finite(self, examples: FitExamples) -> bool:
        finite = torch.stack([examples.exact.isfinite().all(), examples.squares.isfinite().all()]).all()
        (bad,) = self._reduce([1 - finite.double()])
        return bool(bad == 0)

    def _update(self, found: PerExampleBackward, squares: Tensor, sketches: Sketches) -> None:
        """Adds one example to the sums of the fit, from update to update one of another rank among the norms."""
        assert self._fit is not None
        start = self.steps_since_fit // UPDATE_INTERVAL * UPDATE_RANKS % 1
        examples = self._examples(found, squares, sketches, 1, start)
        if not self._finite(examples):
            return
        with full_precision(squares.device):
            self.fit_errors = regression.norm_errors(self._fit, examples)
            total, count = torch.stack(self._reduce([self.fit_errors.sum(), self._count(self.fit_errors)])).tolist()
            if count:
                self.running_error = _running(self.running_error, total / count, RUNNING / self.examples)
            self._keep(regression.fit(examples, self._fit, UPDATE_KEEP, self._reduce), self._bases)

    def _choose(self, examples: FitExamples, last: Fit | None, bases: Bases) -> None:
        if last is None:
            self._keep(regression.fit(examples, None, 0.0, self._reduce), bases)
            return
        before = regression.norm_errors(last, examples)
        fresh = regression.held_out_errors(examples, last, regression.KEEP, self._reduce)
        sums = [before.sum(), fresh.sum(), self._count(fresh)]
        old, new, count = torch.stack(self._reduce(sums)).tolist()
        error = old / max(count, 1)
        self.fit_errors, self.fit_error = before, error
        self.running_error = _running(self.running_error, error)
        self._set_interval(error)
        self._keep(last if new > old else regression.fit(examples, last, regression.KEEP, self._reduce), bases)

    def _keep(self, fit: Fit, bases: Bases) -> None:
        """Takes a fit and its bases, in the memory of the last ones where they have the same form."""
        if self._fit is None or not overwrite(_tensors(self._fit, self._bases), _tensors(fit, bases)):
            self._fit, self._bases, self.memory = fit, bases, object()
        self._look_for_gaps()

    def _look_for_gaps(self) -> None:
        """Not among other processes, which must decide alike."""
        self._gaps = self._fit is not None and not self._among_others() and bool(self._unseen(self._fit).any())

    def _set_interval(self, error: float) -> None:
        """Doubles the interval, or halves it where fits age within it: shorter ones found smaller errors."""
        interval, errors = self.refit_interval, self._errors_after
        shorter = [errors[k] for k in sorted(errors) if k < interval][-1:]
        aged = error > DRIFT and any(error > WORSE * before for before in shorter)
        errors[interval] = _running(errors.get(interval), error)
        self.refit_interval = max(1, interval // 2) if aged else min(2 * interval, self.max_refit_interval)

    @staticmethod
    def _count(errors: Tensor) -> Tensor:
        return errors.new_tensor(len(errors))

    def _reduce(self, sums: list[Tensor]) -> list[Tensor]:
        return all_reduce_sum_many(sums) if self._among_others() else sums

    def state_dict(self) -> dict[str, Any]:
        """What was learned, in memory of its own."""
        fit = None if self._fit is None else {name: _named(value) for name, value in vars(self._fit).items()}
        learned = {"bases": _named(self._bases), "fit": fit, "errors": _named(self._errors_after)}
        return deepcopy({name: getattr(self, name) for name in STATE} | {"leaves": self._leaves} | learned)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned, and takes nothing of its memory."""
        state = deepcopy(state)
        for name in STATE:
            setattr(self, name, state[name])
        self._leaves, self._bases = state["leaves"], Bases(_numbered(state["bases"]))
        self._errors_after = _numbered(state["errors"])
        fit = state["fit"]
        self._fit = None if fit is None else Fit(**{name: _numbered(value) for name, value in fit.items()})
        self._estimates, self.memory = self._leaves is not None, object()
        self._look_for_gaps()


def _tensors(fit: Fit, bases: Bases) -> dict[tuple[str, int], Tensor]:
    kinds = {"bases": bases, "maps": fit.maps, "products": fit.products, "moments": {0: fit.moments}}
    return {(kind, row): t for kind, by_row in kinds.items() for row, t in by_row.items()}


def _named(values: Any) -> Any:
    """The dictionary with names in place of numbers, which a state in JSON does not keep; other values as they are."""
    return {str(key): value for key, value in values.items()} if isinstance(values, dict) else values


def _numbered(values: Any) -> Any:
    return {int(key): value for key, value in values.items()} if isinstance(values, dict) else values


def _running(mean: float | None, value: float, weight: float = RUNNING) -> float:
    return value if mean is None else mean + weight * (value - mean)


def _spread(norms: Tensor, m: int, start: float) -> list[int]:
    """Up to m examples, one of each of m equal parts from the smallest norm to the largest; start: where in its part,
    from 0 to 1."""
    n = len(norms)
    m = min(m, n)
    indices = ((torch.arange(m) + start) * n / m).long()
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
            eight examples ("corrected"; a `NormEstimator` that is kept over steps also updates the fit): the median
            error measured 1 to 4 % on ResNets, and an adversarial step with PGD-10 takes 1.1 to 1.2 times as long as
            with momentum SGD. "lowrank" takes a further backward pass, which carries the statistics' derivatives down
            (0.7 to 4 %), and "exact" one for every example.

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

    Example:
        >>> model = torch.nn.Linear(4, 3)
        >>> x, y = torch.rand(8, 4), torch.arange(8) % 3
        >>> losses = torch.nn.functional.cross_entropy(model(x), y, reduction="none")
        >>> pyengm.per_example_grad_norms(losses, model).shape
        torch.Size([8])
    """
    estimator = NormEstimator(norms, shared=False)
    check_losses(losses)
    tensors, names = named_params(params)
    with gathered(losses):
        return estimator.norms(losses, tensors, estimator.prepare(losses, list(zip(names, tensors, strict=True))))
