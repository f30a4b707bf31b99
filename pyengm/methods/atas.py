"""ATAS, adversarial training with adaptive step size (Huang et al. 2022)."""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from pyengm.attacks import Threat, attack_mode
from pyengm.attacks.check import check_batch
from pyengm.attacks.finite import check_finite
from pyengm.attacks.gradient import input_gradient
from pyengm.attacks.layout import dense
from pyengm.attacks.losses import cross_entropy
from pyengm.attacks.mode import BN_MODES
from pyengm.data import Transform
from pyengm.errors import ConfigError
from pyengm.methods.base import AttackMethod, Examples, known_pictures
from pyengm.methods.store import Store
from pyengm.ops import Key, Purpose, atas_step_, row_norms


class ATAS(AttackMethod):
    """L_i = CE(f(x'_i), y_i), x' = clip(x + d_i + a_i sign g_i) with a step size a_i for each picture.

    d_i is where the picture's last attack ended, g_i the cross-entropy's gradient at x + d_i, first clipped as x' is;
    v_i <- beta v_i + (1 - beta) |g_i|^2 and a_i = largest / (1 + sqrt(v_i) / c), kept between low and high. In the
    first `warmup` epochs a_i = eps and v stays 0. d_i is kept on the padded canvas, seen through the crop and flip of
    the epoch; it is U(-eps, eps) at first and in every reset-th epoch but the last. v_i outlives that.

    eps, largest, low, high: in pixel units. Unless given, these are 16/255, 4/255 and 14/255 for any eps, as in the
    authors' code for CIFAR (4/255 and 8/255 for ImageNet); in L2, where neither says anything, they are the same
    shares of eps as at eps = 8/255: 2 eps, eps / 2 and 7/4 eps, along the gradient over its norm.
    c: in units of |g_i| of one picture's loss. The published 0.01 (0.1 for ImageNet) is for gradients of the mean over
    128 pictures, hence 1.28 (12.8) here, which then holds for any batch size.
    beta: the share of the old v. warmup, reset, epochs: in epochs; epochs is the length of the run. norm: "linf" or
    "l2". bn: batch-norm mode of the attack. dtype, resolution: of the memory, see `Store`; the paper keeps 32 x 32 for
    ImageNet, and the authors' code for it float16 perturbations that it never updates.
    as_printed: the step sizes of Eq. 4, which are not kept between bounds, from the first epoch on.
    Raises ConfigError for numbers and names out of range, and for pictures without a key or before `prepare`.
    Source: Huang et al. 2022, Eq. 3 and 4, Alg. 1 and App. B.
    """

    def __init__(
        self,
        eps: float,
        *,
        epochs: int,
        largest: float | None = None,
        low: float | None = None,
        high: float | None = None,
        c: float = 1.28,
        beta: float = 0.5,
        warmup: int = 5,
        reset: int = 10,
        norm: str = "linf",
        bn: str = "eval",
        dtype: torch.dtype = torch.float32,
        resolution: int | None = None,
        as_printed: bool = False,
    ):
        self.threat = Threat(norm, eps)
        unit = 8 / 255 if norm == "linf" or eps == 0 else eps
        largest = 2 * unit if largest is None else largest
        low = 0.5 * unit if low is None else low
        high = 1.75 * unit if high is None else high
        if as_printed:
            low, high, warmup = 0.0, math.inf, 0
        for name, value in (("largest", largest), ("c", c)):
            if not 0 < value < math.inf:
                raise ConfigError(f"{name} is {value}; expected a finite number > 0")
        if not 0 <= low <= high:
            raise ConfigError(f"low and high are {low} and {high}; expected 0 <= low <= high in pixel units")
        if not 0 <= beta <= 1:
            raise ConfigError(f"beta is {beta}; expected the share of the old average, from 0 to 1")
        if warmup < 0 or reset < 1 or epochs < 1:
            raise ConfigError(
                f"warmup, reset and epochs are {warmup}, {reset} and {epochs}; expected at least 0, 1 and 1 epochs"
            )
        if bn not in BN_MODES:
            raise ConfigError(f"batch-norm mode is {bn!r}; known modes: {', '.join(BN_MODES)}")
        self.rule = {"largest": largest, "c": c, "low": low, "high": high, "beta": beta}
        self.warmup, self.reset, self.epochs, self.bn = warmup, reset, epochs, bn
        self.dtype, self.resolution = dtype, resolution
        self.store: Store | None = None
        self.v: Store | None = None  # of one number per picture

    def prepare(self, examples: Examples) -> None:
        self.store = Store(examples, dtype=self.dtype, resolution=self.resolution, bound=self.threat.eps)
        wide = torch.promote_types(self.dtype, torch.float32)
        self.v = Store(replace(examples, shape=(1, 1, 1), padding=0), dtype=wide)
        self.store.fill(0, self._first)

    def start_epoch(self, model: nn.Module, epoch: int) -> None:
        if self.store is not None and (epoch + 1) % self.reset == 0 and epoch + 1 != self.epochs:
            self.store.fill(epoch, self._first)

    def key_for(self, x: Tensor, key: Key | None) -> Key:
        return known_pictures("ATAS", None if self.store is None else key)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, key: Key, transform: Transform | None = None) -> Tensor:
        check_batch(x, y)
        x, rows = dense(x.detach()), self.store.rows(key.index)
        x_adv = self.threat.project_(x + self.store.read(rows, transform, x), x)
        with attack_mode(model, self.bn):
            grad, losses, _ = input_gradient(model, x_adv, lambda logits: cross_entropy(logits, y))
        check_finite(losses, grad)
        if key.epoch < self.warmup:
            self.threat.step_(x_adv, grad, x, self.threat.eps)
        else:
            v = self.v.numbers(rows, x)
            self._step(x_adv, grad, x, v)
            self.v.set_numbers(rows, v)
        self.store.write(rows, x_adv - x, transform)
        return x_adv

    def stores(self) -> Mapping[str, Store]:
        return {} if self.store is None else {"store": self.store, "v": self.v}

    def _first(self, like: Tensor, key: Key) -> Tensor:
        return self.threat.uniform(like, key, purpose=Purpose.STORE)

    def _step(self, x_adv: Tensor, grad: Tensor, x: Tensor, v: Tensor) -> None:
        """Moves x_adv by the sizes that follow from v, once v has taken in the gradient; both in place."""
        if self.threat.norm == "linf":
            atas_step_(x_adv, grad, x, v, eps=self.threat.eps, **self.rule)
            return
        largest, c, low, high, beta = self.rule.values()
        v.mul_(beta).add_((1 - beta) * row_norms(grad).square())
        self.threat.step_(x_adv, grad, x, (largest / (1 + v.sqrt() / c)).clamp(low, high))
