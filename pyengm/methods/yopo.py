"""YOPO, you only propagate once (Zhang et al. 2019)."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pyengm.attacks import ThreatModel, attack_mode
from pyengm.attacks.logits import logits_of
from pyengm.attacks.memory_format import dense
from pyengm.attacks.validation import check_batch, check_extras
from pyengm.data import Transform
from pyengm.errors import ConfigError
from pyengm.methods.base import Method, StepOutput
from pyengm.methods.first_layer import at_first_layer, first_output
from pyengm.methods.info import MethodInfo, PassCounts
from pyengm.methods.registry import register_method
from pyengm.ops import Key


@register_method
class YOPO(Method):
    """`outer` times L_i = CE(f(x'_i), y_i) and then -H_i = -<f0(x'_i), p_i>, with one update after all of them.

    f0 is the model up to and with its first layer. The backward pass of L also gives p = -dL/df0(x'), which is constant
    while x' takes `inner` steps through f0 alone, x' <- clip(x' - step_size sign dH/dx'), from a random start; -H at
    the new x' then takes the place of L in the gradient of the first layer's weights. The gradients of all 2 outer step
    outputs add up, hence the published learning rate of 0.1 * 2 / outer. An optimiser that treats examples apart, by
    clipping their gradients for example, does so in every step output separately, not in the sum. All passes run in
    training mode. p_i is that of L_i itself, whatever weights, means and loss scales the backward pass applied; under
    batch norm the terms by way of other examples have their weights relative to i. An example whose p_i overflowed in
    mixed precision has p_i = 0. The authors clip their random start to [0, 1] only after the first step. In L2 steps go
    along the gradient over its norm.

    Args:
        eps: Radius of the threat model, in pixel units.
        step_size: Step size, in pixel units; eps / 4 unless given.
        outer: Passes through the whole model.
        inner: Steps through the first layer after each of them.
        norm: Norm of the threat model, "linf" or "l2".
        first_layer: Name of the first layer's module; None takes the first module with parameters.

    Raises:
        ConfigError: A value or name is out of range, or the first layer is not trained.

    References:
        Zhang et al. 2019, "You Only Propagate Once", Alg. 1 (YOPO-m-n with m = outer, n = inner).
    """

    info = MethodInfo(
        name="yopo",
        title="YOPO-5-3",
        reference="Zhang et al. 2019",
        passes=PassCounts(5, 5, 5, uncounted=2, remark="{}, first layer aside"),
        recipe={"lr": 0.04, "batch_size": 256, "epochs": 36, "milestones": (30, 34), "select_on": "none"},
        short_recipe=lambda run: {"lr": 0.4 * run.lr},  # the gradients of five passes add up: 0.04 for 0.1
    )

    def __init__(
        self,
        eps: float,
        step_size: float | None = None,
        *,
        outer: int = 5,
        inner: int = 3,
        norm: str = "linf",
        first_layer: str | None = None,
    ):
        self.threat = ThreatModel(norm, eps)
        self.step_size = eps / 4 if step_size is None else step_size
        if not (math.isfinite(self.step_size) and self.step_size >= 0):
            raise ConfigError(f"step_size is {step_size}; expected a finite number >= 0 in pixel units, such as 2/255")
        if outer < 1 or inner < 1:
            raise ConfigError(f"outer and inner are {outer} and {inner}; expected at least 1 pass of each")
        self.outer, self.inner, self.first_layer = outer, inner, first_layer

    def passes(
        self, model: nn.Module, x: Tensor, y: Tensor, key: Key | None = None, transform: Transform | None = None
    ) -> Iterator[StepOutput]:
        x, y = check_batch(x, y, soft=True)
        check_extras(x, None, key, None)
        x = dense(x.detach())
        key = Key.fresh(len(x), x.device) if key is None else key
        x_adv = self.threat.project_(x + self.threat.uniform(x, key), x)
        for j in range(self.outer):
            gradients = _OutputGradients()
            inputs = self.as_input(x_adv)
            with at_first_layer(model, self.first_layer, gradients.hook):
                logits = logits_of(model, inputs)
            losses = self.cross_entropy(logits, y)
            gradients.hook_losses(losses)
            yield StepOutput(losses, inputs, logits, update=False)
            output_grad = gradients.of_losses()  # -p
            x_adv = self._ascend(model, x_adv, x, output_grad)
            inputs = self.as_input(x_adv)
            yield StepOutput(self._products(model, inputs, output_grad), inputs, None, update=j + 1 == self.outer)

    def _ascend(self, model: nn.Module, x_adv: Tensor, x: Tensor, output_grad: Tensor) -> Tensor:
        x_adv = x_adv.clone()
        with attack_mode(model, "batch_stats"):
            for _ in range(self.inner):
                leaf = x_adv.detach().requires_grad_()
                (grad,) = torch.autograd.grad(self._products(model, leaf, output_grad).sum(), leaf)
                self.threat.step_(x_adv, grad, x, self.step_size)
        return x_adv

    def _products(self, model: nn.Module, x: Tensor, output_grad: Tensor) -> Tensor:
        """-H (n,)."""
        return (first_output(model, self.first_layer, x) * output_grad).flatten(1).sum(dim=1)


class _OutputGradients:
    """The gradients of the last backward pass at the first layer's output and at the losses.

    Optimisers scale losses, weigh them, and run passes of their own before the one that counts. The gradient at the
    losses is the factor of each example, so the quotient of the two is the gradient of the losses themselves.
    """

    def __init__(self) -> None:
        self.output: Tensor | None = None
        self.losses: Tensor | None = None

    def hook(self, output: Tensor) -> None:
        if not output.requires_grad:
            raise ConfigError("YOPO needs the gradient at the first layer's output, whose parameters are all frozen")

        def keep(gradient: Tensor) -> None:
            self.output = gradient

        output.register_hook(keep)  # here, as later layers may work in place

    def hook_losses(self, losses: Tensor) -> None:
        def keep(gradient: Tensor) -> None:
            self.losses = gradient

        losses.register_hook(keep)

    def of_losses(self) -> Tensor:
        """dL_i / df0(x_i), (n, ...) in float32 or better."""
        if self.output is None or self.losses is None:
            raise RuntimeError(
                "YOPO steps along the gradient of the losses: run their backward pass before the next step output"
            )
        gradient = self.output.detach()
        gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        rows = -1, *[1] * (gradient.dim() - 1)
        quotient = gradient / self.losses.detach().to(gradient).view(rows)
        return torch.where(quotient.flatten(1).isfinite().all(dim=1).view(rows), quotient, 0.0)
