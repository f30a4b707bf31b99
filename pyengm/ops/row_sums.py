"""Sums of rows and of their products with another matrix: the gradients of a norm layer's bias and weight."""

from torch import Tensor

from pyengm.ops import reference
from pyengm.ops._register import SUFFIX, Op, fail, require_no_grad

NAME = "row_sums"


def _check(g, x) -> None:
    if g.dtype not in SUFFIX or g.dim() != 2:
        fail(NAME, "g of shape (R, T) in float32 or float64", (tuple(g.shape), g.dtype))
    if x.shape != g.shape or x.dtype != g.dtype or x.device != g.device:
        fail(NAME, f"x of shape {tuple(g.shape)} in {g.dtype} on {g.device}", (tuple(x.shape), x.dtype, x.device))
    require_no_grad(NAME, g, x)


def _native(call, g, x) -> tuple[Tensor, Tensor]:
    if g.numel() == 0:
        return reference.row_sums(g, x)
    g, x = g.contiguous(), x.contiguous()
    sums, dots = g.new_empty(len(g)), g.new_empty(len(g))
    addresses = (t.data_ptr() for t in (sums, dots, g, x))
    call(f"row_sums_{SUFFIX[g.dtype]}", *addresses, *g.shape)
    return sums, dots


_op = Op(
    "row_sums(Tensor g, Tensor x) -> (Tensor, Tensor)",
    check=_check,
    fake=lambda g, x: (g.new_empty(len(g)), g.new_empty(len(g))),
    reference=reference.row_sums,
    native=_native,
)


def row_sums(g: Tensor, x: Tensor, *, backend: str | None = None) -> tuple[Tensor, Tensor]:
    """(sum_t g, sum_t g x) over the rows of g and x, in one pass over memory.

    On a CPU rows are summed in blocks of 256 in the type of g, blocks in float64. On CUDA sums are in float64; of
    float32 four elements at a time are summed in pairs of float32. Before they are rounded, the error of a sum of g is
    then below (T + 128) 2^-46 |g|_1, and that of g x below (T + 128) 2^-46 |g|_2 |x|_2 of the row.

    Args:
        g: (R, T), float32 or float64.
        x: shape, type and device of g.
        backend: None (by device), "reference", "cpu" or "cuda".

    Returns:
        The sums of the rows of g and of g x, both (R,) in the type of g.

    Raises:
        ValueError: a shape, type or device is not as above.
        RuntimeError: a tensor requires grad outside torch.no_grad().
    """
    return _op(g, x, backend=backend)
