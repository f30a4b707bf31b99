"""Texts without the folders of the machine that they come from."""

import re
from typing import Any

# A path that begins at the root, at a home folder, a drive or a network share, or that leaves the working directory.
# Fractions and divisors, such as 8/255 and eps/4, begin with none of these.
_PATH = re.compile(
    r"""(?:(?<=^)|(?<=[\s='"(\[{,:;]))(?:~|\.\.|[A-Za-z]:(?=[\\/])|(?=[\\/]))[\w.\-]*[\\/][^\s'"()\[\]{},;]*"""
)
_WHOLE = re.compile(r"(?:~|\.\.?[\\/]|[A-Za-z]:[\\/]|[\\/])[^\n]*")


def scrub(value: Any) -> Any:
    """Shortens every path in a value to its last part, so that it names no folder, user or host.

    Args:
        value: A text, or dicts and lists of texts and other values, as JSON has them.

    Returns:
        A copy. A text that is a path as a whole may contain spaces; within longer texts a path ends at a space.
    """
    if isinstance(value, dict):
        return {scrub(key): scrub(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [scrub(one) for one in value]
    if not isinstance(value, str):
        return value
    name, equals, rest = value.partition("=")
    if equals and name.startswith("-"):  # a word of a command line, --out=PATH
        return f"{name}={scrub(rest)}"
    if _WHOLE.fullmatch(value):
        return _last_part(value)
    return _PATH.sub(lambda match: _last_part(match[0]), value)


def _last_part(path: str) -> str:
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1] or "/"
