"""`pyengm completion`."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from pyengm.cli.analyze import AnalyzeConfig
from pyengm.cli.compare import CompareConfig
from pyengm.cli.evaluate_options import EvaluateConfig
from pyengm.cli.parser import print_completion
from pyengm.cli.report import ReportConfig
from pyengm.cli.sweep import SweepConfig
from pyengm.reproduce import ReproduceConfig
from pyengm.training import TrainConfig
from pyengm.training.option_types import Choice, OptionGroup


@dataclass(frozen=True)
class CompletionConfig(OptionGroup):
    """Print a script for completion in a shell. For bash, add to ~/.bashrc: eval "$(pyengm completion bash)"; for zsh,
    run once: pyengm completion zsh > DIR/_pyengm, with a folder DIR of $fpath."""

    shell: tyro.conf.Positional[Annotated[str, Choice(("bash", "zsh", "fish"))]]
    """The shell."""


def option_classes() -> dict[str, type]:
    """The dataclass of options of each command."""
    commands = {
        "train": TrainConfig,
        "sweep": SweepConfig,
        "evaluate": EvaluateConfig,
        "report": ReportConfig,
        "compare": CompareConfig,
        "analyze": AnalyzeConfig,
        "reproduce": ReproduceConfig,
        "completion": CompletionConfig,
    }
    return commands


def completion_command(options: CompletionConfig) -> int:
    """Prints the script; returns 0."""
    print_completion(option_classes(), "pyengm", options.shell)
    return 0
