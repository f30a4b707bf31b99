"""`pyengm train`."""

import argparse
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pyengm.cli.arguments_help import print_arguments
from pyengm.cli.parser import HELP, flags_in, parse
from pyengm.errors import ConfigError, UsageError
from pyengm.methods import METHODS
from pyengm.training import RunFolder, TrainConfig, plan, train, train_seeds
from pyengm.training.config import MAY_CHANGE
from pyengm.training.config_groups import ALL_OPTIMIZERS
from pyengm.training.launcher import began_by_this_job
from pyengm.training.multi_seed import begun_run, is_begun
from pyengm.utils.import_object import check_trusted
from pyengm.utils.terminal import log, log_warnings

PROG = "pyengm train"


def parse_train(args: Sequence[str]) -> TrainConfig:
    """Parses the options of a run: those given, over those of --config, over the recipe.

    With --resume the options are those of the run, which cannot be changed. Options of a file that have no effect under
    those given are dropped.

    Raises:
        UsageError: For words that do not parse.
        ConfigError: For values that are not allowed, a file that cannot be read, and options that do not fit together
            or the run.
        SystemExit: With status 0 after the help.
    """
    if any(word in HELP for word in args):
        print_help([word for word in args if word not in HELP])
        raise SystemExit(0)
    files = _files(args)
    saved, run = _saved_options(files)
    given = parse(TrainConfig, PROG, args, saved).drop_idle(keep=flags_in(args))
    config = given.resolve()
    if run is not None:
        changed = set(config.differing(saved.resolve())) - {*MAY_CHANGE, *(("seed",) if config.run.seeds else ())}
        if changed:
            names = ", ".join(sorted(changed))
            raise ConfigError(f"a resumed run keeps its options; {names} differ from {run.config}")
    return config.override(resume=files.resume)


def parse_base(args: Sequence[str]) -> tuple[TrainConfig, set[str]]:
    """Parses options that several runs share, and returns them, not resolved, with the flat names of those given.

    Raises:
        UsageError, ConfigError, SystemExit: As `parse_train`.
    """
    saved, _ = _saved_options(_files(args))
    given = flags_in(args)
    return parse(TrainConfig, PROG, args, saved).drop_idle(keep=given), given


def print_help(args: Sequence[str]) -> None:
    """Prints the help with the values that the recipe of the other options on the command line has.

    Where --method or --optimizer is given, the options of that method or optimiser follow.
    """
    try:
        saved, _ = _saved_options(_files(args))
        config = parse(TrainConfig, PROG, args, saved).drop_idle(keep=()).resolve()
    except ConfigError:  # the help of a command that would fail has the defaults of no options
        args, config = (), TrainConfig().resolve()
    with suppress(SystemExit):
        parse(TrainConfig, PROG, ["--help"], config)
    flags = flags_in(args)
    if "method" in flags:
        print_arguments("--method-options", config.method.name, METHODS[config.method.name])
    if "optimizer" in flags:
        print_arguments("--optimizer-options", config.optimizer.name, ALL_OPTIMIZERS[config.optimizer.name])


def train_command(config: TrainConfig) -> int:
    """Trains one run, or one for each seed; returns 1 where one of several failed, else 0.

    With --dry-run it prints what that would cost.
    """
    if config.run.dry_run:
        with log_warnings():
            log(plan(config), always=True)
        return 0
    if not config.run.seeds:
        train(config)
        return 0
    return 1 if train_seeds(config)["failed"] else 0


def _files(args: Sequence[str]) -> argparse.Namespace:
    """The options that name files with other options, and whether the run is resumed."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path, nargs="?")  # `parse` refuses options without a value
    parser.add_argument("--out", type=Path, nargs="?")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--trust-config", action="store_true")
    parser.add_argument("--seeds", nargs="*", default=())
    files, _ = parser.parse_known_args(args)
    with suppress(OSError):  # `parse` refuses a path that cannot be one
        if files.out is not None and is_begun(files.out, files.seeds):
            files.resume |= began_by_this_job(RunFolder(files.out).job)
    return files


def _saved_options(files: argparse.Namespace) -> tuple[TrainConfig, RunFolder | None]:
    """The options that those on the command line override, and the run that is resumed."""
    if not files.resume:
        if not files.config:
            return TrainConfig(), None
        return _load(files.config, files.trust_config), None
    if files.out is None:
        raise UsageError("--resume needs --out RUN_FOLDER, the run to resume")
    run = begun_run(files.out, files.seeds) if files.seeds else RunFolder.open(files.out)
    return _load(run.config, files.trust_config), run


def _load(path: Path, trusted: bool) -> TrainConfig:
    """The options of a file, without errors. Raises ConfigError where the file names code that is not trusted."""
    saved = TrainConfig.load(path)
    try:
        saved.resolve()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    check_trusted(saved.code(), path, trusted)
    return saved
