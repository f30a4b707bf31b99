"""Per-example losses (n,) that attacks ascend, in float32 or better."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from pyengm.errors import ConfigError, DataError


def cross_entropy(logits: Tensor, y: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy -log softmax(logits)_y.

    Args:
        logits: (n, k).
        y: labels (n,) int64, or probabilities of the classes (n, k), for which it is -sum_k y_k log softmax(logits)_k.
        label_smoothing: share of the loss that is the mean over all classes in place of the class y, from 0 to 1.

    Returns:
        Losses (n,) in float32 or better.

    Raises:
        DataError: y are probabilities of another number of classes.
    """
    logits = _to_float32(logits)
    if y.is_floating_point():
        if y.shape != logits.shape:
            raise DataError(f"expected probabilities of shape {tuple(logits.shape)}, as logits, got {tuple(y.shape)}")
        y = y.to(logits.dtype)
    return F.cross_entropy(logits, y, reduction="none", label_smoothing=label_smoothing)


def targeted_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """The negative cross-entropy of target labels, whose ascent brings the model's decision to them.

    Args:
        logits: (n, k).
        target: labels (n,) int64 that the attack aims at.

    Returns:
        Losses (n,) in float32 or better.

    References:
        Kurakin et al. 2017, "Adversarial Machine Learning at Scale".
    """
    return -cross_entropy(logits, target)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Margin max_{k != y} z_k - z_y, which is positive exactly where the example is misclassified (ties aside).

    Args:
        logits: z (n, k).
        y: labels (n,) int64.

    Returns:
        Margins (n,) in float32 or better.
    """
    z = _to_float32(logits)
    own = F.one_hot(y, z.shape[1]).bool()
    return z.masked_fill(own, -torch.inf).amax(dim=1) - z.gather(1, y[:, None]).squeeze(1)


def carlini_wagner(logits: Tensor, y: Tensor) -> Tensor:
    """Loss -max(z_y - max_{k != y} z_k, 0), whose gradient is zero once the example is misclassified.

    Args:
        logits: z (n, k).
        y: labels (n,) int64.

    Returns:
        Losses (n,) in float32 or better.

    References:
        Carlini & Wagner 2017, f_6 with kappa = 0.
    """
    return -F.relu(-margin(logits, y))


def kl_divergence(logits: Tensor, log_target: Tensor) -> Tensor:
    """Kullback-Leibler divergence KL(p || softmax(logits)); a class with p = 0 contributes 0, not nan.

    Args:
        logits: (n, k).
        log_target: log p (n, k), such as the log-probabilities of the images before the attack.

    Returns:
        Divergences (n,) in float32 or better.

    References:
        Zhang et al. 2019 (TRADES), Eq. 3.
    """
    return F.kl_div(log_softmax(logits), log_target, reduction="none", log_target=True).sum(dim=1)


def log_softmax(logits: Tensor) -> Tensor:
    """log softmax of logits (n, k) over the classes, (n, k) in float32 or better."""
    return F.log_softmax(_to_float32(logits), dim=1)


LOSSES = {
    "ce": cross_entropy,
    "margin": margin,
    "cw": carlini_wagner,
    "kl": kl_divergence,
    "targeted": targeted_cross_entropy,
}


def loss_named(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of that name.

    Raises:
        ConfigError: the name is not one of LOSSES.
    """
    if name not in LOSSES:
        raise ConfigError(f"attack loss is {name!r}; known losses: {', '.join(LOSSES)}")
    return LOSSES[name]


def _to_float32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
