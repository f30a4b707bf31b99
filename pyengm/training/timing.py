"""Wall-clock figures of a run: images per second, time to finish, peak memory."""

import resource
import sys
from time import perf_counter

import torch

MIB = 2**20


class EpochTimer:
    """Times the steps of a run of `epochs` epochs of `batches` batches; what its figures mean: see `Logger`.

    A look at it is to come when the device has finished what it was given. Figures without a step to go by are None.
    """

    def __init__(self, epochs: int, batches: int, device: torch.device):
        self._epochs, self._batches, self._device = epochs, batches, device
        self._looked: float | None = None  # when a step was last looked at
        self._between = 0.0  # seconds from the last step of an epoch to the next epoch

    def start(self, batch: int) -> None:
        """The steps of an epoch begin, with that batch."""
        now = perf_counter()
        if self._looked is not None:
            self._between = now - self._looked
        self._begun = self._looked = now
        self._first = self._batch = batch
        self._images = self._seen = 0

    def count(self, images: int) -> None:
        """That many more have been trained on."""
        self._images += images

    def step(self, epoch: int, batch: int) -> dict[str, float]:
        """The timing for a row of steps, after that many batches of the epoch."""
        now = perf_counter()
        rate = (self._images - self._seen) / (now - self._looked)
        self._looked, self._seen, self._batch = now, self._images, batch
        return {"images_per_second": rate, "seconds_to_finish": self._left(epoch, batch)}

    def epoch(self, epoch: int) -> dict[str, float | None]:
        """The timing for the row of an epoch that has ended."""
        seconds, evaluation = self._looked - self._begun, perf_counter() - self._looked
        if not self._between:
            self._between = evaluation
        return {
            "images_per_second": self._images / seconds if self._images else None,
            "seconds_training": seconds,
            "seconds_evaluation": evaluation,
            "seconds_to_finish": self._left(epoch + 1, 0),
            "peak_memory_mib": peak_memory(self._device) / MIB,
        }

    def _left(self, epoch: int, batch: int) -> float | None:
        """Seconds from that batch to the end; None where no step was timed in this epoch."""
        timed = self._batch - self._first
        if not timed:
            return None
        epochs = self._epochs - epoch
        per_batch = (self._looked - self._begun) / timed
        return (epochs * self._batches - batch) * per_batch + epochs * self._between


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that tensors on a GPU have taken in this process, on a CPU the most that the process has."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts bytes
