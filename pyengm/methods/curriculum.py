"""Curriculum adversarial training, CAT (Cai et al. 2018)."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyengm.attacks import PGD
from pyengm.data import Transform
from pyengm.errors import CheckpointError, ConfigError
from pyengm.methods.base import AttackMethod
from pyengm.ops import Key, Purpose, philox_uniform

FITTED = 0.9  # training accuracy above which a strength counts as learned, once the held-out one stands still


class Curriculum(AttackMethod):
    """L_i = CE(f(x'_i), y_i), x' from PGD of k steps with a random start; k grows from 0, which is no attack.

    Without held-out images k grows after an epoch whose accuracy on the images trained on is above `accuracy`. With
    them it grows once `patience` epochs in a row brought no better held-out accuracy and the accuracy on the images
    trained on is above 0.9; the weights then go back to the best ones (but not the optimiser's momentum).
    eps, step_size: in pixel units. step None draws (2 eps / k) U(1, 10 / k) anew for every attack. steps: the largest k, 7
    on CIFAR-10, 40 on MNIST. batch_mixing: against forgetting, a batch is split into k + 1 equal parts, attacked with
    0 to k steps, of which the last takes the rest. norm: "linf" or "l2". bn: batch-norm mode of the attack; None is the
    authors', "eval", and with batch mixing "train", where each part is normalised alone.
    accuracy: a share, between 0 and 1. patience: in epochs.
    Differs from the authors' code: held-out accuracy is that of the run's own attack ("natural" for k = 0, else
    "robust" of the metrics) instead of an attack of k steps, with inputs cut to 16 levels for batch mixing; k stops at
    `steps` with held-out images too; a batch smaller than k + 1 is trained on, all with k steps, not skipped.
    Raises ConfigError for numbers and names out of range. Source: Cai et al. 2018, Alg. 1 and 2.
    """

    uses_val_metrics = True

    def __init__(
        self,
        eps: float,
        step_size: float | None = None,
        steps: int = 7,
        *,
        batch_mixing: bool = False,
        norm: str = "linf",
        bn: str | None = None,
        accuracy: float = 0.95,
        patience: int = 10,
    ):
        self.bn = ("train" if batch_mixing else "eval") if bn is None else bn
        self.threat = PGD(eps, eps if step_size is None else step_size, steps, norm=norm, bn=self.bn).threat
        if not 0 <= accuracy <= 1:
            raise ConfigError(f"accuracy is {accuracy}; expected a share of the images, between 0 and 1")
        if patience < 1:
            raise ConfigError(f"patience is {patience}; expected a number of epochs, 1 or more")
        self.step_size, self.steps, self.batch_mixing = step_size, steps, batch_mixing
        self.accuracy, self.patience = accuracy, patience
        self.k, self.age = 0, 0  # age: epochs since the best weights
        self.best: dict[str, Tensor] | None = None
        self.scores: dict[str, float] = {}  # of the best weights

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, key: Key, transform: Transform | None = None) -> Tensor:
        if not self.batch_mixing:
            return self._attack(model, x, y, key, self.k)
        share = len(x) // (self.k + 1)
        sizes = [share] * self.k + [len(x) - share * self.k]
        parts = zip(x.split(sizes), y.split(sizes), key.index.split(sizes), strict=True)
        return torch.cat(
            [
                self._attack(model, part, labels, Key(key.seed, key.epoch, index), k)
                for k, (part, labels, index) in enumerate(parts)
                if len(part)
            ]
        )

    def _attack(self, model: nn.Module, x: Tensor, y: Tensor, key: Key, k: int) -> Tensor:
        if k == 0:
            return x.detach().clone()
        step_size = self._draw_step(key, k) if self.step_size is None else self.step_size
        return PGD(self.threat.eps, step_size, k, norm=self.threat.norm, bn=self.bn)(model, x, y, key=key)

    def _draw_step(self, key: Key, k: int) -> float:
        """(2 eps / k) U(1, 10 / k): one number for the attack, drawn for its first image."""
        named = {"seed": key.seed, "epoch": key.epoch, "draw": k}
        uniform = philox_uniform(key.index[:1], (), purpose=Purpose.STEP, **named).item()
        return 2 * self.threat.eps / k * (1 + uniform * (10 / k - 1))

    def finish_epoch(self, model: nn.Module, metrics: Mapping[str, Any]) -> bool:
        if self.k == self.steps:
            return False
        if "robust" not in metrics:
            self.k += metrics["train_robust"] > self.accuracy
            return False
        scores = {"robust": metrics["robust"], "natural": metrics.get("natural", metrics["robust"])}
        name = "natural" if self.k == 0 else "robust"
        if scores[name] > self.scores.get(name, -math.inf):
            self.best = {name: t.detach().clone() for name, t in model.state_dict().items()}
            self.scores, self.age = scores, 0
            return False
        self.age += 1
        goes_back = self.age >= self.patience and metrics["train_robust"] > FITTED
        if goes_back:
            model.load_state_dict(self.best)
            self.k, self.age = self.k + 1, 0
        return goes_back

    def extra_state(self) -> dict[str, Any]:
        return {"k": self.k, "age": self.age, "scores": dict(self.scores), "best": self.best}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        if not 0 <= state["k"] <= self.steps:
            raise CheckpointError(
                f"the saved state is at k = {state['k']}, above the {self.steps} steps of this method"
            )
        self.k, self.age, self.scores = state["k"], state["age"], dict(state["scores"])
        best = state["best"]
        self.best = None if best is None else {name: t.detach().clone() for name, t in best.items()}
