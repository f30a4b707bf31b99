"""Image classifiers: pixels in [0, 1] go in, logits come out."""

from pyengm.models.checkpoint import (
    CheckpointInfo,
    check_state,
    load_checkpoint,
    load_weights,
    make_folder,
    read_info,
    save_checkpoint,
    write_atomically,
)
from pyengm.models.memory_format import in_fast_layout, layout_of
from pyengm.models.normalize import Normalize
from pyengm.models.registry import build, names

__all__ = [
    "CheckpointInfo",
    "Normalize",
    "build",
    "check_state",
    "in_fast_layout",
    "layout_of",
    "load_checkpoint",
    "load_weights",
    "make_folder",
    "names",
    "read_info",
    "save_checkpoint",
    "write_atomically",
]
