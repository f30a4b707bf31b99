"""ATTA, adversarial training with transferable adversarial examples (Zheng et al. 2020)."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pyengm.attacks import PGD
from pyengm.attacks.losses import kl_divergence, log_softmax
from pyengm.data import Transform
from pyengm.errors import ConfigError
from pyengm.methods.base import AttackMethod, DatasetSpec, StepOutput, require_key
from pyengm.methods.per_example_buffer import PerExampleBuffer
from pyengm.ops import Key, Purpose, philox_normal


class ATTA(AttackMethod):
    """L_i = CE(f(x'_i), y_i), x' from PGD that goes on from where the image's last attack ended.

    With loss "trades" L_i = CE(f(x_i), y_i) + beta KL(p(x_i) || p(x'_i)), and the attack climbs the divergence. The
    perturbation of every image is kept on the padded canvas, seen through the crop and flip of the epoch; at first
    and in every reset-th epoch it is 0.001 N(0, I), not clipped, nor is the point at which the first gradient is taken.
    eps, step_size: in pixel units; step_size is eps / 2 for one step, eps / 4 for more, unless given (the authors': eps = 0.031,
    0.015 for one step and 0.007 for ten). steps: of PGD. reset: in epochs. loss: "ce" or "trades". norm: "linf" or
    "l2". bn: batch-norm mode of the attack. dtype, resolution: of the memory, see `PerExampleBuffer`.
    as_published: with "trades", climb the cross-entropy, as the authors' script does.
    The authors keep images, not perturbations, which is the same, and pad with 0.5 where we pad with 0. Their script
    also divides the mean cross-entropy by the batch size once more.
    Raises ConfigError for numbers and names out of range, and for images without a key or before `prepare`.
    Source: Zheng et al. 2020, Alg. 1 and Sec. 4.
    """

    def __init__(
        self,
        eps: float,
        step_size: float | None = None,
        steps: int = 1,
        *,
        reset: int = 10,
        loss: str = "ce",
        beta: float = 6.0,
        norm: str = "linf",
        bn: str = "eval",
        dtype: torch.dtype = torch.float32,
        resolution: int | None = None,
        as_published: bool = False,
    ):
        if loss not in ("ce", "trades"):
            raise ConfigError(f"loss is {loss!r}; known losses: ce, trades")
        if reset < 1:
            raise ConfigError(f"reset is {reset}; expected a number of epochs, 1 or more")
        climbed = "kl" if loss == "trades" and not as_published else "ce"
        step_size = eps / (2 if steps == 1 else 4) if step_size is None else step_size
        if not (math.isfinite(beta) and beta >= 0):
            raise ConfigError(f"beta is {beta}; expected a finite number >= 0, such as 6")
        self.attack = PGD(eps, step_size, steps, norm=norm, loss=climbed, bn=bn)
        self.threat, self.reset, self.loss, self.beta = self.attack.threat, reset, loss, beta
        self.dtype, self.resolution = dtype, resolution
        self.store: PerExampleBuffer | None = None

    def prepare(self, examples: DatasetSpec) -> None:
        self.store = PerExampleBuffer(examples, dtype=self.dtype, resolution=self.resolution)
        self.store.fill(0, _first)

    def start_epoch(self, model: nn.Module, epoch: int) -> None:
        if self.store is not None and (epoch + 1) % self.reset == 0:
            self.store.fill(epoch, _first)

    def key_for(self, x: Tensor, key: Key | None) -> Key:
        return require_key("ATTA", None if self.store is None else key)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, key: Key, transform: Transform | None = None) -> Tensor:
        x, rows = x.detach(), self.store.rows(key.index)
        x_adv = self.attack(model, x, y, start=x + self.store.read(rows, transform, x))
        self.store.write(rows, x_adv - x, transform)
        return x_adv

    def outcome(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> StepOutput:
        x_adv = self.as_input(x_adv)
        if self.loss == "ce":
            logits = model(x_adv)
            return StepOutput(self.cross_entropy(logits, y), x_adv, logits)
        natural, logits = model(x), model(x_adv)
        robust = kl_divergence(logits, log_softmax(natural))
        return StepOutput(self.cross_entropy(natural, y) + self.beta * robust, x_adv, logits)

    def stores(self) -> Mapping[str, PerExampleBuffer]:
        return {} if self.store is None else {"store": self.store}


def _first(like: Tensor, key: Key) -> Tensor:
    noise = philox_normal(key.index, like.shape[1:], seed=key.seed, purpose=Purpose.STORE, epoch=key.epoch)
    return 0.001 * noise.to(like.dtype)
