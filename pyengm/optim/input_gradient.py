"""The base of optimisers that weigh the examples by the norms of their input gradients."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from pyengm.errors import NonFiniteError
from pyengm.optim.base import BackwardCall, PerExampleSGD, require_norms
from pyengm.optim.info import OptimizerInfo
from pyengm.pergrad import NormEstimator, PerExampleStats, backward_by_weights, check_losses

WeightFn = Callable[[Tensor | None, Tensor], Tensor]
"""weigh(norms, input_norms) -> weights, (n,) each."""


class InputGradientSGD(PerExampleSGD):
    """Weighs the examples by input gradients from the backward pass of the losses, or from the caller's attack."""

    info = OptimizerInfo(weighs_examples=True, needs_inputs=True)

    def _weighted(self, call: BackwardCall, weigh: WeightFn, estimator: NormEstimator | None) -> PerExampleStats:
        """weigh(norms, input_norms) returns the weights (n,); norms are None without an estimator."""
        run = partial(backward_by_weights, call.losses, call.params, scaler=call.scaler, accumulate=call.accumulate)
        if call.input_gradient is None:
            if call.inputs is None:
                raise ValueError(
                    f"{type(self).__name__} weighs examples by their input gradients; call x_adv.requires_grad_() "
                    "before the model, and then backward(losses, inputs=x_adv)"
                )
            return run(
                lambda norms, input_norms: weigh(norms, require_norms(input_norms)),
                estimator,
                inputs=call.inputs,
                input_norms=True,
            )
        given = _given_norms(call.losses, call.input_gradient)
        if estimator is None:
            return _accumulate_weighted(call, weigh(None, given), given)
        used = run(lambda norms, _: weigh(norms, given), estimator)
        return replace(used, input_norms=given)


def _given_norms(losses: Tensor, gradient: Tensor) -> Tensor:
    """(n,) norms of the rows of the gradient."""
    check_losses(losses)
    if len(gradient) != len(losses):
        expected = f"an input_gradient of shape ({len(losses)}, ...), one row per loss"
        raise ValueError(f"expected {expected}, got {tuple(gradient.shape)}")
    norms = torch.linalg.vector_norm(gradient.detach().flatten(1), dim=1, dtype=torch.float64)
    if not norms.isfinite().all():
        bad = (~norms.isfinite()).nonzero().flatten().tolist()
        raise NonFiniteError(f"the given input gradients of examples {bad} of the batch are nan or infinite")
    return norms.to(torch.promote_types(losses.dtype, torch.float32))


def _accumulate_weighted(call: BackwardCall, weights: Tensor, input_norms: Tensor) -> PerExampleStats:
    """One ordinary backward pass, for weights that are known before it."""
    factors = weights / (len(weights) * call.accumulate)
    factors = factors if call.scaler is None else call.scaler.scale(factors)
    torch.autograd.backward(call.losses, factors.to(call.losses.dtype), inputs=call.params)
    return PerExampleStats(None, weights, input_norms)
