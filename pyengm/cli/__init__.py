"""The command line: pyengm train, pyengm evaluate, pyengm reproduce, pyengm completion."""

from pyengm.cli.entry import main

__all__ = ["main"]
