"""Image classifiers that map pixels in [0, 1] to logits, and their checkpoints."""

from pyengm.models.checkpoint import (
    CheckpointInfo,
    check_state,
    load_checkpoint,
    load_weights,
    read_info,
    save_checkpoint,
)
from pyengm.models.classifier import Classifier, Output
from pyengm.models.from_robustbench import load as load_from_robustbench
from pyengm.models.memory_format import memory_format_of, to_fast_memory_format
from pyengm.models.norm import NORM_LAYERS
from pyengm.models.normalize import Normalize
from pyengm.models.registry import ZOO, build, code_of, list_models

__all__ = [
    "NORM_LAYERS",
    "ZOO",
    "CheckpointInfo",
    "Classifier",
    "Normalize",
    "Output",
    "build",
    "check_state",
    "code_of",
    "list_models",
    "load_checkpoint",
    "load_from_robustbench",
    "load_weights",
    "memory_format_of",
    "read_info",
    "save_checkpoint",
    "to_fast_memory_format",
]
