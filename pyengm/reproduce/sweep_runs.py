"""Training the runs of a paper's sweep, those that rank the training images before those on subsets."""

from functools import partial
from pathlib import Path

import numpy as np

from pyengm.analysis import Instances, instances
from pyengm.errors import ConfigError, PyengmError
from pyengm.reproduce.sweep_plan import Subset, SweepPlan, write_indices_of_short_runs
from pyengm.sweep import Sweep
from pyengm.training import RunFolder, TrainConfig, load_split
from pyengm.utils.distributed import on_rank0
from pyengm.utils.io import atomic_write, make_dirs


def train_plan(sweep: Sweep, plan: SweepPlan) -> None:
    """Starts or resumes all runs that are not complete.

    Args:
        sweep: The sweep, whose folder is claimed.
        plan: Its plan.

    Raises:
        Interrupted: After Ctrl-C or SIGTERM.
    """
    write_indices_of_short_runs(plan, sweep.out)
    sweep.run([name for name in plan.points if name not in plan.subsets])
    ready = []
    for name, subset in plan.subsets.items():
        try:
            on_rank0(partial(_write_subset, subset, sweep))
            ready.append(name)
        except PyengmError as error:
            sweep.fail(name, str(error))
    sweep.run(ready)


def _write_subset(subset: Subset, sweep: Sweep) -> None:
    """Writes the positions of the images by the log of the ranking run of the first seed, unless they are there."""
    if not subset.file.is_file():
        found = rank_images(sweep.folders(subset.ranked_by)[0]).subset(subset.first, subset.last)
        make_dirs(subset.file.parent)
        atomic_write(subset.file, lambda path: path.write_text("".join(f"{row}\n" for row in found)))


def rank_images(run: Path) -> Instances:
    """Ranks the training images of a run by their gradients, see `pyengm.analysis.instances`.

    Args:
        run: The folder of a run with a log of its training images.

    Raises:
        ConfigError: The run is not complete, or has no log.
    """
    folder = RunFolder(run)
    paths = sorted(folder.instances.glob("epoch-*.npz"))
    if not paths or not folder.results.is_file():
        raise ConfigError(f"the run {run}, which ranks the training images, is not complete, or has no --instance-log")
    logs = [dict(np.load(path, allow_pickle=False)) for path in paths]
    return instances(logs, load_split(TrainConfig.load(folder.config), "train").labels.numpy())
