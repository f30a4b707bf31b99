"""The warnings of AutoAttack's package: records in place of lines on the terminal."""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pyautoattack import checks

LOGGER = "auto-attack"  # of the package

# Kind -> (a part of the package's message, what the warning says about the model).
_KINDS = {
    "randomized": (
        "randomized defense",
        "the outputs on the same images differ from call to call, and the attacks take the model for a fixed one",
    ),
    "softmax_output": (
        "probability distribution",
        "the outputs are probabilities: their gradients vanish where the model is sure; return the logits",
    ),
    "zero_gradients": (
        "zero gradient",
        "the gradient is zero on {} images of a batch: attacks that follow gradients cannot move these",
    ),
    "square": (
        "Square Attack",
        "Square, which uses no gradients, fools the model on {} % of the images that the attacks with gradients did "
        "not: these do not work well on this model",
    ),
    "dynamic": (
        "dynamic defense",
        "the model computes gradients while it predicts, so it may change with its input: the attacks do not know this",
    ),
}


@dataclass(frozen=True)
class AutoAttackWarning:
    """A reason for which a result of AutoAttack may be too high.

    Args:
        kind: "randomized", "softmax_output", "zero_gradients", "square" or "dynamic"; "other" for unknown messages.
        text: what is wrong with the model.

    References:
        Croce et al. 2021, "RobustBench", Sec. 3; flags_doc.md of AutoAttack's repository.
    """

    kind: str
    text: str


@contextmanager
def recorded_messages() -> Iterator[list[str]]:
    """A context in which the package's warnings are not printed; yields the list of them, each message once."""
    messages: list[str] = []
    checks.funcs.update(dict.fromkeys(checks.funcs, 0))  # the package counts the calls of all models in one place

    def record(entry: logging.LogRecord) -> bool:
        message = entry.getMessage()
        if entry.levelno >= logging.WARNING and message not in messages:
            messages.append(message)
        return False

    logger = logging.getLogger(LOGGER)
    logger.addFilter(record)
    try:
        yield messages
    finally:
        logger.removeFilter(record)


def warnings_of(messages: Sequence[str]) -> list[AutoAttackWarning]:
    """Sorts the package's messages.

    Args:
        messages: from `recorded_messages`, of one or several runs.

    Returns:
        A warning per kind, with the largest number that its messages name.
    """
    found: dict[str, list[str]] = {}
    for message in messages:
        kind = next((kind for kind, (part, _) in _KINDS.items() if part in message), "other")
        found.setdefault(kind, []).append(message)
    return [
        AutoAttackWarning(kind, texts[0] if kind == "other" else _KINDS[kind][1].format(_largest(texts)))
        for kind, texts in found.items()
    ]


def _largest(messages: Sequence[str]) -> str:
    numbers = [number for message in messages for number in re.findall(r"\d+(?:\.\d+)?", message)]
    return max(numbers, key=float, default="")
