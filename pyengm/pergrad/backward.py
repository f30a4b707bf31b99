"""The gradient of reweighted losses, whose weights come from per-example gradient norms."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyengm.errors import NonFiniteError, UnsupportedOperationError
from pyengm.ops import clip_weights
from pyengm.pergrad.check import check_losses
from pyengm.pergrad.graph import walk
from pyengm.pergrad.norms import Estimator
from pyengm.pergrad.passes import DDP_SINK, idle_sinks
from pyengm.pergrad.walk import Walk, start
from pyengm.utils.checks import require

# weigh(norms, input_norms) -> weights, (n,) each and detached; norms that were not asked for are None
Weigh = Callable[[Tensor | None, Tensor | None], Tensor]
OUTSIDE = "the losses do not depend on inputs; give the tensor that went into the model"


@dataclass(frozen=True)
class ExampleWeights:
    """What a step did to each example: norms of its gradients in the parameters and in the inputs, where these were
    computed, and its weight; (n,) each, detached. fit_errors: see `Estimator`."""

    norms: Tensor | None
    weights: Tensor
    input_norms: Tensor | None = None
    fit_errors: Tensor | None = None


def clipped_backward(losses: Tensor, params: Iterable[Tensor], alpha: float, *, norms: str = "auto") -> ExampleWeights:
    """Adds (1/n) sum_i min(alpha / ||g_i||, 1) g_i to .grad of the parameters: example clipping under any optimiser.

    losses: (n,), one per example, with their graph, which is freed; g_i is the gradient of loss i over all params
    jointly. alpha: the longest gradient an example may contribute, > 0. norms: as for `per_example_grad_norms`.
    Raises what `per_example_grad_norms` raises, and NonFiniteError where a norm is not finite.
    Source: Dabouei et al. 2022, Eq. 5.
    """

    def weigh(found: Tensor | None, _: Tensor | None) -> Tensor:
        assert found is not None  # an estimator computes them
        return clip_weights(found, alpha)

    return weighted_backward(losses, params, weigh, Estimator(norms, shared=False))


def weighted_backward(  # noqa: C901  the issue of the engine rewrites it
    losses: Tensor,
    params: Iterable[Tensor],
    weigh: Weigh,
    estimator: Estimator | None,
    *,
    inputs: Tensor | None = None,
    input_norms: bool = False,
    scaler: torch.amp.GradScaler | None = None,
    accumulate: int = 1,
) -> ExampleWeights:
    """Adds (1 / (n accumulate)) sum_i w_i g_i to .grad of the parameters, w = weigh(norms, input_norms) held constant.

    One backward pass where examples do not couple: it gives the norms, and what it kept gives the gradient. Elsewhere
    a second backward pass, of the weighted losses, gives the gradient.
    losses: (n,) with their graph, which is freed. estimator: how norms are found; None computes none.
    inputs: (n, ...), a tensor that the losses depend on; its .grad becomes the gradient of the same weighted mean
    (where input_norms are asked for under batch norm in training mode: of sum_i L_i, each row times its weight).
    input_norms: whether weigh is given norms of the gradient of sum_i L_i in inputs. scaler: its scale is put on the
    gradients, as by `scaler.scale(loss).backward()`, and a norm that is not finite makes all of them nan, so that it
    skips the step and backs off; without one it raises NonFiniteError.
    Raises what `per_example_grad_norms` raises, and ValueError for inputs of another length or outside the graph.
    """
    check_losses(losses)
    params = [p for p in params if p.requires_grad]
    if inputs is not None and (not inputs.requires_grad or len(inputs) != len(losses)):
        raise ValueError(
            f"expected inputs of shape ({len(losses)}, ...) that require grad, got {tuple(inputs.shape)}; "
            "call x_adv.requires_grad_() before the forward pass"
        )
    scale = 1.0
    if scaler is not None:
        losses, scale = scaler.scale([losses, torch.ones((), device=losses.device)])
    found = _start(losses, params, estimator)
    kept, norms, input_gradient, fit_errors = None, None, None, None
    if found is not None and _one_pass(found):
        if estimator is None:
            kept, input_gradient = found.gradients(inputs)
        else:
            kept = {}
            total, input_gradient = found.squares(inputs=inputs, kept=kept)
            norms = total.sum(0).sqrt()
        if inputs is not None and input_gradient is None:
            raise ValueError(OUTSIDE)
    else:
        if estimator is not None:
            norms = estimator.norms(losses, params, found)
            fit_errors = estimator.fit_errors
        if input_norms and inputs is not None:
            with idle_sinks(walk(losses).nodes):
                ones = torch.ones_like(losses)
                (input_gradient,) = torch.autograd.grad(losses, inputs, ones, retain_graph=True, allow_unused=True)
    dtype = torch.promote_types(losses.dtype, torch.float32)
    norms = None if norms is None else (norms / scale).to(dtype)
    lengths = (_input_norms(input_gradient) / scale).to(dtype) if input_norms else None
    finite = torch.ones_like(losses, dtype=torch.bool)
    for found_norms in (norms, lengths):
        if found_norms is not None:
            finite &= found_norms.isfinite()
    if scaler is None:
        require(finite.all(), _not_finite, finite)
    weights = weigh(norms, lengths)
    factors = weights / (len(weights) * accumulate)
    if scaler is not None:
        factors = torch.where(finite.all(), factors, torch.nan)
    asked = [] if inputs is None or input_gradient is not None else [inputs]
    if found is not None and kept is not None:
        found.deliver(kept, factors)
    else:
        torch.autograd.backward(losses, factors.to(losses.dtype), inputs=params + asked)
        if any(t.grad is None for t in asked):
            raise ValueError(OUTSIDE)
    if inputs is not None and input_gradient is not None:
        inputs.grad = input_gradient * factors.to(inputs.dtype).view(-1, *[1] * (inputs.dim() - 1))
    return ExampleWeights(norms, weights, lengths, fit_errors)


def _start(losses: Tensor, params: list[Tensor], estimator: Estimator | None) -> Walk | None:
    if estimator is not None:
        return estimator.start(losses, params)
    try:  # without norms two plain passes serve every model
        return start(losses, params)
    except UnsupportedOperationError:
        return None


def _not_finite(finite: Tensor) -> NonFiniteError:
    bad = (~finite).nonzero().flatten().tolist()
    return NonFiniteError(f"the gradient norms of examples {bad} of the batch are nan or infinite")


def _input_norms(gradient: Tensor | None) -> Tensor:
    if gradient is None:
        raise ValueError(OUTSIDE)
    return torch.linalg.vector_norm(gradient.flatten(1), dim=1, dtype=torch.float64)


def _one_pass(found: Walk) -> bool:
    """Where examples do not couple, no reducer waits for the losses' own pass, and no gradient has to be sparse."""
    nodes = found.graph.nodes
    return not (found.frozen or any(node.name() == DDP_SINK or getattr(node, "_saved_sparse", False) for node in nodes))
