"""How much larger the loss is under one attack than under another, or for one model than for another."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from pyengm.analysis.images import Attack, Batches, analysis_mode, attacked, device_of, losses_at, to_array
from pyengm.analysis.parts import Arrays, Parts
from pyengm.utils.figures import COLORS, axes_or_new

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class LossGap:
    """Cross-entropy losses of n images in two settings, a and b.

    Attributes:
        loss_a: (n,) losses.
        loss_b: (n,) losses.
        gap: (n,) loss_a - loss_b.
        ratio: mean of loss_a over mean of loss_b.
    """

    loss_a: np.ndarray
    loss_b: np.ndarray
    gap: np.ndarray
    ratio: float

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Histogram of the gaps."""
        ax = axes_or_new(ax)
        ax.hist(self.gap, bins=50, color=COLORS[0])
        ax.axvline(self.gap.mean(), color=COLORS[1], label=f"mean gap {self.gap.mean():.3g}, ratio {self.ratio:.3g}")
        ax.set(xlabel="gap of cross-entropy losses, a less b", ylabel="number of images", yscale="log")
        ax.legend()
        return ax


def loss_gap(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    attack_a: Attack | None,
    attack_b: Attack | None,
    *,
    model_b: nn.Module | None = None,
    bn: str = "eval",
    batch_size: int = 250,
    seed: int = 0,
    parts: Parts | None = None,
) -> LossGap:
    """The gap of the losses under two attacks, from the same random starts.

    Args:
        model: Classifier of images in [0, 1].
        images: (n, ...) in [0, 1].
        labels: (n,) int64.
        attack_a: Such as PGD-10; None for the images themselves.
        attack_b: Such as FGSM with a random start.
        model_b: The model of loss b, such as that of another run; None for the same one.
        bn: "eval", or "train" for statistics of the batch.
        batch_size: Largest size of a batch.
        seed: Of random starts and dropout.
        parts: Keeps the parts of an interrupted analysis.

    Returns:
        Losses and gaps.

    Raises:
        ConfigError: The mode is unknown.
        DataError: Images or labels do not fit.

    References:
        Huang et al. 2022, "Fast Adversarial Training with Adaptive Step Size", Figs. 4 and 7, Table III.
    """
    batches = Batches(images, labels, batch_size, seed)
    settings = {"loss_a": (model, attack_a), "loss_b": (model if model_b is None else model_b, attack_b)}

    def losses(number: int) -> Arrays:
        found = {}
        for name, (net, attack) in settings.items():
            batch = batches.get(number, device_of(net))
            x = attacked(net, batch, attack)
            with analysis_mode(net, bn, seed + number):
                found[name] = to_array(losses_at(net, x, batch.y)[0])
        return found

    found = list((parts or Parts()).run(len(batches), losses))
    a, b = (np.concatenate([part[name] for part in found]) for name in settings)
    return LossGap(a, b, a - b, float(a.mean() / b.mean()) if b.mean() > 0 else float("inf"))
