"""Images on their way from the host's memory or disk to the device."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from pyengm.data.memmap import MemmapImages


class HostTransfer:
    """Reads the images of a batch and copies them to a device; several threads may do so at the same time.

    Images are read in rising order of position, which is fastest from a disk. On CUDA each thread has a buffer of
    pinned memory that it uses again and again, and copies run on a stream of their own, beside the computation.

    Args:
        images: (N, C, H, W), in memory, or uint8 on disk.
        device: where the images are copied to.
        max_images: the largest number of images in a batch.
    """

    def __init__(self, images: Tensor | MemmapImages, device: torch.device, max_images: int) -> None:
        self._images, self._device, self._max_images = images, device, max_images
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._local = threading.local()

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Transfers a batch, and returns when it is on the device.

        Args:
            positions: (n,) int64 on the CPU, of the images in the data set.

        Returns:
            The images (n, C, H, W) on the device, in another order, and the position (n,) in them of each image
            that was asked for. Both come from another stream: call `record_stream` on them before their use.
        """
        rising, order = positions.sort()
        where = order.argsort()
        if self._stream is None:
            return self._read(rising, self._allocate(len(rising))), where
        pinned = self._read(rising, self._buffer()[: len(rising)])
        with torch.cuda.stream(self._stream):
            images, where = (t.to(self._device, non_blocking=True) for t in (pinned, where))
            copied = self._stream.record_event()
        copied.synchronize()  # only this thread waits, and may then fill its buffer again
        return images, where

    def _read(self, positions: Tensor, out: Tensor) -> Tensor:
        if isinstance(self._images, Tensor):
            # copies whole images, where indexing copies single bytes: ten times slower on a CPU
            return torch.index_select(self._images, 0, positions, out=out)
        return self._images.read(positions, out)

    def _buffer(self) -> Tensor:
        if not hasattr(self._local, "buffer"):
            self._local.buffer = self._allocate(self._max_images, pin_memory=True)
        return self._local.buffer

    def _allocate(self, n: int, pin_memory: bool = False) -> Tensor:
        return torch.empty((n, *self._images.shape[1:]), dtype=self._images.dtype, pin_memory=pin_memory)
