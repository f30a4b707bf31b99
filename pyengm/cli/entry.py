"""The entry point of the command line: picks the command, and turns errors into messages and a status."""

import os
import sys
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.markup import escape

from pyengm import __version__
from pyengm.cli.completion import CompletionConfig, completion_command
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
from pyengm.utils.did_you_mean import did_you_mean
from pyengm.utils.terminal import log

COMMANDS = {
    "train": "train a robust classifier and evaluate it",
    "evaluate": "attack the checkpoints of a run, or one checkpoint",
    "reproduce": "train the rows of a table of the papers, and compare",
    "completion": "print a script for completion in bash, zsh or fish",
}


def main(args: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        args: The words of the command line; None takes those of this process.

    Returns:
        0; 1 after an error that the user can correct; 2 for words that do not parse; 75 after Ctrl-C or SIGTERM where
        the same command with --resume resumes; 130 after Ctrl-C before anything was saved.
    """
    args = list(sys.argv[1:] if args is None else args)
    try:
        return _run(args)
    except Interrupted as stop:
        if is_rank_zero():
            log(str(stop))
        return STATUS
    except KeyboardInterrupt:
        log("interrupted")
        return 130
    except PyengmError as error:
        if not getattr(error, "reported_by_rank0", False):
            _print_error(str(error), "" if is_rank_zero() else f" in process {os.environ['RANK']}")
        return 1


def _run(args: list[str]) -> int:
    command, words = (args[0], args[1:]) if args else ("--help", [])
    match command:
        case "train":
            config = parse_train(words)
            return _in_processes(config.machine.nproc, args, lambda: train_command(config))
        case "evaluate":
            evaluation = parse(EvaluateConfig, "pyengm evaluate", words)
            return _in_processes(None, args, lambda: evaluate_command(evaluation))
        case "reproduce":
            reproduction = parse(ReproduceConfig, "pyengm reproduce", words)
            return _in_processes(reproduction.nproc, args, lambda: reproduce_command(reproduction))
        case "completion":
            return completion_command(parse(CompletionConfig, "pyengm completion", words))
        case "-V" | "--version":
            print(__version__)
            return 0
        case "-h" | "--help":
            _print_usage()
            return 0
    _print_error(f"unknown command {command!r}{did_you_mean(command, COMMANDS)}")
    _print_usage()
    return 2


def _print_usage() -> None:
    lines = "\n".join(f"  {name:<12}{text}" for name, text in COMMANDS.items())
    text = (
        f"usage: pyengm COMMAND [OPTIONS]\n\n{lines}\n\n"
        "pyengm COMMAND --help lists the options; pyengm --version prints the version."
    )
    terminal.console.print(text, highlight=False, markup=False)


def _print_error(message: str, where: str = "") -> None:
    Console(stderr=True).print(f"[bold red]error{where}:[/] {escape(message)}", highlight=False, soft_wrap=True)


def _in_processes(nproc: int | None, args: Sequence[str], command: Callable[[], int]) -> int:
    """Runs the command in the group that this process belongs to, or starts one of `nproc` that do; its status."""
    if nproc and nproc > 1 and not is_launched():
        return launch(nproc, args)
    with process_group():
        return command()
