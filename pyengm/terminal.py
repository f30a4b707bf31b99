"""What every command says on the terminal, and how."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from pyengm.evaluation import evaluate_checkpoints

console = Console()


def attack_checkpoints(*arguments: Any, **options: Any) -> dict[str, Any]:
    """`evaluate_checkpoints` with its progress on the terminal: what is running, and a bar for each AutoAttack."""
    bar, note = BarColumn(bar_width=10), TextColumn("{task.fields[note]}")
    columns = (TextColumn("{task.description}"), bar, MofNCompleteColumn(), note)
    with spoken_warnings(), Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, TaskID] = {"": bars.add_task("evaluating", total=None, note="")}

        def on_pass(title: str, done: int, total: int, robust: float) -> None:
            if title not in tasks:
                tasks[title] = bars.add_task(title, total=total, note="")
            bars.update(tasks[title], completed=done, note=f"robust {100 * robust:.1f} %")

        def on_attack(title: str) -> None:
            bars.update(tasks[""], description=f"evaluating {title}")

        return evaluate_checkpoints(*arguments, **options, on_attack=on_attack, on_pass=on_pass)


@contextmanager
def spoken_warnings() -> Iterator[None]:
    """Warnings as plain lines on the terminal, each text once."""
    with warnings.catch_warnings():
        said: set[str] = set()

        def show(message: Warning | str, *_: Any, **__: Any) -> None:
            if str(message) not in said:
                said.add(str(message))
                say(f"warning: {message}")

        warnings.showwarning = show
        yield


def say(text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
