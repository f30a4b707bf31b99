"""Training runs: options, the loop, what is left on disk."""

from pyengm.training.config import TrainConfig
from pyengm.training.environment import describe
from pyengm.training.loggers import Logger
from pyengm.training.loop import fit
from pyengm.training.run import train
from pyengm.training.run_folder import RunFolder
from pyengm.training.seeds import train_seeds
from pyengm.training.setup import Parts, load_split, pick_device, set_up
from pyengm.training.stop import Interrupted

__all__ = [
    "Interrupted",
    "Logger",
    "Parts",
    "RunFolder",
    "TrainConfig",
    "describe",
    "fit",
    "load_split",
    "pick_device",
    "set_up",
    "train",
    "train_seeds",
]
