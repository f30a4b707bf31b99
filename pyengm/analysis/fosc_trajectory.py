"""FOSC along the steps of PGD: how the inner maximisation converges."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyengm.analysis.batches import BATCH_SIZE, batches
from pyengm.analysis.plotting import COLORS, finish, make_axes
from pyengm.attacks import ThreatModel, attack_mode, fosc_of
from pyengm.attacks.input_grad import input_grad
from pyengm.attacks.logits import CheckedModel
from pyengm.attacks.losses import cross_entropy
from pyengm.errors import ConfigError
from pyengm.ops import Key


@dataclass(frozen=True)
class FOSCTrajectory:
    """The examples at the start of PGD and after each of K steps.

    Args:
        fosc: (K + 1, n) FOSC, in units of the loss; 0 means converged.
        loss: (K + 1, n) cross-entropy.
        correct: (K + 1, n) bool, whether the model is right.
    """

    fosc: np.ndarray
    loss: np.ndarray
    correct: np.ndarray

    def plot(self, ax: Any = None) -> Any:
        """Means of FOSC and loss against the steps, on two axes."""
        first, second = make_axes(ax, 2)
        steps = np.arange(len(self.fosc))
        for axes, values, name, color in (
            (first, self.fosc, "FOSC", COLORS[0]),
            (second, self.loss, "cross-entropy", COLORS[1]),
        ):
            axes.plot(steps, values.mean(1), color=color)
            low, high = np.quantile(values, (0.25, 0.75), axis=1)
            axes.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
            finish(axes, "step of PGD", f"{name}, mean and quartiles")
        return [first, second]


def fosc_trajectory(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    *,
    step_size: float,
    steps: int,
    random_start: bool = True,
    box: bool = False,
    bn: str = "eval",
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> FOSCTrajectory:
    """Runs PGD on the cross-entropy and looks at every iterate.

    Args:
        model: Classifier of images in [0, 1].
        images: (n, ...) in [0, 1].
        labels: (n,) int64.
        threat: The threat model.
        step_size: In pixel units.
        steps: K.
        random_start: Whether PGD starts at a uniform point of the ball.
        box: Whether the bounds of [0, 1] count in FOSC: the maximum of <x' - x_adv, g> is then over the images x' in
            the ball (L-infinity alone). As printed, they do not.
        bn: Mode of dropout and norm layers, "eval", "train" or "batch_stats".
        batch_size: Examples at a time.
        seed: Of random starts.

    Raises:
        ConfigError: A value is out of range, or box with L2.
        DataError, NonFiniteError: Images, labels or gradients do not fit.

    References:
        Wang et al. 2019, Eq. 4, Sec. 3.1 and Fig. 1b.
    """
    if steps < 0 or step_size < 0:
        raise ConfigError(f"steps and step_size are {steps} and {step_size}; expected 0 or more")
    parts = []
    for x, y, index in batches(images, labels, batch_size):
        x_adv = x.detach().clone()
        if random_start:
            x_adv = threat.project_(x_adv + threat.uniform(x, Key(seed, 0, index)), x)
        rows = [_look(model, x_adv, x, y, threat, box, bn)]
        for _ in range(steps):
            with attack_mode(model, bn), torch.no_grad():
                grad, _, _ = input_grad(CheckedModel(model, y), x_adv, cross_entropy, y)
            threat.step_(x_adv, grad, x, step_size)
            rows.append(_look(model, x_adv, x, y, threat, box, bn))
        parts.append(torch.stack(rows))
    fosc, loss, correct = torch.cat(parts, dim=2).unbind(1)
    return FOSCTrajectory(fosc.numpy(), loss.numpy(), correct.bool().numpy())


def _look(model: nn.Module, x_adv: Tensor, x: Tensor, y: Tensor, threat: ThreatModel, box: bool, bn: str) -> Tensor:
    """FOSC, loss and whether the model is right, (3, b)."""
    value = fosc_in_box(model, x_adv, x, y, threat, bn=bn) if box else fosc_of(model, x_adv, x, y, threat, bn=bn)
    with attack_mode(model, bn), torch.no_grad():
        logits = model(x_adv)
    loss = F.cross_entropy(logits.double(), y, reduction="none")
    return torch.stack([value.double(), loss, (logits.argmax(1) == y).double()]).cpu()


def fosc_in_box(
    model: nn.Module, x_adv: Tensor, x: Tensor, y: Tensor, threat: ThreatModel, *, bn: str = "eval"
) -> Tensor:
    """FOSC with the bounds of [0, 1]: the maximum of <x' - x_adv, g> over images x' in the ball around x, (n,).

    Arguments and errors as for `pyengm.attacks.fosc_of`; a ConfigError for L2, where there is no closed form.
    """
    if threat.norm != "linf":
        raise ConfigError("FOSC with the bounds of [0, 1] is for linf; leave box out for l2")
    with attack_mode(model, bn), torch.no_grad():
        grad, _, _ = input_grad(CheckedModel(model, y), x_adv, cross_entropy, y)
    low, high = (x - threat.eps).clamp(min=0), (x + threat.eps).clamp(max=1)
    best = torch.where(grad > 0, high, low)
    return ((best - x_adv) * grad).flatten(1).double().sum(1)
