"""Evaluation of checkpoints with its progress on the terminal."""

from typing import Any

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column

from pyengm.evaluation.checkpoints import evaluate_checkpoints
from pyengm.utils import terminal
from pyengm.utils.distributed import rank
from pyengm.utils.terminal import is_quiet, log_warnings

SPEED_PERIOD = 3600  # seconds that the remaining time is estimated from: a member of AutoAttack may take minutes


def evaluate_with_progress(*arguments: Any, **options: Any) -> dict[str, Any]:
    """`evaluate_checkpoints` with one bar over all of its work, the remaining time and the current attack.

    Args:
        *arguments: arguments of `evaluate_checkpoints`.
        **options: its keyword arguments, but on_attack, on_pass and on_share.

    Returns:
        Its results.
    """
    note = TextColumn("{task.fields[note]}", table_column=Column(ratio=2, no_wrap=True, overflow="ellipsis"))
    bar = BarColumn(bar_width=None, table_column=Column(ratio=1))
    columns = (TextColumn("{task.description}"), bar, TaskProgressColumn(), TimeRemainingColumn(), note)
    disabled = rank() != 0 or is_quiet()
    with (
        log_warnings(),
        Progress(
            *columns,
            console=terminal.console,
            transient=True,
            expand=True,
            disable=disabled,
            speed_estimate_period=SPEED_PERIOD,
        ) as bars,
    ):
        task = bars.add_task("evaluating", total=1.0, note="")

        def on_attack(title: str) -> None:
            bars.update(task, note=title)

        def on_pass(title: str, done: int, total: int, robust: float) -> None:
            bars.update(task, note=f"{100 * robust:.1f} % {title}")

        def on_share(share: float) -> None:
            bars.update(task, completed=share)

        return evaluate_checkpoints(*arguments, **options, on_attack=on_attack, on_pass=on_pass, on_share=on_share)
