"""Training runs: options, the loop, and the files of a run."""

from pyengm.errors import Interrupted
from pyengm.training.builders import TrainComponents, build_components, load_split
from pyengm.training.config import TrainConfig
from pyengm.training.environment import describe
from pyengm.training.loggers import Logger
from pyengm.training.loop import fit
from pyengm.training.multi_seed import train_seeds
from pyengm.training.plan import plan
from pyengm.training.run import train
from pyengm.training.run_folder import RunFolder

__all__ = [
    "Interrupted",
    "Logger",
    "RunFolder",
    "TrainComponents",
    "TrainConfig",
    "build_components",
    "describe",
    "fit",
    "load_split",
    "plan",
    "train",
    "train_seeds",
]
