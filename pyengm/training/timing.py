"""Wall-clock times of a run: images per second, remaining time, peak memory."""

import resource
import sys
from time import perf_counter

import torch

MIB = 2**20


class EpochTimer:
    """Times the steps of a run. The keys of its rows are documented in `Logger`.

    `step` and `epoch` are to be called when the device has finished its work. Values that need a timed step are None
    before the first.

    Args:
        epochs: Number of epochs of the run.
        batches: Number of batches of an epoch.
        device: The device whose memory is measured.
    """

    def __init__(self, epochs: int, batches: int, device: torch.device):
        self._epochs, self._batches, self._device = epochs, batches, device
        self._last: float | None = None  # time of the last timed step
        self._start = 0.0  # time at which the steps of the epoch began
        self._between = 0.0  # seconds from the last step of an epoch to the next epoch

    def start(self, batch: int) -> None:
        """Begins the steps of an epoch, at that batch."""
        now = perf_counter()
        if self._last is not None:
            self._between = now - self._last
        self._start = self._last = now
        self._first = self._batch = batch
        self._images = self._timed_images = 0

    def count(self, images: int) -> None:
        """Adds to the number of images that were trained on."""
        self._images += images

    def step(self, epoch: int, batch: int) -> dict[str, float | None]:
        """The timing for a row of steps, after that many batches of the epoch."""
        now = perf_counter()
        rate = (self._images - self._timed_images) / (now - self._last_time)
        self._last, self._timed_images, self._batch = now, self._images, batch
        return {"images_per_second": rate, "seconds_to_finish": self._remaining(epoch, batch)}

    def epoch(self, epoch: int) -> dict[str, float | None]:
        """The timing for the row of an epoch that has ended."""
        seconds, evaluation = self._last_time - self._start, perf_counter() - self._last_time
        if not self._between:
            self._between = evaluation
        return {
            "images_per_second": self._images / seconds if self._images else None,
            "seconds_training": seconds,
            "seconds_evaluation": evaluation,
            "seconds_to_finish": self._remaining(epoch + 1, 0),
            "peak_memory_mib": peak_memory(self._device) / MIB,
        }

    @property
    def _last_time(self) -> float:
        if self._last is None:
            raise RuntimeError("no epoch is being timed; call start(batch) before step and epoch")
        return self._last

    def _remaining(self, epoch: int, batch: int) -> float | None:
        """Seconds from that batch to the end; None where no step was timed in this epoch."""
        timed = self._batch - self._first
        if not timed:
            return None
        epochs = self._epochs - epoch
        per_batch = (self._last_time - self._start) / timed
        return (epochs * self._batches - batch) * per_batch + epochs * self._between


def peak_memory(device: torch.device) -> int:
    """The peak memory so far in bytes: of the tensors on a GPU in this process, on a CPU of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts bytes
