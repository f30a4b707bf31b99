"""Random numbers that are a function of (seed, purpose, epoch, example): Philox 4x32-10.

They depend on no order of batches, worker or process, and a resumed run needs no generator state.
"""

import math
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from pyengm.ops import reference
from pyengm.ops._register import Op, fail


class Purpose(IntEnum):
    """What a number is drawn for: draws for different purposes are independent. Values never change meaning."""

    SPLIT = 0  # which examples a fixed split holds
    SHUFFLE = 1  # the order of an epoch
    CROP = 2
    FLIP = 3
    START = 4  # random start of an attack
    RADIUS = 5  # of a random start in an L2 ball
    NOISE = 6
    STORE = 7  # first value of a perturbation that is kept for an image
    SIGN = 8  # of a random corner of a ball
    SECOND = 9  # a second random point beside that of an attack
    STEP = 10  # size of a step


@dataclass(frozen=True)
class Key:
    """Whose numbers are drawn: a run's seed (0 to 2**63 - 1), the epoch, and the identities (n,) int64 of a batch."""

    seed: int
    epoch: int
    index: Tensor

    @classmethod
    def fresh(cls, n: int, device: torch.device) -> "Key":
        """A key for n anonymous examples; its seed comes from torch's default generator."""
        seed = int(torch.randint(0, 2**63 - 1, ()))
        return cls(seed, 0, torch.arange(n, device=device))


def _check(index, count, seed, epoch, purpose) -> None:
    if index.dtype != torch.int64 or index.dim() != 1:
        fail("philox", "index of shape (n,) in int64", (tuple(index.shape), index.dtype))
    if not 0 <= count < 2**34:
        fail("philox", "0 <= count < 2**34 numbers per example", count)


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
    numbers = op(index, math.prod(shape), seed, epoch, purpose | draw << 16, backend=backend)
    return numbers.view(len(index), *shape)


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
    """Uniform numbers in [0, 1), multiples of 2**-24, float32 of shape (n, *shape) on index's device.

    index: (n,) int64, the identities of the examples, 0 to 2**32 - 1 (higher bits are ignored).
    seed, purpose, epoch, draw: the rest of the key; draw numbers repeated draws for one purpose (restarts).
    backend: None (by device), "reference", "cpu" or "cuda".
    Raises ValueError when a part of the key is out of range. Source: Salmon et al., SC 2011 (Philox 4x32-10).
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
    """Standard normal numbers (Box-Muller), float32 of shape (n, *shape); arguments as for philox_uniform."""
    return _draw(_normal, index, shape, seed, purpose, epoch, draw, backend)
