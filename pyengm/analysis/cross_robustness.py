"""Several models under several attacks, and under each other's adversarial images."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyengm.analysis.batches import BATCH_SIZE, attacked, batches
from pyengm.analysis.plotting import make_axes
from pyengm.attacks import Transfer, attack_mode
from pyengm.errors import ConfigError


@dataclass(frozen=True)
class CrossRobustness:
    """Accuracies of M models under A attacks.

    Args:
        models: (M,) names.
        attacks: (A,) names; those by transfer are "ATTACK on SURROGATE".
        correct: (M, A, n) bool, whether a model is right on each image.
    """

    models: tuple[str, ...]
    attacks: tuple[str, ...]
    correct: np.ndarray

    @property
    def accuracy(self) -> np.ndarray:
        """(M, A) in [0, 1]."""
        return self.correct.mean(2)

    @property
    def standard_error(self) -> np.ndarray:
        """(M, A) of the accuracies, over the images."""
        p = self.accuracy
        return np.sqrt(p * (1 - p) / self.correct.shape[2])

    def plot(self, ax: Any = None) -> Any:
        """A heat map with the accuracies in per cent."""
        (axes,) = make_axes(ax, size=(1.6 + 0.9 * len(self.attacks), 1.4 + 0.5 * len(self.models)))
        axes.imshow(self.accuracy, vmin=0, vmax=1, cmap="cividis", aspect="auto")
        axes.set_xticks(range(len(self.attacks)), self.attacks, rotation=30, ha="right")
        axes.set_yticks(range(len(self.models)), self.models)
        for (row, column), value in np.ndenumerate(self.accuracy):
            color = "black" if value > 0.6 else "white"
            axes.text(column, row, f"{100 * value:.1f}", ha="center", va="center", color=color, fontsize="small")
        return axes


def cross_robustness(
    models: Mapping[str, nn.Module],
    images: Tensor,
    labels: Tensor,
    attacks: Mapping[str, Any],
    *,
    surrogates: Mapping[str, nn.Module] | None = None,
    bn: str = "eval",
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> CrossRobustness:
    """Attacks every model with every attack, and with those that every surrogate's gradients lead to.

    Args:
        models: Classifiers of images in [0, 1] by name.
        images: (n, ...) in [0, 1].
        labels: (n,) int64.
        attacks: By name; None stands for no attack.
        surrogates: Models whose adversarial images are tried on all others, by name; a model is not its own surrogate,
            and the entry for it is that of its own attack.
        bn: Mode of dropout and norm layers, "eval" or "batch_stats".
        batch_size: Images at a time.
        seed: Of random starts.

    Raises:
        ConfigError: There are no models or no attacks.
        DataError, NonFiniteError: Images or labels do not fit.

    References:
        Wang et al. 2019, Fig. 2a, 2b and Table 2.
    """
    if not models or not attacks:
        raise ConfigError("expected at least one model and one attack")
    planned = {name: (attack, None) for name, attack in attacks.items()}
    for other, surrogate in (surrogates or {}).items():
        some = {name: attack for name, attack in attacks.items() if attack is not None}
        planned |= {f"{name} on {other}": (attack, surrogate) for name, attack in some.items()}
    options = (images, labels, bn, batch_size, seed)
    correct = [
        [_correct(model, attack, surrogate, *options) for attack, surrogate in planned.values()]
        for model in models.values()
    ]
    return CrossRobustness(tuple(models), tuple(planned), np.asarray(correct))


def _correct(
    model: nn.Module,
    attack: Any,
    surrogate: nn.Module | None,
    images: Tensor,
    labels: Tensor,
    bn: str,
    batch_size: int,
    seed: int,
) -> np.ndarray:
    used = attack if surrogate is None or surrogate is model else Transfer(attack, surrogate)
    rows = []
    for x, y, index in batches(images, labels, batch_size):
        x_adv = attacked(model, used, x, y, index, seed)
        with attack_mode(model, bn), torch.no_grad():
            rows.append((model(x_adv).argmax(1) == y).cpu())
    return torch.cat(rows).numpy()
