"""Muon: momentum whose matrices are orthogonalised (Jordan et al. 2024), with per-example clipping as an option."""

import math
from typing import Any

import torch
from torch import Tensor

from pyengm.errors import ConfigError
from pyengm.optim.engm import ENGM
from pyengm.optim.hyperparameter import Hyperparameter
from pyengm.optim.info import OptimizerInfo
from pyengm.optim.registry import register_optimizer
from pyengm.pergrad import any_sharded

COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of Jordan et al. 2024, which give the quintic the largest slope at 0
SMALLEST = 1e-7  # norms below it count as this one


@register_optimizer
class Muon(ENGM):
    """v <- m v + (1 - m) g; W <- W - lr scale (sqrt(max(1, rows / columns)) NS(m v + (1 - m) g) + weight_decay W).

    m is the momentum, and g = (1/n) sum_i min(alpha / ||g_i||, 1) g_i as in ENGM; alpha is infinite unless given, so
    that g is the mean gradient. NS is `newton_schulz`. It is for weights of two or more dimensions; those of
    convolutions are matrices with a row for each output channel. All other parameters, and the first and the last of
    these weights in the order given, which are the input layer and the classifier, take a step of torch.optim.SGD with
    lr, momentum and (coupled) weight_decay.

    Args:
        params: Parameters, or groups of them, as for torch.optim.SGD.
        lr: Learning rate of SGD; that of the matrices is lr scale.
        momentum: Momentum of both.
        weight_decay: Weight decay of both.
        alpha: Largest norm of an example's gradient, > 0; infinity for no clipping.
        scale: Ratio of the learning rates; 0.2 makes the authors' 0.02 of a usual 0.1.
        ns_steps: Steps of the Newton-Schulz iteration.
        ends: Whether the first and the last matrix are orthogonalised too.
        norms: How gradient norms are found, see `pyengm.per_example_grad_norms`.
        sgd_options: The other arguments of torch.optim.SGD. nesterov is on for the matrices in any case, as published.

    Raises:
        ConfigError: A hyperparameter is out of range, or the parameters are sharded.

    References:
        Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; torch.optim.Muon, which takes
        matrices alone. Clipping: Dabouei et al. 2022, Eq. 5.
    """

    info = OptimizerInfo(
        name="muon",
        title="orthogonalised momentum, with clipping of examples by `alpha`",
        reference="Jordan et al. 2024",
        weighs_examples=True,
    )

    scale = Hyperparameter("a number > 0", lambda value: value > 0)
    ns_steps = Hyperparameter("a number of steps >= 1", lambda value: isinstance(value, int) and value >= 1)
    ends = Hyperparameter("True or False", lambda value: isinstance(value, bool))

    def __init__(
        self,
        params: Any,
        lr: float = 0.1,
        momentum: float = 0.95,
        weight_decay: float = 5e-4,
        *,
        alpha: float = math.inf,
        scale: float = 0.2,
        ns_steps: int = 5,
        ends: bool = False,
        norms: str = "auto",
        **sgd_options: Any,
    ):
        super().__init__(params, lr, momentum, weight_decay, alpha=alpha, norms=norms, **sgd_options)
        self._define(scale=scale, ns_steps=ns_steps, ends=ends)
        if any_sharded(self._parameters()):
            raise ConfigError("Muon takes whole matrices, and these are sharded; use DistributedDataParallel")

    def matrices(self) -> list[Tensor]:
        """The parameters that are orthogonalised."""
        found = [p for group in self.param_groups for p in group["params"] if p.dim() >= 2]
        return found if self.ends else found[1:-1]

    def _torch_step(self) -> None:
        grads = {p: p.grad for p in self.matrices() if p.grad is not None}
        for p in grads:
            p.grad = None  # SGD passes over it
        try:
            super()._torch_step()
        finally:
            for p, grad in grads.items():
                p.grad = grad
        for group in self.param_groups:
            lr = group["lr"] * self.scale
            for p in (p for p in group["params"] if p in grads):
                direction = self._direction(p, grads[p], group)
                p.mul_(1 - lr * group["weight_decay"]).sub_(direction.mul_(lr))

    def _direction(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> Tensor:
        """The orthogonalised momentum of one matrix, in its shape; updates the momentum."""
        grad, state = -grad if group["maximize"] else grad, self.state[p]
        if state.get("momentum_buffer") is None:
            state["momentum_buffer"] = torch.zeros_like(p)
        moment = state["momentum_buffer"].lerp_(grad, 1 - group["momentum"])
        update = torch.lerp(grad, moment, group["momentum"]).flatten(1)
        ratio = math.sqrt(max(1, update.shape[0] / update.shape[1]))
        return newton_schulz(update, self.ns_steps).mul_(ratio).view(p.shape)


def newton_schulz(matrix: Tensor, steps: int = 5, *, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A matrix with the singular vectors of the given one, and singular values of about 0.7 to 1.2 in place of its own.

    Args:
        matrix: (m, k).
        steps: Steps of X <- a X + (b A + c A^2) X with A = X X^T, from X = matrix / ||matrix||; singular values that
            are not yet large enough stay below.
        dtype: The type of the steps.

    Returns:
        (m, k) in the type of the matrix.

    References:
        Jordan et al. 2024.
    """
    a, b, c = COEFFICIENTS
    wide = matrix.shape[0] <= matrix.shape[1]
    x = (matrix if wide else matrix.T).to(dtype)
    x = x / x.norm().clamp(min=SMALLEST)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if wide else x.T).to(matrix.dtype)
