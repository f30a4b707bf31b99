"""FGSM with a random start (Wong et al. 2020), and with step sizes per example (Huang et al. 2022)."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from pyengm.attacks import PGD, attack_mode
from pyengm.attacks.input_grad import input_grad
from pyengm.attacks.losses import cross_entropy
from pyengm.attacks.memory_format import empty_dense
from pyengm.attacks.validation import check_batch, check_extras, check_finite
from pyengm.data import Transform
from pyengm.methods.base import AttackMethod, DatasetSpec, require_key
from pyengm.methods.per_example_buffer import PerExampleBuffer
from pyengm.ops import Key, atas_step_

C = 1.28  # the published 0.01 belongs to gradients of the mean over 128 examples


class FGSMRS(AttackMethod):
    """L_i = CE(f(x'_i), y_i), x' one step of the cross-entropy's gradient from a uniform point of the ball.

    eps, step_size: in pixel units; step_size is 1.25 eps unless given. norm: "linf" or "l2". bn: batch-norm mode of the attack,
    "train" as in the authors' code.
    adaptive: a step size of its own for every image by the rule of `ATAS`, a_i = step / (1 + sqrt(v_i) / 1.28), kept
    between step / 4 and 7/8 step, where v_i <- v_i / 2 + ||g_i||^2 / 2 averages over the epochs. step is then 16/255
    unless given, in L2 2 eps. Needs `prepare` and keys. There is no authors' code for it.
    Raises ConfigError for numbers and names out of range, and for adaptive steps without `prepare` or a key; DataError
    for images that `prepare` was not told of.
    Source: Wong et al. 2020, Alg. 3; adaptive: Huang et al. 2022, Sec. IV, Eq. 3 and 4, and Fig. 5a.
    """

    def __init__(
        self,
        eps: float,
        step_size: float | None = None,
        *,
        norm: str = "linf",
        bn: str = "train",
        adaptive: bool = False,
    ):
        if step_size is None:
            step_size = 1.25 * eps if not adaptive else 16 / 255 if norm == "linf" else 2 * eps
        self.attack = PGD(eps, step_size, 1, norm=norm, bn=bn)
        self.threat, self.adaptive = self.attack.threat, adaptive
        self.store: PerExampleBuffer | None = None  # of one number per image, v

    def prepare(self, examples: DatasetSpec) -> None:
        if self.adaptive:
            self.store = PerExampleBuffer(replace(examples, shape=(1, 1, 1), padding=0))

    def key_for(self, x: Tensor, key: Key | None) -> Key:
        if not self.adaptive:
            return super().key_for(x, key)
        return require_key("FGSMRS(adaptive=True)", None if self.store is None else key)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, key: Key, transform: Transform | None = None) -> Tensor:
        if not self.adaptive:
            return self.attack(model, x, y, key=key)
        check_batch(x, y)
        check_extras(x, None, key, None)
        x = x.detach()
        x_adv = self.threat.project_(torch.add(x, self.threat.uniform(x, key), out=empty_dense(x)), x)
        with attack_mode(model, self.attack.bn):
            grad, losses, _ = input_grad(model, x_adv, partial(cross_entropy, y=y))
        check_finite(losses, grad)
        rows = self.store.rows(key.index)
        v = self.store.read_scalars(rows, x)
        self._step(x_adv, grad, x, v)
        self.store.write_scalars(rows, v)
        return x_adv

    def _step(self, x_adv: Tensor, grad: Tensor, x: Tensor, v: Tensor) -> None:
        """Moves x_adv (n, ...) and v (n,) in place."""
        eps, step_size = self.threat.eps, max(self.attack.step_size, torch.finfo(torch.float32).tiny)
        linf = self.threat.norm == "linf"
        moved = x_adv if linf else x_adv.clone()
        sizes = atas_step_(
            moved, grad, x, v, eps=eps, step_scale=step_size, c=C, min_step=step_size / 4, max_step=7 / 8 * step_size
        )
        if not linf:
            self.threat.step_(x_adv, grad, x, sizes)

    def stores(self) -> Mapping[str, PerExampleBuffer]:
        return {} if self.store is None else {"v": self.store}
