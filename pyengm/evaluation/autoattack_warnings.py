"""The warnings of AutoAttack's package: records in place of lines on the terminal."""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pyautoattack import checks

LOGGER = "auto-attack"  # of the package

SQUARE_MARGIN = 0.002  # of the package
SQUARE_IMAGES = 3  # fewer are chance

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


def square_warnings(accuracies: Mapping[str, float], images: int) -> list[AutoAttackWarning]:
    """A warning where Square, which needs no gradients, lowers the accuracy after the attacks that use them.

    The package has this check for a whole data set; on few images one more may be chance.

    Args:
        accuracies: from `AutoAttackVerdicts.accuracies`.
        images: the number of images that AutoAttack attacked.
    """
    before = [value for name, value in accuracies.items() if name not in ("natural", "square")]
    margin = max(SQUARE_MARGIN, (SQUARE_IMAGES - 0.5) / images)
    if "square" not in accuracies or not before or accuracies["square"] >= min(before) - margin:
        return []
    text = (
        f"Square, which uses no gradients, lowers the accuracy from {100 * min(before):.1f} to "
        f"{100 * accuracies['square']:.1f} %: attacks by gradients are not reliable on this model, and its robust "
        "accuracy may be lower still"
    )
    return [AutoAttackWarning("square", text)]


def _largest(messages: Sequence[str]) -> str:
    numbers = [number for message in messages for number in re.findall(r"\d+(?:\.\d+)?", message)]
    return max(numbers, key=float, default="")
