"""Errors of A-ENGM's weights, which it predicts from input gradients, against ENGM's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyengm.analysis.batches import BATCH_SIZE
from pyengm.analysis.gradient_statistics import gradient_statistics
from pyengm.analysis.plotting import COLORS, finish, make_axes
from pyengm.errors import ConfigError
from pyengm.optim.regression import Regression


@dataclass(frozen=True)
class WeightErrors:
    """Errors of weights w_i = min(alpha / |g_i|, 1) that are predicted as A-ENGM does, over a sequence of batches.

    Args:
        alphas: (A,) thresholds.
        taus: (T,) batches from one fit to the next.
        absolute: (A, T) the mean of |predicted w_i - w_i| over the examples.
        relative: (A, T) the mean of |predicted w_i / w_i - 1|.
    """

    alphas: np.ndarray
    taus: np.ndarray
    absolute: np.ndarray
    relative: np.ndarray

    def plot(self, ax: Any = None) -> Any:
        """Absolute errors against tau, a line for each alpha; relative ones dashed."""
        (axes,) = make_axes(ax)
        for k, alpha in enumerate(self.alphas):
            color = COLORS[k % len(COLORS)]
            axes.plot(self.taus, 100 * self.absolute[k], "o-", color=color, label=f"$\\alpha$ = {alpha:g}")
            axes.plot(self.taus, 100 * self.relative[k], "s--", color=color, alpha=0.6)
        axes.legend(frameon=False, title="absolute; relative dashed")
        return finish(axes, "$\\tau$, batches from one fit to the next", "mean error of the weights in %")


def weight_errors(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    alphas: Sequence[float] = (0.1, 1.0, 3.0),
    taus: Sequence[int] = (1, 5, 10),
    gamma_momentum: float = 0.7,
    attack: Any = None,
    bn: str = "train",
    norms: str = "exact",
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> WeightErrors:
    """Replays A-ENGM's fits over the batches of some images, at one point of the training.

    Every tau-th batch, the first included, updates the line from input norms to norms as `pyengm.AENGM` does; all
    examples get their weights from the line.

    Args:
        model, images, labels, attack, bn, norms, batch_size, seed: As for `gradient_statistics`.
        alphas: Thresholds of the clipping.
        taus: Batches from one fit to the next.
        gamma_momentum: Share of the old line in a fit.

    Returns:
        The errors. The paper gives absolute ones (below 10 %); relative ones are larger.

    Raises:
        ConfigError: An alpha or a tau is out of range.
        DataError, UnsupportedOperationError, NonFiniteError: As for `gradient_statistics`.

    References:
        Dabouei et al. 2022, Sec. 2.5, Fig. 3c and 3d.
    """
    if any(alpha <= 0 for alpha in alphas) or any(tau < 1 for tau in taus) or not alphas or not taus:
        raise ConfigError(f"expected alphas above 0 and taus of 1 or more, got {list(alphas)} and {list(taus)}")
    found = gradient_statistics(
        model, images, labels, attack=attack, bn=bn, norms=norms, batch_size=batch_size, seed=seed
    )
    return replay(found.input_norms, found.norms, alphas, taus, gamma_momentum, batch_size)


def replay(
    input_norms: np.ndarray,
    norms: np.ndarray,
    alphas: Sequence[float],
    taus: Sequence[int],
    gamma_momentum: float,
    batch_size: int,
) -> WeightErrors:
    """`weight_errors` for norms (n,) that are known."""
    absolute = np.zeros((len(alphas), len(taus)))
    relative = np.zeros_like(absolute)
    exact, inputs = torch.from_numpy(norms), torch.from_numpy(input_norms)
    for a, alpha in enumerate(alphas):
        weights = (alpha / exact.clamp(min=torch.finfo(exact.dtype).tiny)).clamp(max=1)
        for t, tau in enumerate(taus):
            line = Regression()
            predicted = torch.cat(
                [
                    line.weights(part, own if step % tau == 0 else None, alpha, gamma_momentum).double()
                    for step, (part, own) in enumerate(
                        zip(inputs.split(batch_size), exact.split(batch_size), strict=True)
                    )
                ]
            )
            absolute[a, t] = (predicted - weights).abs().mean().item()
            relative[a, t] = (predicted / weights - 1).abs().mean().item()
    return WeightErrors(np.asarray(alphas, float), np.asarray(taus), absolute, relative)
