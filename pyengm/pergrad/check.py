"""What a vector of per-example losses must look like."""

import torch
from torch import Tensor

from pyengm.errors import NonFiniteError
from pyengm.utils.checks import require


def check_losses(losses: Tensor) -> None:
    """Raises ValueError unless losses are (n,) with a graph, NonFiniteError unless all are finite."""
    if losses.dim() != 1:
        raise ValueError(
            f"expected per-example losses of shape (n,), got {tuple(losses.shape)}; "
            'compute the loss with reduction="none", one number per example'
        )
    if losses.numel() == 0:
        raise ValueError("expected at least one per-example loss, got none")
    if not losses.requires_grad:
        raise ValueError("the losses do not depend on anything that requires grad; was the forward pass under no_grad?")
    finite = torch.isfinite(losses.detach())
    require(finite.all(), _not_finite, finite)


def _not_finite(finite: Tensor) -> NonFiniteError:
    bad = (~finite).nonzero().flatten().tolist()
    return NonFiniteError(
        f"{len(bad)} of {len(finite)} losses are nan or infinite (first at position {bad[0]} of the batch); "
        "lower the learning rate or look at the images and labels at these positions"
    )
