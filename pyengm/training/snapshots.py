"""Snapshots: the weights after some of the epochs, for analyses along a run."""

from collections.abc import Sequence

from pyengm.errors import ConfigError

EVERY = "every="


def check_snapshots(words: Sequence[str]) -> None:
    """Checks the option `snapshots`.

    Args:
        words: Numbers of epochs that are done, such as "10", or "every=k".

    Raises:
        ConfigError: For other words.
    """
    for word in words:
        number = word.removeprefix(EVERY)
        if not (number.isascii() and number.isdigit() and int(number) >= 1):
            raise ConfigError(f"snapshots has {word!r}; expected numbers of epochs from 1 on, such as 10, or every=5")


def snapshot_epochs(words: Sequence[str], epochs: int) -> set[int]:
    """The numbers of epochs after which a run of so many epochs writes its weights.

    Args:
        words: As for `check_snapshots`, checked.
        epochs: The length of the run.

    Raises:
        ConfigError: For numbers that the run does not reach.
    """
    found: set[int] = set()
    for word in words:
        number = int(word.removeprefix(EVERY))
        if number > epochs:
            raise ConfigError(f"snapshots has {word!r}, and the run has {epochs} epochs: expected at most {epochs}")
        found |= set(range(number, epochs + 1, number)) if word.startswith(EVERY) else {number}
    return found


def scale_snapshots(words: Sequence[str], share: float) -> tuple[str, ...]:
    """The option `snapshots` of a run that is shorter by a factor; epochs that fall together are one.

    Args:
        words: As for `check_snapshots`, checked.
        share: The length of the shorter run as a share of that of the run of the words.
    """
    scaled = []
    for word in words:
        number = word.removeprefix(EVERY)
        scaled.append(word[: len(word) - len(number)] + str(max(1, round(share * int(number)))))
    return tuple(dict.fromkeys(scaled))
