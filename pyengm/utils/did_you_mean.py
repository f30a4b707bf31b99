"""Suggestions for misspelt names."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(value: object, known: Iterable[str]) -> str:
    """A suggestion to append to an error message.

    Args:
        value: what was given in place of a known name.
        known: the names that exist.

    Returns:
        " (did you mean NAME?)" with the closest known name, "" if none is close.
    """
    close = get_close_matches(str(value), list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
