"""Evaluation of checkpoints with its progress on the terminal."""

from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from pyengm.evaluation.checkpoints import evaluate_checkpoints
from pyengm.utils import terminal
from pyengm.utils.distributed import rank
from pyengm.utils.terminal import log_warnings


def evaluate_with_progress(*arguments: Any, **options: Any) -> dict[str, Any]:
    """`evaluate_checkpoints` with the current attack and a progress bar for each AutoAttack on the terminal.

    Args:
        *arguments: arguments of `evaluate_checkpoints`.
        **options: its keyword arguments, but on_attack and on_pass.

    Returns:
        Its results.
    """
    bar, note = BarColumn(bar_width=10), TextColumn("{task.fields[note]}")
    columns = (TextColumn("{task.description}"), bar, MofNCompleteColumn(), note)
    disabled = rank() != 0
    with log_warnings(), Progress(*columns, console=terminal.console, transient=True, disable=disabled) as bars:
        tasks: dict[str, TaskID] = {"": bars.add_task("evaluating", total=None, note="")}

        def on_pass(title: str, done: int, total: int, robust: float) -> None:
            if title not in tasks:
                tasks[title] = bars.add_task(title, total=total, note="")
            bars.update(tasks[title], completed=done, note=f"robust {100 * robust:.1f} %")

        def on_attack(title: str) -> None:
            bars.update(tasks[""], description=f"evaluating {title}")

        return evaluate_checkpoints(*arguments, **options, on_attack=on_attack, on_pass=on_pass)
