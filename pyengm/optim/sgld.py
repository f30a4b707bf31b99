"""The inner loop of Entropy-SGD: stochastic gradient SGLD dynamics around the weights of one parameter group."""

import math
from typing import Any

import torch
from torch import Tensor


class SGLD:
    """Walks x' of one parameter group around its weights x, and averages where it has been.

    group: a parameter group with inner_lr, averaging and noise beside torch.optim.SGD's options. gamma: how strongly x'
    is drawn back to x. powers: 1 averages x' - x, 2 its square also; no precision is lost to the size of x.
    """

    def __init__(self, group: dict[str, Any], gamma: float, powers: int):
        self.group, self.gamma = group, gamma
        self.params = [p for p in group["params"] if p.requires_grad]
        self.start = [p.clone() for p in self.params]
        self.moved = self._zeros()  # x' - x
        self.momenta = self._zeros()
        self.averages = [self._zeros() for _ in range(powers)]  # of x' - x and its square

    def _zeros(self) -> list[Tensor]:
        return [torch.zeros_like(p) for p in self.params]

    def step(self, normals: list[Tensor] | None) -> None:
        """One step from .grad, which it may change; normals: standard normal numbers, a tensor for each parameter."""
        group, rate = self.group, self.group["inner_lr"]
        direction = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.params]
        if group["weight_decay"]:
            torch._foreach_add_(direction, self.params, alpha=group["weight_decay"])
        if group["momentum"]:
            torch._foreach_mul_(self.momenta, group["momentum"])
            torch._foreach_add_(self.momenta, direction, alpha=1 - group["dampening"])
            if group["nesterov"]:
                torch._foreach_add_(direction, self.momenta, alpha=group["momentum"])
            else:
                direction = self.momenta
        torch._foreach_add_(self.params, direction, alpha=-rate)
        torch._foreach_add_(self.params, self.moved, alpha=-rate * self.gamma)  # elastic: back to x
        if normals is not None:  # a standard deviation of noise sqrt(2 rate) per step
            torch._foreach_add_(self.params, normals, alpha=group["noise"] * math.sqrt(2 * rate))
        self._look()

    def _look(self) -> None:
        self.moved = torch._foreach_sub(self.params, self.start)
        power = self.moved
        for average in self.averages:
            torch._foreach_lerp_(average, power, 1 - self.group["averaging"])
            power = torch._foreach_mul(power, self.moved)

    def restore(self) -> None:
        """Puts the parameters back to x."""
        torch._foreach_copy_(self.params, self.start)
