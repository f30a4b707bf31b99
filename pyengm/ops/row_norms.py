"""L2 norms of examples."""

from torch import Tensor

from pyengm.ops import reference
from pyengm.ops._memory_format import check_examples, dense, empty_per_example, row_size
from pyengm.ops._register import STORAGE_SUFFIX, Op, require_no_grad

NAME = "row_norms"


def _check(t) -> None:
    check_examples(NAME, "t", t)
    require_no_grad(NAME, t)


def _native(call, t) -> Tensor:
    if t.numel() == 0:
        return empty_per_example(t).zero_()
    t, out = dense(t), empty_per_example(t)
    shape = len(t), row_size(t)
    call(f"row_norms_{STORAGE_SUFFIX[t.dtype]}", out.data_ptr(), t.data_ptr(), *shape, rows=shape)
    return out


_op = Op(
    "row_norms(Tensor t) -> Tensor",
    check=_check,
    fake=empty_per_example,
    reference=reference.row_norms,
    native=_native,
)


def row_norms(t: Tensor, *, backend: str | None = None) -> Tensor:
    """L2 norms of n examples: one read of memory, sums in float64, the same bits for any number of threads.

    On CUDA elements of float32 and 16-bit types are summed in pairs of float32, four or eight at a time: before it is
    rounded to float32, a norm has a relative error below 2^-34. Squares that float32 cannot hold, of 1e-23 or of 1e23,
    are counted. inf gives inf, nan gives nan, and an example without elements gives 0.

    Args:
        t: (n, ...), float32, float64, bfloat16 or float16, any strides.
        backend: None (by device), "reference", "cpu" or "cuda".

    Returns:
        (n,) in the type of t, float32 for 16-bit types.

    Raises:
        ValueError: t has another type, or no dimension.
        RuntimeError: t requires grad outside torch.no_grad().
    """
    return _op(t, backend=backend)
