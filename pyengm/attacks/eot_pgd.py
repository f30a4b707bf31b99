"""PGD with the expectation over transformation (Athalye et al. 2018), for models that are random at test time."""

from typing import Any

import torch
from torch import Tensor

from pyengm.attacks.input_grad import input_grad
from pyengm.attacks.logits import CheckedModel
from pyengm.attacks.pgd import PGD
from pyengm.errors import ConfigError


class EOTPGD(PGD):
    """PGD whose steps follow the mean gradient of several passes through a random model.

    Args:
        eps, step_size, steps: As for `PGD`.
        samples: Number of forward-backward passes for each step.
        **options: Further arguments of `PGD`.

    Raises:
        ConfigError: For values and names out of range.

    References:
        Athalye et al. 2018, "Synthesizing Robust Adversarial Examples", Sec. 2.1; the same authors' "Obfuscated
        Gradients Give a False Sense of Security", Sec. 4.2.
    """

    def __init__(self, eps: float, step_size: float, steps: int, *, samples: int, **options: Any):
        super().__init__(eps, step_size, steps, **options)
        if samples < 1:
            raise ConfigError(f"samples is {samples}; expected at least 1 pass for each step")
        self.samples = samples

    def _gradient(self, net: CheckedModel, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        passes = [input_grad(net, x, self.loss, target) for _ in range(self.samples)]
        grad, losses, logits = (torch.stack(values).mean(dim=0) for values in zip(*passes, strict=True))
        return grad, losses, logits
