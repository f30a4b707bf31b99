"""Weights that are moved and put back, with the examples of an attack made anew for them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pyengm.analysis.images import Attack, Batches, analysis_mode, attacked, device_of
from pyengm.attacks.logits import logits_of
from pyengm.attacks.losses import cross_entropy
from pyengm.errors import ConfigError


def trained_params(model: nn.Module) -> list[Tensor]:
    """The parameters that require gradients. Raises ConfigError where there are none."""
    params: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    if not params:
        raise ConfigError("no parameter of the model requires gradients: call model.requires_grad_() before")
    return params


@contextmanager
def moved(params: Sequence[Tensor], *moves: tuple[float, Sequence[Tensor]]) -> Iterator[None]:
    """Context in which each parameter p is p + sum_k factor_k direction_k; exactly as before on leaving."""
    saved = [p.detach().clone() for p in params]
    try:
        with torch.no_grad():
            for k, p in enumerate(params):
                # In float64: in float32 the sum of small moves would be rounded twice.
                p.copy_(saved[k].double() + sum(factor * direction[k].double() for factor, direction in moves))
        yield
    finally:
        with torch.no_grad():
            for p, before in zip(params, saved, strict=True):
                p.copy_(before)


def gaussian_like(params: Sequence[Tensor], seed: int) -> list[Tensor]:
    """Normal random numbers in float64, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.device) for p in params]


def adversarial_batches(model: nn.Module, batches: Batches, attack: Attack | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Adversarial examples of all batches under the present weights, with their labels."""
    for number in range(len(batches)):
        batch = batches.get(number, device_of(model))
        yield attacked(model, batch, attack), batch.y


def mean_gradient(
    model: nn.Module, params: Sequence[Tensor], inputs: Sequence[tuple[Tensor, Tensor]], bn: str, seed: int
) -> list[Tensor]:
    """The gradient of the mean loss in the parameters, in float64."""
    sums = [torch.zeros_like(p, dtype=torch.float64) for p in params]
    total = sum(len(y) for _, y in inputs)
    for number, (x, y) in enumerate(inputs):
        with analysis_mode(model, bn, seed + number):
            losses = cross_entropy(logits_of(model, x, y), y)
        grads = torch.autograd.grad(losses.sum(), list(params), allow_unused=True)
        for s, grad in zip(sums, grads, strict=True):
            if grad is not None:
                s += grad.double() / total
    return sums
