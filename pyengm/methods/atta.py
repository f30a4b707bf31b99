"""ATTA, adversarial training with transferable adversarial examples (Zheng et al. 2020)."""

import math

import torch
from torch import Tensor, nn

from pyengm.attacks import PGD
from pyengm.attacks.logits import logits_of
from pyengm.attacks.losses import kl_divergence, log_softmax
from pyengm.attacks.memory_format import empty_dense
from pyengm.data import Transform
from pyengm.errors import ConfigError
from pyengm.methods.base import AttackMethod, StepOutput, require_key
from pyengm.methods.dataset_spec import DatasetSpec
from pyengm.methods.info import MethodInfo, PassCounts
from pyengm.methods.instance_log import LogsInstances
from pyengm.methods.per_example_buffer import BufferSlot, PerExampleBuffer
from pyengm.methods.registry import register_method
from pyengm.ops import Key, Purpose, philox_normal


@register_method
class ATTA(LogsInstances, AttackMethod):
    """L_i = CE(f(x'_i), y_i), x' from PGD that starts where the image's last attack ended.

    With loss "trades" L_i = CE(f(x_i), y_i) + beta KL(p(x_i) || p(x'_i)), and the attack ascends the divergence. The
    perturbation of every image is kept on the padded canvas, seen through the crop and flip of the epoch. Initially and
    in every reset-th epoch it is 0.001 N(0, I); neither that nor the point of the first gradient is clipped.
    The authors keep images, not perturbations, which is equivalent, and pad with 0.5 where we pad with 0. Their script
    also divides the mean cross-entropy by the batch size once more.

    Args:
        eps: Radius of the threat model, in pixel units (the authors': 0.031).
        step_size: Step size of PGD, in pixel units; eps / 2 for one step, eps / 4 for more, unless given (the authors':
            0.015 for one step and 0.007 for ten).
        steps: Steps of PGD.
        reset: Epochs between two random starts of the perturbations.
        loss: "ce" or "trades".
        beta: Weight of the divergence, with "trades".
        norm: Norm of the threat model, "linf" or "l2".
        bn: Batch-norm mode of the attack: "eval", "train" or "batch_stats".
        dtype: Type of the memory of the perturbations, such as float16.
        resolution: Height and width at which perturbations are kept, see `PerExampleBuffer`.
        as_published: With "trades", the attack ascends the cross-entropy, as in the authors' script.

    Raises:
        ConfigError: A value or name is out of range, or an image comes without a key or before `prepare`.

    References:
        Zheng et al. 2020, Alg. 1 and Sec. 4.
    """

    info = MethodInfo(
        name="atta",
        title="attacks that resume from the last epoch's",
        reference="Zheng et al. 2020",
        passes=PassCounts(1, 1, 1, per_step=True, steps=1),
        recipe={
            "eps": 0.031,
            "step_size": 0.015,
            "batch_size": 64,
            "weight_decay": 2e-4,
            "epochs": 38,
            "milestones": (30, 36),
            "select_on": "none",
        },
        epoch_options={"reset": 1},
    )
    delta = BufferSlot()

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
        ascended = "kl" if loss == "trades" and not as_published else "ce"
        step_size = eps / (2 if steps == 1 else 4) if step_size is None else step_size
        if not (math.isfinite(beta) and beta >= 0):
            raise ConfigError(f"beta is {beta}; expected a finite number >= 0, such as 6")
        self.attack = PGD(eps, step_size, steps, norm=norm, loss=ascended, bn=bn)
        self.threat, self.reset, self.loss, self.beta = self.attack.threat, reset, loss, beta
        self.dtype, self.resolution = dtype, resolution

    def prepare(self, dataset: DatasetSpec) -> None:
        self.delta = PerExampleBuffer(dataset, dtype=self.dtype, resolution=self.resolution)
        self.delta.initialize(0, _random_delta)

    def start_epoch(self, model: nn.Module, epoch: int) -> None:
        if self.buffers() and (epoch + 1) % self.reset == 0:
            self.delta.initialize(epoch, _random_delta)

    def key_for(self, x: Tensor, key: Key | None) -> Key:
        return require_key(self, key)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, key: Key, transform: Transform | None = None) -> Tensor:
        x, rows = x.detach(), self.delta.rows(key.index)
        grad = empty_dense(x) if self.logs_instances else None
        x_adv = self.attack(model, x, y, start=x + self.delta.read(rows, transform, x), gradient=grad)
        delta = x_adv - x
        if grad is not None:
            self.note_instances(key.index, grad, self.attack.step_size, delta)
        self.delta.write(rows, delta, transform)
        return x_adv

    def outcome(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> StepOutput:
        x_adv = self.as_input(x_adv)
        if self.loss == "ce":
            logits = logits_of(model, x_adv)
            return StepOutput(self.cross_entropy(logits, y), x_adv, logits)
        natural, logits = logits_of(model, x), logits_of(model, x_adv)
        robust = kl_divergence(logits, log_softmax(natural))
        return StepOutput(self.cross_entropy(natural, y) + self.beta * robust, x_adv, logits)


def _random_delta(like: Tensor, key: Key) -> Tensor:
    noise = philox_normal(key.index, like.shape[1:], seed=key.seed, purpose=Purpose.STORE, epoch=key.epoch)
    return 0.001 * noise.to(like.dtype)
