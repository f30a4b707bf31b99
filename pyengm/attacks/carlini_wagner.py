"""The L2 attack of Carlini & Wagner 2017: Adam on distance and logits in the space of tanh, with a search for c."""

import torch
from torch import Tensor

from pyengm.attacks.half_precision import in_float32
from pyengm.attacks.logits import CheckedModel
from pyengm.attacks.losses import margin
from pyengm.attacks.minimum_norm import Closest, MinimumNorm
from pyengm.attacks.validation import check_finite
from pyengm.errors import ConfigError

INSIDE = 0.999999  # images are shrunk by it around 1/2, so that pixels of 0 and 1 have a finite arctanh


class CarliniWagnerL2(MinimumNorm):
    """The L2 attack of Carlini & Wagner.

    It minimises ||x' - x||^2 + c max(confidence - margin, 0) by Adam, where x' = (tanh(w) + 1) / 2. A search over c
    follows for each image: c grows tenfold until it leads to an adversarial example, and is bisected afterwards.

    Args:
        steps: Number of steps of Adam for each c. The authors take 10000.
        step_size: Learning rate of Adam, in the space of tanh.
        searches: Number of values of c for each image.
        c: The first value of c.
        confidence: kappa of the paper: the margin that an adversarial example must have.
        bn: As for `MinimumNorm`.

    Raises:
        ConfigError: For values and names out of range.

    References:
        Carlini & Wagner 2017, "Towards Evaluating the Robustness of Neural Networks", Sec. VI.A and V (f_6).
    """

    def __init__(
        self,
        steps: int = 1000,
        *,
        step_size: float = 0.01,
        searches: int = 9,
        c: float = 1e-3,
        confidence: float = 0.0,
        bn: str = "eval",
    ):
        super().__init__("l2", steps, bn)
        if searches < 1:
            raise ConfigError(f"searches is {searches}; expected at least 1 value of c")
        for name, value in (("step_size", step_size), ("c", c)):
            if not 0 < value < float("inf"):
                raise ConfigError(f"{name} is {value}; expected a finite number above 0")
        if not 0 <= confidence < float("inf"):
            raise ConfigError(f"confidence is {confidence}; expected a finite number >= 0")
        self.step_size, self.searches, self.c, self.confidence = step_size, searches, c, confidence

    def _search(self, net: CheckedModel, x: Tensor, y: Tensor, closest: Closest) -> None:
        c, low = x.new_full((len(x),), self.c), x.new_zeros(len(x))
        high = x.new_full((len(x),), torch.inf)
        for _ in range(self.searches):
            found = self._minimize(net, x, y, c, closest)
            high, low = torch.where(found, c, high), torch.where(found, low, c)
            c = torch.where(high.isfinite(), (low + high) / 2, c * 10)

    def _minimize(self, net: CheckedModel, x: Tensor, y: Tensor, c: Tensor, closest: Closest) -> Tensor:
        """Runs Adam for constants c (n,); returns for which images it found an adversarial example, (n,) bool."""
        model = in_float32(net)
        origin = ((2 * x - 1) * INSIDE).arctanh()
        center = (origin.tanh() + 1) / 2
        w = torch.zeros_like(x).requires_grad_()
        adam = torch.optim.Adam([w], lr=self.step_size)
        found = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for _ in range(self.steps):
            with torch.enable_grad():
                points = ((origin + w).tanh() + 1) / 2
                logits = model(points)
                margins = margin(logits, y)
                distances = (points - center).square().flatten(1).sum(dim=1)
                loss = (distances + c * (self.confidence - margins).clamp(min=0)).sum()
            (w.grad,) = torch.autograd.grad(loss, w)
            check_finite(w.grad, loss)
            adversarial = margins.detach() > self.confidence if self.confidence else logits.argmax(dim=1) != y
            closest.update(points.detach(), adversarial)
            found |= adversarial
            adam.step()
        return found
