"""The file of what a method logged of every training image in an epoch."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyengm.methods import LogsInstances
from pyengm.methods.instance_log import FIELDS
from pyengm.utils.distributed import all_gather_object, on_rank0
from pyengm.utils.io import write_arrays


def gather_instances(method: LogsInstances) -> dict[str, np.ndarray]:
    """What the method logged of the training images of all processes, which all call this.

    Args:
        method: A method that logs.

    Returns:
        "index" (N,) int64, the positions of the images in the training split, ascending; in that order the `FIELDS`,
        (N,) float32 each.
    """
    store = method.instances
    parts: list[tuple[Tensor, Tensor]] = all_gather_object((store.index.cpu(), store.values.flatten(1).cpu()))
    index, values = (torch.cat(part) for part in zip(*parts, strict=True))
    order = index.argsort()
    columns = values[order].unbind(dim=1)
    return {"index": index[order].numpy(), **{name: t.numpy() for name, t in zip(FIELDS, columns, strict=True)}}


def save_instances(path: Path, method: LogsInstances) -> None:
    """Writes `gather_instances` as a file of numpy, an array by each name; all processes call this.

    Raises:
        StorageError: The disk is full or cannot be written to.
    """
    arrays = gather_instances(method)
    on_rank0(lambda: write_arrays(path, arrays))
