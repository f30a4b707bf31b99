"""The entry point of the command line: picks the command, and turns errors into messages and a status."""

import os
import sys
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.markup import escape

from pyengm import __version__
from pyengm.cli.evaluate import EvaluateConfig, evaluate_command
from pyengm.cli.parser import parse
from pyengm.cli.reproduce import reproduce_command
from pyengm.cli.train import parse_train, train_command
from pyengm.errors import PyengmError
from pyengm.reproduce import ReproduceConfig
from pyengm.training import Interrupted
from pyengm.training.launcher import is_launched, is_rank_zero, launch, process_group
from pyengm.training.signals import STATUS
from pyengm.utils import terminal
from pyengm.utils.terminal import log


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
            return in_processes(config.machine.nproc, args, lambda: train_command(config))
        elif command == "evaluate":
            options = parse(EvaluateConfig, "pyengm evaluate", args[1:])
            return in_processes(None, args, lambda: evaluate_command(options))
        elif command == "reproduce":
            options = parse(ReproduceConfig, "pyengm reproduce", args[1:])
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


def in_processes(nproc: int | None, args: Sequence[str], command: Callable[[], int]) -> int:
    """Runs the command in the group that this process belongs to, or starts one of `nproc` that do; its status."""
    if nproc and nproc > 1 and not is_launched():
        return launch(nproc, args)
    with process_group():
        return command()
