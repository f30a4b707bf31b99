"""The room on the disk that a run takes, which is checked before its first epoch."""

import os
import shutil
from pathlib import Path

from torch import Tensor

from pyengm.errors import StorageError
from pyengm.training.builders import TrainComponents
from pyengm.training.config import TrainConfig
from pyengm.training.snapshots import snapshot_epochs
from pyengm.utils.io import format_size


def run_size(config: TrainConfig, components: TrainComponents) -> int:
    """Bytes that the folder of a run takes at most: the best and last weights, one checkpoint more than are kept, and
    what is recorded for analyses.

    A checkpoint holds the weights, their average, two values of the optimiser for each, and the state of each image.
    """
    weights = sum(_size(tensor) for tensor in components.model.state_dict().values())
    averaged = weights * components.averaging.copies(config.schedule.epochs)
    images = sum(_size(tensor) for one in components.method.buffers().values() for tensor in one.state_dict().values())
    checkpoint = 3 * weights + averaged + images
    snapshots = len(snapshot_epochs(config.record.snapshots, config.schedule.epochs))
    values = (3 * (config.record.probe or 0), 3 * len(components.batches.data) if config.record.instance_log else 0)
    recorded = snapshots * weights + config.schedule.epochs * 8 * sum(values)  # int64 and float64, pairs of float32
    return 2 * weights + (config.run.keep_checkpoints + 1) * checkpoint + recorded


def check_disk_space(needed: int, path: Path) -> None:
    """Checks that the disk has room for a run.

    Args:
        needed: Bytes, of `run_size`.
        path: The run folder, which need not exist.

    Raises:
        StorageError: The disk has less room, or none can be written to.
    """
    parent = next(one for one in (path.absolute(), *path.absolute().parents) if one.exists())
    if parent.is_dir() and not os.access(parent, os.W_OK | os.X_OK):
        raise StorageError(f"{parent} cannot be written to: make it writable or choose another --out")
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise StorageError(
            f"the run needs up to {format_size(needed)} in {path}, and {format_size(free)} are free: make room, choose "
            "another --out, or keep fewer checkpoints (--keep-checkpoints 1)"
        )


def _size(tensor: object) -> int:
    return tensor.numel() * tensor.element_size() if isinstance(tensor, Tensor) else 0
