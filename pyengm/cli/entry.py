"""The entry point of the command line: picks the command, and turns errors into messages and a status.

Torch is imported by the commands (`pyengm.cli.commands`), not for --version and --help.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from io import TextIOWrapper
from types import FrameType

from pyengm import __version__
from pyengm.errors import Interrupted, PyengmError, UsageError
from pyengm.utils.did_you_mean import did_you_mean
from pyengm.utils.launched import is_rank_zero

COMMANDS = {
    "train": "train a robust classifier and evaluate it",
    "sweep": "train a grid of options times seeds, and compare the runs",
    "evaluate": "attack a trained model: a run, a checkpoint, or a model from elsewhere",
    "report": "write an HTML file about runs and evaluations, side by side",
    "compare": "compare runs: curves over seeds, overfitting, sensitivity, and a table",
    "analyze": "make figures of the papers for runs and checkpoints of your own",
    "reproduce": "train the rows of a table or the runs of a figure of the papers, and compare",
    "completion": "print a script for completion in bash, zsh or fish",
}
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
BROKEN_PIPE = 141  # 128 + SIGPIPE


def main(args: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        args: The words of the command line; None takes those of this process.

    Returns:
        0; 1 after an error that the user can correct; 2 for words that do not parse (unknown commands, options and
        choices, values of another type); 75 after Ctrl-C or SIGTERM where the same command with --resume resumes; 130
        after Ctrl-C before anything was saved; 141 where the reader of the output has left.
    """
    args = list(sys.argv[1:] if args is None else args)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be UTF-8; stderr has it by default
    try:
        status = _run(args)
        sys.stdout.flush()
        return status
    except Interrupted as stop:
        if is_rank_zero():
            print(stop, file=sys.stderr)
        return stop.exit_status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the last flush of Python succeeds
        return BROKEN_PIPE
    except PyengmError as error:
        if not getattr(error, "reported_by_rank0", False):
            print_error(str(error), "" if is_rank_zero() else f" in process {os.environ['RANK']}")
        return error.exit_status


def _run(args: list[str]) -> int:
    command, words = (args[0], args[1:]) if args else ("--help", [])
    if command in ("-V", "--version"):
        print(__version__)
        return 0
    if command in ("-h", "--help"):
        print(_usage())
        return 0
    if command.lower() not in COMMANDS:
        known = [*COMMANDS, "--version", "--help"]
        hint = did_you_mean(command, known)
        raise UsageError(f"unknown command {command!r}{hint}; known: {', '.join(COMMANDS)}; see pyengm --help")
    with _ctrl_c_ends_the_process():
        commands = import_module("pyengm.cli.commands")
    return commands.run(command.lower(), words)


@contextmanager
def _ctrl_c_ends_the_process() -> Iterator[None]:
    """A context in which Ctrl-C ends the process at once, while torch is imported for seconds and nothing is begun.

    An exception would not do: within their imports numpy and torch turn it into other errors, or abort.
    """
    if threading.current_thread() is not threading.main_thread() or "torch" in sys.modules:
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        os.write(2, b"interrupted\n")
        os._exit(INTERRUPTED)

    previous = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _usage() -> str:
    lines = "\n".join(f"  {name:<12}{text}" for name, text in COMMANDS.items())
    return (
        f"usage: pyengm COMMAND [OPTIONS]\n\n{lines}\n\n"
        "pyengm COMMAND --help lists the options; pyengm --version prints the version."
    )


def print_error(message: str, where: str = "") -> None:
    """Prints an error as one line on stderr."""
    from rich.console import Console  # here: it takes as long to import as all else for --version
    from rich.markup import escape

    line = " ".join(message.split())
    Console(stderr=True).print(f"[bold red]error{where}:[/] {escape(line)}", highlight=False, soft_wrap=True)
