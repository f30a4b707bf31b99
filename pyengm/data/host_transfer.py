"""Images on their way from the host's memory or disk to the device."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from pyengm.data.memmap import MemmapImages


class Fetcher:
    """Reads the images of a batch and brings them to a device; several threads may do so at the same time.

    They are read in rising order of position, as a disk likes it. On CUDA each thread has a buffer of pinned memory
    that it fills again and again, and copies run on a stream of their own, beside the computation.

    images: (N, C, H, W) uint8, in memory or on disk. device: where they go. most: images of a batch at most.
    """

    def __init__(self, images: Tensor | MemmapImages, device: torch.device, most: int):
        self._images, self._device, self._most = images, device, most
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._own = threading.local()

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The images at `positions` (n,), (n, C, H, W) on the device, and where in them each one is, (n,).

        They are there when this returns; before they are used, tell them by `record_stream` on which stream.
        """
        rising, order = positions.sort()
        places = order.argsort()
        if self._stream is None:
            return self._read(rising, self._memory(len(rising))), places
        pinned = self._read(rising, self._buffer()[: len(rising)])
        with torch.cuda.stream(self._stream):
            images, places = (t.to(self._device, non_blocking=True) for t in (pinned, places))
            copied = self._stream.record_event()
        copied.synchronize()  # only this thread waits, and may then fill its buffer again
        return images, places

    def _read(self, positions: Tensor, out: Tensor) -> Tensor:
        if isinstance(self._images, Tensor):
            # copies whole images, where indexing copies single bytes: ten times slower on a CPU
            return torch.index_select(self._images, 0, positions, out=out)
        return self._images.read(positions, out)

    def _buffer(self) -> Tensor:
        if not hasattr(self._own, "buffer"):
            self._own.buffer = self._memory(self._most, pin_memory=True)
        return self._own.buffer

    def _memory(self, n: int, pin_memory: bool = False) -> Tensor:
        return torch.empty((n, *self._images.shape[1:]), dtype=torch.uint8, pin_memory=pin_memory)
