"""Whether this process was started as one of several, by torchrun or by `pyengm.training.launcher`."""

import os


def is_launched() -> bool:
    """Whether this process was started as one of several that share a run."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_rank_zero() -> bool:
    """Whether this is process 0, also before it has joined the group."""
    return os.environ.get("RANK", "0") == "0" or not is_launched()
