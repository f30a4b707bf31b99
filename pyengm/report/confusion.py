"""Which classes a model takes for which, and its accuracy on each class."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyengm.report.attacked import Attacked

MAX_CLASSES = 20  # of a matrix that can be read
MOST_FREQUENT = 15


@dataclass(frozen=True)
class Confusion:
    """Predictions by true class.

    Args:
        title: Without which attack, or under which.
        shares: A row for each true class: the shares in per cent of its images that are predicted as each class. None
            for more than `MAX_CLASSES` classes.
        frequent: The most frequent errors: the true class, the predicted one, the number of images, and the number of
            images of the true class.
    """

    title: str
    shares: list[list[int]] | None
    frequent: list[tuple[str, str, int, int]]


@dataclass(frozen=True)
class ClassAccuracy:
    """The accuracy on the images of a class, in per cent.

    Args:
        name: The class.
        images: Their number.
        clean: The accuracy on the images as they are.
        attacked: The accuracy under the attack.
    """

    name: str
    images: int
    clean: float
    attacked: float


def confusions(attacked: Attacked) -> list[Confusion]:
    """The confusions without and under the attack."""
    pairs = (("Natural", attacked.clean), (f"Under {attacked.attack}", attacked.adversarial))
    return [_confusion(title, attacked, _counts(attacked, predicted.classes)) for title, predicted in pairs]


def class_accuracies(attacked: Attacked) -> list[ClassAccuracy]:
    """The accuracies of the classes that have images, in the order of the classes."""
    clean, under = (_counts(attacked, one.classes) for one in (attacked.clean, attacked.adversarial))
    return [
        ClassAccuracy(name, total, 100 * int(clean[i, i]) / total, 100 * int(under[i, i]) / total)
        for i, name in enumerate(attacked.classes)
        if (total := int(clean[i].sum()))
    ]


def _counts(attacked: Attacked, predicted: Tensor) -> Tensor:
    """Numbers of images (k, k) by true and predicted class."""
    k = len(attacked.classes)
    return torch.bincount(attacked.labels * k + predicted, minlength=k * k).view(k, k)


def _confusion(title: str, attacked: Attacked, counts: Tensor) -> Confusion:
    totals = counts.sum(dim=1, keepdim=True)
    shares = (100 * counts / totals.clamp(min=1)).round().int().tolist() if len(counts) <= MAX_CLASSES else None
    wrong = [(int(counts[i, j]), i, j) for i, j in map(tuple, counts.nonzero().tolist()) if i != j]
    frequent = sorted(wrong, key=lambda error: (-error[0], error[1:]))[:MOST_FREQUENT]  # equal ones by class
    names = attacked.classes
    return Confusion(title, shares, [(str(names[i]), str(names[j]), n, int(totals[i])) for n, i, j in frequent])
