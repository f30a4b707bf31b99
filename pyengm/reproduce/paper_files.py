"""Reading the files of the papers' tables, figures and sweeps, one YAML file each."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from pyengm.errors import ConfigError
from pyengm.utils.did_you_mean import did_you_mean, match_name

Parsed = TypeVar("Parsed")


def names_in(folder: Path) -> list[str]:
    """Returns the names of the files of a folder, without their ending."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def read_file(kind: str, name: str, folder: Path, parse: Callable[[str, Any], Parsed]) -> Parsed:
    """Reads a file by its name.

    Args:
        kind: What error messages call the content, such as "table".
        name: The name of the file, without its ending.
        folder: Its folder.
        parse: Makes the result of the name and the content, or raises ConfigError.

    Raises:
        ConfigError: There is no file of that name, or it is malformed.
    """
    name = match_name(name, names_in(folder), kind)
    path = folder / f"{name}.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the {kind} {path}: {error}") from error
    try:
        return parse(name, content)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def check_keys(what: str, content: Any, needed: Iterable[str], allowed: Iterable[str]) -> None:
    """Raises ConfigError for content of YAML that is no mapping, lacks an entry or has an unknown one."""
    if not isinstance(content, dict):
        raise ConfigError(f"{what} is {content!r}; expected names and values: {', '.join(needed)}")
    for name in content:
        if name not in (*needed, *allowed):
            raise ConfigError(f"{what} has the unknown entry {name!r}{did_you_mean(name, (*needed, *allowed))}")
    if missing := [name for name in needed if name not in content]:
        raise ConfigError(f"{what} lacks {' and '.join(missing)}")


def check_distinct(what: str, names: list[str]) -> None:
    """Raises ConfigError for two equal names."""
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"two {what} have the name {twice[0]!r}")
