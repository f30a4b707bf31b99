"""`pyengm completion`."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from pyengm.cli.analyze import AnalyzeConfig
from pyengm.cli.evaluate_options import EvaluateConfig
from pyengm.cli.parser import print_completion
from pyengm.cli.report import ReportConfig
from pyengm.reproduce import ReproduceConfig
from pyengm.training import TrainConfig
from pyengm.training.option_types import Choice, OptionGroup


@dataclass(frozen=True)
class CompletionConfig(OptionGroup):
    """Print a script for completion in a shell. For bash, add to ~/.bashrc: eval "$(pyengm completion bash)"; for zsh,
    run once: pyengm completion zsh > DIR/_pyengm, with a folder DIR of $fpath."""

    shell: tyro.conf.Positional[Annotated[str, Choice(("bash", "zsh", "fish"))]]
    """The shell."""


def completion_command(options: CompletionConfig) -> int:
    """Prints the script; returns 0."""
    commands = {
        "train": TrainConfig,
        "evaluate": EvaluateConfig,
        "report": ReportConfig,
        "analyze": AnalyzeConfig,
        "reproduce": ReproduceConfig,
        "completion": CompletionConfig,
    }
    print_completion(commands, "pyengm", options.shell)
    return 0
