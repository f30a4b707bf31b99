"""How much more loss one attack finds than another, example by example."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyengm.analysis.batches import BATCH_SIZE, attacked, batches
from pyengm.analysis.plotting import COLORS, finish, make_axes
from pyengm.attacks import attack_mode


@dataclass(frozen=True)
class LossGap:
    """Losses of n examples under two attacks.

    Args:
        first: (n,) cross-entropy under the first attack.
        second: (n,) under the second.
    """

    first: np.ndarray
    second: np.ndarray

    @property
    def gap(self) -> np.ndarray:
        """(n,) second - first: what the first attack leaves of the inner maximisation if the second is stronger."""
        return self.second - self.first

    def plot(self, ax: Any = None) -> Any:
        """A histogram of the gaps, with their mean."""
        (axes,) = make_axes(ax)
        axes.hist(self.gap, bins=40, color=COLORS[0], alpha=0.8)
        axes.axvline(self.gap.mean(), color=COLORS[1], label=f"mean {self.gap.mean():.3g}")
        axes.legend(frameon=False)
        return finish(axes, "gap of the losses", "examples")


def loss_gap(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    attack_a: Any,
    attack_b: Any,
    *,
    bn: str = "eval",
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> LossGap:
    """Losses under two attacks, such as the training's own and PGD-10.

    Args:
        model: Classifier of images in [0, 1].
        images: (n, ...) in [0, 1].
        labels: (n,) int64.
        attack_a: The first attack; None for the images as they are.
        attack_b: The second attack.
        bn: Mode of dropout and norm layers, "eval" or "batch_stats".
        batch_size: Images at a time.
        seed: Of random starts.

    Raises:
        DataError, NonFiniteError: Images or labels do not fit.

    References:
        Huang et al. 2022, Fig. 4 and 7, Table III.
    """
    rows = []
    for x, y, index in batches(images, labels, batch_size):
        losses = []
        for attack in (attack_a, attack_b):
            x_adv = attacked(model, attack, x, y, index, seed)
            with attack_mode(model, bn), torch.no_grad():
                losses.append(F.cross_entropy(model(x_adv).double(), y, reduction="none"))
        rows.append(torch.stack(losses).cpu())
    return LossGap(*torch.cat(rows, dim=1).numpy())
