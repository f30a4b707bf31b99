"""Several runs in one call: each is begun, gone on with, or, where it is complete, read."""

import traceback
from collections.abc import Mapping
from typing import Any

from pyengm.errors import ConfigError, PyengmError
from pyengm.training.config import MAY_CHANGE, TrainConfig
from pyengm.training.run import train
from pyengm.training.run_folder import RunFolder
from pyengm.training.signals import Interrupted
from pyengm.utils.distributed import on_rank0, world_size
from pyengm.utils.terminal import log


def complete(config: TrainConfig) -> dict[str, Any]:
    """The results of the run in config.out, which a run of the same options may have been begun in.

    config: resolved options of one run. Raises ConfigError for a folder whose run has others, and what `train` does.
    """
    stage, run = on_rank0(lambda: stage_of(config)), RunFolder(config.run.out)
    if stage == "complete":
        log(f"complete: {run.path}")
        return run.read_results()
    return train(config.override(resume=stage == "begun"))


def stage_of(config: TrainConfig) -> str:
    """ "new", "begun" or "complete". Raises ConfigError for a folder whose run has other options."""
    run = RunFolder(config.run.out)
    if not run.config.is_file():
        return "new"
    changed = [name for name in config.differing(TrainConfig.load(run.config)) if name not in MAY_CHANGE]
    if changed:
        raise ConfigError(
            f"a run keeps its options; {', '.join(changed)} differ from {run.config}: choose another --out"
        )
    return "complete" if run.results.exists() else "begun"


def complete_all(
    configs: Mapping[str, TrainConfig], again: str, *, fatal: tuple[type[PyengmError], ...] = ()
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """`complete` for runs by name: the results of those that succeed, and why the others failed.

    again: what the user is told to do after Ctrl-C. fatal: errors that are those of every run and end the call.
    Raises Interrupted after Ctrl-C; what was begun is saved.
    """
    results, failed = {}, {}
    for number, (name, config) in enumerate(configs.items(), 1):
        log(f"run {number} of {len(configs)}: {name}")
        try:
            results[name] = complete(config)
        except (Interrupted, KeyboardInterrupt) as stop:
            done = f"{len(results)} of {len(configs)} runs are complete"
            raise Interrupted(f"stopped in {name}; {done}; {again}") from stop
        except fatal:
            raise
        except Exception as error:  # one run out of memory, or with an error of ours, leaves the others as they are
            if world_size() > 1:
                raise  # the other processes wait for this one within the run
            failed[name] = str(error)
            if not isinstance(error, PyengmError):
                log(traceback.format_exc())
                failed[name] = f"{type(error).__name__}: {error}"
            log(f"{name} failed: {failed[name]}")
    return results, failed
