"""Random values that are a function of (seed, purpose, epoch, example): Philox 4x32-10.

They do not depend on batches, workers or processes, and a resumed run needs no state of a generator.
"""

import math
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from pyengm.ops import reference
from pyengm.ops._register import Op, fail


class Purpose(IntEnum):
    """The use of a random value. Draws for different purposes are independent; no value ever changes its meaning."""

    SPLIT = 0  # members of a fixed split of a data set
    SHUFFLE = 1  # order of the examples in an epoch
    CROP = 2
    FLIP = 3
    START = 4  # random start of an attack
    RADIUS = 5  # distance of a random start from the centre of an L2 ball
    STORE = 7  # initial value of a stored perturbation
    SIGN = 8  # corner of an L-infinity ball
    SECOND = 9  # second random point, beside the start of an attack
    STEP = 10  # step size of an attack
    TARGET = 11  # class that a targeted attack aims at
    DIVERSITY = 12  # size and place of an image before a gradient
    PLANE = 13  # second direction of a plane through an image
    MIX = 14  # position between two points, or the share of one of two images
    LOGITS = 15  # noise on the outputs of a model
    JITTER = 16  # noise after a step of an attack
    MASK = 17  # pixels of an image that are replaced
    LABEL = 18  # how a label is smoothed
    CUTOUT = 19  # square of an image that is erased
    CUTMIX = 20  # box of an image that shows another


@dataclass(frozen=True)
class Key:
    """The key of the random values of a batch.

    Args:
        seed: of the run, 0 to 2**63 - 1.
        epoch: 0 to 2**32 - 1.
        index: (n,) int64, the indices of the examples in their data set.
    """

    seed: int
    epoch: int
    index: Tensor

    @classmethod
    def fresh(cls, n: int, device: torch.device) -> "Key":
        """A key for n examples without indices in a data set; the seed is drawn from torch's default generator.

        Args:
            n: number of examples.
            device: of the index.

        Returns:
            A key of epoch 0 with the index 0 to n - 1.
        """
        seed = int(torch.randint(0, 2**63 - 1, ()))
        return cls(seed, 0, torch.arange(n, device=device))


def _check(index, count, seed, epoch, purpose) -> None:
    if index.dtype != torch.int64 or index.dim() != 1:
        fail("philox", "index of shape (n,) in int64", (tuple(index.shape), index.dtype))
    if not 0 <= count < 2**34:
        fail("philox", "0 <= count < 2**34 values per example", count)


def _op(name: str) -> Op:
    def native(call, index, count, seed, epoch, purpose) -> Tensor:
        index = index.contiguous()
        out = torch.empty((len(index), count), dtype=torch.float32, device=index.device)
        if out.numel():
            call(name, out.data_ptr(), index.data_ptr(), len(index), count, seed, epoch, purpose)
        return out

    return Op(
        f"{name}(Tensor index, SymInt count, SymInt seed, SymInt epoch, SymInt purpose) -> Tensor",
        check=_check,
        fake=lambda index, count, *_: index.new_empty((index.shape[0], count), dtype=torch.float32),
        reference=getattr(reference, name),
        native=native,
    )


_uniform, _normal = _op("philox_uniform"), _op("philox_normal")


def _draw(op: Op, index: Tensor, shape: tuple[int, ...], seed, purpose, epoch, draw, backend) -> Tensor:
    purpose = int(purpose)  # torch.compile of older versions cannot compare an enum
    for name, value, bits in (("seed", seed, 63), ("epoch", epoch, 32), ("draw", draw, 16), ("purpose", purpose, 16)):
        if not 0 <= value < 1 << bits:
            fail("philox", f"0 <= {name} < 2**{bits}", value)
    values = op(index, math.prod(shape), seed, epoch, purpose | draw << 16, backend=backend)
    return values.view(len(index), *shape)


def philox_uniform(
    index: Tensor,
    shape: tuple[int, ...],
    *,
    seed: int,
    purpose: Purpose,
    epoch: int = 0,
    draw: int = 0,
    backend: str | None = None,
) -> Tensor:
    """Uniform values in [0, 1), multiples of 2**-24.

    Args:
        index: (n,) int64, the indices of the examples, 0 to 2**32 - 1 (higher bits are ignored).
        shape: of the values of one example.
        seed: 0 to 2**63 - 1.
        purpose: the use of the values.
        epoch: 0 to 2**32 - 1.
        draw: number of the draw for this purpose, where there are several (restarts), 0 to 2**16 - 1.
        backend: None (by device), "reference", "cpu" or "cuda".

    Returns:
        (n, *shape) float32 on the device of index.

    Raises:
        ValueError: an argument is out of range, or index has another shape or type.

    References:
        Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011 (Philox 4x32-10).

    Example:
        >>> index = torch.tensor([3, 7])
        >>> values = pyengm.ops.philox_uniform(index, (2,), seed=0, purpose=pyengm.ops.Purpose.START)
        >>> values.shape
        torch.Size([2, 2])
    """
    return _draw(_uniform, index, shape, seed, purpose, epoch, draw, backend)


def philox_normal(
    index: Tensor,
    shape: tuple[int, ...],
    *,
    seed: int,
    purpose: Purpose,
    epoch: int = 0,
    draw: int = 0,
    backend: str | None = None,
) -> Tensor:
    """Standard normal values, by the Box-Muller transform; all else as in `philox_uniform`.

    Args:
        index: (n,) int64, the indices of the examples, 0 to 2**32 - 1 (higher bits are ignored).
        shape: of the values of one example.
        seed: 0 to 2**63 - 1.
        purpose: the use of the values.
        epoch: 0 to 2**32 - 1.
        draw: number of the draw for this purpose, where there are several (restarts), 0 to 2**16 - 1.
        backend: None (by device), "reference", "cpu" or "cuda".

    Returns:
        (n, *shape) float32 on the device of index.

    Raises:
        ValueError: an argument is out of range, or index has another shape or type.
    """
    return _draw(_normal, index, shape, seed, purpose, epoch, draw, backend)
