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
from pyengm.methods.dynamic import MNIST_RECIPE, RECIPE
from pyengm.methods.info import MethodInfo, PassCounts
from pyengm.methods.registry import register_method
from pyengm.ops import Key, Purpose, philox_uniform

FITTED = 0.9  # training accuracy above which a strength counts as learned, once the held-out one stays the same


@register_method
class Curriculum(AttackMethod):
    """L_i = CE(f(x'_i), y_i), x' from PGD of k steps with a random start; k grows from 0, which is no attack.

    Without held-out images k grows after an epoch whose accuracy on the images trained on is above `accuracy`. With
    them it grows once `patience` epochs in a row brought no better held-out accuracy and the accuracy on the images
    trained on is above 0.9; the weights then return to the best ones (but not the optimiser's momentum).
    Differences from the authors' code: held-out accuracy is that of the run's own attack ("natural" for k = 0, else
    "robust" of the metrics) instead of an attack of k steps, with inputs cut to 16 levels for batch mixing; k stops at
    `steps` with held-out images too; a batch smaller than k + 1 is trained on, all with k steps, not skipped.

    Args:
        eps: Radius of the threat model, in pixel units.
        step_size: Step size of PGD, in pixel units; None draws (2 eps / k) U(1, 10 / k) anew for every attack.
        steps: Largest k: 7 on CIFAR-10, 40 on MNIST.
        batch_mixing: Against forgetting, split a batch into k + 1 equal parts, attacked with 0 to k steps, of which the
            last takes the rest.
        norm: Norm of the threat model, "linf" or "l2".
        bn: Batch-norm mode of the attack: "eval", "train" or "batch_stats"; None is the authors', "eval", and with
            batch mixing "train", where each part is normalised alone.
        accuracy: Share of the images trained on that must be right before k grows, between 0 and 1.
        patience: Epochs without better held-out accuracy before k grows.

    Raises:
        ConfigError: A value or name is out of range.

    References:
        Cai et al. 2018, Alg. 1 and 2.
    """

    info = MethodInfo(
        name="curriculum",
        title="steps grow with accuracy, `batch_mixing`",
        reference="Cai et al. 2018",
        passes=PassCounts(1, 1, 1, per_step=True, steps=4, remark="at k = 4: {}"),
        recipe=RECIPE,  # its authors use Adam; this is of the paper that it was compared in
        short_recipe=lambda run: {"method_options": (f"patience={max(run.epochs // 12, 1)}", "accuracy=0.9")},
        mnist_recipe=lambda run: {**MNIST_RECIPE, "attack_steps": 40},
        epoch_options={"patience": 1},
        uses_val_metrics=True,
    )

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
        self.k, self.epochs_without_improvement = 0, 0
        self.best_weights: dict[str, Tensor] = {}
        self.best_scores: dict[str, float] = {}

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
        """(2 eps / k) U(1, 10 / k): one value for the attack, drawn for its first image."""
        first = key.index[:1]
        uniform = philox_uniform(first, (), seed=key.seed, purpose=Purpose.STEP, epoch=key.epoch, draw=k).item()
        return 2 * self.threat.eps / k * (1 + uniform * (10 / k - 1))

    def finish_epoch(self, model: nn.Module, metrics: Mapping[str, Any]) -> bool:
        if self.k == self.steps:
            return False
        if "robust" not in metrics:
            self.k += metrics["train_robust"] > self.accuracy
            return False
        scores = {"robust": metrics["robust"], "natural": metrics.get("natural", metrics["robust"])}
        name = "natural" if self.k == 0 else "robust"
        if scores[name] > self.best_scores.get(name, -math.inf):
            self.best_weights = {name: t.detach().clone() for name, t in model.state_dict().items()}
            self.best_scores, self.epochs_without_improvement = scores, 0
            return False
        self.epochs_without_improvement += 1
        is_learned = self.epochs_without_improvement >= self.patience and metrics["train_robust"] > FITTED
        if is_learned:
            model.load_state_dict(self.best_weights)
            self.k, self.epochs_without_improvement = self.k + 1, 0
        return is_learned

    def extra_state(self) -> dict[str, Any]:
        return {
            "k": self.k,
            "epochs_without_improvement": self.epochs_without_improvement,
            "best_scores": dict(self.best_scores),
            "best_weights": self.best_weights,
        }

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        if not 0 <= state["k"] <= self.steps:
            raise CheckpointError(
                f"the saved state is at k = {state['k']}, above the {self.steps} steps of this method"
            )
        self.k, self.epochs_without_improvement = state["k"], state["epochs_without_improvement"]
        self.best_scores = dict(state["best_scores"])
        self.best_weights = {name: t.detach().clone() for name, t in state["best_weights"].items()}
