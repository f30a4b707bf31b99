"""PS-Clip-SGD: example clipping with thresholds that grow along the batch."""

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from pyengm.ops import clip_weights
from pyengm.optim.base import BackwardCall, require_norms
from pyengm.optim.engm import ENGM
from pyengm.optim.hyperparameter import Hyperparameter
from pyengm.optim.info import OptimizerInfo
from pyengm.optim.registry import register_optimizer
from pyengm.pergrad import PerExampleStats, check_losses
from pyengm.utils.distributed import rank, world_size


@register_optimizer
class PSClipSGD(ENGM):
    """v <- momentum v + (1/n) sum_k min(alpha k^(1/beta) / ||g_k||, 1) g_k; theta <- theta - lr v.

    k = 1, ..., n is the place of an example in the batch of a step, so that the batches are to be shuffled: its calls
    of `backward` come one after another, and the examples of each call by process, of which each has as many.

    The paper's rates hold without momentum for alpha = sigma and beta = p, where sigma^p bounds the p-th moment of the
    noise of the gradients, 1 < p <= 2. beta = infinity is ENGM.

    Args:
        params: Parameters, or groups of them, as for torch.optim.SGD.
        lr: Learning rate.
        momentum: Momentum; the paper's algorithm has none.
        weight_decay: Weight decay, added outside the clipped sum.
        alpha: Largest norm of the first example's gradient, > 0; infinity gives momentum SGD exactly. The default is
            our choice: with beta = 2 and 128 examples the mean threshold is 7.6.
        beta: Growth of the thresholds, > 0: that of example k is alpha k^(1/beta).
        norms: How gradient norms are found, as for ENGM.
        sgd_options: The other arguments of torch.optim.SGD.

    Raises:
        ConfigError: alpha or beta is <= 0.

    References:
        Nobile and Grohs 2026, "Robust and Fast Training via Per-Sample Clipping" (arXiv 2605.02701). The formula is
        that of a listing of optimisers that quotes the paper; the paper's text was not at hand.

    Example:
        >>> model = torch.nn.Linear(4, 3)
        >>> x, y = torch.rand(8, 4), torch.arange(8) % 3
        >>> losses = torch.nn.functional.cross_entropy(model(x), y, reduction="none")
        >>> opt = pyengm.PSClipSGD(model.parameters(), lr=0.1, alpha=0.1, beta=2)
        >>> stats = opt.backward(losses)
        >>> opt.step()
    """

    info = OptimizerInfo(
        name="ps_clip_sgd",
        title="every example's gradient clipped, by thresholds that grow along the batch",
        reference="Nobile and Grohs 2026",
        weighs_examples=True,
    )

    beta = Hyperparameter("a number > 0 (infinity gives every example the same threshold)", lambda value: value > 0)

    def __init__(
        self,
        params: Any,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        *,
        alpha: float = 1.0,
        beta: float = 2.0,
        norms: str = "auto",
        **sgd_options: Any,
    ):
        super().__init__(params, lr, momentum, weight_decay, alpha=alpha, norms=norms, **sgd_options)
        self._define(beta=beta)
        self._before = 0  # examples of the step before those of this call

    def replay_settings(self) -> Hashable | None:
        """None, as the thresholds depend on which call of a step it is."""
        return None

    def _accumulate_grads(self, call: BackwardCall) -> PerExampleStats | None:
        check_losses(call.losses)
        used = self._calls.used
        earlier = used[len(used) - len(used) % call.accumulate :]  # of this step: a GradScaler may leave steps out
        self._before = sum(len(stats.weights) for stats in earlier) * world_size() + len(call.losses) * rank()
        return super()._accumulate_grads(call)

    def _weigh(self, norms: Tensor | None, input_norms: Tensor | None) -> Tensor:
        norms = require_norms(norms)
        places = torch.arange(1, len(norms) + 1, dtype=norms.dtype, device=norms.device) + self._before
        return clip_weights(norms / places ** (1 / self.beta), self.alpha)
