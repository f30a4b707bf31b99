"""The same run with several seeds, and the mean and standard deviation of the results."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyengm.errors import ConfigError, DataError, PyengmError
from pyengm.evaluation import DETAILS, results_table
from pyengm.training.config import TrainConfig
from pyengm.training.multi_run import complete_all
from pyengm.training.run_folder import RunFolder, check_free, next_free
from pyengm.utils import terminal
from pyengm.utils.distributed import on_rank0
from pyengm.utils.io import atomic_write

LEFT_OUT = (*DETAILS, "format")


def train_seeds(config: TrainConfig) -> dict[str, Any]:
    """Completes a run for each seed in OUT/seed-0, OUT/seed-1, ..., prints a table and writes OUT/summary.json.

    The runs are ordinary ones, which are started, resumed or read.

    Args:
        config: Options, with `seeds`.

    Returns:
        The content of summary.json: "seeds" (of the complete runs), "mean" and "spread" as from `mean_and_spread`, and
        "failed" (the errors of the other runs, by name).

    Raises:
        ConfigError: For an OUT that is not empty, unless `resume` is given, and for options that no run accepts.
        DataError: For data that cannot be read.
        PyengmError: Where every run failed.
        Interrupted: After Ctrl-C.
    """
    if not config.run.seeds:
        raise ConfigError("seeds are empty; expected one or more")
    config = config.resolve()
    out = on_rank0(lambda: config.run.out or next_free(config))
    again = f"pyengm train --seeds {' '.join(map(str, config.run.seeds))} --out {out} --resume"
    if not config.run.resume:
        on_rank0(lambda: check_free(out, again))
        on_rank0(RunFolder(out).note_job)
    configs = [config.override(seed=seed, seeds=(), out=seed_folder(out, seed)) for seed in config.run.seeds]
    runs = {f"seed-{one.run.seed}": one for one in configs}
    results, failed = complete_all(runs, f"resume with: {again}", fatal=(ConfigError, DataError))
    if not results:
        raise PyengmError("every run failed: " + "; ".join(f"{name}: {why}" for name, why in failed.items()))
    mean, spread = mean_and_spread(list(results.values()))
    seeds = [one.run.seed for name, one in runs.items() if name in results]
    summary = {"seeds": seeds, "mean": mean, "spread": spread, "failed": failed}
    text = json.dumps(summary, indent=2) + "\n"
    on_rank0(lambda: atomic_write(out / "summary.json", lambda path: path.write_text(text)))
    terminal.log(f"mean ± sample standard deviation over the seeds {', '.join(map(str, seeds))}:", always=True)
    terminal.log(results_table(mean, str(out), spread), always=True)
    terminal.log(f"these values are in {out / 'summary.json'}")
    return summary


def seed_folder(out: Path, seed: int | str) -> Path:
    """The run folder of a seed among the runs in `out`."""
    return out / f"seed-{seed}"


def is_begun(out: Path, seeds: Sequence[str]) -> bool:
    """Whether the run in `out`, or one of those of the seeds, was started."""
    return any(RunFolder(path).config.is_file() for path in [out, *(seed_folder(out, seed) for seed in seeds)])


def begun_run(out: Path, seeds: Sequence[str]) -> RunFolder:
    """The first run of these seeds in `out` that was started. All runs there have its options, except for the seed.

    Raises ConfigError where no run was started.
    """
    begun = [run for run in (RunFolder(seed_folder(out, seed)) for seed in seeds) if run.config.is_file()]
    if not begun:
        raise ConfigError(f"{out} holds no run of the seeds {', '.join(seeds)}: begin them without --resume")
    return begun[0]


def mean_and_spread(results: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Averages results of several runs.

    Args:
        results: The content of results.json of each run. Its values are numbers and dicts of numbers; other values, and
            the numbers of images, must be the same in all runs. DETAILS and the format are left out.

    Returns:
        The means, with the values that all runs share, and the sample standard deviations, in the shape of the results.
        A deviation is None for one run.

    Raises:
        ConfigError: For runs that were not evaluated in the same way.
    """
    results = [{name: value for name, value in result.items() if name not in LEFT_OUT} for result in results]
    mean: dict[str, Any] = {}
    spread: dict[str, Any] = {}
    for name, first in results[0].items():
        values: list[Any] = [result.get(name) for result in results]
        if isinstance(first, dict) and name != "images" and all(isinstance(value, dict) for value in values):
            mean[name], spread[name] = mean_and_spread(values)
        elif all(isinstance(value, (int, float)) for value in values):
            mean[name], spread[name] = float(np.mean(values)), sample_deviation(values)
        elif all(value == first for value in values):
            mean[name] = first
        else:
            raise ConfigError(f"the runs were measured in different ways: {name} is {' and '.join(map(str, values))}")
    if any(result.keys() != results[0].keys() for result in results):
        names = sorted(set().union(*results) - set.intersection(*(set(result) for result in results)))
        raise ConfigError(f"the runs were measured in different ways: {', '.join(names)} is not in all of them")
    return mean, spread


def sample_deviation(values: Sequence[float]) -> float | None:
    """The sample standard deviation (divided by n - 1), None for one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
