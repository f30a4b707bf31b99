"""Suggestions for misspelt names."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(value: str, known: Iterable[str]) -> str:
    """Returns " (did you mean ...?)" where a known name is close to the value, else nothing."""
    close = get_close_matches(str(value), list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
