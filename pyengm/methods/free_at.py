"""Free adversarial training (Shafahi et al. 2019)."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyengm.attacks import ThreatModel
from pyengm.attacks.validation import check_batch
from pyengm.data import Transform
from pyengm.errors import CheckpointError, ConfigError
from pyengm.methods.base import Method, StepOutput
from pyengm.ops import Key, pgd_l2_step_, pgd_linf_step_


class FreeAT(Method):
    """Every batch is trained on `replays` times, with L_i = CE(f(x'_i), y_i), x' = clip(x + d, 0, 1).

    The backward pass of the losses also gives the gradient in x', along which d then takes a step of its own, within
    the ball: d <- clip(d + step sign g, -eps, eps). d is one perturbation for the whole run, (n, C, H, W) from 0 on,
    that goes from batch to batch; row i belongs to whatever image is i-th, and a short batch takes the first rows.
    All in training mode. g is that of the weighted losses under optimisers that weigh examples, which under batch norm
    differs in what examples do to each other. As in the authors' code, and not in the paper's Alg. 1, x + d is clipped
    to [0, 1], and d stays where it is clipped; d itself is bound to the ball alone.

    eps, step_size: in pixel units; step_size is eps unless given. replays: m in the paper; a recipe's epochs and milestones are
    divided by it. norm: "linf" or "l2", where steps go along g over its norm.
    bn: "train", as there is no pass that only attacks.
    Raises ConfigError for numbers and names out of range. Source: Shafahi et al. 2019, Alg. 1.
    """

    needs_input_grad = True
    rank_local_state = True

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
        check_batch(x, y)
        x = x.detach()
        delta = self._rows(x)
        for _ in range(self.replays):
            moved = x + delta
            x_adv = moved.clamp(0, 1).requires_grad_()
            logits = model(x_adv)
            yield StepOutput(self.cross_entropy(logits, y), x_adv, logits)
            if x_adv.grad is None:
                raise RuntimeError("FreeAT steps along the gradient in x_adv: call backward(losses, inputs=x_adv)")
            self._step(delta, torch.where(moved == x_adv.detach(), x_adv.grad, 0.0))

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
        """The rows of d for a batch x, a view; d grows where the batch is larger than all before."""
        if self.delta is None:
            self.delta = torch.zeros_like(x, memory_format=torch.contiguous_format)
        self.delta = self.delta.to(x)
        if self.delta.shape[1:] != x.shape[1:]:
            raise ConfigError(f"the perturbation is {tuple(self.delta.shape[1:])}, the images {tuple(x.shape[1:])}")
        if len(self.delta) < len(x):
            self.delta = torch.cat([self.delta, torch.zeros_like(x[len(self.delta) :])])
        return self.delta[: len(x)]

    def _step(self, delta: Tensor, grad: Tensor) -> None:
        eps = self.threat.eps
        move = pgd_linf_step_ if self.threat.norm == "linf" else pgd_l2_step_
        move(delta, grad, torch.zeros_like(delta), self.step_size, eps, lo=-eps, hi=eps)
