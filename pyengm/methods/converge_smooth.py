"""ConvergeSmooth: the clean loss changes little from epoch to epoch, on FGSM-RS and FGSM-MEP (Zhao et al. 2023)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pyengm.attacks import ThreatModel
from pyengm.attacks.logits import logits_of
from pyengm.attacks.losses import cross_entropy
from pyengm.attacks.memory_format import empty_dense
from pyengm.data import Transform
from pyengm.errors import ConfigError
from pyengm.methods.attack_step import check_bn, check_numbers, checked, loss_gradient
from pyengm.methods.base import SinglePassMethod, StepOutput
from pyengm.methods.fgsm_pgi import FGSMPGI
from pyengm.methods.info import MethodInfo, PassCounts
from pyengm.methods.registry import register_method
from pyengm.ops import Key
from pyengm.utils.distributed import all_reduce_sum

RECIPE = {"epochs": 110, "milestones": (100, 105), "select_on": "none"}
STAGES = (0, 100, 105, 110)  # of 110 epochs: where stages of one learning rate begin and end
STRIDE = 1  # epochs at both ends of a stage that are left alone


class SmoothConvergence:
    """The clean losses times w s: s = 1 above a band around the last epoch's mean m, s = -1 below it, and 0 within.

    The band is [m - band, m + band], and the mean over the batch decides. In the first two epochs of a stage of the
    learning rate, and in its last one, s = 0.

    Args:
        epochs: Length of the run in epochs.
        band: Half the width of the band, in units of the loss.
        weight: w.
    """

    def __init__(self, epochs: int, band: float, weight: float):
        check_numbers(band=band, weight=weight)
        if epochs < 1:
            raise ConfigError(f"epochs is {epochs}; expected at least 1")
        self.band, self.weight = band, weight
        self.bounds = [stage * epochs / STAGES[-1] for stage in STAGES]
        self.epoch = 0
        self.sums = torch.zeros(
            3, dtype=torch.float64
        )  # m; of this epoch so far the sum of the losses, and their number

    def start_epoch(self, epoch: int) -> None:
        """Takes the mean over the epoch that ended."""
        self.epoch = epoch
        mean, total, count = self.sums.clone()
        self.sums = torch.stack([torch.where(count > 0, total / count.clamp(min=1), mean), 0 * total, 0 * count])

    def term(self, losses: Tensor) -> Tensor:
        """w s L_i, (n,), for the clean losses (n,)."""
        own = losses.detach().double()
        total, count = all_reduce_sum(torch.stack([own.sum(), torch.ones_like(own).sum()]))
        self.sums = self.sums.to(total.device)
        change = total / count - self.sums[0]
        self.sums[1] += total
        self.sums[2] += count
        within = any(
            low + STRIDE < self.epoch < high - STRIDE for low, high in zip(self.bounds, self.bounds[1:], strict=False)
        )
        sign = torch.where(change.abs() > self.band, change.sign(), 0.0) * within
        return (self.weight * sign).to(losses.dtype) * losses

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` restores."""
        return {"epoch": self.epoch, "sums": self.sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.epoch, self.sums = state["epoch"], state["sums"].clone()


@register_method
class FGSMRSCS(SinglePassMethod):
    """L_i = LS(f(x'_i), y_i) + w s LS(f(z_i), y_i), z = clip(x + U(-eps, eps)), x' = clip(z + step_size sign g).

    LS is the cross-entropy with labels of probability `confidence`, the rest shared by the other classes, g the
    gradient of the cross-entropy at z, and clips are to [0, 1]; w s is that of `SmoothConvergence`, of the mean of
    LS(f(z)) over the batch. Without it the loss on clean images rises and falls before robustness is lost. In L2 the
    step goes along g over its norm.

    Args:
        eps: Radius of the threat model, in pixel units.
        step_size: Step size, in pixel units; eps unless given.
        epochs: Length of the run in epochs.
        confidence: Probability that the labels give to the right class.
        band: Change of the clean loss from epoch to epoch that is left alone, in units of the loss.
        weight: w, the weight of the clean losses.
        norm: Norm of the threat model, "linf" or "l2".
        bn: Batch-norm mode of the attack: "train" as in the code, "eval" or "batch_stats".

    Raises:
        ConfigError: A value or name is out of range.
        NonFiniteError: Losses or gradients are not finite.

    References:
        Zhao et al. 2023, "Fast Adversarial Training with Smooth Convergence"; all of it from the code of the FastAT
        benchmark (github.com/fzjcdt/FastAT_Benchmark).
    """

    info = MethodInfo(
        name="fgsm_rs_cs",
        title="FGSM-RS with smooth convergence",
        reference="Zhao et al. 2023",
        passes=PassCounts(3, 3, 2),
        recipe=RECIPE,
        own_labels="its labels are smoothed by its own option, confidence",
    )

    def __init__(
        self,
        eps: float,
        step_size: float | None = None,
        *,
        epochs: int,
        confidence: float = 0.6,
        band: float = 0.03,
        weight: float = 1.0,
        norm: str = "linf",
        bn: str = "train",
    ):
        self.threat = ThreatModel(norm, eps)
        self.step_size = eps if step_size is None else step_size
        check_numbers(step_size=self.step_size)
        check_bn(bn)
        if not 0 < confidence <= 1:
            raise ConfigError(f"confidence is {confidence}; expected a probability above 0")
        reach = eps + self.step_size
        self.reach = ThreatModel(norm, reach if norm == "l2" else min(reach, 1.0))
        self.confidence, self.bn, self.convergence = confidence, bn, SmoothConvergence(epochs, band, weight)

    def start_epoch(self, model: nn.Module, epoch: int) -> None:
        self.convergence.start_epoch(epoch)

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, key: Key | None = None, transform: Transform | None = None
    ) -> StepOutput:
        x, y = checked(x, y, key)
        key = Key.fresh(len(x), x.device) if key is None else key
        start = torch.add(x, self.threat.uniform(x, key), out=empty_dense(x)).clamp_(0, 1)
        grad, _, _ = loss_gradient(model, start, y, self.bn)
        x_adv = self.as_input(self.reach.step_(start.clone(), grad, x, self.step_size))
        logits = logits_of(model, x_adv)
        clean = self._smoothed(logits_of(model, start), y)
        return StepOutput(self._smoothed(logits, y) + self.convergence.term(clean), x_adv, logits)

    def _smoothed(self, logits: Tensor, y: Tensor) -> Tensor:
        classes = logits.shape[1]
        return cross_entropy(logits, y, (1 - self.confidence) * classes / (classes - 1))

    def extra_state(self) -> dict[str, Any]:
        return self.convergence.state_dict()

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        self.convergence.load_state_dict(state)


@register_method
class FGSMMEPCS(FGSMPGI):
    """The losses of `FGSMPGI` without its second term, plus w s LS(f(x_i), y_i), see `FGSMRSCS`.

    Args:
        eps: Radius of the threat model, in pixel units.
        step_size: Step size, in pixel units; eps unless given.
        epochs: Length of the run in epochs.
        confidence: Probability that the labels give to the right class.
        band: Change of the clean loss from epoch to epoch that is left alone, in units of the loss.
        weight: w, the weight of the clean losses.
        decay: Share of the old momentum of gradients.
        reset: Epochs between two random starts.
        norm: Norm of the threat model, "linf" or "l2".
        dtype: Type of the memory of starts and momenta, such as float16.
        resolution: Height and width at which both are kept, see `PerExampleBuffer`.

    Raises:
        ConfigError: A value is out of range, or an image comes without a key or before `prepare`.

    References:
        Zhao et al. 2023, as for `FGSMRSCS`.
    """

    info = MethodInfo(
        name="fgsm_mep_cs",
        title="FGSM-PGI's starts with smooth convergence",
        reference="Zhao et al. 2023",
        passes=PassCounts(3, 3, 2),
        recipe=RECIPE,
        epoch_options={"reset": 1},
        own_labels="its labels are smoothed by its own option, confidence",
    )

    def __init__(
        self,
        eps: float,
        step_size: float | None = None,
        *,
        epochs: int,
        confidence: float = 0.6,
        band: float = 0.03,
        weight: float = 1.0,
        decay: float = 0.3,
        reset: int = 40,
        norm: str = "linf",
        dtype: torch.dtype = torch.float32,
        resolution: int | None = None,
    ):
        super().__init__(
            eps,
            step_size,
            confidence=confidence,
            reg_weight=0.0,
            decay=decay,
            reset=reset,
            norm=norm,
            dtype=dtype,
            resolution=resolution,
        )
        self.convergence = SmoothConvergence(epochs, band, weight)

    def start_epoch(self, model: nn.Module, epoch: int) -> None:
        super().start_epoch(model, epoch)
        self.convergence.start_epoch(epoch)

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, key: Key | None = None, transform: Transform | None = None
    ) -> StepOutput:
        output = super().__call__(model, x, y, key, transform)
        clean = self._smoothed(logits_of(model, x.detach()), y)
        return replace(output, losses=output.losses + self.convergence.term(clean))

    def extra_state(self) -> dict[str, Any]:
        return self.convergence.state_dict()

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        self.convergence.load_state_dict(state)
