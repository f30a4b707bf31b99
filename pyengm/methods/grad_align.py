"""GradAlign: FGSM with gradients aligned across the ball (Andriushchenko & Flammarion 2020)."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from pyengm.attacks import ThreatModel, attack_mode
from pyengm.attacks.input_grad import input_grad
from pyengm.attacks.logits import CheckedModel, logits_of
from pyengm.attacks.losses import cross_entropy
from pyengm.attacks.memory_format import empty_dense
from pyengm.attacks.model_state import BN_MODES, running_statistics_kept
from pyengm.attacks.validation import check_batch, check_extras, check_finite
from pyengm.data import Transform
from pyengm.errors import ConfigError
from pyengm.methods.base import SinglePassMethod, StepOutput
from pyengm.methods.double_backward import fast_double_backward
from pyengm.methods.info import MethodInfo, PassCounts
from pyengm.methods.registry import register_method
from pyengm.ops import Key, Purpose
from pyengm.utils.distributed import all_reduce_sum

LARGEST_WEIGHT = 2.0  # that of eps = 16/255, where the paper's experiments end


@register_method
class GradAlign(SinglePassMethod):
    """L_i = CE(f(x'_i), y_i) + weight (n / m) (1 - cos(g_i, h_i)), x' one step along g.

    g_i is the cross-entropy's gradient at the start, which is x_i itself, and h_i that at x_i + U(-eps, eps), which is
    not clipped to [0, 1]. Examples where either is zero have no second term; m of the n examples do.
    The gradient in the weights flows through h, and through g unless as_published: optimisers that need per-example
    norms find them for models without batch norm in training mode; with it ENGM raises UnsupportedOperationError except
    for norms="exact".

    Args:
        eps: Radius of the threat model, in pixel units.
        step_size: Step size, in pixel units; 1.25 eps unless given; the result is projected to the ball.
        weight: Weight of the regulariser; None takes the paper's 0.02 * 10^(255 eps / 8), 0.2 at 8/255, but no more
            than 2, its value at 16/255. There is no published weight for L2.
        random_start: Start at a uniform point of the ball instead, and take g there.
        norm: Norm of the threat model, "linf" or "l2".
        bn: Batch-norm mode of the passes for g and h: "train" as in the authors' code, "eval" or "batch_stats".
        as_published: As in the authors' code, g counts as constant, and it is halved at pixels of exactly 0 or 1 (and 0
            at pixels that the random start put outside [0, 1]), the derivative of their clamp.

    Raises:
        ConfigError: A value or name is out of range, or the norm is L2 and there is no weight.

    References:
        Andriushchenko & Flammarion 2020; the formula of the weight is in the scripts of their code.
    """

    info = MethodInfo(
        name="grad_align",
        title="FGSM with aligned gradients",
        reference="Andriushchenko & Flammarion 2020",
        # A double backward pass, through g or h, counts as its parts: a convolution like that of a forward pass, an
        # input gradient, and two weight gradients.
        passes=PassCounts(5, 5, 5, remark="{} with double backward"),
        recipe={"lr": 0.2, "schedule": "cyclic", "pct_start": 0.4, "epochs": 30, "select_on": "none"},
        short_recipe=lambda run: {"method_options": ("weight=0.2",)},
        double_backward=True,
    )

    def __init__(
        self,
        eps: float,
        step_size: float | None = None,
        *,
        weight: float | None = None,
        random_start: bool = False,
        norm: str = "linf",
        bn: str = "train",
        as_published: bool = False,
    ):
        self.threat = ThreatModel(norm, eps)
        step_size = 1.25 * eps if step_size is None else step_size
        if not (math.isfinite(step_size) and step_size >= 0):
            raise ConfigError(f"step_size is {step_size}; expected a finite number >= 0 in pixel units, such as 10/255")
        if weight is None and norm != "linf":
            raise ConfigError("the published weights of GradAlign are for the L-infinity norm: give weight for L2")
        weight = min(0.02 * 10 ** min(255 * eps / 8, 2.0), LARGEST_WEIGHT) if weight is None else weight
        if not (math.isfinite(weight) and weight >= 0):
            raise ConfigError(f"weight is {weight}; expected a finite number >= 0, such as 0.2")
        if bn not in BN_MODES:
            raise ConfigError(f"batch-norm mode is {bn!r}; known modes: {', '.join(BN_MODES)}")
        self.step_size, self.weight, self.random_start = step_size, weight, random_start
        self.bn, self.as_published = bn, as_published

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, key: Key | None = None, transform: Transform | None = None
    ) -> StepOutput:
        key = Key.fresh(len(x), x.device) if key is None else key
        x, y = check_batch(x, y, soft=True)
        check_extras(x, None, key, None)
        x = x.detach()
        start = x + self.threat.uniform(x, key) if self.random_start else x
        x_adv = self.threat.project_(empty_dense(x).copy_(start), x)
        first = self._first_gradient(model, x_adv, start, y)
        with torch.no_grad():
            self.threat.step_(x_adv, first, x, self.step_size)
        x_adv = self.as_input(x_adv)
        logits = logits_of(model, x_adv)  # before the second gradient, as in the authors' code
        losses = self.cross_entropy(logits, y)
        near = x + self.threat.uniform(x, key, purpose=Purpose.SECOND)
        second = self._gradient(model, near, y)
        return StepOutput(losses + self.weight * alignment_loss(first, second), x_adv, logits)

    def _first_gradient(self, model: nn.Module, x_adv: Tensor, start: Tensor, y: Tensor) -> Tensor:
        """The gradient at x_adv, which is the start clipped to [0, 1]."""
        if not self.as_published:
            return self._gradient(model, x_adv, y)
        with attack_mode(model, self.bn):
            grad, losses, _ = input_grad(CheckedModel(model, y), x_adv, partial(cross_entropy, y=y))
        check_finite(losses, grad)
        above, below = (start > 0).to(grad) + (start >= 0).to(grad), (start < 1).to(grad) + (start <= 1).to(grad)
        return grad * (above * below / 4)

    def _gradient(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The gradient of the sum of the losses in x, with its graph."""
        leaf = x.clone().requires_grad_()
        with mode_with_weights(model, self.bn), fast_double_backward(model), torch.enable_grad():
            # Not scaled up for float16, as an attack's would be: derivatives of scaled derivatives overflow there.
            total = cross_entropy(logits_of(model, leaf, y), y).sum()
            (grad,) = torch.autograd.grad(total, leaf, create_graph=True)
        check_finite(total, grad)
        return grad


def alignment_loss(first: Tensor, second: Tensor) -> Tensor:
    """(n / m) (1 - cos(first_i, second_i)), and 0 where one of the two is zero.

    Args:
        first: (n, ...) gradients.
        second: (n, ...) gradients.

    Returns:
        (n,) losses in float32 or better; n and m, the number of examples where both are not zero, count the images of
        all processes.
    """
    dtype = torch.promote_types(first.dtype, torch.float32)
    first, second = first.flatten(1).double(), second.flatten(1).double()  # squares of 1e-23 are 0 in float32
    with torch.no_grad():
        valid = (first.norm(dim=1) > 0) & (second.norm(dim=1) > 0)
    # Examples of zeros are replaced before the division, not after: its derivative would be nan.
    first, second = (t.where(valid[:, None], 1.0) for t in (first, second))
    cosine = (first / first.norm(dim=1, keepdim=True) * (second / second.norm(dim=1, keepdim=True))).sum(1)
    n, m = all_reduce_sum(torch.stack([torch.ones_like(valid).sum(), valid.sum()]))
    return ((1 - cosine) * valid * (n / m.clamp(min=1))).to(dtype)


@contextmanager
def mode_with_weights(model: nn.Module, bn: str) -> Iterator[None]:
    """`attack_mode` for passes through which the gradient in the weights flows."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        model.train(bn != "eval")
        with {"eval": statistics_copied, "train": nullcontext, "batch_stats": running_statistics_kept}[bn](model):
            yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def statistics_copied(model: nn.Module) -> Iterator[None]:
    """Norm layers use copies of their running statistics, which stay the same until the backward pass."""
    layers = [module for module in model.modules() if isinstance(module, _NormBase)]
    saved = [
        (module, module.running_mean, module.running_var)
        for module in layers
        if module.running_mean is not None and module.running_var is not None
    ]
    try:
        for module, mean, variance in saved:
            module.running_mean, module.running_var = mean.clone(), variance.clone()
        yield
    finally:
        for module, mean, variance in saved:
            module.running_mean, module.running_var = mean, variance
