"""Checks of the arguments of attacks, and of the values that they compute."""

import warnings
from functools import reduce

import torch
from torch import Tensor

from pyengm.errors import DataError, NonFiniteError
from pyengm.ops import Key
from pyengm.utils.checks import are_collected, require

# Images that were normalised and brought back are off by a few roundings of values up to 10, below 2**-20 each.
ROUNDING = 2**-18
SUM_ROUNDING = 1e-2  # of the sums of probabilities in bfloat16


def check_batch(x: Tensor, y: Tensor, *, soft: bool = False) -> tuple[Tensor, Tensor]:
    """Checks the images and labels of an attack.

    Args:
        x: images (n, ...), n >= 1, in float32 or float64 with values in [0, 1]. Values outside by no more than ROUNDING
            are clipped with a warning, unless checks are collected.
        y: labels (n,) int64, 0 or more.
        soft: whether y may also be probabilities of the classes (n, k), as of mixup.

    Returns:
        Images and labels that the attack can use: x, or x clipped, and y, probabilities in the type of x. Tensors that
        were made in inference mode are copied, as autograd cannot save them.

    Raises:
        DataError: one of these does not hold.
    """
    if x.dtype not in (torch.float32, torch.float64):
        raise DataError(f"expected images in float32 or float64 with values in [0, 1], got {x.dtype}; {_cast(x)}")
    if x.numel() == 0:
        raise DataError("the batch is empty: there is nothing to attack")
    y = _checked_labels(x, y, soft)
    low, high = x.detach().aminmax()
    slack = 0 if are_collected() else ROUNDING  # what is collected cannot decide whether to clip
    require((low >= -slack) & (high <= 1 + slack), _outside_unit_range, low, high)
    x, y = (t.clone() if t.is_inference() else t for t in (x, y))
    if slack and not bool((low >= 0) & (high <= 1)):
        warnings.warn("images outside [0, 1] by a rounding error are clipped to [0, 1]", stacklevel=3)
        x = x.clamp(0, 1)
    return x, y


def _checked_labels(x: Tensor, y: Tensor, soft: bool) -> Tensor:
    if y.is_floating_point() and y.dim() == 2 and len(y) == len(x) and soft:
        sums = y.sum(dim=1, dtype=torch.float64)
        require((y.min() >= 0) & ((sums - 1).abs().max() <= SUM_ROUNDING), _no_probabilities, y, sums)
        return y.to(x.dtype)
    if y.shape != x.shape[:1] or y.dtype != torch.int64:
        also = f", or probabilities ({len(x)}, classes)" if soft else ""
        expected = f"labels of shape {tuple(x.shape[:1])} in int64{also}"
        raise DataError(f"expected {expected}, got {tuple(y.shape)} in {y.dtype}")
    smallest = y.min()
    require(smallest >= 0, _negative_label, smallest)  # torch's cross-entropy ignores -100 without a warning
    return y


def _no_probabilities(y: Tensor, sums: Tensor) -> DataError:
    return DataError(
        "expected probabilities of the classes, 0 or more with sum 1 for each image, got values from "
        f"{y.min().item():.4g} on and sums from {sums.min().item():.4g} to {sums.max().item():.4g}"
    )


def _cast(x: Tensor) -> str:
    if x.dtype == torch.uint8:
        return "pass x / 255"
    return "pass x.float(): a model in half precision gets float32 images, in its own type"


def _outside_unit_range(low: Tensor, high: Tensor) -> DataError:
    return DataError(
        f"expected images with values in [0, 1], got values from {low.item():.4g} to {high.item():.4g}; "
        "normalisation belongs into the model (pyengm.models.build(..., mean=, std=))"
    )


def _negative_label(smallest: Tensor) -> DataError:
    return DataError(f"expected labels of 0 or more, got {smallest.item()}")


def check_extras(x: Tensor, start: Tensor | None, key: Key | None, out: Tensor | None) -> None:
    """Checks the optional arguments of an attack on images x (n, ...).

    Args:
        x: the images.
        start: the first iterate, with the shape, type and device of x.
        key: the key of the random numbers, for n examples.
        out: the buffer for the result, with the shape, type and device of x, in other memory.

    Raises:
        DataError: one of these does not hold.
    """
    for name, t in (("start", start), ("out", out)):
        if t is not None and (t.shape, t.dtype, t.device) != (x.shape, x.dtype, x.device):
            raise DataError(
                f"expected {name} like the images, {tuple(x.shape)} in {x.dtype} on {x.device}, "
                f"got {tuple(t.shape)} in {t.dtype} on {t.device}"
            )
    if out is not None and out.data_ptr() == x.data_ptr():
        raise DataError("out is the memory of the images, which must stay as they are: pass another buffer")
    if key is not None and len(key.index) != len(x):
        raise DataError(f"expected a key for {len(x)} images, got one for {len(key.index)}")


def check_finite(*tensors: Tensor) -> None:
    """Checks losses and gradients; `pyengm.utils.checks.require` describes when the result is read.

    The sign of a nan moves nothing, so that an example with a nan in its gradient would count as robust.

    Raises:
        NonFiniteError: a value is nan or infinite.
    """
    total = reduce(torch.add, (t.detach().sum() for t in tensors))
    require(total.isfinite(), _non_finite)


def _non_finite() -> NonFiniteError:
    return NonFiniteError("the attack's loss or its gradient is nan or infinite: look at the model's outputs")


def finite_logits(logits: Tensor) -> Tensor:
    """Returns the logits (n, k) unchanged; waits for the device.

    Raises:
        NonFiniteError: a logit is nan or infinite.
    """
    if not logits.isfinite().all():
        raise NonFiniteError("the model's outputs are nan or infinite")
    return logits
