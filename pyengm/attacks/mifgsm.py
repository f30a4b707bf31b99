"""MI-FGSM (Dong et al. 2018): steps along gradients that are accumulated with momentum, for attacks by transfer."""

import math

import torch
from torch import Tensor

from pyengm.attacks.input_grad import input_grad
from pyengm.attacks.logits import CheckedModel, Model
from pyengm.attacks.losses import loss_named
from pyengm.attacks.memory_format import empty_dense
from pyengm.attacks.model_state import attack_mode, check_bn_mode
from pyengm.attacks.threat_model import ThreatModel
from pyengm.attacks.validation import check_batch, check_extras, check_finite
from pyengm.errors import ConfigError
from pyengm.ops import Key


class MIFGSM:
    """The momentum iterative fast gradient sign method (MI-FGSM).

    Step t follows g_t = decay g_{t-1} + grad_t / ||grad_t||_1 of each example: along its sign in L-infinity, and along
    g_t / ||g_t||_2 in L2. The attack begins at x.

    Args:
        eps: Radius of the ball, in pixel units, such as 8/255.
        step_size: Size of a step, in pixel units; None for eps / steps, as in the paper.
        steps: Number of forward-backward passes.
        decay: Factor of the accumulated gradient, mu in the paper. With 0 the attack is that of Kurakin et al. (BIM).
        norm: "linf" or "l2".
        loss: "ce", "margin" or "cw".
        bn: Mode of the model during the attack, see `attack_mode`.

    Raises:
        ConfigError: For values and names out of range.

    References:
        Dong et al. 2018, "Boosting Adversarial Attacks with Momentum", Alg. 1 and Eq. 9.
    """

    keyed = False  # without random numbers

    def __init__(
        self,
        eps: float,
        step_size: float | None = None,
        steps: int = 10,
        *,
        decay: float = 1.0,
        norm: str = "linf",
        loss: str = "ce",
        bn: str = "eval",
    ):
        self.threat = ThreatModel(norm, eps)
        if loss not in ("ce", "margin", "cw"):
            raise ConfigError(f"loss is {loss!r}; expected ce, margin or cw")
        if steps < 1:
            raise ConfigError(f"steps is {steps}; expected at least 1")
        step_size = eps / steps if step_size is None else step_size
        if not (math.isfinite(step_size) and step_size >= 0):
            raise ConfigError(f"step_size is {step_size}; expected a finite number >= 0 in pixel units, such as 2/255")
        if not (math.isfinite(decay) and decay >= 0):
            raise ConfigError(f"decay is {decay}; expected a finite number >= 0, such as 1.0")
        check_bn_mode(bn)
        self.loss, self.step_size, self.steps, self.decay, self.bn = loss_named(loss), step_size, steps, decay, bn

    @torch.inference_mode(False)
    def __call__(self, model: Model, x: Tensor, y: Tensor, *, key: Key | None = None) -> Tensor:
        """Computes adversarial examples.

        Args:
            model: Maps images to logits (n, k). It is left as it was.
            x: (n, ...) images in [0, 1].
            y: (n,) int64 labels.
            key: Selects the random numbers of attacks that draw some; None takes a fresh seed from torch's default
                generator.

        Returns:
            A tensor like x that requires no gradient.

        Raises:
            DataError: For x outside [0, 1] or not finite, labels without a logit, or shapes that do not fit.
            ModelError, NonFiniteError: When the model returns no logits (n, k), or its loss or gradient is not finite.
        """
        x, y = check_batch(x, y)
        check_extras(x, None, key, None)
        if self.keyed and key is None:
            key = Key.fresh(len(x), x.device)
        x_adv = empty_dense(x).copy_(x)
        momentum = torch.zeros_like(x_adv)
        total = x.new_zeros(())
        with attack_mode(model, self.bn), torch.no_grad():
            net = CheckedModel(model, y)
            for step in range(self.steps):
                grad = self._gradient(net, x_adv, y, key, step)
                total += grad.sum()
                momentum.mul_(self.decay).add_(_with_unit_l1(grad))
                self.threat.step_(x_adv, momentum, x, self.step_size)
        check_finite(total)
        return x_adv

    def _gradient(self, net: CheckedModel, x: Tensor, y: Tensor, key: Key | None, step: int) -> Tensor:
        """The gradient (n, ...) of the losses at x in one step; subclasses change it."""
        return input_grad(net, x, self.loss, y)[0]


def _with_unit_l1(grad: Tensor) -> Tensor:
    """grad (n, ...) divided by the mean magnitude of each example, its L1 norm but for a constant; zeros stay zeros."""
    size = grad.flatten(1).abs().mean(dim=1).view(-1, *[1] * (grad.dim() - 1))
    return grad / size.where(size > 0, 1.0)
