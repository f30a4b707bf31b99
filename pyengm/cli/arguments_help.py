"""The help on the options of a method or an optimiser, which are the arguments of its class."""

import shutil

from rich import box
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pyengm.training.option_parsing import format_argument, own_arguments


def print_arguments(option: str, name: str, kind: type) -> None:
    """Prints the options of a method or an optimiser: name, type, text and default.

    Args:
        option: The flag that takes them, such as --method-options.
        name: The name of the method or the optimiser.
        kind: Its class.
    """
    console = Console(width=shutil.get_terminal_size().columns, highlight=False)
    title = f"options of {name}: {option} NAME=VALUE ..."
    table = Table.grid(padding=(0, 2))
    for argument in own_arguments(kind).values():
        metavar = argument.values.metavar + ("|none" if argument.values.optional else "")
        text = Text.assemble(argument.text, " ", (f"(default: {format_argument(argument.default)})", "cyan"))
        table.add_row(Text(f"{argument.name}={metavar}", style="bold"), text)
    content = table if table.rows else Text(f"{name} has no options of its own.")
    if console.is_terminal:
        console.print(Panel(content, title=title, title_align="left", box=box.ROUNDED))
    else:
        console.print(Group(Text(f" {title}"), content))
