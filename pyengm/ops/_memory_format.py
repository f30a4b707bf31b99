"""Checks of ops on n examples (n, ...): dense tensors of one shape, type and device, in separate memory."""

import torch
from torch import Tensor

from pyengm.ops._register import STORAGE_SUFFIX, fail


def check_examples(op: str, name: str, t: Tensor) -> None:
    if t.dtype not in STORAGE_SUFFIX:
        fail(op, f"{name} in float32, float64, bfloat16 or float16", t.dtype)
    if t.dim() == 0:
        fail(op, f"{name} of shape (n, ...)", ())


def check_dense(op: str, name: str, t: Tensor) -> None:
    """For a tensor that an op changes in place."""
    check_examples(op, name, t)
    if not is_dense(t):
        fail(op, f"{name} of shape (n, ...), contiguous or channels_last", (tuple(t.shape), t.stride()))


def check_same(op: str, like: Tensor, **tensors: Tensor) -> None:
    """Each tensor has the shape, type and device of `like`."""
    for name, t in tensors.items():
        _check(op, name, t, like.shape, like.dtype, like.device)


def check_per_example(op: str, like: Tensor, dtype: torch.dtype | None = None, **tensors: Tensor | None) -> None:
    """Each tensor has one value per example of `like`, in its computation type unless dtype is given, or is None."""
    for name, t in tensors.items():
        if t is not None:
            _check(op, name, t, like.shape[:1], dtype or computation_dtype(like.dtype), like.device)


def _check(op: str, name: str, t: Tensor, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> None:
    if t.shape != shape or t.dtype != dtype or t.device != device:
        fail(op, f"{name} of shape {tuple(shape)} in {dtype} on {device}", (tuple(t.shape), t.dtype, t.device))


def computation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of arithmetic on elements of this type, and of values per example: float32 for the 16-bit types."""
    return torch.float32 if dtype.itemsize == 2 else dtype


def empty_per_example(t: Tensor) -> Tensor:
    """Uninitialised memory for one value per example of t."""
    return t.new_empty(t.shape[0], dtype=computation_dtype(t.dtype))


def is_dense(t: Tensor) -> bool:
    return t.is_contiguous() or (t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last))


def dense(t: Tensor) -> Tensor:
    return t if is_dense(t) else t.contiguous()


def with_strides_of(t: Tensor, like: Tensor) -> Tensor:
    return t if t.stride() == like.stride() else torch.empty_like(like).copy_(t)


def row_size(t: Tensor) -> int:
    return t.numel() // t.shape[0]


def address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def check_separate(op: str, changed: dict[str, Tensor], read: dict[str, Tensor]) -> None:
    """No tensor that the op changes shares memory with another one."""
    names = list(changed)
    for i, name in enumerate(names):
        others = {other: changed[other] for other in names[i + 1 :]} | read
        for other, t in others.items():
            if _overlaps(changed[name], t):
                fail(op, f"{name} and {other} in separate memory", "overlapping tensors")


def _overlaps(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() < b.data_ptr() + b.nbytes and b.data_ptr() < a.data_ptr() + a.nbytes


def bump_version(*changed: Tensor) -> None:
    """Marks tensors as changed in place, so that autograd raises where it has saved one of them."""
    for t in changed:
        if not t.is_inference():
            torch.autograd.graph.increment_version(t)
