"""ATAS, adversarial training with adaptive step size (Huang et al. 2022)."""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from pyengm.attacks import ThreatModel, attack_mode
from pyengm.attacks.input_grad import input_grad
from pyengm.attacks.losses import cross_entropy
from pyengm.attacks.memory_format import dense
from pyengm.attacks.model_state import BN_MODES
from pyengm.attacks.validation import check_batch, check_finite
from pyengm.data import Transform
from pyengm.errors import ConfigError
from pyengm.methods.base import AttackMethod, DatasetSpec, require_key
from pyengm.methods.per_example_buffer import PerExampleBuffer
from pyengm.ops import Key, Purpose, atas_step_, row_norms


class ATAS(AttackMethod):
    """L_i = CE(f(x'_i), y_i), x' = clip(x + d_i + a_i sign g_i) with a step size a_i for each image.

    d_i is where the image's last attack ended, g_i the cross-entropy's gradient at x + d_i, first clipped as x' is;
    v_i <- beta v_i + (1 - beta) |g_i|^2 and a_i = step_scale / (1 + sqrt(v_i) / c), kept between min_step and max_step. In the
    first `warmup` epochs a_i = eps and v stays 0. d_i is kept on the padded canvas, seen through the crop and flip of
    the epoch; it is U(-eps, eps) at first and in every reset-th epoch but the last. v_i outlives that.

    eps, step_scale, min_step, max_step: in pixel units. Unless given, these are 16/255, 4/255 and 14/255 for any eps, as in the
    authors' code for CIFAR (4/255 and 8/255 for ImageNet); in L2, where neither says anything, they are the same
    shares of eps as at eps = 8/255: 2 eps, eps / 2 and 7/4 eps, along the gradient over its norm.
    c: in units of |g_i| of one image's loss. The published 0.01 (0.1 for ImageNet) is for gradients of the mean over
    128 images, hence 1.28 (12.8) here, which then holds for any batch size.
    beta: the share of the old v. warmup, reset, epochs: in epochs; epochs is the length of the run. norm: "linf" or
    "l2". bn: batch-norm mode of the attack. dtype, resolution: of the memory, see `PerExampleBuffer`; the paper keeps 32 x 32 for
    ImageNet, and the authors' code for it float16 perturbations that it never updates.
    as_printed: the step sizes of Eq. 4, which are not kept between bounds, from the first epoch on.
    Raises ConfigError for numbers and names out of range, and for images without a key or before `prepare`.
    Source: Huang et al. 2022, Eq. 3 and 4, Alg. 1 and App. B.
    """

    def __init__(
        self,
        eps: float,
        *,
        epochs: int,
        step_scale: float | None = None,
        min_step: float | None = None,
        max_step: float | None = None,
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
        self.threat = ThreatModel(norm, eps)
        unit = 8 / 255 if norm == "linf" or eps == 0 else eps
        step_scale = 2 * unit if step_scale is None else step_scale
        min_step = 0.5 * unit if min_step is None else min_step
        max_step = 1.75 * unit if max_step is None else max_step
        if as_printed:
            min_step, max_step, warmup = 0.0, math.inf, 0
        for name, value in (("step_scale", step_scale), ("c", c)):
            if not 0 < value < math.inf:
                raise ConfigError(f"{name} is {value}; expected a finite number > 0")
        if not 0 <= min_step <= max_step:
            raise ConfigError(
                f"min_step and max_step are {min_step} and {max_step}; expected 0 <= min_step <= max_step in pixel units"
            )
        if not 0 <= beta <= 1:
            raise ConfigError(f"beta is {beta}; expected the share of the old average, from 0 to 1")
        if warmup < 0 or reset < 1 or epochs < 1:
            raise ConfigError(
                f"warmup, reset and epochs are {warmup}, {reset} and {epochs}; expected at least 0, 1 and 1 epochs"
            )
        if bn not in BN_MODES:
            raise ConfigError(f"batch-norm mode is {bn!r}; known modes: {', '.join(BN_MODES)}")
        self.rule = {"step_scale": step_scale, "c": c, "min_step": min_step, "max_step": max_step, "beta": beta}
        self.warmup, self.reset, self.epochs, self.bn = warmup, reset, epochs, bn
        self.dtype, self.resolution = dtype, resolution
        self.store: PerExampleBuffer | None = None
        self.v: PerExampleBuffer | None = None  # of one number per image

    def prepare(self, examples: DatasetSpec) -> None:
        self.store = PerExampleBuffer(examples, dtype=self.dtype, resolution=self.resolution, bound=self.threat.eps)
        wide = torch.promote_types(self.dtype, torch.float32)
        self.v = PerExampleBuffer(replace(examples, shape=(1, 1, 1), padding=0), dtype=wide)
        self.store.fill(0, self._first)

    def start_epoch(self, model: nn.Module, epoch: int) -> None:
        if self.store is not None and (epoch + 1) % self.reset == 0 and epoch + 1 != self.epochs:
            self.store.fill(epoch, self._first)

    def key_for(self, x: Tensor, key: Key | None) -> Key:
        return require_key("ATAS", None if self.store is None else key)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, key: Key, transform: Transform | None = None) -> Tensor:
        check_batch(x, y)
        x, rows = dense(x.detach()), self.store.rows(key.index)
        x_adv = self.threat.project_(x + self.store.read(rows, transform, x), x)
        with attack_mode(model, self.bn):
            grad, losses, _ = input_grad(model, x_adv, lambda logits: cross_entropy(logits, y))
        check_finite(losses, grad)
        if key.epoch < self.warmup:
            self.threat.step_(x_adv, grad, x, self.threat.eps)
        else:
            v = self.v.read_scalars(rows, x)
            self._step(x_adv, grad, x, v)
            self.v.write_scalars(rows, v)
        self.store.write(rows, x_adv - x, transform)
        return x_adv

    def stores(self) -> Mapping[str, PerExampleBuffer]:
        return {} if self.store is None else {"store": self.store, "v": self.v}

    def _first(self, like: Tensor, key: Key) -> Tensor:
        return self.threat.uniform(like, key, purpose=Purpose.STORE)

    def _step(self, x_adv: Tensor, grad: Tensor, x: Tensor, v: Tensor) -> None:
        """Moves x_adv by the sizes that follow from v, once v has taken in the gradient; both in place."""
        if self.threat.norm == "linf":
            atas_step_(x_adv, grad, x, v, eps=self.threat.eps, **self.rule)
            return
        step_scale, c, min_step, max_step, beta = self.rule.values()
        v.mul_(beta).add_((1 - beta) * row_norms(grad).square())
        self.threat.step_(x_adv, grad, x, (step_scale / (1 + v.sqrt() / c)).clamp(min_step, max_step))
