"""Losses that a GradScaler has multiplied, which would make every gradient look too long."""

import gc

import torch
from torch import Tensor

LONGEST = 64  # nodes between the scale and the losses


def refuse_scaled(losses: Tensor) -> None:
    """Raises ValueError where the losses were multiplied by the scale of a GradScaler, and not divided by it again.

    Args:
        losses: (n,) with their graph.
    """
    factors = _factors(losses)
    if not factors:
        return
    scalers = [one for one in gc.get_objects() if issubclass(type(one), torch.amp.GradScaler)]
    scales = {one.get_scale() for one in scalers if one.is_enabled()} - {1.0}
    if scales.intersection(factors):
        raise ValueError(
            f"the losses are multiplied by {scales.intersection(factors).pop():g}, the scale of a GradScaler, so that "
            "nearly every gradient would be clipped; call backward(losses, scaler=scaler) with the losses as they are"
        )


def _factors(losses: Tensor) -> list[float]:
    """The float32 scalars, as a GradScaler has one, by which the last operations multiplied, without divisors."""
    factors, divisors = [], []
    node = losses.grad_fn
    for _ in range(LONGEST):
        if node is None:
            break
        if node.name() == "MulBackward0":
            factors += _scalars(node, torch.float32)
        elif node.name() == "DivBackward0":
            divisors += _scalars(node, torch.float32, torch.float64)
        following = [one for one, _ in node.next_functions if one is not None]
        node = following[0] if len(following) == 1 else None
    if not factors:
        return []  # before any value is read, which may wait for a device
    left = [factor.item() for factor in factors]
    for divisor in divisors:
        if divisor.item() in left:
            left.remove(divisor.item())
    return left


def _scalars(node: torch.autograd.graph.Node, *dtypes: torch.dtype) -> list[Tensor]:
    """The factor or divisor of a node where it is a tensor without dimensions; a number of Python has float64."""
    saved = [getattr(node, field, None) for field in ("_saved_other", "_saved_self")]
    return [t for t in saved if t is not None and t.dim() == 0 and t.dtype in dtypes]
