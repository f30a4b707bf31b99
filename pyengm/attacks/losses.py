"""Per-example losses that attacks ascend, (n,) in float32 or better: of logits (n, k) and labels (n,), or of logits and
the log-probabilities (n, k) of the images before the attack ("kl")."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from pyengm.errors import ConfigError


def cross_entropy(logits: Tensor, y: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """-log softmax(logits)_y; the share `label_smoothing` of it is the mean over all classes in place of y."""
    return F.cross_entropy(_at_least_float32(logits), y, reduction="none", label_smoothing=label_smoothing)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """max_{k != y} z_k - z_y: positive exactly where the example is misclassified (ties aside)."""
    z = _at_least_float32(logits)
    own = F.one_hot(y, z.shape[1]).bool()
    return z.masked_fill(own, -torch.inf).amax(dim=1) - z.gather(1, y[:, None]).squeeze(1)


def carlini_wagner(logits: Tensor, y: Tensor) -> Tensor:
    """-max(z_y - max_{k != y} z_k, 0) (Carlini & Wagner 2017, f_6 with kappa = 0): stops once the example is fooled."""
    return -F.relu(-margin(logits, y))


def kl_divergence(logits: Tensor, log_target: Tensor) -> Tensor:
    """KL(p || softmax(logits)) for log_target = log p (n, k): 0, not nan, where p is 0 (Zhang et al. 2019, Eq. 3)."""
    return F.kl_div(log_softmax(logits), log_target, reduction="none", log_target=True).sum(dim=1)


def log_softmax(logits: Tensor) -> Tensor:
    """log softmax(logits), (n, k) in float32 or better."""
    return F.log_softmax(_at_least_float32(logits), dim=1)


LOSSES = {"ce": cross_entropy, "margin": margin, "cw": carlini_wagner, "kl": kl_divergence}


def loss_named(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of that name. Raises ConfigError for an unknown one."""
    if name not in LOSSES:
        raise ConfigError(f"attack loss is {name!r}; known losses: {', '.join(LOSSES)}")
    return LOSSES[name]


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
