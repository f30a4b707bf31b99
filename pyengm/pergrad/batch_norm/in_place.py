"""New values in the memory of old ones, which a CUDA graph that reads it then sees."""

from collections.abc import Hashable, Mapping
from typing import Any

from torch import Tensor


def overwrite(old: Mapping[Any, Tensor], new: Mapping[Any, Tensor]) -> bool:
    """Copies the new tensors into the old ones of the same name, all of them or none.

    Returns:
        Whether names, shapes, strides, types and devices agree; else nothing is copied.
    """
    if {name: _form(t) for name, t in old.items()} != {name: _form(t) for name, t in new.items()}:
        return False
    for name, t in new.items():
        old[name].copy_(t)
    return True


def _form(t: Tensor) -> Hashable:
    return t.shape, t.stride(), t.dtype, t.device
