"""Stochastic gradient Langevin dynamics around the weights of a parameter group: the inner loop of Entropy-SGD."""

import math
from typing import Any

import torch
from torch import Tensor

from pyengm.utils import foreach


class SGLD:
    """Moves the weights x' of one parameter group around their initial values x, and averages x' - x.

    The averages are of x' - x, so that no precision is lost to the size of x.

    Args:
        group: A parameter group with inner_lr, averaging and noise beside torch.optim.SGD's options.
        gamma: The strength of the elastic force from x' to x.
        powers: 1 averages x' - x, 2 its square also.
    """

    def __init__(self, group: dict[str, Any], gamma: float, powers: int):
        self.group, self.gamma = group, gamma
        self.params: list[Tensor] = [p for p in group["params"] if p.requires_grad]
        self.initial = [p.clone() for p in self.params]
        self.displacement = self._zeros()  # x' - x
        self.momenta = self._zeros()
        self.averages = [self._zeros() for _ in range(powers)]  # of x' - x and its square

    def _zeros(self) -> list[Tensor]:
        return [torch.zeros_like(p) for p in self.params]

    def step(self, normals: list[Tensor] | None) -> None:
        """One step along .grad, which it may change. normals: standard normal noise, a tensor for each parameter."""
        group, rate = self.group, self.group["inner_lr"]
        direction = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.params]
        if group["weight_decay"]:
            foreach.add_(direction, self.params, alpha=group["weight_decay"])
        if group["momentum"]:
            foreach.mul_(self.momenta, group["momentum"])
            foreach.add_(self.momenta, direction, alpha=1 - group["dampening"])
            if group["nesterov"]:
                foreach.add_(direction, self.momenta, alpha=group["momentum"])
            else:
                direction = self.momenta
        foreach.add_(self.params, direction, alpha=-rate)
        foreach.add_(self.params, self.displacement, alpha=-rate * self.gamma)  # the elastic force to x
        if normals is not None:  # of standard deviation noise sqrt(2 rate)
            foreach.add_(self.params, normals, alpha=group["noise"] * math.sqrt(2 * rate))
        self._update_averages()

    def _update_averages(self) -> None:
        self.displacement = list(foreach.sub(self.params, self.initial))
        power = self.displacement
        for average in self.averages:
            foreach.lerp_(average, power, 1 - self.group["averaging"])
            power = list(foreach.mul(power, self.displacement))

    def restore(self) -> None:
        """Sets the parameters to x."""
        foreach.copy_(self.params, self.initial)
