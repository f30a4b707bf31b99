"""What an attack takes: images, labels, and what comes with them."""

import torch
from torch import Tensor

from pyengm.errors import DataError, NonFiniteError
from pyengm.ops import Key
from pyengm.utils.checks import require


def check_batch(x: Tensor, y: Tensor) -> None:
    """Raises DataError unless x (n, ...) is float32 or float64 in [0, 1] and y (n,) int64 labels, n >= 1."""
    if x.dtype not in (torch.float32, torch.float64):
        raise DataError(f"expected images in float32 or float64 with values in [0, 1], got {x.dtype}")
    if y.shape != x.shape[:1] or y.dtype != torch.int64:
        raise DataError(f"expected labels of shape {tuple(x.shape[:1])} in int64, got {tuple(y.shape)} in {y.dtype}")
    if x.numel() == 0:
        raise DataError("the batch is empty: there is nothing to attack")
    low, high = x.detach().aminmax()
    require((low >= 0) & (high <= 1), _outside, low, high)
    least = y.min()
    require(least >= 0, _no_label, least)  # torch's cross-entropy ignores -100 without a word


def _outside(low: Tensor, high: Tensor) -> DataError:
    return DataError(
        f"expected images with values in [0, 1], got values from {low.item():.4g} to {high.item():.4g}; "
        "normalisation belongs into the model (pyengm.models.build(..., mean=, std=))"
    )


def _no_label(least: Tensor) -> DataError:
    return DataError(f"expected labels of 0 or more, got {least.item()}")


def check_extras(x: Tensor, start: Tensor | None, key: Key | None, out: Tensor | None) -> None:
    """Raises DataError unless start and out are like x, out is not x, and key names as many examples as x has."""
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
    """Raises NonFiniteError unless all losses and gradients are finite (see `require` for when the check is read).

    The sign of a nan moves nothing, so an example that meets one would pass for a robust one.
    """
    require(sum(t.detach().sum() for t in tensors).isfinite(), _not_finite)


def _not_finite() -> NonFiniteError:
    return NonFiniteError("the attack's loss or its gradient is nan or infinite: look at the model's outputs")
