"""The gradient of reweighted losses, whose weights come from per-example gradient norms."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyengm.errors import NonFiniteError, UnsupportedOperationError
from pyengm.ops import clip_weights
from pyengm.pergrad.autograd_graph import trace
from pyengm.pergrad.engine import PerExampleBackward, prepare
from pyengm.pergrad.fsdp import check_reduced, gathered
from pyengm.pergrad.hooks import DDP_SINK, disable_ddp_sink
from pyengm.pergrad.loss_scale import refuse_scaled
from pyengm.pergrad.norm_estimator import NormEstimator
from pyengm.pergrad.per_example_grad import PerExampleGrad
from pyengm.pergrad.rules.weights import to_float32
from pyengm.pergrad.validation import Params, check_losses, check_visible, named_params
from pyengm.utils.checks import require
from pyengm.utils.distributed import prepare_reducer

# weigh(norms, input_norms) -> weights, (n,) each and detached; norms that were not requested are None
WeightFn = Callable[[Tensor | None, Tensor | None], Tensor]
OUTSIDE = "the losses do not depend on inputs; give the tensor that went into the model"


@dataclass(frozen=True)
class PerExampleStats:
    """What a step did to each example.

    Attributes:
        norms: (n,) norms of the gradients in the parameters, detached; None where they were not computed.
        weights: (n,) weights of the examples, detached.
        input_norms: (n,) norms of the gradients in the inputs, detached; None where they were not computed.
        fit_errors: see `NormEstimator`.
    """

    norms: Tensor | None
    weights: Tensor
    input_norms: Tensor | None = None
    fit_errors: Tensor | None = None


def clipped_backward(
    losses: Tensor,
    params: Params,
    alpha: float,
    *,
    norms: "str | NormEstimator" = "auto",
    inputs: Tensor | None = None,
    scaler: torch.amp.GradScaler | None = None,
    accumulate: int = 1,
) -> PerExampleStats:
    """Adds (1/n) sum_i min(alpha / ||g_i||, 1) g_i to .grad of the parameters: example clipping under any optimiser.

    Args:
        losses: (n,), one per example, with their graph, which is freed. g_i is the gradient of loss i over all
            parameters jointly.
        params: a module, named parameters, or an iterable of leaf tensors.
        alpha: the largest norm that the gradient of an example may have, > 0.
        norms: as for `weighted_backward`.
        inputs: as for `weighted_backward`.
        scaler: as for `weighted_backward`.
        accumulate: the number of such calls that make up one step.

    Returns:
        Norms and weights of the examples.

    Raises:
        NonFiniteError: where a norm is not finite.
        ValueError: for losses that are multiplied by the scale of a GradScaler; give it as scaler.
        Exception: what `per_example_grad_norms` raises.

    References:
        Dabouei et al. 2022, Eq. 5.

    Example:
        >>> model = torch.nn.Linear(4, 3)
        >>> x, y = torch.rand(8, 4), torch.arange(8) % 3
        >>> losses = torch.nn.functional.cross_entropy(model(x), y, reduction="none")
        >>> stats = pyengm.clipped_backward(losses, model, alpha=0.1)
        >>> bool(model.weight.grad.norm() <= 0.1)
        True
    """
    return weighted_backward(
        losses,
        params,
        lambda found: clip_weights(found, alpha),
        norms=norms,
        inputs=inputs,
        scaler=scaler,
        accumulate=accumulate,
    )


def weighted_backward(
    losses: Tensor,
    params: Params,
    weights: Callable[[Tensor], Tensor],
    *,
    norms: "str | NormEstimator" = "auto",
    inputs: Tensor | None = None,
    scaler: torch.amp.GradScaler | None = None,
    accumulate: int = 1,
) -> PerExampleStats:
    """Adds (1/n) sum_i w_i g_i to .grad of the parameters, with weights w computed from the norms of the gradients g.

    Norms go in and weights come out: other functions for clipping, 1 / (||g_i|| + c) of automatic clipping (Bu et al.
    2023), or weights that a method computes from something else (GAIRAT, from the steps of an attack) times a clip.

        weighted_backward(losses, model, lambda norms: 1 / (norms + 0.01))

    Args:
        losses: (n,), one per example, with their graph, which is freed. g_i is the gradient of loss i over all
            parameters jointly.
        params: a module, named parameters, or an iterable of leaf tensors.
        weights: maps the norms ||g_i||, (n,) and detached, to weights (n,) of any sign; these are held constant.
        norms: as for `per_example_grad_norms`; or a `pergrad.NormEstimator`, which keeps from call to call what it has
            fitted to a model with batch norm in training mode, where a call with a name fits anew.
        inputs: (n, ...), a tensor that the losses depend on; its .grad becomes the gradient of the same weighted mean.
        scaler: its scale is put on the gradients, as by `scaler.scale(loss).backward()`, and a norm that is not finite
            makes all of them nan, so that it skips the step and backs off.
        accumulate: the number of such calls that make up one step.

    Returns:
        Norms and weights of the examples.

    Raises:
        ValueError: for weights of another shape.
        NonFiniteError: where a norm is not finite.
        Exception: what `per_example_grad_norms` raises.

    Example:
        >>> model = torch.nn.Linear(4, 3)
        >>> x, y = torch.rand(8, 4), torch.arange(8) % 3
        >>> losses = torch.nn.functional.cross_entropy(model(x), y, reduction="none")
        >>> stats = pyengm.weighted_backward(losses, model, lambda norms: 1 / (norms + 0.01))
        >>> stats.weights.shape
        torch.Size([8])
    """

    def weigh(found: Tensor | None, _: Tensor | None) -> Tensor:
        assert found is not None  # an estimator is given
        chosen = weights(found)
        if chosen.shape != found.shape:
            raise ValueError(f"expected weights of shape {tuple(found.shape)}, got {tuple(chosen.shape)}")
        return chosen.detach()

    if losses.requires_grad:
        refuse_scaled(losses)
        prepare_reducer(losses)
    estimator = norms if isinstance(norms, NormEstimator) else NormEstimator(norms, shared=False)
    return backward_by_weights(losses, params, weigh, estimator, inputs=inputs, scaler=scaler, accumulate=accumulate)


def backward_by_weights(
    losses: Tensor,
    params: Params,
    weigh: WeightFn,
    estimator: NormEstimator | None,
    *,
    inputs: Tensor | None = None,
    input_norms: bool = False,
    scaler: torch.amp.GradScaler | None = None,
    accumulate: int = 1,
) -> PerExampleStats:
    """Adds (1 / (n accumulate)) sum_i w_i g_i to .grad of the parameters, w = weigh(norms, input_norms) held constant.

    Where the examples are independent, one backward pass gives the norms, and what it kept gives the gradient.
    Elsewhere, and under fully_shard, a second backward pass, of the weighted losses, gives the gradient.

    Args:
        losses: (n,) with their graph, which is freed.
        params: a module, named parameters, or an iterable of leaf tensors.
        weigh: computes the weights (n,) from the norms and the input norms.
        estimator: how norms are computed; None computes none.
        inputs: (n, ...), a tensor that the losses depend on; its .grad becomes the gradient of the same weighted mean
            (with input_norms under batch norm in training mode: of sum_i L_i, each row times its weight).
        input_norms: whether weigh receives the norms of the gradient of sum_i L_i in inputs.
        scaler: its scale is put on the gradients, as by `scaler.scale(loss).backward()`, and a norm that is not finite
            makes all of them nan, so that it skips the step and backs off; without one it raises NonFiniteError.
        accumulate: the number of such calls that make up one step.

    Raises:
        ValueError: for inputs of another length or outside the graph.
        Exception: what `per_example_grad_norms` raises.
    """
    check_losses(losses)
    tensors, names = named_params(params)
    if inputs is not None and (not inputs.requires_grad or len(inputs) != len(losses)):
        raise ValueError(
            f"expected inputs of shape ({len(losses)}, ...) that require grad, got {tuple(inputs.shape)}; "
            "call x_adv.requires_grad_() before the forward pass"
        )
    scale = losses.new_ones((), dtype=torch.float32)
    if scaler is not None:  # in float32, as a scaled loss may leave the range of float16
        losses, scale = scaler.scale([to_float32(losses), scale])
    with gathered(losses, until_backward=True) as sharded:
        backward = _prepared(losses, list(zip(names, tensors, strict=True)), estimator)
        if backward is not None and not sharded and _one_pass(backward):
            found = _norms_in_one_pass(backward, estimator, inputs)
        else:
            found = _norms_before_the_gradient(losses, tensors, backward, estimator, inputs if input_norms else None)
        stats, factors = _weights(losses, found, weigh, input_norms, scale, scaler is not None, accumulate)
    _deliver(losses, tensors, backward, found, factors, inputs)
    if sharded:
        check_reduced(tensors, names)
    return stats


@dataclass
class _Found:
    """kept: gradients of the weights for `PerExampleBackward.deliver`, None where a second pass is needed."""

    kept: dict[int, PerExampleGrad] | None = None
    norms: Tensor | None = None
    input_gradient: Tensor | None = None
    fit_errors: Tensor | None = None


def _prepared(losses: Tensor, params: Params, estimator: NormEstimator | None) -> PerExampleBackward | None:
    if estimator is not None:
        return estimator.prepare(losses, params)
    try:
        return prepare(losses, params)
    except UnsupportedOperationError:
        check_visible(trace(losses))
        return None  # without norms two plain passes support every other model


def _one_pass(backward: PerExampleBackward) -> bool:
    """Where examples are independent, no reducer waits for the losses' own pass, and no gradient has to be sparse."""
    if backward.frozen:
        return False
    nodes = backward.graph.nodes
    return not any(node.name() == DDP_SINK or getattr(node, "_saved_sparse", False) for node in nodes)


def _norms_in_one_pass(backward: PerExampleBackward, estimator: NormEstimator | None, inputs: Tensor | None) -> _Found:
    if estimator is None:
        kept, input_gradient = backward.gradients(inputs)
        found = _Found(kept, None, input_gradient)
    else:
        kept = {}
        squares, input_gradient = backward.squares(inputs=inputs, kept=kept)
        found = _Found(kept, squares.sum(0).sqrt(), input_gradient)
    if inputs is not None and found.input_gradient is None:
        raise ValueError(OUTSIDE)
    return found


def _norms_before_the_gradient(
    losses: Tensor,
    params: list[Tensor],
    backward: PerExampleBackward | None,
    estimator: NormEstimator | None,
    inputs: Tensor | None,
) -> _Found:
    found = _Found()
    if estimator is not None:
        found.norms = estimator.norms(losses, params, backward)
        found.fit_errors = estimator.fit_errors
    if inputs is not None:
        with disable_ddp_sink(trace(losses).nodes):
            ones = torch.ones_like(losses)
            (found.input_gradient,) = torch.autograd.grad(losses, inputs, ones, retain_graph=True, allow_unused=True)
    return found


def _weights(
    losses: Tensor, found: _Found, weigh: WeightFn, input_norms: bool, scale: Tensor, scaled: bool, accumulate: int
) -> tuple[PerExampleStats, Tensor]:
    """Norms and weights without the scale, and the factors of the losses in the gradient."""
    dtype = torch.promote_types(losses.dtype, torch.float32)
    norms = None if found.norms is None else (found.norms / scale).to(dtype)
    of_inputs = (_input_norms(found.input_gradient) / scale).to(dtype) if input_norms else None
    finite = torch.ones_like(losses, dtype=torch.bool)
    for some in (norms, of_inputs):
        if some is not None:
            finite &= some.isfinite()
    if not scaled:
        require(finite.all(), _not_finite, finite)
    weights = weigh(norms, of_inputs)
    factors = weights / (len(weights) * accumulate)
    if scaled:
        factors = torch.where(finite.all(), factors, torch.nan)
    return PerExampleStats(norms, weights, of_inputs, found.fit_errors), factors


def _deliver(
    losses: Tensor,
    params: Sequence[Tensor],
    backward: PerExampleBackward | None,
    found: _Found,
    factors: Tensor,
    inputs: Tensor | None,
) -> None:
    """Adds the weighted gradient to .grad of the parameters and sets that of the inputs."""
    if found.kept is not None and backward is not None:
        backward.deliver(found.kept, factors)
    else:
        leaves = [*params, inputs] if inputs is not None and found.input_gradient is None else params
        torch.autograd.backward(losses, factors.to(losses.dtype), inputs=list(leaves))
        if len(leaves) > len(params) and inputs is not None and inputs.grad is None:
            raise ValueError(OUTSIDE)
    if inputs is not None and found.input_gradient is not None:
        inputs.grad = found.input_gradient * factors.to(inputs.dtype).view(-1, *[1] * (inputs.dim() - 1))


def _not_finite(finite: Tensor) -> NonFiniteError:
    bad = (~finite).nonzero().flatten().tolist()
    return NonFiniteError(f"the gradient norms of examples {bad} of the batch are nan or infinite")


def _input_norms(gradient: Tensor | None) -> Tensor:
    if gradient is None:
        raise ValueError(OUTSIDE)
    return torch.linalg.vector_norm(gradient.flatten(1), dim=1, dtype=torch.float64)
