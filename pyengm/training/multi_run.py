"""Several runs in one call: each is started, resumed, or, where it is complete, read."""

import traceback
from collections.abc import Callable, Mapping
from typing import Any

from pyengm.errors import ConfigError, Interrupted, PyengmError
from pyengm.training.config import MAY_CHANGE, TrainConfig
from pyengm.training.run import train
from pyengm.training.run_folder import RunFolder, out_of
from pyengm.utils.distributed import on_rank0, world_size
from pyengm.utils.terminal import log


def complete(config: TrainConfig) -> dict[str, Any]:
    """Starts, resumes or reads the run in the folder `out`, and returns its results.

    Args:
        config: Resolved options of one run, `out` among them.

    Returns:
        The content of results.json, see `evaluate_checkpoints`.

    Raises:
        ConfigError: For a folder whose run has other options.
        PyengmError: What `train` raises.
    """
    stage, run = on_rank0(lambda: stage_of(config)), RunFolder(out_of(config))
    if stage == "complete":
        log(f"complete: {run.path}")
        return run.read_results()
    return train(config.override(resume=stage == "started"))


def stage_of(config: TrainConfig) -> str:
    """ "new", "started" or "complete". Raises ConfigError for a folder whose run has other options."""
    run = RunFolder(out_of(config))
    if not run.config.is_file():
        return "new"
    changed = [name for name in config.differing(TrainConfig.load(run.config)) if name not in MAY_CHANGE]
    if changed:
        raise ConfigError(
            f"a run keeps its options; {', '.join(changed)} differ from {run.config}: choose another --out"
        )
    return "complete" if run.results.exists() else "started"


def complete_all(
    configs: Mapping[str, TrainConfig],
    again: str,
    *,
    fatal: tuple[type[PyengmError], ...] = (),
    after_run: Callable[[Mapping[str, str]], None] = lambda failed: None,
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Completes several runs.

    Args:
        configs: Resolved options of each run, by name.
        again: The advice to the user after Ctrl-C.
        fatal: Errors that end the call, as every run would raise them.
        after_run: Called after each run with the errors of those that have failed.

    Returns:
        The results of the runs that succeed and the errors of those that fail, by name.

    Raises:
        Interrupted: After Ctrl-C; the state of the run is saved.
    """
    results: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    for number, (name, config) in enumerate(configs.items(), 1):
        log(f"run {number} of {len(configs)}: {name}")
        try:
            results[name] = complete(config)
        except (Interrupted, KeyboardInterrupt) as stop:
            done = f"{len(results)} of {len(configs)} runs are complete"
            raise Interrupted(f"stopped in {name}; {done}; {again}") from stop
        except fatal:
            raise
        except Exception as error:  # one run that fails, out of memory for instance, leaves the others as they are
            if world_size() > 1:
                raise  # the other processes wait for this one within the run
            failed[name] = str(error)
            if not isinstance(error, PyengmError):
                log(traceback.format_exc())
                failed[name] = f"{type(error).__name__}: {error}"
            log(f"{name} failed: {failed[name]}")
        after_run(failed)
    return results, failed
