"""Images that stay on disk: rows of a memory-mapped file, indexed like a tensor."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class MemmapImages:
    """Images (n, C, H, W) in rows of a memmap; indexing reads them into a new uint8 tensor.

    Args:
        file: (N, C, H, W) uint8.
        rows: (n,) int64, the rows of the file; None for all.
    """

    def __init__(self, file: np.memmap, rows: Tensor | None = None) -> None:
        self._file = file
        self._rows = torch.arange(len(file)) if rows is None else rows

    def subset(self, positions: Tensor) -> MemmapImages:
        """The images at `positions` (m,), still on disk."""
        return MemmapImages(self._file, self._rows[positions])

    def __getitem__(self, key: int | slice | Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(np.take(self._file, self._rows[key].numpy(), axis=0)))

    def read(self, positions: Tensor, out: Tensor) -> Tensor:
        """Reads images.

        Args:
            positions: (m,) int64.
            out: (m, C, H, W) uint8 on the CPU, which the images are written to.

        Returns:
            `out`.
        """
        # any mode but "raise" writes there directly; the rows exist, as ImageDataset.subset has checked them
        np.take(self._file, self._rows[positions].numpy(), axis=0, out=out.numpy(), mode="clip")
        return out

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self._rows), *self._file.shape[1:]))

    @property
    def ndim(self) -> int:
        return self._file.ndim

    @property
    def dtype(self) -> torch.dtype:
        return torch.from_numpy(np.empty(0, self._file.dtype)).dtype

    @property
    def nbytes(self) -> int:
        return self.shape.numel() * self._file.itemsize
