"""FGSM-PGI, prior-guided initialisation from the momentum of the past epochs (Jia et al. 2022)."""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from pyengm.attacks import ThreatModel
from pyengm.attacks.input_grad import HALF_SCALE
from pyengm.attacks.logits import logits_of
from pyengm.attacks.losses import cross_entropy
from pyengm.attacks.memory_format import dense
from pyengm.attacks.threat_model import unit
from pyengm.attacks.validation import check_batch, check_finite
from pyengm.data import Transform
from pyengm.errors import ConfigError
from pyengm.methods.base import SinglePassMethod, StepOutput, require_key
from pyengm.methods.dataset_spec import DatasetSpec
from pyengm.methods.info import MethodInfo, PassCounts
from pyengm.methods.noise import random_signs
from pyengm.methods.per_example_buffer import BufferSlot, PerExampleBuffer
from pyengm.methods.registry import register_method
from pyengm.ops import Key, Purpose, philox_normal, row_norms


@register_method
class FGSMPGI(SinglePassMethod):
    """L_i = LS(f(x'_i), y_i) + reg_weight mean_k (f(x'_i) - f(x_i + d_i))_k^2, x' = clip(x + d_i + step sign g_i).

    LS is the cross-entropy with labels of probability `confidence`, the rest shared by the other classes, and g_i its
    gradient at x + d_i, which is not clipped to [0, 1]. d_i comes from the image's past (variant FGSM-MEP):
    M_i <- g_i / mean |g_i| + decay M_i, and d_i <- clip(d_i + step_size sign M_i). The mean is over the image; the
    published norm |g|_1 differs by a constant factor, which does not change signs, and keeps M far from float16's
    limits. Initially and in every reset-th epoch d_i is a random corner of the ball of radius min(step_size, eps), in
    L2 a random point of that norm, and M_i is 0. Both passes are part of the losses, so both run in training mode.
    d and M are kept on the padded canvas, seen through the crop and flip of the epoch. In L2 steps go along g over its
    norm.

    Args:
        eps: Radius of the threat model, in pixel units.
        step_size: Step size, in pixel units; eps unless given.
        confidence: Probability that the labels give to the right class.
        reg_weight: Weight of the second term.
        decay: Share of the old M.
        reset: Epochs between two random starts.
        norm: Norm of the threat model, "linf" or "l2".
        dtype: Type of the memory of d and of M, such as float16.
        resolution: Height and width at which d and M are kept, see `PerExampleBuffer`; read at another resolution, d is
            kept in the ball of radius eps.
        as_published: As in the authors' code, d and M stay in place when augmentation moves the image, and g is divided
            by its 1-norm over the whole batch, so that M depends on the other images.

    Raises:
        ConfigError: A value is out of range, or an image comes without a key or before `prepare`.

    References:
        Jia et al. 2022, "Prior-Guided Adversarial Initialization for Fast Adversarial Training", Sec. 3.
    """

    info = MethodInfo(
        name="fgsm_pgi",
        title="a start from the image's past",
        reference="Jia et al. 2022",
        passes=PassCounts(2, 3, 2),
        recipe={"epochs": 110, "milestones": (100, 105), "select_on": "none"},
        epoch_options={"reset": 1},
        own_labels="its labels are smoothed by its own option, confidence",
    )
    delta = BufferSlot()
    momentum = BufferSlot()

    def __init__(
        self,
        eps: float,
        step_size: float | None = None,
        *,
        confidence: float = 0.6,
        reg_weight: float = 10.0,
        decay: float = 0.3,
        reset: int = 40,
        norm: str = "linf",
        dtype: torch.dtype = torch.float32,
        resolution: int | None = None,
        as_published: bool = False,
    ):
        self.threat = ThreatModel(norm, eps)
        self.step_size = eps if step_size is None else step_size
        if not (math.isfinite(self.step_size) and self.step_size >= 0):
            raise ConfigError(f"step_size is {step_size}; expected a finite number >= 0 in pixel units, such as 8/255")
        if not 0 < confidence <= 1:
            raise ConfigError(f"confidence is {confidence}; expected a probability above 0")
        if not (reg_weight >= 0 and decay >= 0) or reset < 1:
            raise ConfigError(
                f"reg_weight, decay and reset are {reg_weight}, {decay} and {reset}; expected at least 0, 0 and 1 epoch"
            )
        self.confidence, self.reg_weight, self.decay, self.reset = confidence, reg_weight, decay, reset
        self.dtype, self.resolution, self.as_published = dtype, resolution, as_published

    def prepare(self, dataset: DatasetSpec) -> None:
        dataset = replace(dataset, padding=0) if self.as_published else dataset
        self.delta = PerExampleBuffer(dataset, dtype=self.dtype, resolution=self.resolution, bound=self.threat.eps)
        self.momentum = PerExampleBuffer(dataset, dtype=self.dtype, resolution=self.resolution)
        self.delta.initialize(0, self._random_delta)

    def start_epoch(self, model: nn.Module, epoch: int) -> None:
        if self.buffers() and epoch % self.reset == 0:
            self.delta.initialize(epoch, self._random_delta)
            self.momentum.values.zero_()

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, key: Key | None = None, transform: Transform | None = None
    ) -> StepOutput:
        key = require_key(self, key)
        x, y = check_batch(x, y, soft=True)
        x, rows = dense(x.detach()), self.delta.rows(key.index)
        transform = None if self.as_published else transform
        start = (x + self._read(rows, transform, x)).requires_grad_()
        before = logits_of(model, start, y)
        grad = self._gradient(before, start, y)
        momentum = grad / self._mean_abs(grad) + self.decay * self.momentum.read(rows, transform, x)
        self.momentum.write(rows, momentum, transform)
        next_start = self.threat.step_(start.detach().clone(), momentum, x, self.step_size)
        self.delta.write(rows, next_start - x, transform)
        x_adv = self.as_input(self.threat.step_(start.detach().clone(), grad, x, self.step_size))
        logits = logits_of(model, x_adv)
        losses = self._smoothed(logits, y)
        if self.reg_weight > 0:
            losses = losses + self.reg_weight * (_wide(logits) - _wide(before)).square().mean(dim=1)
        return StepOutput(losses, x_adv, logits)

    def _random_delta(self, like: Tensor, key: Key) -> Tensor:
        radius = min(self.step_size, self.threat.eps)
        if self.threat.norm == "linf":
            return radius * random_signs(like, key)
        normal = philox_normal(key.index, like.shape[1:], seed=key.seed, purpose=Purpose.STORE, epoch=key.epoch)
        return radius * unit(normal.to(like.dtype))

    def _read(self, rows: Tensor, transform: Transform | None, x: Tensor) -> Tensor:
        """d (n, C, H, W); in L2 interpolation may increase its norm, in L-infinity it does not."""
        delta = self.delta.read(rows, transform, x)
        if self.resolution is None or self.threat.norm == "linf":
            return delta
        norms = row_norms(delta).view(-1, *[1] * (delta.dim() - 1))
        return delta * torch.where(norms > self.threat.eps, self.threat.eps / norms, 1.0).to(delta)

    def _smoothed(self, logits: Tensor, y: Tensor) -> Tensor:
        classes = logits.shape[1]
        smoothing = (1 - self.confidence) * classes / (classes - 1)  # torch divides it among all classes
        return cross_entropy(logits, y, smoothing)

    def _gradient(self, logits: Tensor, start: Tensor, y: Tensor) -> Tensor:
        """That of sum_i LS_i in start, times a constant that cancels in the steps; the graph of the logits stays."""
        losses = self._smoothed(logits, y)
        (grad,) = torch.autograd.grad(HALF_SCALE * losses.sum(), start, retain_graph=True)
        check_finite(losses, grad)
        return grad

    def _mean_abs(self, grad: Tensor) -> Tensor:
        """The mean of |g| over the elements of an image, (n, 1, ...), and 1 where all are 0."""
        sizes = grad.abs().flatten(1).mean(dim=1)
        sizes = sizes.sum().expand_as(sizes) if self.as_published else sizes
        return torch.where(sizes > 0, sizes, 1.0).view(-1, *[1] * (grad.dim() - 1))


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
