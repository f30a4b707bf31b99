"""The commands of the command line."""

from collections.abc import Callable, Sequence

from pyengm.cli.analyze import AnalyzeConfig, analyze_command
from pyengm.cli.compare import CompareConfig, compare_command
from pyengm.cli.completion import CompletionConfig, completion_command
from pyengm.cli.evaluate import evaluate_command
from pyengm.cli.evaluate_options import EvaluateConfig
from pyengm.cli.parser import parse
from pyengm.cli.report import ReportConfig, report_command
from pyengm.cli.reproduce import reproduce_command
from pyengm.cli.sweep import parse_sweep, sweep_command
from pyengm.cli.train import parse_train, train_command
from pyengm.reproduce import ReproduceConfig
from pyengm.training.launcher import launch, process_group
from pyengm.utils.launched import is_launched


def run(command: str, words: list[str]) -> int:
    """Runs a command.

    Args:
        command: Its name.
        words: The words after it.

    Returns:
        Its exit status.

    Raises:
        PyengmError: What the command raises; UsageError for words that do not parse.
        SystemExit: With status 0 after the help.
    """
    args = [command, *words]
    if command == "train":
        config = parse_train(words)
        return _in_processes(None if config.run.dry_run else config.machine.nproc, args, lambda: train_command(config))
    if command == "evaluate":
        evaluation = parse(EvaluateConfig, "pyengm evaluate", words)
        return _in_processes(None, args, lambda: evaluate_command(evaluation))
    if command == "sweep":
        sweep, base = parse_sweep(words)
        return _in_processes(sweep.nproc, args, lambda: sweep_command(sweep, base))
    if command == "report":
        return report_command(parse(ReportConfig, "pyengm report", words))
    if command == "compare":
        return compare_command(parse(CompareConfig, "pyengm compare", words))
    if command == "analyze":
        return analyze_command(parse(AnalyzeConfig, "pyengm analyze", words))
    if command == "reproduce":
        reproduction = parse(ReproduceConfig, "pyengm reproduce", words)
        return _in_processes(reproduction.nproc, args, lambda: reproduce_command(reproduction))
    return completion_command(parse(CompletionConfig, "pyengm completion", words))


def _in_processes(nproc: int | None, args: Sequence[str], command: Callable[[], int]) -> int:
    """Runs the command in the group that this process belongs to, or starts one of `nproc` that do; its status."""
    if nproc and nproc > 1 and not is_launched():
        return launch(nproc, args)
    with process_group():
        return command()
