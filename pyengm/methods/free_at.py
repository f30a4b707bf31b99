"""Free adversarial training (Shafahi et al. 2019)."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyengm.attacks import ThreatModel
from pyengm.attacks.logits import logits_of
from pyengm.attacks.validation import check_batch
from pyengm.data import Transform
from pyengm.errors import CheckpointError, ConfigError
from pyengm.methods.base import Method, StepOutput
from pyengm.methods.info import MethodInfo, PassCounts
from pyengm.methods.registry import register_method
from pyengm.ops import Key, pgd_l2_step_, pgd_linf_step_


@register_method
class FreeAT(Method):
    """Every batch is trained on `replays` times, with L_i = CE(f(x'_i), y_i), x' = clip(x + d, 0, 1).

    The backward pass of the losses also gives the gradient g in x', along which d then takes a step of its own, within
    the ball: d <- clip(d + step_size sign g, -eps, eps). d is one perturbation for the whole run, (n, C, H, W),
    initially 0, that carries over from batch to batch; row i belongs to whatever image is i-th, and a short batch takes
    the first rows. All passes run in training mode. g is that of the weighted losses under optimisers that weigh
    examples, which under batch norm differs in the effect of examples on each other. As in the authors' code, and not
    in the paper's Alg. 1, x + d is clipped to [0, 1], and d stays where it is clipped; d itself is bound to the ball
    alone. In L2 steps go along g over its norm.

    Args:
        eps: Radius of the threat model, in pixel units.
        step_size: Step size, in pixel units; eps unless given.
        replays: Updates from each batch, m in the paper; the epochs and milestones of a recipe are divided by it.
        norm: Norm of the threat model, "linf" or "l2".
        bn: "train", as no pass is an attack alone.

    Raises:
        ConfigError: A value or name is out of range.

    References:
        Shafahi et al. 2019, Alg. 1.
    """

    info = MethodInfo(
        name="free_at",
        title="eight updates from each batch",
        reference="Shafahi et al. 2019",
        passes=PassCounts(8, 8, 8),
        recipe={"epochs": 10, "milestones": (5, 7), "select_on": "none"},
        large_recipe={  # of Huang et al. 2022, App. B, for ImageNet
            "model": "resnet50",
            "eps": 4 / 255,
            "weight_decay": 1e-4,
            "epochs": 45,
            "milestones": (15, 30),
            "select_on": "none",
            "method_options": ("replays=4",),
        },
        short_recipe=lambda run: {"lr": run.lr / 4, "method_options": ("replays=4",)},
        rank_local_state=True,
    )
    needs_input_grad = True

    def __init__(
        self, eps: float, step_size: float | None = None, *, replays: int = 8, norm: str = "linf", bn: str = "train"
    ):
        self.threat = ThreatModel(norm, eps)
        self.step_size = eps if step_size is None else step_size
        if not (math.isfinite(self.step_size) and self.step_size >= 0) or replays < 1:
            raise ConfigError(
                f"step_size and replays are {step_size} and {replays}; expected a finite step >= 0 and at least 1"
            )
        if bn != "train":
            raise ConfigError(f"bn is {bn!r}; FreeAT attacks and trains in one pass, which is in mode 'train'")
        self.replays = replays
        self.delta: Tensor | None = None

    def passes(
        self, model: nn.Module, x: Tensor, y: Tensor, key: Key | None = None, transform: Transform | None = None
    ) -> Iterator[StepOutput]:
        x, y = check_batch(x, y, soft=True)
        x = x.detach()
        delta = self._rows(x)
        for _ in range(self.replays):
            perturbed = x + delta
            x_adv = perturbed.clamp(0, 1).requires_grad_()
            logits = logits_of(model, x_adv)
            yield StepOutput(self.cross_entropy(logits, y), x_adv, logits)
            if x_adv.grad is None:
                raise RuntimeError("FreeAT steps along the gradient in x_adv: call backward(losses, inputs=x_adv)")
            self._step(delta, torch.where(perturbed == x_adv.detach(), x_adv.grad, 0.0))

    def extra_state(self) -> dict[str, Any]:
        return {} if self.delta is None else {"delta": self.delta}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        saved = state.get("delta")
        if saved is not None and self.delta is not None:
            if saved.shape[1:] != self.delta.shape[1:]:
                raise CheckpointError(
                    f"the saved perturbation is for images of shape {tuple(saved.shape[1:])}, "
                    f"not {tuple(self.delta.shape[1:])}"
                )
            saved = saved.to(self.delta.device)
        self.delta = None if saved is None else saved.clone()

    def _rows(self, x: Tensor) -> Tensor:
        """The rows of d for a batch x, a view; d grows for a batch that is larger than all before."""
        delta = torch.zeros_like(x, memory_format=torch.contiguous_format) if self.delta is None else self.delta.to(x)
        if delta.shape[1:] != x.shape[1:]:
            raise ConfigError(f"the perturbation is {tuple(delta.shape[1:])}, the images {tuple(x.shape[1:])}")
        if len(delta) < len(x):
            delta = torch.cat([delta, torch.zeros_like(x[len(delta) :])])
        self.delta = delta
        return delta[: len(x)]

    def _step(self, delta: Tensor, grad: Tensor) -> None:
        eps = self.threat.eps
        move = pgd_linf_step_ if self.threat.norm == "linf" else pgd_l2_step_
        move(delta, grad, torch.zeros_like(delta), self.step_size, eps, lo=-eps, hi=eps)
