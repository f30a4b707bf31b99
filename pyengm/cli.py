"""The command line: pyengm train, pyengm evaluate, pyengm reproduce."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.markup import escape

from pyengm import __version__
from pyengm.attacks import ThreatModel
from pyengm.data import load
from pyengm.errors import ConfigError, PyengmError
from pyengm.evaluation import evaluate_with_progress, final_attacks, results_table
from pyengm.models import read_info
from pyengm.reproduce import ReproduceConfig, list_tables, reproduce
from pyengm.training import Interrupted, RunFolder, TrainConfig, pick_device, train, train_seeds
from pyengm.training.config import MAY_CHANGE, Pixels, default_threats
from pyengm.training.launcher import began_by_this_job, group, is_rank_zero, launch, local_device, started
from pyengm.training.multi_seed import begun_run, is_begun
from pyengm.training.signals import STATUS
from pyengm.utils import terminal
from pyengm.utils.distributed import rank
from pyengm.utils.io import atomic_write, make_dirs
from pyengm.utils.terminal import log


@dataclass(frozen=True)
class EvaluateConfig:
    """Attack a trained model and print its accuracies. A run folder brings its options; the others override them."""

    target: tyro.conf.Positional[Path]
    """A run folder, of which best and last are evaluated, or one checkpoint (.safetensors)."""
    data: str | None = None
    """Data set whose test images are attacked (else that of the training)."""
    root: Path | None = None
    """Where data sets and decoded folders are kept."""
    norm: str | None = None
    """Evaluate under this threat model only: linf or l2 (else both)."""
    eps: Pixels | None = None
    """Radius for --norm in pixel units, such as 8/255."""
    attacks: tuple[str, ...] = ()
    """Further attacks: fgsm, pgd10, pgd50, cw, members of AutoAttack (apgd_ce, apgd_t, fab_t, square), or deepfool for
    the mean L2 distance to the decision boundary."""
    autoattack_examples: int | None = None
    """Test images for AutoAttack, spread evenly over the test set (else the run's number, else all)."""
    surrogate: Path | None = None
    """Checkpoint of another model: PGD-20 against that one is tried on the target too (black box)."""
    seed: int = 0
    """Seed of the random starts."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ... (auto: cuda where there is one)."""
    out: Path | None = None
    """Also write the results to this JSON file, which must not exist yet. An interrupted AutoAttack goes on from a
    folder beside it (OUT.autoattack); that of a run always does, from RUN/autoattack."""

    def __post_init__(self) -> None:
        if self.autoattack_examples is not None and self.autoattack_examples < 1:
            raise ConfigError(f"autoattack_examples is {self.autoattack_examples}; expected at least 1")


def main(args: Sequence[str] | None = None) -> int:
    """Runs one command. Returns 0; 1 after an error that the user can mend, 2 for options that do not parse; 75 after
    Ctrl-C or SIGTERM where the same command with --resume goes on, 130 where Ctrl-C came before anything was saved."""
    args = list(sys.argv[1:] if args is None else args)
    if args in (["--version"], ["-V"]):
        print(__version__)
        return 0
    command = args[0] if args else "--help"
    try:
        if command == "train":
            config = parse_train(args[1:])
            return in_processes(config.nproc, args, lambda: train_command(config))
        elif command == "evaluate":
            options = tyro.cli(EvaluateConfig, prog="pyengm evaluate", args=args[1:])
            return in_processes(None, args, lambda: evaluate_command(options))
        elif command == "reproduce":
            options = tyro.cli(ReproduceConfig, prog="pyengm reproduce", args=args[1:])
            return in_processes(options.nproc, args, lambda: reproduce_command(options))
        return usage(command)
    except Interrupted as stop:
        if is_rank_zero():
            log(str(stop))
        return STATUS
    except KeyboardInterrupt:
        log("interrupted")
        return 130
    except PyengmError as error:
        if getattr(error, "reported_by_rank0", False):
            return 1
        where = "" if is_rank_zero() else f" in process {os.environ['RANK']}"
        Console(stderr=True).print(f"[bold red]error{where}:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 1
    return 0


def usage(command: str) -> int:
    """What to print for no command, --help, or a command that does not exist."""
    known = command in ("--help", "-h")
    if not known:
        Console(stderr=True).print(f"[bold red]error:[/] unknown command {escape(repr(command))}", highlight=False)
    terminal.console.print(
        "usage: pyengm COMMAND [OPTIONS]\n\n"
        "  train      train a robust classifier, attack it, leave a table and an image\n"
        "  evaluate   attack the checkpoints of a run, or one checkpoint\n"
        "  reproduce  train the rows of a table of the papers, and compare\n\n"
        "pyengm COMMAND --help lists the options; pyengm --version prints the version.",
        highlight=False,
        markup=False,
    )
    return 0 if known else 2


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
    config = tyro.cli(TrainConfig, prog="pyengm train", args=list(args), default=saved).resolve()
    if given.resume and (changed := set(config.differing(saved.resolve())) - set(MAY_CHANGE)):
        names = ", ".join(sorted(changed))
        raise ConfigError(f"a resumed run keeps its options; {names} differ from {run.config}")
    return replace(config, resume=given.resume)


def in_processes(nproc: int | None, args: Sequence[str], command: Callable[[], int]) -> int:
    """Runs the command in the group that this process belongs to, or starts one of `nproc` that do; its status."""
    if nproc and nproc > 1 and not started():
        return launch(nproc, args)
    with group():
        return command()


def train_command(config: TrainConfig) -> int:
    """One run, or one of each seed; 1 where one of several failed."""
    if not config.seeds:
        train(config)
        return 0
    return 1 if train_seeds(config)["failed"] else 0


def reproduce_command(options: ReproduceConfig) -> int:
    """The list of tables, or the runs of one; 1 where a run failed."""
    if options.table is None:
        list_tables()
        return 0
    return 1 if reproduce(options)["failed"] else 0


def evaluate_command(options: EvaluateConfig) -> int:
    """Attacks a run's checkpoints or a single one, prints the table and, where asked, writes it as JSON; returns 0."""
    if options.out is not None and options.out.exists():
        raise ConfigError(f"{options.out} exists and is not overwritten; choose another --out")
    if options.target.is_dir():
        run = RunFolder.open(options.target)
        checkpoints = {"best": run.best, "last": run.last}
        info = read_info(run.best)
        state = run.autoattack if os.access(run.path, os.W_OK) else None
        trained = TrainConfig.load(run.config)
    else:
        checkpoints = {options.target.stem: options.target}
        info = read_info(options.target)
        state = options.out and options.out.with_suffix(".autoattack")
        trained = TrainConfig(data=info.data).resolve()
    if trained.threads is not None:
        torch.set_num_threads(trained.threads)
    data = options.data or info.data
    test = load(data, "test", root=options.root or trained.root, image_size=trained.image_size)
    threats = default_threats(data, ThreatModel(info.norm, info.eps))
    if options.norm is not None:
        known = {threat.norm: threat.eps for threat in threats}
        threats = [ThreatModel(options.norm, known.get(options.norm, 0.0) if options.eps is None else options.eps)]
    elif options.eps is not None:
        raise ConfigError("--eps needs --norm linf or --norm l2, the threat model that it belongs to")
    if options.out is not None:
        make_dirs(options.out.parent)  # an error comes now, not after the evaluation
    try:
        results = evaluate_with_progress(
            checkpoints,
            test,
            threats,
            final_attacks(options.attacks),
            autoattack_examples=options.autoattack_examples or trained.autoattack_examples,
            surrogate=options.surrogate,
            state=state,
            seed=options.seed,
            device=local_device(pick_device(options.device)),
        )
    except KeyboardInterrupt:
        again = "interrupted" if state is None else "interrupted; the same command goes on where AutoAttack stopped"
        raise Interrupted(again) from None
    log(results_table(results, str(options.target)))
    if options.out is not None and rank() == 0:
        text = json.dumps(results, indent=2) + "\n"
        atomic_write(options.out, lambda path: path.write_text(text))
    return 0
