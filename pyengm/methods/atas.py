"""ATAS, adversarial training with adaptive step size (Huang et al. 2022)."""

import math
from dataclasses import replace
from typing import TypedDict

import torch
from torch import Tensor, nn

from pyengm.attacks import ThreatModel, attack_mode
from pyengm.attacks.input_grad import input_grad
from pyengm.attacks.logits import CheckedModel
from pyengm.attacks.losses import cross_entropy
from pyengm.attacks.memory_format import dense
from pyengm.attacks.model_state import BN_MODES
from pyengm.attacks.validation import check_batch, check_finite
from pyengm.data import Transform
from pyengm.errors import ConfigError
from pyengm.methods.base import AttackMethod, require_key
from pyengm.methods.dataset_spec import DatasetSpec
from pyengm.methods.info import MethodInfo, PassCounts, ShortRun
from pyengm.methods.instance_log import LogsInstances
from pyengm.methods.per_example_buffer import BufferSlot, PerExampleBuffer
from pyengm.methods.registry import register_method
from pyengm.ops import Key, Purpose, atas_step_, row_norms


class _Rule(TypedDict):
    """The rule of the step sizes."""

    step_scale: float
    c: float
    min_step: float
    max_step: float
    beta: float


def _sizes(run: ShortRun) -> tuple[str, ...]:
    """The published sizes of steps, which are for eps = 8/255, in proportion to eps."""
    eps = run.eps
    sizes = (f"step_scale={2 * eps:g}", f"min_step={eps / 2:g}", f"max_step={1.75 * eps:g}")
    return sizes if run.threat == "linf" else ()


def _short_recipe(run: ShortRun) -> dict[str, tuple[str, ...]]:
    return {"method_options": (f"warmup={run.epochs // 6}", *_sizes(run))}


@register_method
class ATAS(LogsInstances, AttackMethod):
    """L_i = CE(f(x'_i), y_i), x' = clip(x + d_i + a_i sign g_i) with a step size a_i for each image.

    d_i is the perturbation that the image's last attack ended with, g_i the gradient of the cross-entropy at x + d_i,
    clipped as x' is. v_i <- beta v_i + (1 - beta) |g_i|^2 and a_i = step_scale / (1 + sqrt(v_i) / c), clipped to
    [min_step, max_step]. In the first `warmup` epochs a_i = eps and v stays 0. d_i is kept on the padded canvas, seen
    through the crop and flip of the epoch; it is U(-eps, eps) initially and in every reset-th epoch but the last. v_i
    is kept through that.

    In L2 steps go along the gradient over its norm.

    Args:
        eps: Radius of the threat model, in pixel units.
        epochs: Length of the run in epochs.
        step_scale: Largest step size, in pixel units; unless given 16/255 for any eps, as in the authors' code, and in
            L2, for which neither paper nor code has one, the same share of eps as at eps = 8/255: 2 eps.
        min_step: Least step size, in pixel units; unless given 4/255 for any eps, as in the authors' code for CIFAR and
            ImageNet, and in L2 eps / 2.
        max_step: Greatest step size, in pixel units; unless given 14/255 for any eps, as in the authors' code for CIFAR
            (8/255 for ImageNet), and in L2 7/4 eps.
        c: Scale of |g_i|, in units of the gradient norm of one image's loss. The published 0.01 (0.1 for ImageNet) is
            for gradients of the mean over 128 images, hence 1.28 (12.8) here, which then holds for any batch size.
        beta: Share of the old v.
        warmup: Epochs at the start with steps of size eps.
        reset: Epochs between two random starts of the perturbations.
        norm: Norm of the threat model, "linf" or "l2".
        bn: Batch-norm mode of the attack: "eval", "train" or "batch_stats".
        dtype: Type of the memory of the perturbations, such as float16, in which the authors' code for ImageNet keeps
            perturbations that it never updates.
        resolution: Height and width at which perturbations are kept, see `PerExampleBuffer`; the paper keeps 32 x 32
            for ImageNet.
        as_printed: Use the step sizes of Eq. 4, which are not clipped, from the first epoch on. c stays as it is given:
            1.28 where Eq. 3 and 4 print 0.01, of which `c` says why; give c=0.01 for the printed number as well.

    Raises:
        ConfigError: A value or name is out of range, or an image comes without a key or before `prepare`.

    References:
        Huang et al. 2022, Eq. 3 and 4, Alg. 1 and App. B.
    """

    info = MethodInfo(
        name="atas",
        title="a step size for each image",
        reference="Huang et al. 2022",
        passes=PassCounts(2, 2, 1),
        recipe={"model": "preact_resnet18", "epochs": 30, "milestones": (24, 28), "select_on": "none"},
        large_recipe={  # App. B, for ImageNet
            "model": "resnet50",
            "eps": 2 / 255,
            "weight_decay": 1e-4,
            "epochs": 90,
            "milestones": (50, 75),
            "select_on": "none",
            "method_options": ("c=12.8", "min_step=4/255", "max_step=8/255", "resolution=32", "dtype=float16"),
        },
        short_recipe=_short_recipe,
        mnist_recipe=lambda run: {"method_options": _sizes(run)},
        epoch_options={"warmup": 0, "reset": 1},
        pixel_options=("step_scale", "min_step", "max_step"),
    )
    delta = BufferSlot()
    v = BufferSlot()  # one value per image

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
                f"min_step and max_step are {min_step} and {max_step}; expected 0 <= min_step <= max_step, "
                "in pixel units"
            )
        if not 0 <= beta <= 1:
            raise ConfigError(f"beta is {beta}; expected the share of the old average, from 0 to 1")
        if warmup < 0 or reset < 1 or epochs < 1:
            raise ConfigError(
                f"warmup, reset and epochs are {warmup}, {reset} and {epochs}; expected at least 0, 1 and 1 epochs"
            )
        if bn not in BN_MODES:
            raise ConfigError(f"batch-norm mode is {bn!r}; known modes: {', '.join(BN_MODES)}")
        self.rule: _Rule = {"step_scale": step_scale, "c": c, "min_step": min_step, "max_step": max_step, "beta": beta}
        self.warmup, self.reset, self.epochs, self.bn = warmup, reset, epochs, bn
        self.dtype, self.resolution = dtype, resolution

    def prepare(self, dataset: DatasetSpec) -> None:
        self.delta = PerExampleBuffer(dataset, dtype=self.dtype, resolution=self.resolution, bound=self.threat.eps)
        wide = torch.promote_types(self.dtype, torch.float32)
        self.v = PerExampleBuffer(replace(dataset, shape=(1, 1, 1), padding=0), dtype=wide)
        self.delta.initialize(0, self._random_delta)

    def start_epoch(self, model: nn.Module, epoch: int) -> None:
        if self.buffers() and (epoch + 1) % self.reset == 0 and epoch + 1 != self.epochs:
            self.delta.initialize(epoch, self._random_delta)

    def key_for(self, x: Tensor, key: Key | None) -> Key:
        return require_key(self, key)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, key: Key, transform: Transform | None = None) -> Tensor:
        check_batch(x, y, soft=True)
        x, rows = dense(x.detach()), self.delta.rows(key.index)
        x_adv = self.threat.project_(x + self.delta.read(rows, transform, x), x)
        with attack_mode(model, self.bn):
            grad, losses, _ = input_grad(CheckedModel(model, y), x_adv, lambda logits: cross_entropy(logits, y))
        check_finite(losses, grad)
        if key.epoch < self.warmup:
            sizes = self.threat.eps
            self.threat.step_(x_adv, grad, x, sizes)
        else:
            v = self.v.read_scalars(rows, x)
            sizes = self._step(x_adv, grad, x, v)
            self.v.write_scalars(rows, v)
        delta = x_adv - x
        self.note_instances(key.index, grad, sizes, delta)
        self.delta.write(rows, delta, transform)
        return x_adv

    def _random_delta(self, like: Tensor, key: Key) -> Tensor:
        return self.threat.uniform(like, key, purpose=Purpose.STORE)

    def _step(self, x_adv: Tensor, grad: Tensor, x: Tensor, v: Tensor) -> Tensor:
        """Updates v with the gradient, then x_adv with the step sizes (n,) that follow from v and are returned."""
        if self.threat.norm == "linf":
            return atas_step_(x_adv, grad, x, v, eps=self.threat.eps, **self.rule)
        rule = self.rule
        v.mul_(rule["beta"]).add_((1 - rule["beta"]) * row_norms(grad).square())
        sizes = (rule["step_scale"] / (1 + v.sqrt() / rule["c"])).clamp(rule["min_step"], rule["max_step"])
        self.threat.step_(x_adv, grad, x, sizes)
        return sizes
