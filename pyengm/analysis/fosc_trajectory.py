"""FOSC and loss at every step of PGD."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from pyengm.analysis.fosc_values import Ascent, fosc_along
from pyengm.analysis.images import Batches, device_of, to_array
from pyengm.analysis.parts import Arrays, Parts
from pyengm.attacks import ThreatModel
from pyengm.utils.figures import COLORS, axes_or_new, legend_above

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class FOSCTrajectory:
    """What PGD of K steps does to n examples; row k is after k steps.

    Attributes:
        fosc: (K + 1, n) in units of the loss.
        loss: (K + 1, n) cross-entropy.
        correct: (K + 1, n) bool, whether the model is right.
    """

    fosc: np.ndarray
    loss: np.ndarray
    correct: np.ndarray

    def plot(self, ax: "Axes | None" = None, examples: int = 20) -> "Axes":
        """FOSC by step of some examples, spread evenly, and the mean over all; the loss on the right."""
        ax = axes_or_new(ax)
        right = ax.twinx()
        steps = np.arange(len(self.fosc))
        count = self.fosc.shape[1]
        for row in np.linspace(0, count - 1, min(examples, count)).round().astype(int):
            ax.plot(steps, self.fosc[:, row], color=COLORS[0], alpha=0.25, linewidth=0.8)
            right.plot(steps, self.loss[:, row], "--", color=COLORS[1], alpha=0.25, linewidth=0.8)
        ax.plot(steps, self.fosc.mean(1), "o-", color=COLORS[0], label="FOSC, mean over examples")
        right.plot(steps, self.loss.mean(1), "s--", color=COLORS[1])
        ax.plot([], [], "s--", color=COLORS[1], label="loss, mean over examples (right)")
        ax.set(xlabel="steps of PGD", ylabel="FOSC")
        right.set(ylabel="cross-entropy loss")
        legend_above(ax)
        return ax


def fosc_trajectory(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    *,
    step_size: float | None = None,
    steps: int = 10,
    random_start: bool = True,
    box: bool = False,
    bn: str = "eval",
    batch_size: int = 250,
    seed: int = 0,
    parts: Parts | None = None,
) -> FOSCTrajectory:
    """FOSC, loss and correctness at every step of PGD.

    Args:
        model: Classifier of images in [0, 1].
        images: (n, ...) in [0, 1].
        labels: (n,) int64.
        threat: The threat model.
        step_size: Of PGD, in pixel units; None for eps / 4.
        steps: K.
        random_start: Whether PGD begins at a random point of the ball.
        box: Whether FOSC is over the ball within [0, 1], where it does fall to 0 at pixels near 0 and 1; the paper's is
            over the whole ball.
        bn: "eval", or "train" for statistics of the batch.
        batch_size: Largest size of a batch.
        seed: Of random starts and dropout.
        parts: Keeps the parts of an interrupted analysis.

    Returns:
        (K + 1, n) values.

    Raises:
        ConfigError: A value is out of range, or box=True in L2.
        DataError: Images or labels do not fit.

    References:
        Wang et al. 2019, "On the convergence and robustness of adversarial training", Eq. 4 and Fig. 1b.
    """
    ascent = Ascent(threat, step_size, steps, random_start, box).check()
    batches = Batches(images, labels, batch_size, seed)

    def along(number: int) -> Arrays:
        batch = batches.get(number, device_of(model))
        names = ("fosc", "loss", "correct")
        return dict(zip(names, map(to_array, fosc_along(model, batch, ascent, bn)), strict=True))

    found = list((parts or Parts()).run(len(batches), along))
    return FOSCTrajectory(**{name: np.concatenate([part[name] for part in found], axis=1) for name in found[0]})
