"""`pyengm train`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from pyengm.cli.parser import parse
from pyengm.errors import ConfigError
from pyengm.training import RunFolder, TrainConfig, train, train_seeds
from pyengm.training.config import MAY_CHANGE
from pyengm.training.launcher import began_by_this_job
from pyengm.training.multi_seed import begun_run, is_begun


def parse_train(args: Sequence[str]) -> TrainConfig:
    """Options over --config FILE over the defaults; with --resume, those of the run, which cannot be changed."""
    files = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    files.add_argument("--config", type=Path)
    files.add_argument("--out", type=Path)
    files.add_argument("--resume", action="store_true")
    files.add_argument("--seeds", nargs="*", default=())
    given, _ = files.parse_known_args(args)
    if given.out is not None and is_begun(given.out, given.seeds):
        given.resume |= began_by_this_job(RunFolder(given.out).job)
    if given.resume:
        if given.out is None:
            raise ConfigError("--resume needs --out RUN_FOLDER, the run to go on with")
        run = begun_run(given.out, given.seeds) if given.seeds else RunFolder.open(given.out)
        saved = TrainConfig.load(run.config)
    else:
        saved = TrainConfig.load(given.config) if given.config else TrainConfig()
    config = parse(TrainConfig, "pyengm train", args, saved).resolve()
    if given.resume and (changed := set(config.differing(saved.resolve())) - set(MAY_CHANGE)):
        names = ", ".join(sorted(changed))
        raise ConfigError(f"a resumed run keeps its options; {names} differ from {run.config}")
    return config.override(resume=given.resume)


def train_command(config: TrainConfig) -> int:
    """One run, or one of each seed; 1 where one of several failed."""
    if not config.run.seeds:
        train(config)
        return 0
    return 1 if train_seeds(config)["failed"] else 0
