"""FGSM with a random start (Wong et al. 2020), and with step sizes per example (Huang et al. 2022)."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from pyengm.attacks import PGD, attack_mode
from pyengm.attacks.input_grad import input_grad
from pyengm.attacks.logits import CheckedModel
from pyengm.attacks.losses import cross_entropy
from pyengm.attacks.memory_format import empty_dense
from pyengm.attacks.validation import check_batch, check_extras, check_finite
from pyengm.data import Transform
from pyengm.methods.base import AttackMethod, require_key
from pyengm.methods.dataset_spec import DatasetSpec
from pyengm.methods.info import MethodInfo, PassCounts
from pyengm.methods.instance_log import LogsInstances
from pyengm.methods.per_example_buffer import BufferSlot, PerExampleBuffer
from pyengm.methods.registry import register_method
from pyengm.ops import Key, atas_step_

C = 1.28  # the published 0.01 belongs to gradients of the mean over 128 examples


@register_method
class FGSMRS(LogsInstances, AttackMethod):
    """L_i = CE(f(x'_i), y_i), x' one step along the cross-entropy's gradient from a uniform point of the ball.

    Args:
        eps: Radius of the threat model, in pixel units.
        step_size: Step size, in pixel units; 1.25 eps unless given, and with `adaptive` 16/255, in L2 2 eps.
        norm: Norm of the threat model, "linf" or "l2".
        bn: Batch-norm mode of the attack: "train" as in the authors' code, "eval" or "batch_stats".
        adaptive: Give every image a step size of its own by the rule of `ATAS`, a_i = step_size / (1 + sqrt(v_i) /
            1.28), clipped to [step_size / 4, 7/8 step_size], where v_i <- v_i / 2 + ||g_i||^2 / 2 averages over the
            epochs. Eq. 3 and 4 print no bounds, and 0.01 in place of 1.28; these bounds, in proportion those of `ATAS`,
            always hold. That needs `prepare` and keys. There is no authors' code for it.

    Raises:
        ConfigError: A value or name is out of range, or an image comes without a key or before `prepare` for adaptive
            steps.
        DataError: An image is not among those given to `prepare`.

    References:
        Wong et al. 2020, Alg. 3; adaptive: Huang et al. 2022, Sec. IV, Eq. 3 and 4, and Fig. 5a.
    """

    info = MethodInfo(
        name="fgsm_rs",
        title="FGSM from a random start, `adaptive` steps",
        reference="Wong et al. 2020",
        passes=PassCounts(1, 1, 1, per_step=True, steps=1),
        recipe={"lr": 0.2, "schedule": "cyclic", "pct_start": 0.5, "epochs": 15, "select_on": "none"},
        is_pgd=True,
    )
    v = BufferSlot()  # one value per image

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
        if adaptive:
            self.info = replace(self.info, is_pgd=False)

    def prepare(self, dataset: DatasetSpec) -> None:
        if self.adaptive:
            self.v = PerExampleBuffer(replace(dataset, shape=(1, 1, 1), padding=0))

    def key_for(self, x: Tensor, key: Key | None) -> Key:
        return require_key(self, key) if self.adaptive else super().key_for(x, key)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, key: Key, transform: Transform | None = None) -> Tensor:
        if not self.adaptive:
            grad = empty_dense(x) if self.logs_instances else None
            x_adv = self.attack(model, x, y, key=key, gradient=grad)
            if grad is not None:
                self.note_instances(key.index, grad, self.attack.step_size, x_adv - x)
            return x_adv
        check_batch(x, y, soft=True)
        check_extras(x, None, key, None)
        x = x.detach()
        x_adv = self.threat.project_(torch.add(x, self.threat.uniform(x, key), out=empty_dense(x)), x)
        with attack_mode(model, self.attack.bn):
            grad, losses, _ = input_grad(CheckedModel(model, y), x_adv, partial(cross_entropy, y=y))
        check_finite(losses, grad)
        rows = self.v.rows(key.index)
        v = self.v.read_scalars(rows, x)
        sizes = self._step(x_adv, grad, x, v)
        self.v.write_scalars(rows, v)
        if self.logs_instances:
            self.note_instances(key.index, grad, sizes, x_adv - x)
        return x_adv

    def _step(self, x_adv: Tensor, grad: Tensor, x: Tensor, v: Tensor) -> Tensor:
        """Updates v (n,) with the gradient, and x_adv (n, ...) with its steps, in place; returns the sizes (n,)."""
        eps, step_size = self.threat.eps, max(self.attack.step_size, torch.finfo(torch.float32).tiny)
        linf = self.threat.norm == "linf"
        stepped = x_adv if linf else x_adv.clone()
        sizes = atas_step_(
            stepped, grad, x, v, eps=eps, step_scale=step_size, c=C, min_step=step_size / 4, max_step=7 / 8 * step_size
        )
        if not linf:
            self.threat.step_(x_adv, grad, x, sizes)
        return sizes
