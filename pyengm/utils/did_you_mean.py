"""Names in upper or lower case, and suggestions for misspelt ones."""

from collections.abc import Iterable
from difflib import get_close_matches

from pyengm.errors import ConfigError


def did_you_mean(value: object, known: Iterable[str]) -> str:
    """A suggestion to append to an error message.

    Args:
        value: what was given in place of a known name.
        known: the names that exist.

    Returns:
        " (did you mean NAME?)" with the closest known name, "" if none is close.
    """
    by_lower = {name.lower(): name for name in reversed(list(known))}
    close = [by_lower[name] for name in get_close_matches(str(value).lower(), list(by_lower), n=1)]
    return f" (did you mean {close[0]}?)" if close else ""


def match_name(value: str, known: Iterable[str], what: str) -> str:
    """Finds a name in upper or lower case, with hyphens or underscores.

    Args:
        value: what was given.
        known: the names that exist.
        what: what is named, for the message, such as "method".

    Returns:
        The name as `known` has it.

    Raises:
        ConfigError: there is no such name; the message lists those that there are.
    """
    names = list(known)
    if value in names:
        return value
    by_form = {_form(name): name for name in names}
    if _form(value) not in by_form:
        raise ConfigError(f"unknown {what} {value!r}; known: {', '.join(names)}{did_you_mean(value, names)}")
    return by_form[_form(value)]


def _form(name: str) -> str:
    return name.lower().replace("-", "_")
